"""Segmentations of objects as COCO's files hold them, polygons or run lengths, and the masks of them."""

import math

import numpy as np


def parse_segmentation(segmentation, size):
    """Polygons or run lengths, checked.

    Args:
        segmentation: What COCO's `segmentation` may be: a list of polygons, each `[x1, y1, x2, y2, …]` in pixels; or
            `{"size": [height, width], "counts": …}`, the run lengths in columns from top to bottom, beginning with
            background, as a list of numbers or as COCO's compressed text.
        size: Height and width of the image.

    Returns:
        A list of arrays [points, 2], of the polygons that are some, or an array of run lengths.

    Raises:
        ValueError: saying what is wrong with it.
    """
    if isinstance(segmentation, dict):
        return _runs(segmentation, size)
    if not isinstance(segmentation, list | tuple) or not segmentation:
        raise ValueError(f"has no segmentation: got {_short(segmentation)}, expected polygons or run lengths")
    polygons, reason = [], None
    for polygon in segmentation:
        try:
            polygons.append(_points(polygon))
        except ValueError as error:
            reason = reason or error
    if not polygons:
        raise reason
    return polygons


def _points(polygon):
    try:
        numbers = np.asarray(polygon, "float64")
    except (TypeError, ValueError, OverflowError):
        numbers = np.array(np.nan)
    if numbers.ndim != 1 or len(numbers) < 6 or len(numbers) % 2 or not np.isfinite(numbers).all():
        raise ValueError(f"has a polygon {_short(polygon)}; expected at least three points x1, y1, x2, y2, x3, y3")
    return numbers.reshape(-1, 2)


def _runs(segmentation, size):
    counts, stated = segmentation.get("counts"), segmentation.get("size")
    if not isinstance(stated, list | tuple) or list(stated) != list(size):
        raise ValueError(
            f"has run lengths for a size of {_short(stated)}, but the image has {list(size)} (height, width)"
        )
    if isinstance(counts, bytes):
        counts = counts.decode("ascii", "replace")
    try:
        runs = _decompressed(counts) if isinstance(counts, str) else np.asarray(counts, "int64")
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"has run lengths that cannot be read: {_short(counts)}") from None
    if runs.ndim != 1 or (runs < 0).any() or runs.sum() != math.prod(size):
        raise ValueError(f"has run lengths that do not add up to the image's {math.prod(size)} pixels")
    return runs


def _short(value):
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _decompressed(text):
    """Run lengths out of COCO's text.

    A character less 48 holds five bits of a number, lowest first; its sixth bit says that more follow, and the highest
    bit of the last character is the sign. From the fourth number on it is the difference to the number two before.
    """
    characters = np.frombuffer(text.encode("ascii"), "uint8").astype("int64") - 48
    last = np.flatnonzero(characters & 32 == 0)
    if not last.size or last[-1] != len(characters) - 1 or ((characters < 0) | (characters > 63)).any():
        raise ValueError
    lengths = np.diff(last, prepend=-1)
    first = last - lengths + 1
    positions = np.arange(len(characters)) - np.repeat(first, lengths)
    numbers = np.add.reduceat((characters & 31) << (5 * positions), first)
    numbers -= np.where(characters[last] & 16, 1 << (5 * lengths), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def fill_polygon(points, size):
    """The pixels whose centre lies inside a polygon, by the even-odd rule.

    Args:
        points: [k, 2] corners x, y in pixels; the last is joined to the first. A pixel's centre lies at + 0.5.
        size: Height and width of the mask.

    Returns:
        A mask [height, width], bool.

    >>> fill_polygon(np.array([[1, 0], [3, 0], [3, 2], [1, 2]]), (2, 4)).astype(int)
    array([[0, 1, 1, 0],
           [0, 1, 1, 0]])
    """
    height, width = size
    (x1, y1), (x2, y2) = points.T, np.roll(points, -1, axis=0).T
    first = np.clip(np.ceil(np.minimum(y1, y2) - 0.5), 0, height).astype(int)
    last = np.clip(np.ceil(np.maximum(y1, y2) - 0.5), 0, height).astype(int)
    lengths = last - first  # the rows whose centre an edge crosses; a horizontal edge crosses none
    edges = np.repeat(np.arange(len(points)), lengths)
    rows = np.arange(len(edges)) - np.repeat(np.cumsum(lengths) - lengths - first, lengths)
    slopes = (x2 - x1)[edges] / (y2 - y1)[edges]
    crossings = x1[edges] + (rows + 0.5 - y1[edges]) * slopes
    columns = np.clip(np.ceil(crossings - 0.5), 0, width).astype(int)
    mask = np.zeros(size, bool)
    if len(edges):  # only what the polygon spans is looked at
        (top, bottom), (left, right) = ((ends.min(), ends.max()) for ends in (rows, columns))
        spanned = (bottom - top + 1, right - left + 1)
        crossed = np.bincount((rows - top) * spanned[1] + columns - left, minlength=spanned[0] * spanned[1])
        odd = np.bitwise_xor.accumulate((crossed & 1).astype("uint8").reshape(spanned), axis=1)
        mask[top : bottom + 1, left:right] = odd[:, :-1]
    return mask


def rasterize(segmentation, size, window_xyxy, grid):
    """The mask of a segmentation within a window, sampled on a grid of any resolution.

    Args:
        segmentation: What `parse_segmentation` returned.
        size: Height and width of the image.
        window_xyxy: The part of the image to sample, in its pixels; outside the image the mask is 0.
        grid: Rows and columns of the mask; each cell takes the value at its centre.

    Returns:
        A mask [rows, columns], uint8 0 or 1.
    """
    left, top, right, bottom = window_xyxy
    steps = np.array([(right - left) / grid[1], (bottom - top) / grid[0]])
    if isinstance(segmentation, list):
        parts = [fill_polygon((points - (left, top)) / steps, grid) for points in segmentation]
        return (parts[0] if len(parts) == 1 else np.any(parts, axis=0)).view("uint8")
    height, width = size
    mask = np.repeat((np.arange(len(segmentation)) % 2).astype("uint8"), segmentation).reshape(width, height).T
    columns = np.floor(left + (np.arange(grid[1]) + 0.5) * steps[0]).astype(int)
    rows = np.floor(top + (np.arange(grid[0]) + 0.5) * steps[1]).astype(int)
    inside = np.outer((rows >= 0) & (rows < height), (columns >= 0) & (columns < width))
    return mask[np.ix_(rows.clip(0, height - 1), columns.clip(0, width - 1))] * inside
