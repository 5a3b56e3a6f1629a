"""The tap leaves nothing behind, whatever ends a fit, changes no run, and measures once however many vitals read it."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from kvision.callbacks import DeadReLU, GradientNorm, UpdateRatio, Vital, Vitals
from kvision.callbacks.vitals import step_tap, tapped_step
from tests.callbacks.vitals.vital_runs import Record, compiled, data, dense_model, fit, run, to_numpy


def attributes(model):
    """What hangs on the model, its layers and its optimizer, by identity."""
    owners = [model, model.optimizer, *model._flatten_layers(include_self=False)]
    names = ("apply", "activation", "call", "train_step", "make_train_function")
    return [(id(owner), name, id(vars(owner).get(name))) for owner in owners for name in names]


def three(every=1):
    return [UpdateRatio(every), DeadReLU(every), GradientNorm(every)]


class Stop(keras.callbacks.Callback):
    """Raises in one hook, by default the second time it is called."""

    def __init__(self, hook, error, call=2):
        super().__init__()
        self.calls = 0

        def raising(*args, **kwargs):
            self.calls += 1
            if self.calls == call:
                raise error

        setattr(self, hook, raising)


ERRORS = {"error": RuntimeError("planted"), "interrupt": KeyboardInterrupt()}
HOOKS = ("on_train_batch_begin", "on_train_batch_end", "on_epoch_begin", "on_epoch_end", "on_test_batch_end")
QUICK = {("on_train_batch_begin", "interrupt"), ("on_epoch_end", "error")}
BROKEN = [
    pytest.param(hook, ERRORS[name], id=f"{hook}, {name}", marks=() if (hook, name) in QUICK else pytest.mark.slow)
    for hook in HOOKS
    for name in ERRORS
]


@pytest.mark.parametrize(("hook", "error"), BROKEN)
def test_nothing_stays_wrapped_after_an_exception_in_a_callback(hook, error):
    model = compiled(dense_model(), {})
    before = attributes(model)
    x, y = data(4)
    with pytest.raises(type(error)):
        fit(model, [*three(), Stop(hook, error)], x, y, epochs=3, validation_data=(x, y))
    assert attributes(model) == before
    left = to_numpy(model.trainable_weights[0])
    vital = UpdateRatio(every=1)
    fit(model, [], x, y)  # a later plain fit, and a later one with a vital
    assert not np.array_equal(to_numpy(model.trainable_weights[0]), left)
    fit(model, [vital], x, y)
    assert len(vital.ratios) == 4 and attributes(model) == before


@pytest.mark.parametrize("error", [RuntimeError("planted"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_nothing_stays_wrapped_after_an_exception_inside_the_step(error):
    class Raising(keras.losses.Loss):
        def call(self, y_true, y_pred):
            if "apply" in vars(model.optimizer):  # the wrappers are on; Keras also calls a loss to build it
                raise error
            return keras.ops.sum(y_pred, axis=-1)

    model = dense_model()
    model.compile("sgd", Raising())
    before = attributes(model)
    with pytest.raises(type(error)):
        fit(model, [UpdateRatio()])
    assert attributes(model) == before


def test_nothing_stays_wrapped_after_a_fit_and_a_plain_fit_is_not_tapped():
    model = compiled(dense_model(), {})
    before, callbacks = attributes(model), three()
    fit(model, callbacks)
    assert attributes(model) == before
    ratios = dict(callbacks[0].ratios)
    function = model.train_function
    fit(model)
    assert model.train_function is function and callbacks[0].ratios == ratios


def test_a_function_left_in_place_steps_aside_in_the_next_fit(monkeypatch):
    """Another callback may raise between the tap's `on_train_batch_begin` and the step."""
    model = compiled(dense_model(), {})
    with pytest.raises(RuntimeError):
        fit(model, [UpdateRatio(every=1), Stop("on_train_batch_begin", RuntimeError(), call=1)])
    traced = []
    monkeypatch.setattr(tapped_step.TappedStep, "_measured_apply", lambda *_: traced.append(1))
    fit(model)
    assert traced == [] and not isinstance(getattr(model.train_function, "__self__", None), step_tap.StepTap)


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)], ids=["in order", "reversed"])
def test_measures_once_for_all_vitals(order, monkeypatch):
    recorders = []
    real = tapped_step.Recorder
    monkeypatch.setattr(tapped_step, "Recorder", lambda *args: recorders.append(real(*args)) or recorders[-1])
    record = Record()
    callbacks = [UpdateRatio(every=2), UpdateRatio(every=2), GradientNorm(every=5), DeadReLU(), Vitals(every=4), record]
    run({}, callbacks[order])
    assert len(recorders) == 1
    ratio_steps = list(record.measurements("update_ratio"))  # which also checks that no step was emitted twice
    gradient_steps = list(record.measurements("gradient_norm"))
    assert ratio_steps == [1, 2, 4, 6, 8, 10, 12, 14, 16]
    assert gradient_steps == [1, 4, 5, 8, 10, 12, 15, 16]


def test_a_last_batch_of_another_size_is_measured():
    x, y = data()
    record = Record()
    run({}, [UpdateRatio(every=1), record], x=x[:20], y=y[:20], epochs=2)
    assert list(record.measurements("update_ratio")) == [1, 2, 3, 4, 5, 6]


def test_short_epochs_add_up_to_a_window():
    x, y = data(4)
    record = Record()
    _, history = run({}, [UpdateRatio(every=10), record], x=x, y=y, epochs=6)
    assert list(record.measurements("update_ratio")) == [1, 10, 20]
    assert len(history["update_ratio"]) == 6


def test_tells_the_rate_that_a_step_was_taken_with():
    class Rates(Vital):
        def on_norms(self, norms):
            rates[norms.step] = norms.learning_rate

    rates, halving = {}, keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    fit(compiled(dense_model(), {}, learning_rate=halving), [Rates(every=4)])
    assert rates == pytest.approx({step: 0.1 * 0.5 ** (step - 1) for step in (1, 4, 8, 12, 16)})


def test_two_models_are_tapped_at_once():
    inner_record, record = Record(), Record()

    class FitAnother(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            run({}, [UpdateRatio(every=4), inner_record])

    run({}, [UpdateRatio(every=4), record, FitAnother()])
    assert list(record.measurements("update_ratio")) == [1, 4, 8, 12, 16]
    for step, values in record.measurements("update_ratio").items():
        assert values == pytest.approx(inner_record.measurements("update_ratio")[step], rel=1e-4)


@pytest.mark.parametrize("jit", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_with_vitals_is_the_run_without(jit):
    mode = {"compile": {"jit_compile": jit}}
    plain, _ = run(mode)
    tapped, _ = run(mode, three())
    for one, other in zip(plain.trainable_weights, tapped.trainable_weights, strict=True):
        np.testing.assert_allclose(to_numpy(one), to_numpy(other), rtol=1e-5, atol=1e-6)


def test_saving_and_reloading_are_untouched(tmp_path):
    plain, _ = run({})
    model, _ = run({}, three())
    assert len(model.variables) == len(plain.variables)
    assert len(model.optimizer.variables) == len(plain.optimizer.variables)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")  # warnings are errors
    for one, other in zip(model.variables, loaded.variables, strict=True):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))
    for one, other in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))
    assert loaded.get_layer("hidden").activation is keras.activations.relu
    model.save_weights(tmp_path / "model.weights.h5")
    fresh = compiled(dense_model(), {})
    fresh.optimizer.build(fresh.trainable_variables)
    fresh.load_weights(tmp_path / "model.weights.h5")
    for one, other in zip(model.optimizer.variables, fresh.optimizer.variables, strict=True):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))
    fit(loaded, [UpdateRatio(every=1)])


def test_a_model_recompiled_between_epochs_is_tapped_anew():
    class Freeze(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.model.get_layer("hidden").trainable = False
                compiled(self.model, {})
                self.model.optimizer.build(self.model.trainable_variables)
                self.model._symbolic_build(data_batch=data(1))
                self.model.make_train_function()

    record = Record()
    run({}, [UpdateRatio(every=4), record, Freeze()], epochs=2)
    last = [event for event in record.events if event.name == "update_ratio"][-1]
    assert {path.split("/")[-2] for path in last.values} == {"logits"}


def test_a_subclassed_model_with_its_own_train_step():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.hidden = keras.layers.Dense(8, activation="relu")
            self.logits = keras.layers.Dense(3)

        def call(self, inputs):
            return self.logits(self.hidden(inputs))

        def train_step(self, *arguments):
            return super().train_step(*arguments)

    callbacks = three()
    fit(compiled(Own(), {}, learning_rate=0.01), callbacks, epochs=3)
    assert len(callbacks[0].ratios) == 4 and list(callbacks[1].units.values()) == [8]


REPLICAS = """
import contextlib
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
import numpy as np
from kvision.callbacks import DeadReLU, GradientNorm, UpdateRatio
from tests.callbacks.vitals.vital_runs import compiled, data, dense_model, fit

def train(scope, policy):
    keras.mixed_precision.set_dtype_policy(policy)
    callbacks = [UpdateRatio(3), DeadReLU(3), GradientNorm(3)]
    with scope:
        model = compiled(dense_model(), {})
        model.get_layer("hidden").bias.assign([0, -1e3, 0, 0, 0, 0, 0, 0])
    fit(model, callbacks, *data(), epochs=3)
    assert "apply" not in vars(model.optimizer)
    ratio, dead, gradient = callbacks
    return list(ratio.ratios.values()), list(gradient.norms.values()), dead

for policy, tolerance in (("float32", 1e-4), ("mixed_float16", 2e-2)):
    one = train(contextlib.nullcontext(), policy)
    two = train(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope(), policy)
    np.testing.assert_allclose(one[0], two[0], rtol=tolerance)
    np.testing.assert_allclose(one[1], two[1], rtol=tolerance, atol=1e-6)
    for dead in (one[2], two[2]):
        assert 1 in list(dead.dead.values())[0], dead.dead
    assert list(one[2].dead.values()) == list(two[2].dead.values())
print("equal")
"""


@pytest.mark.slow
@pytest.mark.tensorflow_only
def test_two_replicas_measure_what_one_device_does():
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run(
        [sys.executable, "-c", REPLICAS], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout.strip() == "equal", done.stdout + done.stderr[-3000:]
