"""A run that is cut off as by a kill, and the same run never stopped: what the tests of `Resume` share."""

import collections
import threading

import keras
import numpy as np

import kvision
from kvision.callbacks import Resume
from kvision.callbacks.model_state import copy_state, restore_state
from kvision.trackers import clock
from tests.callbacks.runs import tiny_model

BATCHES, EPOCHS = 5, 3
numbers = np.random.default_rng(0)
X, Y = numbers.normal(size=(36, 4)).astype("float32"), numbers.integers(0, 2, 36)


class PowerCutError(Exception):
    """Ends a fit as a kill does, as far as one process can."""


class PowerCut(keras.callbacks.Callback):
    """Breaks off before the batch of that number, counted over the fit."""

    def __init__(self, batch):
        super().__init__()
        self.left = batch

    def on_train_batch_begin(self, batch, logs=None):
        if not self.left:
            raise PowerCutError
        self.left -= 1


def data():
    return kvision.data.arrays(X, Y, batch_size=8, seed=5)


made = {}  # models and how they began: one of a kind for all tests, since compiling is what takes the time


def again(build):
    """A model as in a new process: its state, optimizer and clock are those of a new one."""
    if build not in made:
        model = build()
        made[build] = model, copy_state(model, ("model", "optimizer"))
    model, state = made[build]
    restore_state(model, state)
    clock._clocks.pop(model, None)
    keras.utils.set_random_seed(1)
    return model


def model_again():
    return again(tiny_model)


def train(directory, *callbacks, model=model_again, data=data, every=2, epochs=EPOCHS, cut=None, last=False, **options):
    """One try of the run; None if it was cut."""
    batches = data()
    model = model()
    resume = Resume(directory, every=every, data=batches)
    callbacks = [*callbacks, resume] if last else [resume, *callbacks]
    callbacks += [] if cut is None else [PowerCut(cut)]
    options = {"verbose": 0, "shuffle": False, **options}
    try:
        history = model.fit(batches, epochs=epochs, callbacks=callbacks, **options)
    except PowerCutError:
        return None
    finally:
        for writer in [each for each in threading.enumerate() if each.name == "kvision checkpoint"]:
            writer.join()
        for log in [each for each in callbacks if isinstance(each, keras.callbacks.CSVLogger)]:
            log.csv_file.close()
    return Done(model, {"epoch": history.epoch, **history.history}, callbacks)


Done = collections.namedtuple("Done", "model history callbacks")


def assert_same(run, straight):
    groups = ("model", "optimizer")
    states = [list(copy_state(each.model, groups).values()) for each in (run, straight)]
    for array, expected in zip(*states, strict=True):
        np.testing.assert_array_equal(array, expected)
    np.testing.assert_equal(run.history, straight.history)
