"""What holds for every attribution: any model, its state, 16 bits, Ctrl-C, and what is refused."""

import functools
import signal

import keras
import numpy as np
import pytest
from keras import layers

from kvision.visualize import (
    deconvnet,
    grad_cam,
    gradient,
    guided_backprop,
    integrated_gradients,
    occlusion,
    smooth_grad,
)
from kvision.visualize.randomization import rank_correlation
from tests.support import SLOW, assert_close
from tests.visualize import nets

TECHNIQUES = {
    "gradient": gradient,
    "smooth_grad": functools.partial(smooth_grad, samples=2),
    "integrated_gradients": functools.partial(integrated_gradients, steps=2),
    "occlusion": functools.partial(occlusion, window=4, stride=4),
    "guided_backprop": guided_backprop,
    "deconvnet": deconvnet,
    "grad_cam": grad_cam,
}


def rows(*quick):
    """A row for each technique, of which those named run on a user's machine, too."""
    marked = [name if name in quick else pytest.param(name, marks=SLOW) for name in TECHNIQUES]
    return pytest.mark.parametrize("name", marked)


@pytest.fixture(scope="module")
def model():
    return nets.pooled()


@pytest.fixture(scope="module")
def with_probabilities():
    """The same kind of network in a nested one, with scaling inside and a softmax at the end."""
    inner = nets.pooled()
    inputs = keras.Input(nets.SIZE)
    x = layers.Dropout(0.5)(inner(layers.Rescaling(1 / 255)(inputs)))
    return keras.Model(inputs, layers.Softmax()(x)), inner


@rows("occlusion")
def test_scaling_and_softmax_inside_or_outside_are_the_same(name, with_probabilities):
    outer, inner = with_probabilities
    images = 255 * np.random.default_rng(0).random((3, *nets.SIZE)).astype("float32")
    with nets.unchanged(outer):
        got = TECHNIQUES[name](outer, images)
    want = TECHNIQUES[name](inner, images, preprocess=lambda x: x / 255)
    assert got.dtype == "float32" and got.shape[:3] == images.shape[:3]
    assert np.abs(want).max() > 0
    assert_close(got / np.abs(want).max(), want / np.abs(want).max())


@rows("guided_backprop", "occlusion")
def test_an_error_inside_leaves_the_model_as_it_was(name, model):
    def target(outputs):
        raise RuntimeError("in the midst")

    with nets.unchanged(model), pytest.raises(RuntimeError, match="in the midst"):
        TECHNIQUES[name](model, nets.images(), target)


@rows("smooth_grad", "integrated_gradients")
def test_ctrl_c_gives_what_there_is(name, model):
    stopped = []

    def target(outputs):
        if not stopped:
            stopped.append(signal.raise_signal(signal.SIGINT))
        return outputs[:, 1]

    before = signal.getsignal(signal.SIGINT)
    got = TECHNIQUES[name](model, nets.images(), target, batch_size=2)
    assert 0 < len(got) < 3
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("policy", "name"),
    [
        pytest.param(f"mixed_{dtype}", name, marks=SLOW)
        for dtype, names in (
            ("bfloat16", ("gradient", "occlusion", "grad_cam")),
            ("float16", ("guided_backprop", "integrated_gradients", "grad_cam")),
        )
        for name in names
    ],
)
def test_sixteen_bits_give_nearly_the_same(name, policy, model):
    keras.mixed_precision.set_dtype_policy(policy)
    other = nets.pooled()
    keras.mixed_precision.set_dtype_policy("float32")
    other.set_weights(model.get_weights())
    got, want = (TECHNIQUES[name](each, nets.images(), 1) for each in (other, model))
    assert got.dtype == "float32"
    assert (rank_correlation(got, want) > 0.95).all()


@rows("gradient", "grad_cam")
def test_images_that_do_not_fit_are_refused_before_work(name, model):
    for images, message in (
        (np.zeros((2, 8, 8, 3)), r"takes images \[b, 8, 9, 3\]: got \[2, 8, 8, 3\]"),
        (np.full((1, *nets.SIZE), np.nan), "not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            TECHNIQUES[name](model, images, 0)
    with pytest.raises(ValueError, match="has the classes 0 to 3: got target 4"):
        TECHNIQUES[name](model, nets.images(), 4)
    with pytest.raises(ValueError, match="Expected a built keras.Model"):
        TECHNIQUES[name](keras.Sequential([layers.Dense(2)]), nets.images(), 0)
