"""The pictures of loss curves: each is known, told once, and a good one is not told of."""

import re

import keras
import numpy as np
import pytest

from kvision.callbacks import Vitals
from kvision.callbacks.vitals.loss_curve import LossCurve
from tests.callbacks.vitals.test_advice import EVERY, dense, images

E = 12  # epochs
GOOD = [1.4 * 0.8**epoch + 0.1 for epoch in range(E)]
STRAIGHT = [1.4 - 0.01 * epoch for epoch in range(E)]

# The losses, those of validation or None, the largest update ratio, and what is said.
CURVES = {
    "good": (GOOD, None, 1e-3, "good"),
    "good, no ratio": (GOOD, None, None, "good"),
    "good, validation": (GOOD, [loss * 1.3 for loss in GOOD], 1e-3, "good"),
    "good, validation is noisy": (
        GOOD,
        [0.5, 0.4, 0.3, 0.32, 0.28, 0.31, 0.3, 0.29, 0.33, 0.29, 0.3, 0.31],
        1e-3,
        "good",
    ),
    "converged": ([1.4, 0.3, 0.05] + [0.01] * 9, None, 1e-3, "good"),
    "two epochs": (GOOD[:2], None, 1e-3, "too early"),
    "four epochs": ([1.4] * 4, None, 1e-3, "too early"),
    "explodes": ([1.4, 9.0, 80.0], None, 1e-1, "high"),
    "not finite": ([1.4, float("nan"), float("nan")], None, None, "high"),
    "one bad epoch": ([1.4, 9.0, 1.3, 1.1, 0.9], None, 1e-3, "good"),
    "slow and straight": (STRAIGHT, None, 3e-5, "low"),
    "slow and straight, healthy updates": (STRAIGHT, None, 1e-3, "good"),
    "levels off": ([1.4, 1.3, 1.25, 1.22, 1.21, 1.205, 1.203], None, 3e-5, "good"),
    "never moved": ([1.386, 1.387, 1.386, 1.386, 1.386], None, 1e-3, "plateau"),
    "never moved, no ratio": ([1.386] * 6, None, None, "plateau"),
    "gap": (GOOD, [0.9, 0.8, 0.7, 0.72, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.1, 1.2], 1e-3, "overfitting"),
    "gap, but the loss does not fall": ([1.0] * 3 + [1.2] * 9, [0.7] * 3 + [0.9] * 9, 1e-3, "good"),
}


@pytest.mark.parametrize(("losses", "validation", "ratio", "kind"), list(CURVES.values()), ids=list(CURVES))
def test_every_curve_is_known(losses, validation, ratio, kind):
    curve = LossCurve(lambda: True)
    for epoch, loss in enumerate(losses):
        curve.see({"loss": loss} | ({} if validation is None else {"val_loss": validation[epoch]}))
    found, sentence = curve.verdict(ratio)
    overfits = curve.overfits()
    assert ("overfitting" if found == "good" and overfits else found) == kind
    assert (sentence is not None) == (kind in ("high", "low", "plateau"))
    assert (overfits is not None) == (kind == "overfitting")


def test_a_resumed_run_whose_loss_is_flat_has_converged():
    curve = LossCurve(lambda: False)
    for _ in range(E):
        curve.see({"loss": 0.7})
    assert curve.verdict(1e-3) == ("good", None)


def random_labels():
    numbers = np.random.default_rng(1)
    return images()[0], numbers.integers(0, 4, len(images()[0]))


def zeros():
    """Nothing but the last bias learns; under ReLU the units are told to be dead."""
    return dense(kernel_initializer="zeros", head="zeros", activation="tanh")


# The run, whether it has labels to learn, and what is said; the other verdicts of real runs stand in `test_advice`.
RUNS = {
    "zero weights": (zeros, 0.02, images, "plateau", "loss", "The loss has stayed at 1.39 for .*: look at the initial"),
    "rate 100 times too low": (dense, 1e-4, images, "low", "loss", "falls slowly and straight, .*: raise"),
    "labels without a rule": (dense, 0.02, random_labels, "overfitting", "val_loss", "The validation loss rose from 1"),
    "good": (dense, 0.02, images, "good", None, None),
}


@pytest.mark.slow
@pytest.mark.parametrize(("make", "rate", "data", "kind", "vital", "text"), list(RUNS.values()), ids=list(RUNS))
def test_planted_runs_are_told(make, rate, data, kind, vital, text):
    model, vitals, (x, y) = make(), Vitals(EVERY), data()
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    held_out = (x[192:], y[192:]) if kind in ("overfitting", "good") else None
    model.fit(x[:192], y[:192], batch_size=16, epochs=20, verbose=0, validation_data=held_out, callbacks=[vitals])
    assert vitals.curve == kind
    told = [advice.text for advice in vitals.advice if advice.vital == vital]
    assert len(told) == (vital is not None) and all(re.search(text, each) for each in told)
    if vital is None:
        assert vitals.advice == []
