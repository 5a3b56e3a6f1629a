"""Maps partitioned into windows: Liu et al. 2021, "Swin Transformer", section 3.2."""

import numpy as np
from keras import ops

from kvision.ops._backend import kernels


def window_partition(x, window, shift=(0, 0)):
    """Shift a map cyclically up and left, then partition it into windows; zeros pad the map at the bottom and right.

    Args:
        x: `[b, h, w, c]`, sizes static.
        window: Rows and columns of a window.
        shift: Rows and columns to shift by, ≥ 0 and below the window's.

    Returns:
        `[b·windows, window·window, c]`, windows row by row.

    >>> tuple(window_partition(keras.ops.ones((1, 8, 10, 3)), window=4).shape)
    (6, 16, 3)
    """
    rows, columns = windows_over(x.shape[1:3], window)
    height, width, channels = rows * window, columns * window, x.shape[-1]
    if (height, width) != tuple(x.shape[1:3]):
        x = ops.pad(x, ((0, 0), (0, height - x.shape[1]), (0, width - x.shape[2]), (0, 0)))
    if any(shift):
        x = kernels.roll(x, (-shift[0], -shift[1]), (1, 2))
    x = ops.transpose(ops.reshape(x, (-1, rows, window, columns, window, channels)), (0, 1, 3, 2, 4, 5))
    return ops.reshape(x, (-1, window * window, channels))


def window_merge(x, size, window, shift=(0, 0)):
    """Undo `window_partition`: `[b·windows, window·window, c]` → `[b, *size, c]`."""
    rows, columns = windows_over(size, window)
    channels = x.shape[-1]
    x = ops.transpose(ops.reshape(x, (-1, rows, columns, window, window, channels)), (0, 1, 3, 2, 4, 5))
    x = ops.reshape(x, (-1, rows * window, columns * window, channels))
    if any(shift):
        x = kernels.roll(x, tuple(shift), (1, 2))
    return x[:, : size[0], : size[1]] if tuple(x.shape[1:3]) != tuple(size) else x


def windows_over(size, window):
    """How many rows and columns of windows cover a map."""
    return tuple(-(-pixels // window) for pixels in size)


def shifted_window_mask(size, window, shift):
    """Which pixels of a shifted window belong together, being contiguous before the shift (figure 4).

    Returns:
        Boolean NumPy array `[windows, window², window²]`: True where two pixels may attend to each other.
    """
    regions = []
    for count, step in zip(windows_over(size, window), shift, strict=True):
        pixel = np.arange(count * window)
        last, wrapped = pixel >= (count - 1) * window, pixel >= count * window - step
        regions.append(last.astype("int32") + (wrapped & (step > 0)))
    region = 3 * regions[0][:, None] + regions[1]
    rows, columns = windows_over(size, window)
    region = region.reshape(rows, window, columns, window).transpose(0, 2, 1, 3).reshape(rows * columns, -1)
    return region[:, :, None] == region[:, None, :]


def relative_position_index(window):
    """The entry of the bias table for each pair of pixels of a window, row by row (figure 4's B̂).

    Returns:
        NumPy array `[window², window²]` of numbers below (2·window - 1)².
    """
    rows, columns = np.divmod(np.arange(window * window), window)
    vertical = rows[:, None] - rows + window - 1
    horizontal = columns[:, None] - columns + window - 1
    return vertical * (2 * window - 1) + horizontal
