"""The update ratio equals the one an outsider computes from saved weights, in every mode."""

import statistics

import keras
import numpy as np
import pytest

from kvision.callbacks import UpdateRatio
from tests.callbacks.vitals.test_gradient_norm import gradients
from tests.callbacks.vitals.vital_runs import (
    AVERAGED,
    ROWS,
    Record,
    compiled,
    data,
    dense_model,
    fit,
    measured_run,
    run,
    saved_run,
    saved_weights,
    steps_to_measure,
    without_model,
)


def ratios(saved, step):
    before, after = saved[step - 1], saved[step]
    norms = {path: np.linalg.norm(weight) for path, weight in before.items()}
    return {path: np.linalg.norm(after[path] - before[path]) / norms[path] for path in before if norms[path] > 0}


@pytest.mark.parametrize("mode", [row for row in ROWS if row.values[0] not in AVERAGED])
def test_equals_the_ratio_of_saved_weights(mode):
    record, callback, _, history = measured_run(mode)
    saved, measured = saved_run(mode), record.measurements("update_ratio")
    assert list(measured) == steps_to_measure(mode, len(saved) - 1)
    for step, values in measured.items():
        assert values == pytest.approx(ratios(saved, step), rel=1e-4), step
    last = {without_model(path): ratio for path, ratio in callback.ratios.items()}
    assert last == values
    assert history["update_ratio"] == [statistics.median([last["hidden/kernel"], last["logits/kernel"]])]


@pytest.mark.xdist_group("vitals, averages")
def test_averages_that_overwrite_the_weights_are_no_update():
    """The update of SGD with momentum, by hand: the averages replace the weights at every third step."""
    record, *_ = measured_run("averages")
    saved, (x, y) = saved_run("averages"), data()
    velocity = dict.fromkeys(saved[0], 0.0)
    want = {}
    for step, weights in enumerate(saved[:-1], 1):
        batch = slice(8 * (step - 1), 8 * step)
        for path, gradient in gradients(weights, x[batch], y[batch]).items():
            velocity[path] = 0.9 * velocity[path] - 0.1 * gradient
        norms = {path: np.linalg.norm(weight) for path, weight in weights.items()}
        want[step] = {path: np.linalg.norm(velocity[path]) / norm for path, norm in norms.items() if norm > 0}
    measured = record.measurements("update_ratio")
    assert list(measured) == [1, 3, 6, 9, 12, 15]
    for step, values in measured.items():
        assert values == pytest.approx(want[step], rel=1e-3), step


def test_a_weight_that_is_zero_has_no_ratio_until_it_has_moved():
    record = Record()
    run({}, [UpdateRatio(every=2), record])
    measured = record.measurements("update_ratio")
    assert set(measured[1]) == {"hidden/kernel", "logits/kernel"}
    assert set(measured[2]) == {"hidden/kernel", "hidden/bias", "logits/kernel", "logits/bias"}


def test_the_median_leaves_vanishing_kernels_out():
    callback = UpdateRatio(every=1)
    model = dense_model()
    model.get_layer("hidden").kernel.assign(np.full((4, 8), 1e-8))
    history = fit(compiled(model, {}, learning_rate=1e-9, momentum=0.0), [callback]).history
    assert history["update_ratio"] == [callback.ratios["sequential/logits/kernel"]]


def test_frozen_weights_are_left_out():
    callback = UpdateRatio(every=1)
    model = dense_model()
    model.get_layer("hidden").trainable = False
    fit(compiled(model, {}), [callback])
    assert set(callback.ratios) == {"sequential/logits/kernel", "sequential/logits/bias"}


@pytest.mark.parametrize("jit", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_keeps_its_digits_over_a_million_elements(jit):
    def make():
        keras.utils.set_random_seed(1)
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(1024), keras.layers.Dense(1024, name="large")])

    mode = {"compile": {"jit_compile": jit}}
    x, y = np.ones((16, 4), "float32"), np.arange(16)
    record = Record()
    run(mode, [UpdateRatio(), record], make=make, x=x, y=y)
    want = ratios(saved_weights({}, make=make, x=x, y=y), 1)
    assert record.measurements("update_ratio")[1]["large/kernel"] == pytest.approx(want["large/kernel"], rel=1e-4)


def test_sees_embeddings_whose_gradient_is_sparse():
    def make():
        keras.utils.set_random_seed(1)
        layers = [keras.Input((4,)), keras.layers.Embedding(50, 3, name="words"), keras.layers.GlobalAveragePooling1D()]
        return keras.Sequential([*layers, keras.layers.Dense(3)])

    x, y = np.arange(64).reshape(16, 4) % 7, np.arange(16) % 3
    record = Record()
    run({}, [UpdateRatio(every=1), record], make=make, x=x, y=y)
    saved = saved_weights({}, make=make, x=x, y=y)
    for step in (1, 2):
        got, want = record.measurements("update_ratio")[step], ratios(saved, step)
        assert got["words/embeddings"] == pytest.approx(want["words/embeddings"], rel=1e-4)


@pytest.mark.parametrize("every", [0, -3, 2.0, "1"])
def test_every_counts_steps(every):
    with pytest.raises(ValueError, match="optimizer steps"):
        UpdateRatio(every)
