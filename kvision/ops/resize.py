"""Resizing to static sizes, which compiles with XLA: bilinear without aliasing, and nearest neighbour."""

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
    images = ops.cast(images, "float32")
    if len(images.shape) != 4 or None in images.shape[1:] or min(size) < 1:
        raise ValueError(
            "resize_bilinear needs images [b, h, w, c] of a static size, and sizes of at least 1: got images "
            f"{tuple(images.shape)} and size {tuple(size)}."
        )
    height, width, channels = images.shape[1:]
    if size[0] != height:
        rows = ops.reshape(images, (-1, height, width * channels))
        images = ops.reshape(ops.matmul(_matrix(height, size[0]), rows), (-1, size[0], width, channels))
    if size[1] != width:
        images = ops.matmul(_matrix(width, size[1]), images)
    return images


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


def _matrix(length, new_length):
    """What each of `length` pixels gives to each of `new_length`, `[new_length, length]`; rows add up to 1."""
    scale = length / new_length
    centre = (np.arange(new_length) + 0.5) * scale - 0.5
    distance = np.abs(centre[:, None] - np.arange(length)) / max(1.0, scale)
    weights = np.maximum(1.0 - distance, 0.0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype("float32")
