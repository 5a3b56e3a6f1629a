"""Gradients by the pixels: closed forms, a twin in loops, and their means over noise."""

import keras
import numpy as np
import pytest

from kvision.network import Preprocessing
from kvision.visualize import gradient, saliency_map, smooth_grad
from tests.support import SLOW, assert_close
from tests.visualize import nets


def test_of_a_linear_classifier_it_is_the_weights():
    model, images = nets.linear(), nets.images()
    scores = keras.ops.convert_to_numpy(model(images))
    got = gradient(model, images, [0, 3, 2], batch_size=2)
    assert_close(got, nets.kernel(model)[[0, 3, 2]])
    parts = gradient(model, images, 1, times_input=True)
    assert_close(parts.sum(axis=(1, 2, 3)), scores[:, 1] - 1)  # the bias


@SLOW
def test_of_predicted_classes_one_image_and_a_function():
    model, images = nets.linear(), nets.images()
    scores = keras.ops.convert_to_numpy(model(images))
    assert_close(gradient(model, images), nets.kernel(model)[scores.argmax(axis=1)])
    assert_close(gradient(model, images[0], 1), nets.kernel(model)[[1]])
    two = gradient(model, images, lambda outputs: outputs[:, 0] - outputs[:, 2])
    assert_close(two, np.broadcast_to(nets.kernel(model)[0] - nets.kernel(model)[2], two.shape))


def test_it_goes_through_preprocessing():
    model = nets.linear()
    prepare = Preprocessing((0.0, 1.0), 0.5, (0.25, 0.5, 1.0))
    got = gradient(model, 255 * np.abs(nets.images()), 1, preprocess=prepare)
    want = nets.kernel(model)[[1] * 3] / 255 / np.array([0.25, 0.5, 1.0])
    assert_close(got / np.abs(want).max(), want / np.abs(want).max())


@SLOW
def test_with_relus_it_is_that_of_the_twin():
    model, _ = nets.with_relus("activation")
    logits, want = nets.twin(nets.images(), model.get_weights(), "gradient", target=2)
    assert_close(model(nets.images()), logits)
    assert_close(gradient(model, nets.images(), 2), want)


def test_the_map_is_the_largest_magnitude():
    assert_close(saliency_map(np.array([[[[1.0, -3.0], [0.5, 0.25]]]])), [[[3.0, 0.5]]])
    with pytest.raises(ValueError, match=r"saliency_map takes gradients \[b, h, w, c\]: got \[3, 4\]"):
        saliency_map(np.ones((3, 4)))


@SLOW
def test_noise_is_a_fraction_of_the_range_and_is_drawn_by_the_seed():
    images = nets.images() * np.array([1.0, 2.0, 5.0])[:, None, None, None]
    ranges = images.max(axis=(1, 2, 3)) - images.min(axis=(1, 2, 3))
    pixels = keras.Input(nets.SIZE)
    squares = keras.Model(pixels, keras.ops.square(pixels))

    def halves(outputs):
        return 0.5 * keras.ops.sum(outputs, axis=(1, 2, 3))  # whose gradient is the noisy image

    one = smooth_grad(squares, images, halves, noise=0.2, samples=1, seed=3)
    assert_close((one - images).std(axis=(1, 2, 3)) / ranges, [0.2] * 3, tolerance=(0.15, 0))  # 216 numbers
    again = smooth_grad(squares, images, halves, noise=0.2, samples=1, seed=3, batch_size=2)
    assert_close(one, again)
    assert np.abs(one - smooth_grad(squares, images, halves, noise=0.2, samples=1, seed=4)).max() > 0.1
    many = smooth_grad(squares, images, halves, noise=0.2, samples=16, seed=3)
    assert (many - images).std() < 0.5 * (one - images).std()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": -1}, "smooth_grad needs noise of at least 0"),
        ({"samples": 0}, "at least 1 sample: got noise=0.15, samples=0"),
        ({"target": 9}, "has the classes 0 to 3: got target 9"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        smooth_grad(nets.linear(), nets.images(), **options)
