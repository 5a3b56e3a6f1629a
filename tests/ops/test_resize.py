"""Resizing by matrices, against pillow."""

import keras
import numpy as np
import pytest
from PIL import Image

from kvision.ops import resize_bilinear, resize_nearest
from tests.support import assert_close


@pytest.mark.parametrize("size", [(20, 30), (37, 90), (80, 53), (36, 53), (37, 53), (5, 7), (1, 1)], ids=str)
def test_pillow_resizes_alike(size):
    images = np.random.default_rng(0).uniform(0, 1, (2, 37, 53, 3)).astype("float32")
    want = np.empty((2, *size, 3))
    for image, channel in np.ndindex(2, 3):
        pixels = Image.fromarray(images[image, :, :, channel])
        want[image, :, :, channel] = pixels.resize(size[::-1], Image.Resampling.BILINEAR)
    assert_close(resize_bilinear(images, size), want)


def test_the_batch_may_be_of_any_size():
    images = keras.Input((6, 8, 3))
    model = keras.Model(images, resize_bilinear(images, (3, 4)))
    model.compile(jit_compile=True)
    assert model.predict(np.ones((5, 6, 8, 3)), verbose=0).shape == (5, 3, 4, 3)


@pytest.mark.parametrize("shape, size", [((6, 8, 3), (3, 4)), ((1, 6, 8, 3), (0, 4))])
def test_what_cannot_be_resized_is_refused(shape, size):
    with pytest.raises(ValueError, match="static size"):
        resize_bilinear(np.ones(shape), size)


@pytest.mark.parametrize("size", [(3, 4), (6, 8), (5, 7), (1, 1), (2, 9)], ids=str)
def test_each_cell_reads_the_one_that_lies_there(size):
    maps = np.random.default_rng(0).normal(size=(2, 3, 4, 1)).astype("float32")
    want = [[maps[:, row * 3 // size[0], column * 4 // size[1]] for column in range(size[1])] for row in range(size[0])]
    assert_close(resize_nearest(maps, size), np.transpose(want, (2, 0, 1, 3)))
