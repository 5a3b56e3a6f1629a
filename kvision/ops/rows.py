"""Rows of tensors by their index, of each image its own."""

from keras import ops

from kvision.ops._backend import kernels


def take_rows(values, indices):
    """The rows of each image that indices tell, one operation where `keras.ops.take_along_axis` is thirty.

    Args:
        values: `[b…, n, …]`.
        indices: Integers `[b…, k]` in 0 … n − 1; any number of leading dimensions, those of `values`.

    Returns:
        `[b…, k, …]`.

    >>> keras.ops.convert_to_numpy(take_rows([[[1, 2], [3, 4], [5, 6]]], [[2, 0]])).tolist()
    [[[5, 6], [1, 2]]]
    """
    return kernels.take_rows(ops.convert_to_tensor(values), ops.convert_to_tensor(indices))
