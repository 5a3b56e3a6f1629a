"""Grad-CAM: the class activation map where it is known, layers at any depth."""

import keras
import numpy as np
import pytest
from keras import layers

from kvision.ops import resize_bilinear
from kvision.visualize import grad_cam
from tests.support import SLOW, assert_close
from tests.visualize import nets


@pytest.fixture(scope="module")
def backbone():
    """A functional backbone inside a model, with what is passed over behind its last maps."""
    inputs = keras.Input(nets.SIZE)
    x = layers.Conv2D(12, 3, activation="relu", name="conv.1")(inputs)
    x = layers.Conv2D(16, 2, activation="relu", name="conv.2")(x)
    inner = keras.Model(inputs, layers.MaxPooling2D(2)(x), name="backbone")
    outer = keras.Input(nets.SIZE)
    x = layers.GlobalAveragePooling2D(keepdims=True)(layers.Dropout(0.5)(inner(layers.Rescaling(2.0)(outer))))
    return keras.Model(outer, layers.Dense(4)(layers.Flatten()(x)))


def test_before_a_global_average_it_is_the_class_activation_map():
    model, images = nets.pooled(), nets.images()
    maps = keras.Model(model.inputs[0], model.get_layer("conv2").output)(images)
    maps = keras.ops.convert_to_numpy(maps)
    weights = keras.ops.convert_to_numpy(model.get_layer("scores").kernel)
    want = np.maximum(maps @ weights[:, 3], 0) / (maps.shape[1] * maps.shape[2])
    assert want.max() > 0
    assert_close(grad_cam(model, images, 3, resize=False), want)
    enlarged = keras.ops.convert_to_numpy(resize_bilinear(want[..., None], nets.SIZE[:2]))[..., 0]
    assert_close(grad_cam(model, images, 3), enlarged)


def test_the_last_maps_lie_in_a_nested_backbone(backbone):
    images = nets.images()
    with nets.unchanged(backbone):
        got = grad_cam(backbone, images, 1, resize=False)
    assert got.shape == (3, 5, 6)


@SLOW
def test_layers_are_named_at_any_depth(backbone):
    images = nets.images()
    got = grad_cam(backbone, images, 1, resize=False)
    assert_close(got, grad_cam(backbone, images, 1, layer="conv.2", resize=False))
    assert grad_cam(backbone, images, 1, layer="backbone/conv.1", resize=False).shape == (3, 6, 7)


@pytest.mark.parametrize(
    ("layer", "message"),
    [("dense", r"gives \[3, 4\]: expected maps \[b, h, w, c\]"), ("conv.3", "conv.2")],
)
def test_other_layers_are_refused(backbone, layer, message):
    name = backbone.layers[-1].name if layer == "dense" else layer
    with pytest.raises(ValueError, match=message):
        grad_cam(backbone, nets.images(), 1, layer=name)


def test_a_network_without_maps_is_refused():
    model = keras.Sequential([keras.Input((4, 4, 1)), layers.Flatten(), layers.Dense(2)])
    with pytest.raises(ValueError, match="no layer that is known to give maps"):
        grad_cam(model, np.zeros((1, 4, 4, 1)))
