"""The training that is killed: dropout, batch norm, momentum, shuffling, a plateau, and who watches it."""

import json
import os
import pathlib
import signal
import sys
import threading
import time

import keras
import numpy as np

import kvision
from kvision.callbacks import snapshots

BATCHES, EPOCHS, EVERY = 8, 6, 3


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


class Progress(keras.callbacks.Callback):
    """Notes each batch where a kill cannot take it back; slow enough that a kill can fall anywhere."""

    def __init__(self, file):
        super().__init__()
        self.file = file

    def on_train_batch_end(self, batch, logs=None):
        os.write(self.file, b"%d\n" % int(self.model.optimizer.iterations))
        time.sleep(0.004)


class KillAtEpochEnd(keras.callbacks.Callback):
    """Stands behind `Resume` in the list, and still before what that one does at the end of an epoch."""

    def on_epoch_end(self, epoch, logs=None):
        kill()


def planted(name, module=snapshots, time_it_comes=2, after=False):
    """Kill this process before or after the second call of a function of the module that writes checkpoints."""
    calls, function = [], getattr(module, name)

    def killing(*arguments):
        calls.append(name)
        if len(calls) == time_it_comes and not after:
            kill()
        result = function(*arguments)
        if len(calls) == time_it_comes:
            kill()
        return result

    setattr(module, name, killing)


def in_the_middle_of_the_arrays():
    write, calls = snapshots._write_file, []

    def half(blocks):
        blocks = list(blocks)
        yield from blocks[: len(blocks) // 2]
        if calls.count("arrays.bin") == 2:
            kill()
        yield from blocks[len(blocks) // 2 :]

    def killing(path, blocks):
        calls.append(path.name)
        return write(path, half(blocks))

    snapshots._write_file = killing


def at_a_random_moment(seconds):
    """After so many seconds of training, whatever any thread is doing then."""
    began = threading.Event()

    def wait():
        began.wait()
        time.sleep(seconds)
        kill()

    threading.Thread(target=wait, daemon=True).start()
    return keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: began.set())


POINTS = {
    "before the write": lambda: planted("_write"),
    "half-way through the arrays": in_the_middle_of_the_arrays,
    "before the rename": lambda: planted("rename", snapshots.os),
    "after the rename, before the manifest": lambda: planted("rename", snapshots.os, after=True),
    "after the manifest": lambda: planted("replace_file", after=True),
    "before the old ones are removed": lambda: planted("_prune"),
    "at the end of an epoch": KillAtEpochEnd,
}


def train(folder, point=None):
    """One try: it is killed at a point of `POINTS`, after a number of seconds, or ends and leaves its `result`."""
    import tensorflow as tf

    keras.utils.set_random_seed(3)
    tf.config.experimental.enable_op_determinism()
    folder = pathlib.Path(folder)
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 8 * BATCHES - 3)
    x = rng.normal(size=(len(y), 6, 6, 1)) + y[:, None, None, None]
    data = kvision.data.arrays(x, y, batch_size=8, seed=1)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Conv2D(4, 3, name="conv"),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Dropout(0.3),
            keras.layers.Flatten(),
            keras.layers.Dense(3, name="logits"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss, metrics=["accuracy"])
    progress = os.open(folder / "progress", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    callbacks = [
        kvision.callbacks.Resume(folder / "checkpoints", every=EVERY, data=data),
        kvision.callbacks.Vitals(every=4),
        kvision.callbacks.ReduceOnPlateau("loss", patience=1, factor=0.7, min_delta=0.3),
        keras.callbacks.EarlyStopping("val_loss", patience=20, restore_best_weights=True),
        kvision.callbacks.Report(folder / "report"),
        Progress(progress),
    ]
    more = at_a_random_moment(point) if isinstance(point, float) else POINTS[point]() if point else None
    callbacks += [more] if isinstance(more, keras.callbacks.Callback) else []
    held_out = kvision.data.arrays(x[:16], y[:16], batch_size=16, shuffle=False)
    options = {"epochs": EPOCHS, "verbose": 0, "shuffle": False, "validation_data": held_out}
    history = model.fit(data, callbacks=callbacks, **options)
    variables = [*model.variables, *model.optimizer.variables]
    np.savez(folder / "variables.npz", *[keras.ops.convert_to_numpy(variable) for variable in variables])
    (folder / "history.json").write_text(json.dumps({"epoch": history.epoch, **history.history}))


def attempt(folder, point=None):
    """A try in a process of its own, forked before TensorFlow has begun any thread; whether it was killed."""
    child = os.fork()
    if not child:
        log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        status = 1
        try:
            train(folder, point)
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            os._exit(status)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"A try ended with {code}:\n{folder.with_suffix('.log').read_text()[-3000:]}")
    return code != 0
