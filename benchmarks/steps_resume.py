"""What a checkpoint of ResNet-50 with momentum costs: the copy in the step, and restoring it."""

import pathlib
import tempfile
import time

import harness

tf = harness.tensorflow()

import keras
import numpy as np

from kvision import applications
from kvision.callbacks.model_state import copy_state, restore_state
from kvision.callbacks.snapshots import Snapshots


def trained():
    model = applications.ResNet50()
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "sparse_categorical_crossentropy")
    model.train_on_batch(np.zeros((1, 224, 224, 3), "float32"), np.zeros(1, "int32"))
    return model


def stall():
    """What the step waits for while a thread writes: the state, copied from the device."""
    model, snapshots = trained(), Snapshots(tempfile.mkdtemp())

    def step():
        snapshots.wait()
        start = time.perf_counter()
        snapshots.save({}, copy_state(model))
        return harness.Milliseconds(1000 * (time.perf_counter() - start))

    return step


def restore():
    model, snapshots = trained(), Snapshots(tempfile.mkdtemp())
    snapshots.save({}, copy_state(model))

    def step():
        _, _, arrays = snapshots.newest()
        restore_state(model, arrays)

    return step


def load_weights():
    model, path = trained(), pathlib.Path(tempfile.mkdtemp(), "model.weights.h5")
    model.save_weights(path)
    return lambda: model.load_weights(path)


CASES = {"stall": stall, "restore": restore, "load_weights": load_weights}

if __name__ == "__main__":
    harness.serve(CASES)
