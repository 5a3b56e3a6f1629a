"""What holds for every technique that makes images by optimisation, over one nested network."""

import signal

import keras
import numpy as np
import pytest

from kvision import visualize
from kvision._keras import layers_of
from tests.support import SLOW, assert_close

IMAGE = np.random.default_rng(0).uniform(0, 255, (20, 24, 3)).astype("float32")
STYLE = np.random.default_rng(1).uniform(0, 255, (18, 30, 3)).astype("float32")
FAST = {"steps": 2, "seed": 3}


def network(size=(None, None), policy="float32"):
    """A backbone within a model that rescales; 16 channels, dots in names, a ReLU of each kind, ends in a softmax."""
    backbone = keras.Sequential(
        [
            keras.Input((*size, 3)),
            keras.layers.Conv2D(16, 3, activation="relu", name="block.1"),
            keras.layers.MaxPooling2D(2, name="pool"),
            keras.layers.Conv2D(16, 3, name="block.2"),
            keras.layers.ReLU(name="relu.2"),
        ],
        name="backbone",
    )
    inputs = keras.Input((*size, 3))
    x = backbone(keras.layers.Rescaling(1 / 127.5, -1)(inputs))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(4, activation="softmax", dtype="float32", name="top")(x))


TECHNIQUES = {
    "class": lambda model, **options: (
        visualize.activation_maximization(model, [1, 3], image_size=(20, 24), **FAST | options).images
    ),
    "unit": lambda model, **options: (
        visualize.activation_maximization(
            model, (2, 3, 5), "backbone/relu.2", image_size=(20, 24), **FAST | options
        ).images
    ),
    "inversion": lambda model, **options: visualize.invert_features(model, IMAGE, "block.2", **FAST | options).image,
    "dream": lambda model, **options: visualize.deep_dream(model, IMAGE, ["block.1", "relu.2"], **FAST | options),
    "style": lambda model, **options: (
        visualize.style_transfer(
            model, IMAGE, STYLE, content_layers="relu.2", style_layers={"block.1": 1, "relu.2": 2}, **FAST | options
        ).image
    ),
}


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return network()


def state(model, path):
    model.save_weights(path)
    return (
        [keras.ops.convert_to_numpy(weight).tobytes() for weight in model.weights],
        [weight.trainable for weight in model.weights],
        [dict(vars(layer)) for layer in layers_of(model, include_self=True)],
        model.to_json(),
        path.read_bytes(),
    )


def assert_same(before, after):
    for old, new in zip(before, after, strict=True):
        if isinstance(old, list) and old and isinstance(old[0], dict):
            assert [list(each) for each in old] == [list(each) for each in new]
            assert all(a[key] is b[key] for a, b in zip(old, new, strict=True) for key in ("call",) if key in a)
            assert all(a.get("activation") is b.get("activation") for a, b in zip(old, new, strict=True))
        else:
            assert old == new


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_images_are_finite_within_bounds_and_changed_and_the_model_is_not(model, tmp_path, technique):
    before = state(model, tmp_path / "a.weights.h5")
    images = TECHNIQUES[technique](model)
    assert images.dtype == "float32"
    assert images.shape[-3:] == IMAGE.shape
    assert np.isfinite(images).all()
    assert images.min() >= 0 and images.max() <= 255
    assert np.abs(images - IMAGE).max() > 1
    assert_same(before, state(model, tmp_path / "a.weights.h5"))


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_the_model_is_the_same_after_an_error(model, tmp_path, technique):
    before = state(model, tmp_path / "a.weights.h5")

    def preprocess(images):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        TECHNIQUES[technique](model, preprocess=preprocess)
    assert_same(before, state(model, tmp_path / "a.weights.h5"))


@SLOW
@pytest.mark.parametrize("technique", TECHNIQUES)
def test_a_seed_gives_the_same_again_in_the_units_of_the_images(model, technique):
    images = TECHNIQUES[technique](model)
    assert_close(TECHNIQUES[technique](model), images, tolerance=(1e-4, 1e-2))
    if technique not in ("style", "dream"):  # from the content image nothing is drawn; this small one is not shifted
        assert np.abs(TECHNIQUES[technique](model, seed=4) - images).max() > 1


@SLOW
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("technique", TECHNIQUES)
def test_mixed_precision(technique, policy):
    keras.mixed_precision.set_dtype_policy(policy)
    images = TECHNIQUES[technique](network())
    assert images.dtype == "float32"
    assert np.isfinite(images).all()
    assert np.abs(images - IMAGE).max() > 1


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be a whole number"),
        ({"bounds": (5, 5)}, "rising order"),
    ],
)
def test_arguments_are_checked_before_work_begins(model, technique, options, message):
    with pytest.raises(ValueError, match=message):
        TECHNIQUES[technique](model, **options)


@pytest.mark.parametrize("technique", ["inversion", "dream", "style"])
def test_images_out_of_range_are_refused(model, technique):
    with pytest.raises(ValueError, match="Expected images from 0.0 to 1.0: got values"):
        TECHNIQUES[technique](model, bounds=(0, 1))


def test_integers_have_no_gradient():
    inputs = keras.Input((8, 8, 3), dtype="uint8")
    model = keras.Model(inputs, keras.layers.Conv2D(2, 3)(inputs))
    with pytest.raises(ValueError, match="through which no gradient flows"):
        visualize.deep_dream(model, np.zeros((8, 8, 3)), model.layers[-1].name)


@SLOW
@pytest.mark.parametrize("technique", TECHNIQUES)
def test_ctrl_c_gives_what_there_is(model, technique):
    calls = []

    def preprocess(images):
        calls.append(None)  # while a graph is traced: in the first step at the latest
        signal.raise_signal(signal.SIGINT) if len(calls) == last[technique] else None
        return images

    images = TECHNIQUES[technique](model, preprocess=preprocess, steps=10**9)
    assert images.shape[-3:] == IMAGE.shape
    assert np.isfinite(images).all()


# How often each calls it: on one image to try it, then traced for shapes, features or style, at the end the gradient.
last = {"class": 2, "unit": 2, "inversion": 3, "dream": 2, "style": 5}
