"""Small images enlarged side by side, such as filters and patches."""

import numpy as np

from kvision.drawing.grids import grid


def to_pixels(values, low=None, high=None):
    """Values of any range as pixels: `low` becomes 0, `high` 255, what lies beyond is cut.

    Args:
        values: Numbers of any shape.
        low, high: None: the smallest and the largest of the values.

    Returns:
        uint8 of that shape; of equal values 128.

    Raises:
        ValueError: where `high` is below `low`.

    >>> to_pixels(np.array([-1.0, 0.0, 1.0])).tolist()
    [0, 128, 255]
    """
    values = np.asarray(values, "float32")
    low = float(values.min()) if low is None else low
    high = float(values.max()) if high is None else high
    if high < low:
        raise ValueError(f"drawing.to_pixels: low must be at most high, got {low} and {high}.")
    if high == low:
        return np.full(values.shape, 128, "uint8")
    return np.round(np.clip((values - low) / (high - low), 0, 1) * 255).astype("uint8")


def tiles(images, side=48, columns=None, captions=None):
    """Small images enlarged, pixel by pixel, side by side.

    Args:
        images: [n, h, w, c], or [rows, columns, h, w, c] where the grid is given; 1 or 3 channels, 0…255.
        side: Pixels of the longer side of each, about: they are enlarged by a whole number. 1 leaves them as they are.
        columns: Images per row of [n, h, w, c]; None makes the result about square.
        captions: One line of text below each image, in the order of the images, or None.

    Returns:
        [height, width, 3] uint8.

    Raises:
        ValueError: on images of another shape, and columns where the images have their own.

    >>> tiles(np.zeros((6, 5, 5, 3)), side=20, columns=3).shape
    (52, 76, 3)
    """
    images = np.asarray(images)
    if images.ndim not in (4, 5) or 0 in images.shape:
        raise ValueError(
            f"drawing.tiles: images are [n, h, w, c] or [rows, columns, h, w, c], at least one: got {images.shape}."
        )
    if images.ndim == 5:
        if columns is not None:
            raise ValueError(f"drawing.tiles: images {images.shape} have their own columns: got columns={columns}.")
        columns = images.shape[1]
        images = images.reshape(-1, *images.shape[2:])
    factor = max(1, round(side / max(images.shape[1:3])))
    return grid(images.repeat(factor, axis=1).repeat(factor, axis=2), columns, captions)
