"""Maximisation on linear models, whose optimum is known."""

import re

import keras
import numpy as np
import pytest

from kvision.visualize import activation_maximization
from tests.support import SLOW, assert_close

OFF = {"l2": 0, "total_variation": 0, "blur": 0, "jitter": 0}
BOUNDS = (0.0, 1.0)
FAR = {"steps": 6, "learning_rate": 40.0}  # from the middle to an end


@pytest.fixture(scope="module")
def linear():
    """Two scores, each a weighted sum of 4x5 pixels; the layer in front gives a map of two channels."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4, 5, 1))
    x = keras.layers.Conv2D(2, 1, name="map")(inputs)
    x = keras.layers.Flatten()(keras.layers.Permute((3, 1, 2))(x))
    return keras.Model(inputs, keras.layers.Dense(2, name="scores")(x))


def weights_of(model):
    """The gradient of each score by the pixels [2, 4, 5, 1], which is that of a linear model everywhere."""
    basis = np.eye(20, dtype="float32").reshape(20, 4, 5, 1)
    bias = model.predict_on_batch(np.zeros((1, 4, 5, 1), "float32"))
    return (model.predict_on_batch(basis) - bias).T.reshape(2, 4, 5, 1)


def test_a_linear_score_is_largest_in_a_corner(linear):
    found = activation_maximization(linear, [0, 1], bounds=BOUNDS, **FAR, **OFF)
    weights = weights_of(linear)
    assert_close(found.images, (weights > 0).astype("float32"))
    best = np.maximum(weights, 0).sum((1, 2, 3)) + linear.predict_on_batch(np.zeros((1, 4, 5, 1), "float32"))[0]
    assert_close(found.history["score"][-1], best, tolerance=(1e-4, 1e-4))
    assert list(found.history) == ["score"]


def test_l2_has_its_closed_form(linear):
    """The score is w·(x + 1)/2 in x of −1…1, minus λ mean x²: x = w n / 4λ."""
    strength = 30.0
    found = activation_maximization(linear, 1, bounds=BOUNDS, steps=40, optimizer="l-bfgs", **OFF | {"l2": strength})
    want = np.clip(weights_of(linear)[1] * 20 / (4 * strength), -1, 1)
    assert_close(2 * found.image - 1, want, tolerance=(0, 1e-3))
    assert_close(found.history["l2"][-1], [strength * np.mean(want**2)], tolerance=(1e-3, 1e-3))


@SLOW
def test_total_variation_flattens(linear):
    rough, smooth = (
        activation_maximization(linear, 0, bounds=BOUNDS, steps=40, optimizer="l-bfgs", **OFF | {"total_variation": s})
        for s in (0.01, 10.0)
    )
    assert smooth.image.std() < 0.2 * rough.image.std()


@pytest.mark.parametrize(("unit", "want"), [(1, 1.0), ((2, 3, 1), 0.05)], ids=["channel", "one value"])
def test_units_of_a_layer(linear, unit, want):
    """A channel rises at every position, one value at its own alone."""
    found = activation_maximization(linear, unit, "map", bounds=BOUNDS, **FAR, **OFF)
    at_end = found.image if linear.get_layer("map").kernel[0, 0, 0, 1] > 0 else 1 - found.image
    assert (at_end > 0.95).mean() == pytest.approx(want)
    output = keras.Model(linear.input, linear.get_layer("map").output).predict_on_batch(found.images)[0]
    score = output[..., unit].mean() if np.ndim(unit) == 0 else output[unit]
    assert_close(found.history["score"][-1], [score])


def test_jitter_gives_the_gradient_back_where_it_belongs():
    """A pixel decides alone: shifted images move it, and their mean gradient spreads around it."""
    inputs = keras.Input((9, 9, 1))
    model = keras.Model(inputs, keras.layers.Flatten(name="pixels")(inputs))
    options = OFF | {"jitter": 1, "steps": 40, "optimizer": "sgd", "learning_rate": 70.0, "seed": 0}
    found = activation_maximization(model, 40, bounds=(0, 255), **options)
    changed = np.abs(found.image[..., 0] - 127.5) > 60
    assert changed[3:6, 3:6].all()
    assert changed.sum() == 9


@SLOW
def test_blur_smooths_but_not_at_the_end(linear):
    options = {"bounds": BOUNDS, "steps": 16, "seed": 0, "learning_rate": 1.0}
    sharp = activation_maximization(linear, 0, **options, **OFF)
    soft = activation_maximization(linear, 0, **options, **OFF | {"blur": 3.0, "blur_every": 4})
    assert np.abs(np.diff(soft.image, axis=1)).mean() < 0.5 * np.abs(np.diff(sharp.image, axis=1)).mean()
    last = activation_maximization(linear, 0, **options, **OFF | {"blur": 3.0, "blur_every": 16})
    assert_close(last.images, sharp.images)


@SLOW
def test_several_units_are_as_one_by_one(linear):
    options = {"bounds": BOUNDS, "steps": 5, "seed": 2}
    both = activation_maximization(linear, [1, 0], **options)
    alone = activation_maximization(linear, 1, **options)
    assert_close(both.images[0], alone.image, tolerance=(1e-4, 1e-4))


@SLOW
def test_a_function_of_the_outputs(linear):
    found = activation_maximization(linear, lambda outputs: -outputs[:, 0], bounds=BOUNDS, **FAR, **OFF)
    assert_close(found.image, (weights_of(linear)[0] < 0).astype("float32"))


def test_the_logit_is_raised_where_a_model_ends_in_a_softmax(linear):
    model = keras.Sequential([linear, keras.layers.Softmax()])
    found = activation_maximization(model, 1, bounds=BOUNDS, steps=3, seed=0, **OFF)
    assert_close(found.images, activation_maximization(linear, 1, bounds=BOUNDS, steps=3, seed=0, **OFF).images)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((2,), {}, "has the classes 0 to 1: got target 2"),
        ((-1,), {}, "has the classes 0 to 1: got target -1"),
        (([],), {}, "there is no unit"),
        ((0, "mapp"), {}, "Unknown layer"),
        ((2, "map"), {}, "Give a channel from 0 to 1"),
        (((4, 0, 0), "map"), {}, "got unit (4, 0, 0)"),
        (([0, (1, 1, 1)], "map"), {}, "not both"),
        ((len, "map"), {}, "give no layer and one unit"),
        ((0,), {"l2": -1}, "l2 must be a number of at least 0"),
        ((0,), {"jitter": 1.5}, "jitter is a whole number"),
        ((0,), {"blur_every": 0}, "blur_every one of at least 1"),
        ((0,), {"optimizer": "l-bfgs"}, "jitter=0 and blur=0"),
        ((0,), {"image_size": (8, 8)}, "takes images"),
        ((0,), {"image_size": (8,)}, "give image_size=(height, width), got (8,)"),
        (((0, 1),), {}, "got (0, 1). Give classes as a list, or layer="),
        ((0,), {"bounds": None}, "does not tell which range"),
    ],
)
def test_what_is_refused(linear, arguments, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        activation_maximization(linear, *arguments, **{"bounds": BOUNDS} | options)


class Own(keras.Model):
    """A class of its own, whose graph is not known, of grey images."""

    def __init__(self):
        super().__init__(name="own")
        self.scores = keras.layers.Dense(2)

    def call(self, x):
        return self.scores(keras.ops.reshape(x, (-1, 20)))


def test_a_model_that_does_not_tell_its_images_is_asked_for_them():
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(2, 3, name="conv")(inputs))
    with pytest.raises(ValueError, match=r"images of any size: give image_size=\(height, width\)"):
        activation_maximization(model, 0, "conv", bounds=BOUNDS)
    own = Own()
    with pytest.raises(ValueError, match="Expected a built keras.Model, got Own"):
        activation_maximization(own, 0, bounds=BOUNDS)
    own(np.zeros((1, 4, 5, 1)))
    for size in (None, (4, 5)):
        with pytest.raises(ValueError, match=r"give image_size=\(height, width, channels\)"):
            activation_maximization(own, 0, bounds=BOUNDS, image_size=size)
    assert activation_maximization(own, 0, bounds=BOUNDS, image_size=(4, 5, 1), steps=1).images.shape == (1, 4, 5, 1)
    vectors = keras.Sequential([keras.Input((12,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match=r"takes \[b, 12\]: expected a model that takes images"):
        activation_maximization(vectors, 0, bounds=BOUNDS)


def test_units_in_any_sequence(linear):
    options = OFF | {"bounds": BOUNDS, "steps": 1, "seed": 0}
    listed = activation_maximization(linear, [0, 1], **options).images
    for unit in (range(2), np.arange(2), keras.ops.arange(2)):
        assert_close(activation_maximization(linear, unit, **options).images, listed)
    assert activation_maximization(linear, np.array(1), **options).images.shape == (1, 4, 5, 1)


@pytest.mark.parametrize(("side", "jitter"), [(8, 0), (48, 3)])
def test_small_images_are_shifted_by_a_part_of_their_side(side, jitter):
    """Shifts by a quarter of an image left a dense layer that sees positions at the level of grey."""
    model = keras.Sequential([keras.Input((side, side, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
    options = {"bounds": BOUNDS, "steps": 3, "seed": 0}
    bare = activation_maximization(model, 0, **options)
    assert_close(bare.images, activation_maximization(model, 0, jitter=jitter, **options).images)


def test_a_unit_that_is_dead_on_grey_begins_at_a_stronger_noise(caplog):
    """Differences of two pixels above a threshold: ten that noise reaches, one that no image reaches."""
    inputs = keras.Input((4, 5, 1))
    differences = keras.layers.Dense(11, activation="relu", name="differences")(keras.layers.Flatten()(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2, use_bias=False, name="scores")(differences))
    kernel = np.zeros((20, 11))
    kernel[np.arange(20), np.arange(20) // 2] = np.tile([1, -1], 10)
    kernel[0, 10] = 1
    model.get_layer("differences").set_weights([kernel, np.array([-80.0] * 10 + [-1e4])])
    model.get_layer("scores").set_weights([np.repeat(np.eye(2), (10, 1), axis=0)])
    for seed in range(2):
        caplog.clear()
        found = activation_maximization(model, [1, 0], bounds=(0, 255), steps=40, seed=seed, **OFF)
        assert found.history["score"][-1, 1] > 100
        assert found.history["score"][-1, 0] == 0
        (record,) = caplog.records
        assert "the score of unit 1 has no gradient at the end" in record.getMessage()
    again = activation_maximization(model, [1, 0], bounds=(0, 255), steps=40, seed=1, **OFF)
    assert_close(again.images, found.images)
