"""Tiny runs in every mode that vitals must be right in, and their weights as an outsider saves them."""

import functools

import keras
import numpy as np
import pytest

from kvision.callbacks import GradientNorm, UpdateRatio
from kvision.trackers.events import Advice, Measurement
from kvision.trackers.tracker import Tracker

MODES = {
    "plain": {},
    "jit": {"compile": {"jit_compile": True}},
    "several steps a call": {"compile": {"steps_per_execution": 4}},
    "accumulation": {"optimizer": {"gradient_accumulation_steps": 2}},
    "float16": {"policy": "mixed_float16"},
    "bfloat16": {"policy": "mixed_bfloat16"},
    "eager": {"compile": {"run_eagerly": True}},
}
CLIPPED = {
    "clipnorm": {"optimizer": {"clipnorm": 0.01}},
    "global_clipnorm": {"optimizer": {"global_clipnorm": 0.01}},
    "clipvalue": {"optimizer": {"clipvalue": 0.001}},
    "clipped accumulation": {"optimizer": {"gradient_accumulation_steps": 2, "global_clipnorm": 0.01}},
    "loss scale": {"optimizer": {"loss_scale_factor": 8.0}},
    "scaled accumulation": {"optimizer": {"gradient_accumulation_steps": 2, "loss_scale_factor": 8.0}},
    "accumulation, several steps a call": {
        "compile": {"steps_per_execution": 4},
        "optimizer": {"gradient_accumulation_steps": 2},
    },
}
AVERAGED = {"averages": {"optimizer": {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 3}}}
ALL = MODES | CLIPPED | AVERAGED
EVERY = 3
QUICK = ("plain", "jit", "several steps a call", "scaled accumulation", "averages")


def _marks(name):
    """The tests of one mode stand in one worker, where they share its runs."""
    yield pytest.mark.xdist_group(f"vitals, {name}")
    if name not in QUICK:
        yield pytest.mark.slow
    if name == "eager":  # very slow on JAX
        yield pytest.mark.tensorflow_only


ROWS = [pytest.param(name, marks=list(_marks(name))) for name in ALL]


def dense_model(units=8):
    """4 inputs, a ReLU layer, 3 logits; the same weights every time."""
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(units, activation="relu", name="hidden"),
            keras.layers.Dense(3, name="logits", dtype="float32"),
        ]
    )


def data(batches=16, batch=8):
    """Examples of three classes, in a fixed order."""
    numbers = np.random.default_rng(0)
    return numbers.normal(size=(batches * batch, 4)).astype("float32"), numbers.integers(0, 3, batches * batch)


def compiled(model, mode, optimizer=keras.optimizers.SGD, **options):
    """`model`, compiled as a row of the tables above says; its policy must be set before the model is made."""
    options = {"learning_rate": 0.1, "momentum": 0.9} | options | mode.get("optimizer", {})
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer(**options), loss, **mode.get("compile", {}))
    return model


def fit(model, callbacks=(), x=None, y=None, **options):
    """One epoch of `data()` in batches of 8, in order."""
    if x is None:
        x, y = data()
    options = {"batch_size": 8, "shuffle": False, "verbose": 0} | options
    return model.fit(x, y, callbacks=list(callbacks), **options)


def run(mode, callbacks=(), make=dense_model, **options):
    """A fresh model, trained in a mode; returns it and its history."""
    keras.mixed_precision.set_dtype_policy(mode.get("policy", "float32"))
    model = compiled(make(), mode)
    return model, fit(model, callbacks, **options).history


class Snapshots(keras.callbacks.Callback):
    """Saves the trainable weights before the first batch and after each."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def save(self):
        model = self.model  # brings the weights up to date on JAX
        self.weights.append({w.path: keras.ops.convert_to_numpy(w).astype("float64") for w in model.trainable_weights})

    def on_train_begin(self, logs=None):
        self.save()

    def on_train_batch_end(self, batch, logs=None):
        self.save()


def saved_weights(mode, **options):
    """The weights before each optimizer step of the same run without vitals: `[{name: array}]`, one batch a call."""
    snapshots = Snapshots()
    accumulation = mode.get("optimizer", {}).get("gradient_accumulation_steps", 1)
    run({key: value for key, value in mode.items() if key != "compile"}, [snapshots], **options)
    return [{without_model(path): w for path, w in weights.items()} for weights in snapshots.weights[::accumulation]]


@functools.cache
def measured_run(name):
    """`(Record, UpdateRatio, GradientNorm, history)` of a run in the mode of that name."""
    record, ratio, gradient = Record(), UpdateRatio(EVERY), GradientNorm(EVERY)
    _, history = run(ALL[name], [ratio, record, gradient])
    return record, ratio, gradient, history


def saved_run(name):
    """What `saved_weights` gives for the mode of that name."""
    mode = ALL[name]
    return _saved_run(mode.get("policy"), tuple(mode.get("optimizer", {}).items()))


@functools.cache
def _saved_run(policy, optimizer):
    return saved_weights({"policy": policy or "float32", "optimizer": dict(optimizer)})


def steps_to_measure(name, steps):
    """The first and every `EVERY`-th; of several in one call the last."""
    mode = ALL[name]
    batches = mode.get("compile", {}).get("steps_per_execution", 1)
    at_once = max(1, batches // mode.get("optimizer", {}).get("gradient_accumulation_steps", 1))
    return list({(step - 1) // at_once: step for step in [1, *range(EVERY, steps + 1, EVERY)]}.values())


def without_model(path):
    """`logits/kernel` of `sequential_3/logits/kernel`: two models of one kind differ in the first part."""
    return path.split("/", 1)[1]


class Record(Tracker):
    """Keeps what vitals emit."""

    def __init__(self):
        super().__init__()
        self.events = []

    def record(self, event):
        self.events.append(event)

    def measurements(self, name):
        """`{step: {path without the model: number}}`."""
        found = [event for event in self.events if isinstance(event, Measurement) and event.name == name]
        assert len({event.step for event in found}) == len(found), "a step was emitted twice"
        return {event.step: {without_model(path): v for path, v in event.values.items()} for event in found}

    @property
    def advice(self):
        return [event for event in self.events if isinstance(event, Advice)]


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)
