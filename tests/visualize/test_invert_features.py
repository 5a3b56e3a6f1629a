"""Inversion of layers that can be inverted, and of those that forget something."""

import keras
import numpy as np
import pytest

from kvision.visualize import invert_features
from tests.support import SLOW, assert_close

IMAGES = np.random.default_rng(0).uniform(0.05, 0.95, (2, 6, 7, 3)).astype("float32")
OFF = {"alpha_norm": 0, "total_variation": 0}


@pytest.fixture(scope="module")
def model():
    """A rotation of the colours, which can be inverted; then their sum, which cannot; then nothing at all."""
    rotation, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))
    inputs = keras.Input((6, 7, 3))
    turned = keras.layers.Conv2D(3, 1, name="turned")(inputs)
    summed = keras.layers.Conv2D(1, 1, name="summed", kernel_initializer="ones")(inputs)
    dead = keras.layers.ReLU(name="dead")(keras.layers.Rescaling(-1.0)(inputs))
    model = keras.Model(inputs, [turned, summed, dead])
    model.get_layer("turned").set_weights([rotation[None, None], np.array([0.3, -0.2, 0.1])])
    return model


@pytest.mark.parametrize("optimizer", ["l-bfgs", pytest.param("adam", marks=SLOW)])
def test_the_input_of_an_invertible_layer_is_recovered(model, optimizer):
    found = invert_features(model, IMAGES, "turned", bounds=(0, 1), optimizer=optimizer, steps=120, **OFF)
    assert_close(found.images, IMAGES, tolerance=(0, 2e-3))
    assert found.history["features"][-1].max() < 1e-5


@SLOW
def test_a_layer_that_forgets_gives_another_image_of_the_same_features(model):
    found = invert_features(model, IMAGES, "summed", bounds=(0, 1), optimizer="l-bfgs", steps=60, seed=0, **OFF)
    assert_close(found.images.sum(-1), IMAGES.sum(-1), tolerance=(0, 5e-3))
    assert np.abs(found.images - IMAGES).max() > 0.1


def test_the_loss_is_that_of_the_paper(model):
    strengths = {"alpha_norm": 0.7, "total_variation": 0.3}
    found = invert_features(model, IMAGES, "turned", bounds=(0, 1), optimizer="l-bfgs", steps=2, **strengths)
    features, want = (model.predict_on_batch(each)[0] for each in (found.images, IMAGES))
    x = 2 * found.images - 1
    squares = np.zeros(2)
    for axis in (1, 2):
        squares += (np.diff(x, axis=axis) ** 2).sum((1, 2, 3)) / x[0].size
    twin = {
        "features": ((features - want) ** 2).sum((1, 2, 3)) / (want**2).sum((1, 2, 3)),
        "alpha_norm": 0.7 * (x**6).mean((1, 2, 3)),
        "total_variation": 0.3 * squares,
    }
    assert list(found.history) == list(twin)
    for name, values in twin.items():
        assert_close(found.history[name][-1], values, tolerance=(1e-4, 1e-5))


@SLOW
def test_the_units_are_those_of_the_images(model):
    """Images of 0…255 through a preprocessing give what those of 0…1 give without."""
    options = {"optimizer": "l-bfgs", "steps": 5, "seed": 0}
    plain = invert_features(model, IMAGES, "turned", bounds=(0, 1), **options)
    scaled = invert_features(model, 255 * IMAGES, "turned", preprocess=lambda x: x / 255, **options)
    assert_close(scaled.images / 255, plain.images, tolerance=(0, 1e-2))


@pytest.mark.parametrize(
    ("layer", "options", "message"),
    [
        ("dead", {}, "is 0 everywhere for image 0"),
        ("tuned", {}, "Unknown layer"),
        ("turned", {"alpha_norm": -1}, "alpha_norm must be a number of at least 0"),
        ("turned", {"steps": 1.5}, "steps must be a whole number"),
    ],
)
def test_what_is_refused(model, layer, options, message):
    with pytest.raises(ValueError, match=message):
        invert_features(model, IMAGES, layer, bounds=(0, 1), **options)
