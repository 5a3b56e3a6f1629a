"""Batches for the checks, out of whatever `fit` takes; what keeps a position is put back."""

import contextlib
import itertools

import keras
import numpy as np

from kvision.batches import cut, for_arrays, num_rows, one_pass


def first_batch(data, samples=None):
    """`(x, y, sample_weight)` of the first batch, as NumPy arrays; `data` stays where it was.

    Args:
        data: A batch `(x, y)` or `(x, y, sample_weight)`, or a data set of such batches.
        samples: Rows to keep, the first ones; None keeps all.

    Raises:
        ValueError: on data without targets, without rows, or that can be read only once.
    """
    with position_kept(data):
        batch = next(batches(data, batch_size=samples), None)
    if samples is not None:
        batch = for_arrays(lambda array: array[:samples], batch)
    return batch


def batches(data, batch_size=None):
    """Batches `(x, y, sample_weight)` of NumPy arrays, epoch after epoch without end.

    Args:
        data: As for `first_batch`.
        batch_size: Rows that arrays are cut to; None: all of them. A data set has batches of its own.
    """
    if isinstance(data, tuple | list):
        arrays = _parts(data)
        rows = num_rows(arrays)
        size = min(batch_size or rows, rows)
        whole = for_arrays(lambda array: array[: rows // size * size], arrays)
        while True:
            yield from cut(whole, size)
    for _ in itertools.count():
        empty = True
        for batch in _epoch(data):
            empty = False
            yield _parts(batch)
        if empty:
            raise ValueError("The data has no batch. Is the folder, the filter or take() right?")


def _epoch(data):
    if isinstance(data, keras.utils.PyDataset):
        return one_pass(data)
    if not hasattr(data, "__iter__") or iter(data) is data:
        raise ValueError(
            f"Expected a batch (x, y), arrays (x, y) or a data set of batches that can be read again: got "
            f"{type(data).__name__}. What is read from an iterator is lost to the training: pass what it was made from."
        )
    return iter(data)


def _parts(batch):
    """`(x, y, sample_weight)` as NumPy arrays."""
    parts = (*batch, None)[: max(3, len(batch))] if isinstance(batch, tuple | list) else (batch, None, None)
    if len(parts) != 3 or parts[1] is None:
        raise ValueError(
            f"Expected batches (x, y) or (x, y, sample_weight): got {type(batch).__name__} of "
            f"{len(batch) if isinstance(batch, tuple | list) else 1}. The checks need inputs and targets."
        )
    parts = for_arrays(np.asarray, tuple(parts))
    if num_rows(parts[0]) == 0:
        raise ValueError("The batch has no rows. Is the folder, the filter or take() right?")
    return parts


@contextlib.contextmanager
def position_kept(data):
    """Data sets of `kvision.data` begin their next epoch where they would have begun it."""
    order = getattr(getattr(data, "source", None), "order", None)
    position = getattr(order, "position", None)
    try:
        yield
    finally:
        if position is not None:
            order.start(*position)
