"""Checks train a model and leave it bit for bit as it was."""

import contextlib
import random

import keras
import numpy as np
from keras import ops

from kvision._keras import global_seed_variable, layers_of

FUNCTIONS = ("train_function", "test_function", "predict_function")
RANDOM = ("rate", "dropout", "recurrent_dropout", "stddev")  # how much the random layers of Keras and kvision disturb
REGULARIZERS = ("regularizer", "activity_regularizer")


@contextlib.contextmanager
def untouched(model, optimizer=None):
    """Within it, the model may be trained; afterwards it is as before, on errors too.

    Weights, statistics, seeds (those of the model, of Keras, NumPy and Python), metrics, the optimizer and the compiled
    functions are put back. Metrics that a first batch makes are there afterwards, reset.

    Args:
        model: A built and compiled model.
        optimizer: Takes the place of the model's own, which is not touched; None leaves it in place.
    """
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()
    kept = {name: getattr(model, name) for name in (*FUNCTIONS, "optimizer", "stop_training") if hasattr(model, name)}
    changes = getattr(getattr(model, "_step_state", None), "head_changes", None)
    known = None if changes is None else dict(changes)
    variables = _variables(model)
    values = [np.array(ops.convert_to_numpy(variable)) for variable in variables]
    states = random.getstate(), np.random.get_state()
    try:
        if optimizer is not None:
            model.optimizer = optimizer
        for name in FUNCTIONS:
            setattr(model, name, None)
        yield
    finally:
        if hasattr(model, "jax_state_sync"):
            model.jax_state_sync()
        for name, value in kept.items():
            setattr(model, name, value)
        if known is not None:
            changes.clear()
            changes.update(known)
        before = set(map(id, variables))
        for metric in model.metrics:
            if not all(id(variable) in before for variable in metric.variables):
                metric.reset_state()
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        random.setstate(states[0])
        np.random.set_state(states[1])


def _variables(model):
    seed = global_seed_variable()
    everything = [*model.variables, *model.metrics_variables, *([] if seed is None else [seed])]
    return list({id(variable): variable for variable in everything}.values())


def without_regularization(model):
    """A context in which weights and activities cost nothing; functions compiled outside know nothing of it."""
    owners = [*layers_of(model, include_self=True), *model.variables]
    return changed([(owner, name, None) for owner in owners for name in REGULARIZERS if getattr(owner, name, None)])


def without_dropout(model):
    """A context in which dropout and noise layers do nothing; functions compiled outside know nothing of it."""
    layers = [layer for layer in layers_of(model) if getattr(layer, "seed_generator", None) is not None]
    return changed([(layer, name, 0.0) for layer in layers for name in RANDOM if getattr(layer, name, None)])


@contextlib.contextmanager
def changed(changes):
    """A context in which attributes have other values; `changes` are (owner, name, value)."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def copy_optimizer(optimizer, learning_rate=None):
    """A fresh optimizer of the same settings; with `learning_rate`, at this constant rate instead of its own."""
    config = keras.optimizers.serialize(optimizer)
    if learning_rate is not None:
        _set_rate(config["config"], learning_rate)
    return keras.optimizers.deserialize(config)


def _set_rate(config, rate):
    inner = config.get("inner_optimizer")  # of a LossScaleOptimizer
    if inner is not None:
        _set_rate(inner["config"], rate)
    else:
        config["learning_rate"] = rate
