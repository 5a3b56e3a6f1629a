"""Grouped convolution (Krizhevsky, Sutskever, Hinton 2012, section 3.5), by whichever form the device runs faster."""

from keras import ops

from kvision.ops._backend import kernels


def convolve_groups(convolve, x, kernel, groups):
    """A convolution whose outputs see one group of input channels each.

    On a CPU it is one convolution per group: XLA's grouped kernel there is 5 (2 groups) to 90 times (32 groups) slower.
    On an accelerator it is the backend's own kernel.

    Args:
        convolve: `(x, kernel)` → a convolution; it takes grouped kernels as well, as `keras.ops.conv` does.
        x: `[batch, ..., channels]`.
        kernel: `[..., channels / groups, filters]`.
        groups: Divides the channels and the filters, >= 1.

    Returns:
        `[batch, ..., filters]`.

    >>> x, kernel = keras.ops.ones((1, 8, 8, 4)), keras.ops.ones((3, 3, 2, 6))
    >>> tuple(kvision.ops.convolve_groups(keras.ops.conv, x, kernel, groups=2).shape)
    (1, 6, 6, 6)
    """
    if groups == 1 or not kernels.on_cpu():
        return convolve(x, kernel)
    parts = zip(ops.split(x, groups, axis=-1), ops.split(kernel, groups, axis=-1), strict=True)
    return ops.concatenate([convolve(*part) for part in parts], axis=-1)
