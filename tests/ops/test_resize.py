"""Resizing by matrices, against pillow."""

import keras
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from kvision.ops import resize_bilinear, resize_nearest, sample_bilinear
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


@pytest.mark.parametrize(
    ("size", "step", "first"), [((9, 14), 0.25, None), ((3, 4), 1.0, -0.5), ((5, 7), 0.7, 0.3)], ids=str
)
def test_scipy_reads_the_same_points(size, step, first):
    maps = np.random.default_rng(0).normal(size=(1, 3, 4, 2)).astype("float32")
    start = (step - 1) / 2 if first is None else first
    points = np.meshgrid(*(start + step * np.arange(number) for number in size), indexing="ij")
    want = [scipy.ndimage.map_coordinates(maps[0, ..., c], points, order=1, mode="nearest") for c in range(2)]
    assert_close(sample_bilinear(maps, size, step, first)[0], np.moveaxis(want, 0, -1))


def test_a_wide_triangle_weighs_the_cells_around_a_point():
    row = np.random.default_rng(0).normal(size=12)
    weights = np.array([1, 2, 3, 4, 3, 2, 1])
    want = [weights[3:] @ row[:4] / 10, weights @ row[1:8] / 16, weights[:7] @ row[5:12] / 16]
    got = sample_bilinear(row.reshape(1, 1, 12, 1), (1, 3), step=4, first=0)
    assert_close(got[0, 0, :, 0], want)
    spread = sample_bilinear(row.reshape(1, 1, 12, 1), (1, 12), step=1, width=4)
    assert_close(spread[0, 0, ::4, 0], want)


def test_twice_the_size_by_step_is_twice_the_size_by_resizing():
    maps = np.random.default_rng(0).normal(size=(1, 3, 4, 2)).astype("float32")
    assert_close(sample_bilinear(maps, (6, 8), 1 / 2), resize_bilinear(maps, (6, 8)))


@pytest.mark.parametrize("options", [{"step": 0}, {"step": 1, "width": 0.5}], ids=str)
def test_steps_and_widths_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="a step above 0 and a width of at least 1"):
        sample_bilinear(np.ones((1, 3, 4, 1)), (3, 4), **options)
