"""Gradient norms equal a slow twin's: backpropagation by hand through the saved weights of the same run."""

import math

import keras
import numpy as np
import pytest

from kvision.callbacks import GradientNorm, UpdateRatio
from tests.callbacks.vitals.vital_runs import (
    ROWS,
    Record,
    compiled,
    data,
    dense_model,
    fit,
    measured_run,
    run,
    saved_run,
    steps_to_measure,
    without_model,
)

ROUNDED = {"float16": 5e-3, "bfloat16": 4e-2}  # of the global norm: the run rounds to 16 bits, the twin does not


def gradients(weights, x, y):
    """Of the mean cross-entropy of `dense_model`."""
    x = x.astype("float64")
    before = x @ weights["hidden/kernel"] + weights["hidden/bias"]
    hidden = np.maximum(before, 0)
    logits = hidden @ weights["logits/kernel"] + weights["logits/bias"]
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    back = (scores - np.eye(3)[y]) / len(y)
    back_hidden = (back @ weights["logits/kernel"].T) * (before > 0)
    return {
        "hidden/kernel": x.T @ back_hidden,
        "hidden/bias": back_hidden.sum(axis=0),
        "logits/kernel": hidden.T @ back,
        "logits/bias": back.sum(axis=0),
    }


def gradient_norms(weights, x, y):
    return {path: np.linalg.norm(gradient) for path, gradient in gradients(weights, x, y).items()}


@pytest.mark.parametrize("mode", ROWS)
def test_equals_backpropagation_by_hand(mode):
    record, _, callback, history = measured_run(mode)
    saved, measured = saved_run(mode), record.measurements("gradient_norm")
    assert list(measured) == steps_to_measure(mode, len(saved) - 1)
    x, y = data()
    size = len(x) // (len(saved) - 1)  # examples of one optimizer step
    for step, values in measured.items():
        batch = slice((step - 1) * size, step * size)
        want = gradient_norms(saved[step - 1], x[batch], y[batch])
        rounding = ROUNDED.get(mode, 0) * math.hypot(*want.values())
        assert values == pytest.approx(want, rel=1e-4, abs=rounding), step
    last = {without_model(path): value for path, value in callback.norms.items()}
    assert last == values
    assert callback.global_norm == pytest.approx(math.hypot(*values.values()))
    assert history["gradient_norm"] == [callback.global_norm]


def test_a_step_that_loss_scaling_skips_does_not_count():
    x, y = data(batches=6)
    x[16:24] *= 1e30  # the third batch
    record = Record()
    model, _ = run({"policy": "mixed_float16"}, [GradientNorm(every=1), UpdateRatio(every=1), record], x=x, y=y)
    for name in ("gradient_norm", "update_ratio"):
        measured = record.measurements(name)
        assert list(measured) == [1, 2, 3, 4, 5], name
        assert all(math.isfinite(value) for values in measured.values() for value in values.values()), name
    assert int(keras.ops.convert_to_numpy(model.optimizer.iterations)) == 5


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_weights_without_a_gradient_are_left_out():
    @keras.saving.register_keras_serializable("tests")
    class Idle(keras.layers.Layer):
        def build(self, shape):
            self.unused = self.add_weight(shape=(3, 3), name="unused")

        def call(self, inputs):
            return inputs

    model = keras.Sequential([keras.Input((4,)), Idle(), keras.layers.Dense(3)])
    callback = GradientNorm(every=1)
    fit(compiled(model, {}), [callback])
    paths = {without_model(path) for path in callback.norms}
    unused = {path for path in paths if "unused" in path}
    if keras.backend.backend() == "tensorflow":
        assert not unused and len(paths) == 2
    else:  # JAX gives a gradient of zeros
        assert [callback.norms[path] for path in callback.norms if "unused" in path] == [0.0]


def test_tells_gradients_that_are_not_finite():
    x, y = data(batches=2)
    x[8:] = np.nan
    callback = GradientNorm(every=1)
    fit(compiled(dense_model(), {}), [callback], x, y)
    assert math.isnan(callback.global_norm)
