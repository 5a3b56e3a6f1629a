"""Runs with planted faults, and what an outsider saw of them."""

import functools

import keras
import numpy as np
from keras import ops

from kvision.callbacks import Rollback
from kvision.callbacks.model_state import copy_state
from kvision.trackers.clock import applied_steps, clock_of
from tests.callbacks.vitals.vital_runs import ALL

BATCH, BATCHES = 8, 24
CLEAN, LOSS, GRADIENT = 0.0, 1.0, 2.0  # what the third target of a batch plants


@ops.custom_gradient
def planted(outputs, faults):
    """The outputs, with an infinite gradient where that fault is planted."""

    def grad(*args, upstream=None):
        upstream = args[0] if upstream is None else upstream
        broken = ops.any(ops.equal(faults, GRADIENT))
        return ops.where(broken, ops.full_like(upstream, float("inf")), upstream), ops.zeros_like(faults)

    return outputs, grad


def loss(targets, outputs):
    targets, outputs = ops.cast(targets, "float32"), ops.cast(outputs, "float32")
    faults = targets[:, 2]
    error = ops.mean(ops.square(planted(outputs, faults) - targets[:, :2]), axis=-1)
    return ops.where(ops.equal(faults, LOSS), ops.full_like(error, float("nan")), error)


def network():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(6, name="hidden"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Activation("relu", name="relu"),
            keras.layers.Dropout(0.2, seed=1),
            keras.layers.Dense(2, name="head", dtype="float32"),
        ]
    )


def compiled(name="plain", **options):
    mode = ALL[name]
    keras.mixed_precision.set_dtype_policy(mode.get("policy", "float32"))
    model = network()
    options = {"learning_rate": 0.05, "momentum": 0.9} | mode.get("optimizer", {}) | options
    model.compile(keras.optimizers.SGD(**options), loss, **mode.get("compile", {}))
    return model


@functools.cache
def shared():
    """One compiled model for many runs, and its first state."""
    model = compiled()
    return model, copy_state(model)


def data(seed=0, batches=BATCHES, faults=()):
    """Examples of a linear rule with noise; `faults` are pairs of a batch and what is planted in it."""
    numbers = np.random.default_rng(seed)
    x = numbers.normal(size=(batches * BATCH, 4)).astype("float32")
    y = np.concatenate([x[:, :2] + 0.3 * numbers.normal(size=(len(x), 2)), np.zeros((len(x), 1))], axis=1)
    for batch, fault in faults:
        rows = slice(batch * BATCH, (batch + 1) * BATCH)
        if fault in (LOSS, GRADIENT):
            y[rows, 2] = fault
        elif fault == "input":
            x[batch * BATCH + 3, 1] = np.nan
        else:
            y[rows, :2] *= fault  # a number: the loss is that large
    return x, y.astype("float32")


def fit(model, callbacks, x, y, **options):
    options = {"batch_size": BATCH, "shuffle": False, "verbose": 0} | options
    return model.fit(x, y, callbacks=list(callbacks), **options).history


class Watch(keras.callbacks.Callback):
    """States by optimizer step, before `rollback` acts; the state right after it acted, in a callback of its own."""

    def __init__(self, rollback):
        super().__init__()
        self.rollback = rollback
        self.states, self.after, self.at_fault = {}, [], []
        self.behind = keras.callbacks.LambdaCallback(on_train_batch_end=self.see_after)

    @property
    def callbacks(self):
        return [self, self.rollback, self.behind]

    def on_train_batch_begin(self, batch, logs=None):
        self.states.setdefault(applied_steps(self.model), copy_state(self.model))

    def see_after(self, batch, logs):
        if len(self.after) < self.rollback.retries:
            self.after.append((self.rollback.restored_step, copy_state(self.model)))


def differing(one, other, but=("learning_rate", "metrics/")):
    """Names of the variables in which two states differ, without the rate that is halved and the epoch's sums."""
    names = [name for name in one if not any(part in name for part in but)]
    assert names
    return [name for name in names if not np.array_equal(one[name], other[name])]


def broken_run(model, faults, every=4, batches=BATCHES, seed=0, **options):
    """`Watch` and `Rollback` of a run with planted faults."""
    rollback = Rollback(every=every, **options)
    watch = Watch(rollback)
    fit(model, watch.callbacks, *data(seed, batches, faults))
    return watch, rollback


def reset(model, state):
    clock_of(model).steps_before = 0
    for name, variable in zip(state, [*model.variables, *model.optimizer.variables], strict=False):
        variable.assign(state[name])
