"""Copies of a model's state to go back to: some are known to be good, the newest is not yet."""

import contextlib
import os
import tempfile

import numpy as np

from kvision.callbacks.model_state import copy_state, restore_state
from kvision.trackers.clock import applied_steps

GROUPS = ("model", "optimizer")  # the sums of an epoch's metrics go on
PROOF = 4  # steps that must go well after a copy before it is good: those of a spike
KEPT = 2  # good copies, so that there is an older one where the newer leads to the same end


class GoodStates:
    """Takes a copy now, and then one every so many batches.

    Args:
        model: The model, at the beginning of a `fit`.
        every: Batches from one copy to the next.
        directory: Where copies lie; None: in memory.
    """

    def __init__(self, model, every, directory):
        self._every = every
        self._directory = directory
        self._good = [self._copy(model)]
        self._candidate, self._proof = None, 0
        self._since = 0
        self._used = None

    def step_went_well(self, is_suspicious):
        """The step of one batch was applied; its loss may lie high."""
        self._since += 1
        if self._candidate is None:
            return
        self._proof = 0 if is_suspicious else self._proof + 1
        if self._proof >= PROOF:
            self._good.append(self._candidate)
            self._candidate = None
            del self._good[:-KEPT]

    def copy_where_due(self, model, is_suspicious):
        """Between two calls of the train function: take a copy where it is time for one and nothing looks odd."""
        if self._since >= self._every and self._candidate is None and not is_suspicious:
            self._candidate, self._proof, self._since = self._copy(model), 0, 0

    def restore(self, model):
        """Put the newest good copy back; the one before it where that one was put back already."""
        self._candidate, self._since = None, 0
        if self._good[-1] is self._used and len(self._good) > 1:
            self._good.pop()
        self._used = self._good[-1]
        restore_state(model, self._used.load())

    def close(self):
        """Let all copies go: at once, whoever still holds this object, such as the traceback of an error."""
        for each in (*self._good, self._candidate):
            if each is not None:
                each.remove()
        self._good, self._candidate, self._used = [], None, None

    def _copy(self, model):
        state = copy_state(model, GROUPS)
        return _InMemory(state) if self._directory is None else _OnDisk(state, self._directory, applied_steps(model))


class _InMemory:
    def __init__(self, state):
        self._state = state

    def load(self):
        return self._state

    def remove(self):
        self._state = None


class _OnDisk:
    """Removed with the last that holds it."""

    def __init__(self, state, directory, step):
        self._dtypes = {name: array.dtype for name, array in state.items()}
        descriptor, self._path = tempfile.mkstemp(prefix=f"rollback-state-{step}-", suffix=".npz", dir=directory)
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, **{str(index): _plain(array) for index, array in enumerate(state.values())})

    def load(self):
        with np.load(self._path, allow_pickle=False) as file:
            arrays = [file[str(index)] for index in range(len(self._dtypes))]
        pairs = zip(self._dtypes.items(), arrays, strict=True)
        return {name: array.view(dtype) if array.dtype != dtype else array for (name, dtype), array in pairs}

    def remove(self):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    def __del__(self):
        self.remove()


def _plain(array):
    """The same bits in a dtype that NumPy's files know: bfloat16 is none of them."""
    return array.view("uint16") if array.dtype.name == "bfloat16" else array
