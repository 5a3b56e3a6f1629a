"""Boxes in NumPy, for reading data: the formulas of `kvision.ops`, which `tf.data` cannot call under JAX."""

import math
import numbers

import numpy as np


@np.errstate(over="ignore", invalid="ignore")  # files may hold any number
def xywh_to_xyxy(boxes_xywh):
    """Corners of boxes `[..., 4]` given by left, top and size (COCO's files)."""
    boxes = np.asarray(boxes_xywh, "float64")
    return np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


@np.errstate(over="ignore", invalid="ignore")  # files may hold any number
def cxcywh_to_xyxy(boxes_cxcywh):
    """Corners of boxes `[..., 4]` given by centre and size (YOLO's files)."""
    boxes = np.asarray(boxes_cxcywh, "float64")
    centres, halves = boxes[..., :2], boxes[..., 2:] / 2
    return np.concatenate([centres - halves, centres + halves], axis=-1)


def area_xyxy(boxes_xyxy):
    """Areas `[...]` of boxes `[..., 4]`; 0 for an inverted box."""
    boxes = np.asarray(boxes_xyxy, "float64")
    sides = np.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    return sides[..., 0] * sides[..., 1]


def clip_xyxy(boxes_xyxy, image_size):
    """Boxes `[..., 4]` clipped to the borders of their image; `image_size` is height, width, or `[..., 2]`."""
    image_size = np.asarray(image_size)
    return np.clip(np.asarray(boxes_xyxy, "float64"), 0, image_size[..., [1, 0, 1, 0]])


def boxes_of_masks(masks):
    """The smallest boxes `[n, 4]` (xyxy) around masks `[n, h, w]`; all 0 for an empty mask."""
    masks = np.asarray(masks) > 0
    boxes = np.zeros((len(masks), 4))
    for box, mask in zip(boxes, masks, strict=True):
        columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        if rows.size:
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def fit(size, image_size):
    """How an image of `size` fills `image_size` (height, width) with its aspect ratio kept.

    Returns:
        The scale (pixels of `image_size` for one of `size`), and the height and width that the scaled image takes, in
        whole pixels: those whose centre it covers.
    """
    scale = min(inside / side for side, inside in zip(size, image_size, strict=True))
    height, width = (
        min(max(math.floor(side * scale + 0.5), 1), inside) for side, inside in zip(size, image_size, strict=True)
    )
    return scale, (height, width)


def check_size(source, image_size):
    """Raises unless `image_size` is a pair of whole numbers."""
    if np.shape(image_size) != (2,) or not all(isinstance(side, numbers.Integral) for side in image_size):
        one = isinstance(image_size, numbers.Integral)
        remedy = f"Pass ({image_size}, {image_size})." if one else "Pass two whole numbers, such as (512, 512)."
        raise ValueError(f"{source}: image_size is (height, width) in pixels: got {image_size!r}. {remedy}")
