"""RandAugment's operations equal pillow's; erasing takes the area it says."""

import math

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps
import pytest
import tensorflow as tf

from kvision import data
from tests.data.augmentation.samples import compiled, detection, image

UP = 1.0 + 0.9 * 0.5
PILLOW = {
    "identity": lambda photo: photo,
    "autocontrast": PIL.ImageOps.autocontrast,
    "equalize": PIL.ImageOps.equalize,
    "solarize": lambda photo: PIL.ImageOps.solarize(photo, 128),
    "posterize": lambda photo: PIL.ImageOps.posterize(photo, 6),
    "color": lambda photo: PIL.ImageEnhance.Color(photo).enhance(UP),
    "contrast": lambda photo: PIL.ImageEnhance.Contrast(photo).enhance(UP),
    "brightness": lambda photo: PIL.ImageEnhance.Brightness(photo).enhance(UP),
    "sharpness": lambda photo: PIL.ImageEnhance.Sharpness(photo).enhance(UP),
}


@pytest.mark.parametrize("name, operation", PILLOW.items(), ids=PILLOW)
def test_operations_equal_pillow(name, operation):
    pixels = tf.round(image() * 0.7 + 20)
    transform = data.RandAugment(magnitude=5)
    got, _ = transform.operated(pixels, {}, tf.constant(transform.operations.index(name)), tf.constant(1.0))
    want = np.asarray(operation(PIL.Image.fromarray(pixels.numpy().astype("uint8"))), "float32")
    assert np.abs(got - want).max() <= 1.5  # pillow rounds its results and their means


def test_every_operation_is_drawn_as_often():
    """By the chi-squared test at a level of 0.1 %, with 13 degrees of freedom."""
    transform, draws = data.RandAugment(num_operations=1), 1400

    class Counting(data.RandAugment):
        def operated(self, image, targets, index, sign):
            return tf.reshape(tf.cast(index, tf.float32), [1, 1, 1]), targets

    run = tf.function(lambda seed: Counting(num_operations=1)(tf.zeros([1, 1, 1]), seed), autograph=False)
    drawn = [int(run(tf.constant([1, seed]))[0, 0, 0]) for seed in range(draws)]
    expected = draws / len(transform.operations)
    counts = np.bincount(drawn, minlength=len(transform.operations))
    assert len(counts) == 14
    assert ((counts - expected) ** 2 / expected).sum() < 34.5


@pytest.mark.parametrize("value", [None, 77.0])
def test_erasing_takes_a_rectangle_of_the_valid_region(value):
    run = compiled(data.RandomErasing(rate=1.0, value=value))
    areas = []
    before = detection(padded=True)
    height, width = before[1]["image_size"].numpy()
    for seed in range(30):
        pixels, targets = run(before, (1, seed))
        tf.nest.map_structure(np.testing.assert_array_equal, targets, before[1])
        changed = (pixels != before[0].numpy()).any(-1)
        rows, columns = (np.flatnonzero(changed.any(axis)) for axis in (1, 0))
        assert rows[-1] < height
        assert columns[-1] < width
        assert changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean() > 0.99
        areas.append(changed.sum() / (height * width))
    assert 0.01 < min(areas) < 0.1
    assert 0.2 < max(areas) < 0.36
    assert np.mean(areas) == pytest.approx((0.02 + 0.33) / 2, abs=4 * 0.31 / math.sqrt(12 * 30))
