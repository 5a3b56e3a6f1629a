"""Descent on losses whose minimum is known."""

import signal
import sys

import keras
import numpy as np
import pytest

from kvision.visualize.descent import LBFGS, OptimizedImages, checked_optimizer, layer_weights, minimize
from tests.support import assert_close

START = np.full((2, 3, 3, 1), 100.0, "float32")
GOAL = np.random.default_rng(0).uniform(-50, 300, START.shape).astype("float32")
SCALES = np.array([1.0, 3.0], "float32")[:, None, None, None]


def loss(pixels, step):
    """Squared distances of two images, each of another weight, in two terms."""
    squares = SCALES * (pixels - GOAL) ** 2
    terms = np.stack([squares[:, 0].sum((1, 2)), squares[:, 1:].sum((1, 2, 3))], axis=1)
    return terms, 2 * SCALES * (pixels - GOAL)


@pytest.mark.parametrize(
    ("optimizer", "rate", "steps"),
    [(LBFGS, None, 20), ("adam", 20.0, 150), ("sgd", 0.12, 30), (keras.optimizers.SGD(0.1, momentum=0.5), None, 30)],
    ids=["lbfgs", "adam", "sgd", "instance"],
)
def test_the_minimum_within_bounds(optimizer, rate, steps):
    pixels, rows = minimize(loss, START, steps, optimizer=checked_optimizer(optimizer, rate))
    assert_close(pixels, np.clip(GOAL, 0, 255), tolerance=(0, 0.2))
    assert rows.shape[1:] == (2, 2)
    assert len(rows) == steps + 1 or optimizer == LBFGS
    assert_close(rows[0], loss(START, 0)[0])
    assert_close(rows[-1], loss(pixels, None)[0], tolerance=(1e-4, 1e-3))
    assert START.min() == START.max() == 100.0


def test_lbfgs_never_goes_up():
    def bent(pixels, step):
        terms, gradient = loss(pixels, step)
        return terms + np.cos(pixels / 9).sum((1, 2, 3))[:, None] / 2, gradient - np.sin(pixels / 9) / 9

    _, rows = minimize(bent, START, 8, optimizer=LBFGS)
    assert len(rows) == 9
    assert (np.diff(rows.sum((1, 2))) <= 1e-3).all()


def test_the_optimizer_of_the_user_is_left_alone():
    own = keras.optimizers.Adam(3.0)
    minimize(loss, START, 2, optimizer=checked_optimizer(own))
    assert not own.built
    assert int(own.iterations) == 0


def test_images_are_projected_after_each_update():
    seen = []

    def project(pixels, step):
        seen.append(step)
        return np.full_like(pixels, 300.0)

    pixels, _ = minimize(loss, START, 3, optimizer=checked_optimizer("adam"), project=project)
    assert seen == [0, 1, 2]
    assert pixels.min() == 255


@pytest.mark.parametrize(("optimizer", "count"), [("adam", 4), (LBFGS, 3)])
def test_ctrl_c_gives_what_there_is(optimizer, count):
    handler = signal.getsignal(signal.SIGINT)

    def interrupted(pixels, step):
        if step == 2:
            signal.raise_signal(signal.SIGINT)
        return loss(pixels, step)

    pixels, rows = minimize(interrupted, START, 50, optimizer=checked_optimizer(optimizer))
    assert len(rows) == count  # the step in which it came is finished
    assert rows[-1].sum() < rows[0].sum()
    assert_close(rows[-1], loss(pixels, None)[0], tolerance=(1e-4, 1e-3))
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("optimizer", ["adam", LBFGS])
def test_what_is_not_finite_is_an_error_that_gives_the_handler_back(optimizer):
    handler = signal.getsignal(signal.SIGINT)

    def broken(pixels, step):
        return loss(pixels, step)[0], np.full_like(pixels, np.nan)

    with pytest.raises(ValueError, match="Step 0: the loss or its gradient is not finite") as caught:
        minimize(broken, START, 5, optimizer=checked_optimizer(optimizer))
    assert caught is not None  # its traceback still holds the frames
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize(
    ("optimizer", "options", "message"),
    [
        ("adman", {}, "Unknown optimizer: got 'adman'. The nearest names are: 'adamax'"),
        (3, {}, "optimizer is a name"),
        (LBFGS, {"learning_rate": 1.0}, "finds its own step length"),
        (LBFGS, {"lbfgs": False}, "jitter=0 and blur=0"),
        ("adam", {"learning_rate": 0}, "learning_rate must be above 0"),
        (keras.optimizers.SGD(), {"learning_rate": 1.0}, "has a learning rate"),
    ],
)
def test_optimizers_that_are_refused(optimizer, options, message):
    with pytest.raises(ValueError, match=message):
        checked_optimizer(optimizer, **options)


def test_scipy_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r"pip install 'kvision\[classic\]'"):
        checked_optimizer(LBFGS)


@pytest.mark.parametrize(
    ("layers", "want"),
    [
        ("a", {"a": 1.0}),
        (["a", "b"], {"a": 0.5, "b": 0.5}),
        (("a", 1), {("a", 1): 1.0}),
        ({"a": 3.0, "b": 1}, {"a": 3.0, "b": 1}),
    ],
)
def test_weights_of_layers(layers, want):
    assert layer_weights("layers", layers) == want


@pytest.mark.parametrize("layers", [[], {"a": 0}, {"a": float("nan")}])
def test_weights_of_layers_that_are_refused(layers):
    with pytest.raises(ValueError, match="style_layers: give at least one layer, and weights above 0"):
        layer_weights("style_layers", layers)


def test_one_image_of_several_is_refused():
    assert OptimizedImages(START[:1], {}).image.shape == (3, 3, 1)
    with pytest.raises(ValueError, match="There are 2 images"):
        _ = OptimizedImages(START, {}).image
