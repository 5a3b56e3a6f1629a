"""The weights that Keras validates: the averages of `SwapEMAWeights`, which are in place for the validation alone."""

import contextlib

import keras
import numpy as np


class ValidatedWeights:
    """Recognises the weights of a validation, and puts them in place again for what is measured after it."""

    def __init__(self):
        self._sums = None

    def see(self, model):
        """Note the weights of a model whose validation begins; later calls of the epoch change nothing."""
        if self._sums is None and _keeps_averages(model.optimizer):
            self._sums = _sums(model)

    def forget(self):
        """Be ready for the next validation."""
        self._sums = None

    @contextlib.contextmanager
    def in_place(self, model):
        """Within it the model has the weights that were seen; they are forgotten."""
        seen, self._sums = self._sums, None
        swap = keras.callbacks.SwapEMAWeights()
        swap.set_model(model)
        if seen is None or not (now := _distance(model, seen)):
            yield
            return
        swap.on_test_begin()
        nearer = _distance(model, seen) < now  # a swap rounds, and other callbacks may have changed the weights
        if not nearer:
            swap.on_test_end()
        try:
            yield
        finally:
            if nearer:
                swap.on_test_end()


def _keeps_averages(optimizer):
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    return any(getattr(each, "use_ema", False) for each in getattr(optimizer, "optimizers", [optimizer]))


def _sums(model):
    """Numbers by which the weights are recognised."""
    return np.array([float(keras.ops.sum(weight)) for weight in model.trainable_variables])


def _distance(model, sums):
    return np.abs(_sums(model) - sums).sum()
