"""Filters as images."""

import keras
import numpy as np
import pytest

from kvision import drawing
from kvision.visualize import first_layer_filters


def network(channels=3):
    inner = keras.Sequential(
        [keras.Input((9, 9, channels)), keras.layers.Conv2D(2, 3, name="stem.1"), keras.layers.Conv2D(4, 2, name="b")],
        name="trunk",
    )
    return keras.Sequential([keras.Input((9, 9, channels)), keras.layers.Rescaling(1 / 255), inner])


def test_colours_are_those_of_the_weights():
    model = network()
    kernel = np.zeros((3, 3, 3, 2), "float32")
    kernel[0, 0, 0, 0], kernel[1, 2, 2, 0] = 2.0, -2.0
    kernel[..., 1] = 0.5
    model.get_layer("trunk").get_layer("stem.1").kernel.assign(kernel)
    each, alike = first_layer_filters(model), first_layer_filters(model, scale="all")
    assert each.shape == (2, 3, 3, 3)
    assert each.dtype == np.uint8
    assert each[0, 0, 0].tolist() == [255, 128, 128]
    assert each[0, 1, 2].tolist() == [128, 128, 0]
    assert (each[1] == 255).all()
    assert (alike[0] == each[0]).all()
    assert (alike[1] == 159).all()  # a quarter of the largest


def test_the_order_and_scale_of_a_preprocessing_are_undone():
    model = network()
    conv = model.get_layer("trunk").get_layer("stem.1")
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 2)).astype("float32")
    conv.kernel.assign(kernel[:, :, ::-1] / np.array([2.0, 1.0, 4.0])[::-1, None])
    mean = np.array([103.9, 116.8, 123.7])
    shown = first_layer_filters(model, preprocess=lambda x: x[..., ::-1] * np.array([4.0, 1.0, 2.0]) - mean)
    conv.kernel.assign(kernel)
    np.testing.assert_array_equal(shown, first_layer_filters(model))


@pytest.mark.parametrize(("channels", "shape"), [(1, (2, 3, 3, 1)), (2, (2, 2, 3, 3, 1)), (3, (2, 3, 3, 3))])
def test_channels_without_a_colour_are_grey_images(channels, shape):
    filters = first_layer_filters(network(channels))
    assert filters.shape == shape
    assert drawing.tiles(filters, side=9).dtype == np.uint8


def test_a_layer_by_its_name():
    assert first_layer_filters(network(), "trunk/b").shape == (4, 2, 2, 2, 1)


def test_bad_input():
    model = network()
    with pytest.raises(ValueError, match="two-dimensional convolution"):
        first_layer_filters(model, model.layers[0].name)
    with pytest.raises(ValueError, match="no convolution"):
        first_layer_filters(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
    with pytest.raises(ValueError, match="Expected a built keras.Model, got Sequential. Call it on a batch"):
        first_layer_filters(keras.Sequential([keras.layers.Conv2D(2, 3)]))
    with pytest.raises(ValueError, match="scale"):
        first_layer_filters(network(), scale="none")
    with pytest.raises(ValueError, match="pixels one by one"):
        first_layer_filters(network(), preprocess=lambda x: x[..., :1])
