"""Reading maps between their cells, which compiles with XLA: resizing to static sizes, and evenly spaced points."""

import numpy as np
from keras import ops


def resize_bilinear(images, size):
    """Images of another size, bilinear and antialiased, as pillow, torchvision and `tf.image.resize` do.

    Two products with matrices: XLA has no kernel for antialiased resizing in TensorFlow. Pixel centres lie at half
    pixels; where an image shrinks, the triangle of the interpolation is as much wider.

    Args:
        images: `[b, h, w, c]`, static h, w and c.
        size: Height and width to make, in pixels.

    Returns:
        `[b, *size, c]`, float32.

    Raises:
        ValueError: on other ranks and sizes below 1.

    >>> row = resize_bilinear(np.reshape([0.0, 2.0, 4.0, 6.0], (1, 1, 4, 1)), (1, 2))
    >>> [round(float(pixel), 2) for pixel in row[0, 0, :, 0]]
    [1.43, 4.57]
    """
    images = _checked("resize_bilinear", images, size)
    rows, columns = (
        None if new == old else _weights(old, _points(new, old / new), max(1.0, old / new))
        for old, new in zip(images.shape[1:3], size, strict=True)
    )
    return weigh_rows_and_columns(images, rows, columns)


def sample_bilinear(maps, size, step, first=None, width=None):
    """Maps read at evenly spaced points, bilinear; beyond the centres of the outer cells their values go on.

    Maps of networks lie where strides and padding put them, which the ratio of two sizes tells only roughly: 43 pixels
    at stride 4 are 11 cells. Here a point is told by step and first.

    Args:
        maps: `[b, h, w, c]`, static h, w and c.
        size: Points along height and width.
        step: Cells from one point to the next, > 0: 1/4 enlarges a map of stride 4 to the pixels.
        first: Where the first point lies, in cells, 0 being the centre of the first cell. None: the first pixel begins
            where the first cell does, (step − 1) / 2.
        width: Half the base of the triangle that weighs the cells around a point, in cells, at least 1; None:
            max(1, step), which avoids aliasing.

    Returns:
        `[b, *size, c]`, float32.

    Raises:
        ValueError: as `resize_bilinear`, and on a step or width out of range.

    >>> row = sample_bilinear(np.reshape([0.0, 2.0, 4.0], (1, 1, 3, 1)), (1, 5), step=0.5, first=0)
    >>> [float(value) for value in row[0, 0, :, 0]]
    [0.0, 1.0, 2.0, 3.0, 4.0]
    """
    maps = _checked("sample_bilinear", maps, size)
    width = max(1.0, step) if width is None else width
    if not step > 0 or not width >= 1:
        raise ValueError(f"sample_bilinear needs a step above 0 and a width of at least 1: got {step} and {width}.")
    rows, columns = (
        _weights(length, np.clip(_points(points, step, first), 0, length - 1), width)
        for length, points in zip(maps.shape[1:3], size, strict=True)
    )
    return weigh_rows_and_columns(maps, rows, columns)


def weigh_rows_and_columns(maps, rows=None, columns=None):
    """Weighted sums of the rows and of the columns of maps.

    Args:
        maps: `[b, h, w, c]`, static h, w and c.
        rows: What each row gives to each of the new ones, `[new h, h]`; None leaves them.
        columns: The same of the columns, `[new w, w]`.

    Returns:
        `[b, new h, new w, c]`.

    >>> maps = np.reshape([1.0, 2.0, 4.0], (1, 1, 3, 1))
    >>> [float(value) for value in weigh_rows_and_columns(maps, columns=np.array([[1.0, 1.0, 1.0]]))[0, 0, :, 0]]
    [7.0]
    """
    height, width, channels = maps.shape[1:]
    if rows is not None:
        maps = ops.matmul(rows, ops.reshape(maps, (-1, height, width * channels)))
        maps = ops.reshape(maps, (-1, rows.shape[0], width, channels))
    return maps if columns is None else ops.matmul(columns, maps)


def resize_nearest(maps, size):
    """Maps of another size by nearest neighbour: cell i of n reads cell ⌊i·m/n⌋ of m, as torch does.

    Args:
        maps: `[b, h, w, c]`, static h and w.
        size: Height and width to make, in cells.

    Returns:
        `[b, *size, c]` of the same type.

    >>> resize_nearest(np.reshape([1, 2, 3], (1, 1, 3, 1)), (1, 5))[0, 0, :, 0].numpy().tolist()
    [1, 1, 2, 2, 3]
    """
    for axis, length in zip((1, 2), size, strict=True):
        index = np.arange(length) * maps.shape[axis] // length
        if length == maps.shape[axis]:
            continue
        if np.array_equal(index, np.arange(length) // 2):
            maps = ops.repeat(maps, 2, axis=axis)
            maps = ops.split(maps, [length], axis=axis)[0] if length % 2 else maps
        else:
            maps = ops.take(maps, index, axis=axis)
    return maps


def _checked(name, maps, size):
    """Maps of static size as float32."""
    maps = ops.cast(maps, "float32")
    if len(maps.shape) != 4 or None in maps.shape[1:] or min(size) < 1:
        raise ValueError(
            f"{name} needs images [b, h, w, c] of a static size, and sizes of at least 1: got images "
            f"{tuple(maps.shape)} and size {tuple(size)}."
        )
    return maps


def _points(number, step, first=None):
    """Where points lie, in cells, 0 being the centre of the first cell."""
    return np.arange(number) * step + ((step - 1) / 2 if first is None else first)


def _weights(length, points, width):
    """What each of `length` cells gives to each point, `[points, length]`; rows add up to 1."""
    weights = np.maximum(1.0 - np.abs(points[:, None] - np.arange(length)) / width, 0.0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype("float32")
