"""Loss scale, skipped steps and the fractions below float16, against NumPy; the gradient beside the weights."""

import keras
import numpy as np
import pytest

from kvision.callbacks import GradientNorm, GradientToWeight, PrecisionHealth, Throughput, UpdateRatio, Vitals
from kvision.callbacks.vitals import guard
from kvision.callbacks.vitals import throughput as throughput_module
from kvision.callbacks.vitals.throughput import peak_flops
from tests.callbacks.vitals.vital_runs import MODES, Record, compiled, data, dense_model, fit, run


def one_weight(gradient, optimizer):
    """A model whose weights [n] have the constant `gradient`."""

    class Given(keras.layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(shape=(len(gradient), 1), name="kernel", dtype="float32", initializer="ones")

        def call(self, x):
            return keras.ops.sum(keras.ops.cast(x, "float32") * 0, axis=-1, keepdims=True) + keras.ops.sum(
                self.kernel[:, 0] * keras.ops.convert_to_tensor(gradient, "float32")
            )

    model = keras.Sequential([keras.Input((2,)), Given(name="given", dtype="float32")])
    model.compile(optimizer, lambda y, outputs: outputs[:, 0])
    return model


GRADIENT = np.array([0.0, 1e-9, 3e-8, 1e-7, 5e-5, 7e-5, 1.0, 0.0], "float32")


@pytest.mark.parametrize("scale", [pytest.param(1.0, marks=pytest.mark.slow), 64.0])
@pytest.mark.parametrize("scaling", ["dynamic", "fixed", pytest.param("accumulated", marks=pytest.mark.slow)])
def test_what_falls_below_float16_is_counted_with_the_loss_scale(scale, scaling):
    if scaling == "dynamic":
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1e-3), initial_scale=scale)
    else:
        steps = {"gradient_accumulation_steps": 2} if scaling == "accumulated" else {}
        optimizer = keras.optimizers.SGD(1e-3, loss_scale_factor=scale, **steps)
    precision = PrecisionHealth(every=2)
    history = fit(one_weight(GRADIENT, optimizer), [precision], np.zeros((32, 2)), np.zeros(32)).history
    scaled = GRADIENT.astype("float64") * scale
    tiny, least = float(np.finfo("float16").tiny), float(np.finfo("float16").smallest_subnormal)
    assert precision.loss_scale == scale and history["loss_scale"] == [scale]
    assert precision.subnormal == pytest.approx(((scaled > 0) & (scaled < tiny)).mean())
    assert precision.lost == pytest.approx(((scaled > 0) & (scaled < least)).mean())
    assert history["skipped_steps"] == [0.0]


def test_steps_that_loss_scaling_skips_are_a_fraction_of_the_epoch():
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    model, precision = dense_model(), PrecisionHealth(every=1)
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=2.0**20)
    model.compile(scaled, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = fit(model, [precision], epochs=2).history
    skipped = 16 - (int(model.optimizer.iterations) - 16)
    assert history["skipped_steps"] == [skipped / 16, 0.0] and skipped > 0
    assert history["loss_scale"][-1] == 2.0 ** (20 - skipped)
    vitals = Vitals()
    assert "loss_scale" in fit(model, [vitals]).history and vitals.precision.loss_scale is not None


def test_vitals_leave_precision_out_in_float32():
    _, history = run({}, [Vitals()])
    assert not {"loss_scale", "float16_lost"} & set(history)


@pytest.mark.parametrize("name", ["plain", pytest.param("accumulation", marks=pytest.mark.slow)])
def test_the_gradient_beside_the_weights_is_the_quotient_of_the_norms(name):
    ratio, norm, update = GradientToWeight(every=4), GradientNorm(every=4), UpdateRatio(every=4)
    record = Record()
    _, history = run(MODES[name], [ratio, norm, update, record])
    weights = {path: record.measurements("update_ratio") for path in ratio.ratios}
    assert len(weights) == 4 and list(record.measurements("gradient_to_weight")) == list(
        record.measurements("update_ratio")
    )
    kernels = [value for path, value in ratio.ratios.items() if path.endswith("kernel")]
    assert history["gradient_to_weight"] == [pytest.approx(np.median(kernels))]
    assert history["update_ratio"][0] > 0


def test_the_gradient_beside_the_weights_against_numpy():
    """Plain descent: the gradient is the update over the rate."""
    ratio, update = GradientToWeight(every=1), UpdateRatio(every=1)
    fit(compiled(dense_model(), {}, momentum=0.0, learning_rate=0.01), [ratio, update])
    for path, number in ratio.ratios.items():
        assert number == pytest.approx(update.ratios[path] / 0.01, rel=1e-3)


class Ticks:
    """A clock that goes on by a second whenever it is read."""

    def __init__(self):
        self.seconds = 0

    def perf_counter(self):
        self.seconds += 1
        return float(self.seconds)


@pytest.mark.parametrize("name", ["plain", pytest.param("several steps a call", marks=pytest.mark.slow)])
def test_throughput_counts_images_and_waiting(name, monkeypatch):
    clock = Ticks()
    for module in (guard, throughput_module):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(throughput_module, "_peaks", {"float32": 1e6})
    throughput, (x, y) = Throughput(), data(12)
    history = fit(compiled(dense_model(), MODES[name]), [throughput], x, y, epochs=2, validation_data=(x, y)).history
    # read once at the beginning, before and after each of 12 batches, and at the end: 12 of 25 seconds are waiting
    assert history["images_per_second"][1] == throughput.images_per_second == 12 * 8 / 25
    assert history["input_wait"][1] == throughput.input_wait == 12 / 25
    assert throughput.memory > 2**20 and history["memory_gib"][1] == throughput.memory / 2**30
    multiply_adds = 4 * 8 + 8 * 3
    assert throughput.flops == pytest.approx(6 * multiply_adds * 12 * 8 / 25)
    assert throughput.peak_fraction == pytest.approx(throughput.flops / 1e6)


def test_the_peak_is_that_of_a_product():
    assert 1e6 < peak_flops("float32") == peak_flops("float32")


def test_throughput_stands_beside_vitals_and_leaves_the_training_alone():
    plain, watched = compiled(dense_model(), {}), compiled(dense_model(), {})
    alone, beside = UpdateRatio(every=3), UpdateRatio(every=3)
    one, other = fit(plain, [alone]).history, fit(watched, [Throughput(), beside]).history
    assert other["loss"] == pytest.approx(one["loss"], rel=1e-6)
    assert list(beside.ratios.values()) == pytest.approx(list(alone.ratios.values()), rel=1e-5)
    for a, b in zip(plain.get_weights(), watched.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
