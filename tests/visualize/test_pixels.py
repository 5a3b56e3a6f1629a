"""The range of images, told and known."""

import keras
import numpy as np
import pytest

from kvision.network import Network, Preprocessing
from kvision.visualize.pixels import PixelScale, pixel_scale
from tests.support import assert_close


def model_of(*first, preprocessing=None):
    inputs = keras.Input((4, 4, 3))
    x = inputs
    for layer in first:
        x = layer(x)
    model = Network(inputs, keras.layers.Conv2D(2, 1)(x))
    model.preprocessing = preprocessing
    return model


def test_pixels_and_back_share_no_memory():
    scale = PixelScale(np.array([-2.0, -1.0, 0.0]), np.array([2.0, 1.0, 255.0]))
    images = np.random.default_rng(0).uniform([-2, -1, 0], [2, 1, 255], (1, 4, 4, 3)).astype("float32")
    before = images.copy()
    pixels = scale.to_pixels(images)
    assert pixels.min() >= 0 and pixels.max() <= 255
    assert_close(scale.from_pixels(pixels), images, tolerance=(1e-5, 1e-4))
    assert_close(scale.before(lambda x: 2 * x)(pixels), 2 * images, tolerance=(1e-5, 1e-4))
    kept = pixels.copy()
    scale.from_pixels(pixels)[:] = 0
    for same in (PixelScale(0.0, 255.0).to_pixels(pixels), PixelScale(0.0, 255.0).from_pixels(pixels)):
        same[:] = 0
    np.testing.assert_array_equal(pixels, kept)
    np.testing.assert_array_equal(images, before)


HALVES = Preprocessing((0, 1), (0.5, 0.4, 0.3), (0.5, 0.5, 0.2))


@pytest.mark.parametrize(
    ("first", "carried", "options", "low", "high"),
    [
        ((), None, {"preprocess": abs}, 0, 255),
        ((keras.layers.Rescaling(1 / 127.5, -1),), None, {}, 0, 255),
        ((), HALVES, {}, [-1, -0.8, -1.5], [1, 1.2, 3.5]),
        ((), Preprocessing((-1, 1)), {}, -1, 1),
        ((), HALVES, {"bounds": (-3, 3)}, -3, 3),
        ((), None, {"images": np.full((1, 4, 4, 3), 0.7)}, 0, 1),
        ((), None, {"images": np.full((1, 4, 4, 3), 70.0)}, 0, 255),
    ],
    ids=["preprocess", "rescaling", "carried", "carried by one", "told", "images of 1", "images of 255"],
)
def test_the_range_is_known(first, carried, options, low, high):
    scale = pixel_scale(model_of(*first, preprocessing=carried), **options)
    assert_close(scale.low, low)
    assert_close(scale.high, high)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "does not tell which range"),
        ({"bounds": (1, 0)}, "rising order"),
        ({"bounds": 255}, "rising order"),
        ({"bounds": (0, 1), "images": np.full((1, 4, 4, 3), 70.0)}, "Expected images from 0.0 to 1.0: got values"),
        ({"images": np.full((1, 4, 4, 3), -1.0)}, "does not tell which range"),
    ],
)
def test_what_is_not_known_is_asked_for(options, message):
    with pytest.raises(ValueError, match=message):
        pixel_scale(model_of(), **options)
