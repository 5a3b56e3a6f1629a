"""Points in the plane: drawn by colour, and as the images they stand for."""

import math

import numpy as np
from PIL import Image, ImageDraw

from kvision.drawing.canvas import LIGHT, name_of, rgb
from kvision.drawing.label_maps import class_colour, legend_strip

FRAME = 2  # pixels


def scatter(points, labels=None, classes=None, side=640):
    """Points in the plane, a colour for each class.

    Args:
        points: [n, 2] x and y, of any range; y points upwards.
        labels: [n] classes from 0, or None.
        classes: Names of the classes, in the order of the labels; None writes the label.
        side: Pixels of the square they are drawn in; below stands the legend.

    Returns:
        [height, side, 3] uint8.

    Raises:
        ValueError: on arrays of other shapes.

    >>> scatter([[0, 0], [1, 2]], [0, 1], ["cat", "dog"], side=200).shape[1]
    200
    """
    points, labels = _checked("scatter", points, labels)
    radius = max(2, round(side / 160))
    canvas = Image.new("RGB", (side, side), LIGHT)
    draw = ImageDraw.Draw(canvas)
    for number, (x, y) in enumerate(_on_canvas(points, side, 2 * radius)):
        colour = class_colour(0 if labels is None else labels[number])
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline=LIGHT)
    if labels is None:
        return np.array(canvas)
    entries = [(class_colour(label), name_of(label, classes)) for label in np.unique(labels)]
    return np.concatenate([np.array(canvas), legend_strip(entries, side)])


def image_map(images, points, labels=None, side=1200, thumbnail=32):
    """Images at their points in the plane; of those that overlap the last one is on top.

    Args:
        images: n arrays [h, w, 3], [h, w, 1] or [h, w], 0…255.
        points: [n, 2] x and y, of any range; y points upwards.
        labels: [n] classes from 0, whose colours frame the images; None: no frames.
        side: Pixels of the square they are drawn in.
        thumbnail: Pixels of the longer side of each image.

    Returns:
        [side, side, 3] uint8.

    Raises:
        ValueError: on arrays of other shapes.

    >>> image_map(np.zeros((3, 8, 8, 1)), [[0, 0], [1, 2], [3, 1]], side=200).shape
    (200, 200, 3)
    """
    points, labels = _checked("image_map", points, labels, images)
    centers = _on_canvas(points, side, thumbnail / 2 + FRAME)
    return _placed(images, centers - thumbnail / 2, labels, thumbnail, (side, side))


def image_grid(images, cells, labels=None, thumbnail=32):
    """Images in cells of a grid, one in each, such as those of `Embedding.cells()`.

    Args:
        images: n arrays [h, w, 3], [h, w, 1] or [h, w], 0…255.
        cells: [n, 2] row and column of each; none twice.
        labels: [n] classes from 0, whose colours frame the images; None: no frames.
        thumbnail: Pixels of the longer side of each image.

    Returns:
        [height, width, 3] uint8.

    Raises:
        ValueError: on arrays of other shapes, and two images in one cell.

    >>> image_grid(np.zeros((3, 8, 8, 1)), [[0, 0], [0, 1], [1, 0]], thumbnail=28).shape
    (64, 64, 3)
    """
    cells, labels = _checked("image_grid", cells, labels, images)
    if len(np.unique(cells, axis=0)) < len(cells):
        raise ValueError("drawing.image_grid: two images have the same cell; give each one of its own.")
    step = thumbnail + 2 * FRAME
    cells = cells.astype(int) - cells.astype(int).min(axis=0)
    size = (cells.max(axis=0) + 1) * step
    return _placed(images, cells[:, ::-1] * step + FRAME, labels, thumbnail, (int(size[1]), int(size[0])))


def _checked(who, points, labels, images=None):
    points = np.asarray(points, "float64")
    labels = None if labels is None else np.asarray(labels)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points) or not np.isfinite(points).all():
        raise ValueError(f"drawing.{who}: points are finite numbers [n, 2], at least one: got {points.shape}.")
    if labels is not None and (labels.shape != points.shape[:1] or labels.dtype.kind not in "iu" or labels.min() < 0):
        raise ValueError(f"drawing.{who}: labels are [{len(points)}] integers from 0: got {labels.shape}.")
    if images is not None and len(images) != len(points):
        raise ValueError(f"drawing.{who}: expected a point for each image: got {len(images)} and {len(points)}.")
    return points, labels


def _on_canvas(points, side, border):
    """Points scaled alike in x and y, in the middle of a square, y downwards."""
    low, high = points.min(axis=0), points.max(axis=0)
    scale = (side - 1 - 2 * border) / max(float((high - low).max()), 1e-12)
    return (side - 1) / 2 + (points - (low + high) / 2) * scale * (1, -1)


def _placed(images, corners, labels, thumbnail, size):
    canvas = Image.new("RGB", size, LIGHT)
    draw = ImageDraw.Draw(canvas)
    for number, (image, corner) in enumerate(zip(images, corners, strict=True)):
        small = Image.fromarray(rgb(image))
        scale = thumbnail / max(small.size)
        small = small.resize([max(1, math.floor(length * scale)) for length in small.size])
        x, y = (round(float(each)) for each in corner)
        if labels is not None:
            box = (x - FRAME, y - FRAME, x + small.width + FRAME - 1, y + small.height + FRAME - 1)
            draw.rectangle(box, fill=class_colour(labels[number]))
        canvas.paste(small, (x, y))
    return np.array(canvas)
