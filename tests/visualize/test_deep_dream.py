"""DeepDream against a NumPy twin on one linear layer."""

import keras
import numpy as np
import pytest

from kvision.ops import resize_bilinear
from kvision.visualize import Probe, deep_dream
from tests.support import SLOW, assert_close

IMAGE = np.random.default_rng(0).uniform(60, 200, (30, 36, 3)).astype("float32")
OPTIONS = {"bounds": (0, 255), "seed": 0}


def convolution(size=(None, None), kernel=1):
    inputs = keras.Input((*size, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(5, kernel, use_bias=False, name="conv")(inputs))
    weights = np.random.default_rng(1).standard_normal((kernel, kernel, 3, 5))
    model.get_layer("conv").set_weights([weights.astype("float32")])
    return model


@pytest.fixture(scope="module")
def model():
    return convolution()


def twin(image, kernel, sizes, steps, step_size):
    """½ mean (x W)² has the gradient x W Wᵀ, times a constant that the step divides away."""
    base = pixels = zoom(image, sizes[0])
    for size in sizes:
        detail = zoom(pixels - base, size)
        base = zoom(image, size)
        pixels = np.clip(base + detail, 0, 255)
        for _ in range(steps):
            gradient = pixels @ kernel @ kernel.T
            pixels = np.clip(pixels + step_size * gradient / np.abs(gradient).mean(), 0, 255)
    return pixels


def zoom(image, size):
    return keras.ops.convert_to_numpy(resize_bilinear(image[None], size))[0]


@pytest.mark.parametrize(
    ("octaves", "sizes"), [(1, [(30, 36)]), (3, [(15, 18), (21, 26), (30, 36)])], ids=["one size", "three octaves"]
)
def test_steps_and_octaves_are_those_of_a_twin(model, octaves, sizes):
    got = deep_dream(model, IMAGE, "conv", octaves=octaves, steps=3, step_size=4.0, **OPTIONS)
    kernel = model.get_layer("conv").get_weights()[0][0, 0]
    assert_close(got, twin(IMAGE, kernel, sizes, 3, 4.0), tolerance=(0, 0.02))


def test_a_step_raises_the_norm():
    model = convolution(kernel=3)
    probe = Probe(model, ["conv"])

    def norm(image):
        return np.square(keras.ops.convert_to_numpy(probe(image[None]).activations["conv"])).mean()

    norms = [norm(IMAGE)]
    image = IMAGE
    for _ in range(3):
        image = deep_dream(model, image, "conv", octaves=1, steps=1, jitter=3, **OPTIONS)
        norms.append(norm(image))
    assert (np.diff(norms) > 0).all()


def test_jitter_shifts_the_gradient_back(model):
    """A layer of one pixel sees the same image wherever it lies."""
    shifted, still = (deep_dream(model, IMAGE, "conv", octaves=2, steps=4, jitter=j, **OPTIONS) for j in (4, 0))
    assert_close(shifted, still, tolerance=(0, 0.02))


@SLOW
def test_jitter_is_at_most_what_is_given():
    model = convolution(kernel=3)
    one, other, none = (
        deep_dream(model, IMAGE, "conv", octaves=1, steps=3, jitter=jitter, **OPTIONS) for jitter in (32, 4, 0)
    )
    assert_close(one, other)  # a seventh of 30 pixels
    assert np.abs(one - none).max() > 0.1


def test_without_steps_of_any_size_the_image_comes_back_whole(model):
    """The detail is carried, and not the blurred image."""
    assert_close(deep_dream(model, IMAGE, "conv", octaves=3, step_size=1e-6, **OPTIONS), IMAGE, tolerance=(0, 1e-2))


def test_layers_are_weighed():
    """Two layers that each see one colour: the steps are as their weights times what they saw."""
    inputs = keras.Input((None, None, 3))
    options = {"filters": 1, "kernel_size": 1, "use_bias": False}
    model = keras.Model(inputs, [keras.layers.Conv2D(name=name, **options)(inputs) for name in ("red", "blue")])
    for name, channel in (("red", 0), ("blue", 2)):
        model.get_layer(name).set_weights([np.eye(3, dtype="float32")[channel][None, None, :, None]])
    got = deep_dream(model, IMAGE, {"red": 3.0, "blue": 1.0}, octaves=1, steps=1, **OPTIONS)
    gradient = IMAGE * np.array([3.0, 0.0, 1.0])
    assert_close(got, IMAGE + 1.5 * gradient / gradient.mean(), tolerance=(0, 1e-3))


@SLOW
def test_octaves_by_themselves(model):
    """As many as keep 64 pixels, at most four; one where the model has one size."""
    sizes = []

    def preprocess(images):
        sizes.append(tuple(images.shape[1:3]))
        return images

    deep_dream(model, np.ones((100, 150, 3)), "conv", steps=1, preprocess=preprocess, seed=0)
    assert sizes[1:] == [(71, 107), (100, 150)]  # the first call tries it on the image
    sizes.clear()
    deep_dream(convolution((30, 36)), IMAGE, "conv", steps=1, preprocess=preprocess, seed=0)
    assert sizes[1:] == [(30, 36)]


@SLOW
def test_a_batch_is_as_one_by_one(model):
    images = np.stack([IMAGE, IMAGE[::-1]])
    both = deep_dream(model, images, "conv", octaves=2, steps=2, **OPTIONS)
    assert both.shape == images.shape
    assert_close(both[1], deep_dream(model, images[1], "conv", octaves=2, steps=2, **OPTIONS), tolerance=(0, 1e-2))


@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        ("cov", {}, "Unknown layer"),
        ([], {}, "at least one layer"),
        ("conv", {"octaves": 0}, "octaves must be a whole number of at least 1"),
        ("conv", {"octaves": 9}, "The smallest of 9 octaves"),
        ("conv", {"octave_scale": 1}, "octave_scale above 1"),
        ("conv", {"step_size": 0}, "step_size is above 0"),
        ("conv", {"jitter": -1}, "jitter a whole number"),
    ],
)
def test_what_is_refused(model, layers, options, message):
    with pytest.raises(ValueError, match=message):
        deep_dream(model, IMAGE, layers, **OPTIONS | options)


def test_octaves_of_a_model_of_one_size_are_refused():
    with pytest.raises(ValueError, match="takes images of 30x36 alone: expected octaves=1, got 4"):
        deep_dream(convolution((30, 36)), IMAGE, "conv", octaves=4, **OPTIONS)


def test_layers_that_are_not_active_are_named(model):
    with pytest.raises(ValueError, match="gradient of conv is 0 or not finite"):
        deep_dream(model, np.zeros((30, 36, 3)), "conv", **OPTIONS)
