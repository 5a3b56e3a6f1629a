"""A training that is killed and started again ends where it would have ended."""

import numbers

import keras

from kvision._keras import callback_list
from kvision.callbacks.resumed_fit import ResumedFit


class Resume(keras.callbacks.Callback):
    """Goes on where a run stopped: run the script again, and `fit` continues from the newest checkpoint.

    A checkpoint holds all that training changes: weights, optimizer, loss scale, learning rate, seeds of dropout and
    sampling, metrics, the memory of the callbacks (Keras's, kvision's, and those with `get_state` and `set_state`),
    `History`, the clock of the run and the states of Python's and NumPy's global generators. On the CPU with
    deterministic operations (`keras.utils.set_random_seed`, `tf.config.experimental.enable_op_determinism`) the
    finished run equals the one that was never stopped, bit for bit.

    - **The place in the epoch** is kept with `data=`, a data set of kvision's readers or of `kvision.data.arrays`: an
      epoch that was interrupted goes on at its next batch. Without it checkpoints are written at ends of epochs,
      and an interrupted epoch is begun anew, which is said once; the order of the data may differ then.
    - **Nothing is lost to a kill**: a checkpoint is written beside the others, flushed and renamed, sizes and hashes
      come last, and the newest one that is whole is loaded. The step waits only for the copy from the device; a thread
      writes it. Where the disk is full, one line says so and the training goes on.
    - **SIGTERM and Ctrl-C** let the step end, save, end the `fit` as its last epoch would, and then do what they would
      have done; a second one does that at once. Only where `fit` runs in the main thread.
    - **A run that was finished** trains nothing more, and gives its `History`; more `epochs` go on.
    - It is the same whatever its place among the callbacks. Keras's `BackupAndRestore` is refused beside it, and
      `CSVLogger` needs `append=True`.

    Args:
        directory: Where the checkpoints of this run lie; made where it is missing. One run has one directory.
        every: Batches from one checkpoint to the next, which needs `data=`, or `"epoch"`; the end of an epoch has one
            in any case.
        data: The data set given to `fit`, or the reader's from which it was made by `map`.
        keep: Whole checkpoints to keep, at least 2.

    Raises:
        ValueError: For an `every` or `keep` out of range, `data` without a known order, or `every` in batches without
            `data`; before the first batch, if nothing can be written to the directory, another process is, the newest
            checkpoint is of another model, `steps_per_epoch` is not an epoch of `data`, or for callbacks that cannot go
            on.

    >>> import numpy as np, tempfile
    >>> data = kvision.data.arrays(np.ones((64, 4)), np.ones((64, 1)), batch_size=8)
    >>> directory = tempfile.mkdtemp()
    >>> def train(epochs):
    ...     model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    ...     model.compile("sgd", "mse")
    ...     resume = kvision.callbacks.Resume(directory, every=3, data=data)
    ...     history = model.fit(data, epochs=epochs, callbacks=[resume], verbose=0, shuffle=False)
    ...     return len(history.history["loss"]), int(model.optimizer.iterations)
    >>> train(epochs=2)
    (2, 16)
    >>> train(epochs=3)  # as if in another process
    Resume: goes on at epoch 3 of 3, from checkpoint-00000006.
    (3, 24)
    """

    def __init__(self, directory, every="epoch", data=None, keep=2):
        super().__init__()
        is_count = isinstance(every, numbers.Integral) and not isinstance(every, bool)
        if every != "epoch" and not (is_count and every >= 1):
            raise ValueError(
                f"`every` counts the batches between two checkpoints: got {every!r}, expected an integer of at "
                'least 1, or "epoch".'
            )
        if not isinstance(keep, numbers.Integral) or isinstance(keep, bool) or keep < 2:
            raise ValueError(f"`keep` is the number of checkpoints to keep: got {keep!r}, expected at least 2.")
        source = getattr(data, "source", None)
        if data is not None and source is None:
            raise ValueError(
                f"Resume(data=...): got {type(data).__name__}, expected a data set of kvision's readers or "
                "kvision.data.arrays, whose order is known. Give the reader's data set, before any `map`, or leave out "
                "`data`."
            )
        if every != "epoch" and data is None:
            raise ValueError(
                f"Resume: got every={every} without data, expected the data set, without whose order an epoch can only "
                'be begun anew. Give data=, or every="epoch".'
            )
        self.directory = directory
        self.every = every
        self.data = data
        self.keep = keep
        self._fit = None

    def set_model(self, model):
        super().set_model(model)
        callbacks = callback_list(self)
        self._fit = None if callbacks is None else ResumedFit(self, callbacks)

    def on_train_begin(self, logs=None):
        if self._fit is not None:
            self._fit.callbacks.callbacks.append(self._fit)  # the last to be called, whatever the place of this one

    def on_train_batch_end(self, batch, logs=None):
        """Being here keeps Keras from calling callbacks in a thread of their own, out of step with the model."""
