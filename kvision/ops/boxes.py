"""Boxes: formats, areas, overlaps, and the deltas that detectors regress.

Every function computes in float32, whatever it is given, and takes any number of leading dimensions. A format is four
numbers on the last axis: `xyxy` (left, top, right, bottom), `xywh` (left, top, width, height), `cxcywh` (centre, width,
height). The area of an inverted box (right < left or bottom < top) is 0; no function divides by such an area, so
values and gradients stay finite.
"""

import math
import numbers

import numpy as np
from keras import ops

MIN_AREA = 1e-12
MIN_SIDE = 1e-6
MAX_LOG_SCALE = math.log(1000 / 16)


def columns(boxes):
    """The four coordinates of each box, split, each `[...]`, in float32."""
    return tuple(ops.unstack(ops.cast(boxes, "float32"), 4, axis=-1))


def _centres_and_sides(boxes_xyxy):
    """Centre x, centre y, width and height of each box, split."""
    left, top, right, bottom = columns(boxes_xyxy)
    width, height = right - left, bottom - top
    return left + 0.5 * width, top + 0.5 * height, width, height


def cxcywh_to_xyxy(boxes_cxcywh):
    """Corners of boxes given by centre and size.

    Args:
        boxes_cxcywh: Boxes `[..., 4]`.

    Returns:
        Boxes `[..., 4]` as left, top, right, bottom; float32.

    >>> keras.ops.convert_to_numpy(cxcywh_to_xyxy([4, 5, 2, 6])).tolist()
    [3.0, 2.0, 5.0, 8.0]
    """
    x, y, width, height = columns(boxes_cxcywh)
    return ops.stack([x - 0.5 * width, y - 0.5 * height, x + 0.5 * width, y + 0.5 * height], axis=-1)


def xyxy_to_cxcywh(boxes_xyxy):
    """Centre and size of boxes given by corners.

    Args:
        boxes_xyxy: Boxes `[..., 4]`.

    Returns:
        Boxes `[..., 4]` as centre x, centre y, width, height; float32.

    >>> keras.ops.convert_to_numpy(xyxy_to_cxcywh([3, 2, 5, 8])).tolist()
    [4.0, 5.0, 2.0, 6.0]
    """
    left, top, right, bottom = columns(boxes_xyxy)
    return ops.stack([0.5 * (left + right), 0.5 * (top + bottom), right - left, bottom - top], axis=-1)


def xywh_to_xyxy(boxes_xywh):
    """Corners of boxes given by left, top and size (COCO's files).

    Args:
        boxes_xywh: Boxes `[..., 4]`.

    Returns:
        Boxes `[..., 4]` as left, top, right, bottom; float32.

    >>> keras.ops.convert_to_numpy(xywh_to_xyxy([3, 2, 2, 6])).tolist()
    [3.0, 2.0, 5.0, 8.0]
    """
    left, top, width, height = columns(boxes_xywh)
    return ops.stack([left, top, left + width, top + height], axis=-1)


def xyxy_to_xywh(boxes_xyxy):
    """Left, top and size of boxes given by corners.

    Args:
        boxes_xyxy: Boxes `[..., 4]`.

    Returns:
        Boxes `[..., 4]` as left, top, width, height; float32.

    >>> keras.ops.convert_to_numpy(xyxy_to_xywh([3, 2, 5, 8])).tolist()
    [3.0, 2.0, 2.0, 6.0]
    """
    left, top, right, bottom = columns(boxes_xyxy)
    return ops.stack([left, top, right - left, bottom - top], axis=-1)


def relative_to_absolute(boxes, image_size):
    """Boxes in pixels from boxes relative to the image size, in any of the three formats.

    Args:
        boxes: Boxes `[..., n, 4]`, 1 being the whole width or height.
        image_size: Height and width in pixels: a pair, or `[..., 2]` with the leading dimensions of `boxes`.

    Returns:
        Boxes `[..., n, 4]` in pixels, in the format they came in; float32.

    >>> keras.ops.convert_to_numpy(relative_to_absolute([[0.25, 0.5, 0.75, 1.0]], (100, 200))).tolist()
    [[50.0, 50.0, 150.0, 100.0]]
    """
    return ops.cast(boxes, "float32") * _width_height_twice(image_size)


def absolute_to_relative(boxes, image_size):
    """Boxes relative to the image size from boxes in pixels, in any of the three formats.

    Args:
        boxes: Boxes `[..., n, 4]` in pixels.
        image_size: Height and width in pixels: a pair, or `[..., 2]` with the leading dimensions of `boxes`.

    Returns:
        Boxes `[..., n, 4]`, 1 being the whole width or height, in the format they came in; float32.

    >>> keras.ops.convert_to_numpy(absolute_to_relative([[50, 50, 150, 100]], (100, 200))).tolist()
    [[0.25, 0.5, 0.75, 1.0]]
    """
    return ops.cast(boxes, "float32") / _width_height_twice(image_size)


def _width_height_twice(image_size):
    """`[..., 1, 4]`: width, height, width, height, to broadcast against boxes."""
    if isinstance(image_size, tuple | list) and all(isinstance(size, numbers.Number) for size in image_size):
        height, width = image_size
        return np.array([[width, height, width, height]], "float32")
    image_size = ops.cast(image_size, "float32")
    height, width = image_size[..., 0], image_size[..., 1]
    return ops.stack([width, height, width, height], axis=-1)[..., None, :]


def clip_xyxy(boxes_xyxy, image_size):
    """Boxes clipped to the borders of their image.

    Args:
        boxes_xyxy: Boxes `[..., n, 4]` in pixels.
        image_size: Valid height and width in pixels: a pair, or `[..., 2]` with the leading dimensions of the boxes.

    Returns:
        Boxes `[..., n, 4]` within 0…width and 0…height; float32. A box entirely outside becomes one without area.

    >>> keras.ops.convert_to_numpy(clip_xyxy([[-5, 10, 30, 90]], (64, 64))).tolist()
    [[0.0, 10.0, 30.0, 64.0]]
    """
    return ops.clip(ops.cast(boxes_xyxy, "float32"), 0.0, _width_height_twice(image_size))


def _ratio(numerator, denominator):
    """`numerator / denominator`, and 0 with a gradient of 0 where the denominator is 0."""
    exists = denominator > MIN_AREA
    return ops.where(exists, numerator / ops.where(exists, denominator, 1.0), 0.0)


def _area(corners):
    left, top, right, bottom = corners
    return ops.relu(right - left) * ops.relu(bottom - top)


def _intersection(corners1, corners2):
    (left1, top1, right1, bottom1), (left2, top2, right2, bottom2) = corners1, corners2
    return _area(
        (ops.maximum(left1, left2), ops.maximum(top1, top2), ops.minimum(right1, right2), ops.minimum(bottom1, bottom2))
    )


def _enclosing_area(corners1, corners2):
    """Area of the smallest box that encloses both."""
    (left1, top1, right1, bottom1), (left2, top2, right2, bottom2) = corners1, corners2
    return _area(
        (ops.minimum(left1, left2), ops.minimum(top1, top2), ops.maximum(right1, right2), ops.maximum(bottom1, bottom2))
    )


def iou_of_columns(corners1, corners2):
    """Intersection over union of boxes split by `columns`, with broadcasting."""
    intersection = _intersection(corners1, corners2)
    return _ratio(intersection, _area(corners1) + _area(corners2) - intersection)


def iof_of_columns(corners, cover_corners):
    """Intersection over foreground, with broadcasting: the fraction of each box inside another (COCO's crowds)."""
    return _ratio(_intersection(corners, cover_corners), _area(corners))


def _paired_or_all(boxes1_xyxy, boxes2_xyxy, pairwise):
    """Coordinates of the two sets, which broadcast box by box or to every pair."""
    corners1, corners2 = columns(boxes1_xyxy), columns(boxes2_xyxy)
    if pairwise:
        corners1, corners2 = [c[..., :, None] for c in corners1], [c[..., None, :] for c in corners2]
    return corners1, corners2


def area_xyxy(boxes_xyxy):
    """Areas of boxes; 0 for an inverted box.

    Args:
        boxes_xyxy: Boxes `[..., 4]`.

    Returns:
        Areas `[...]`, float32.

    >>> float(area_xyxy([3, 2, 5, 8]))
    12.0
    """
    return _area(columns(boxes_xyxy))


def iou_xyxy(boxes1_xyxy, boxes2_xyxy, pairwise=True):
    """Intersection over union.

    Args:
        boxes1_xyxy: Boxes `[..., n, 4]`.
        boxes2_xyxy: Boxes `[..., m, 4]`.
        pairwise: Whether to compare every box with every other. If False the sets are compared box by box, with
            broadcasting.

    Returns:
        Overlaps in [0, 1], float32: `[..., n, m]`, or the broadcast shape `[...]` if not `pairwise`. A pair of boxes
        without area has the overlap 0.

    >>> keras.ops.convert_to_numpy(iou_xyxy([[0, 0, 2, 2]], [[0, 0, 2, 1], [2, 2, 4, 4]])).tolist()
    [[0.5, 0.0]]
    """
    return iou_of_columns(*_paired_or_all(boxes1_xyxy, boxes2_xyxy, pairwise))


def giou_xyxy(boxes1_xyxy, boxes2_xyxy, pairwise=True):
    """Generalised intersection over union: IoU less the fraction of the enclosing box that their union leaves empty.

    Rezatofighi et al. 2019 (https://arxiv.org/abs/1902.09630), algorithm 1.

    Args:
        boxes1_xyxy: Boxes `[..., n, 4]`.
        boxes2_xyxy: Boxes `[..., m, 4]`.
        pairwise: Whether to compare every box with every other. If False the sets are compared box by box, with
            broadcasting.

    Returns:
        Values in [-1, 1], float32: `[..., n, m]`, or the broadcast shape `[...]` if not `pairwise`.

    >>> keras.ops.convert_to_numpy(giou_xyxy([[0, 0, 2, 2]], [[0, 0, 2, 1], [2, 2, 4, 4]])).tolist()
    [[0.5, -0.5]]
    """
    corners1, corners2 = _paired_or_all(boxes1_xyxy, boxes2_xyxy, pairwise)
    intersection = _intersection(corners1, corners2)
    union = _area(corners1) + _area(corners2) - intersection
    enclosing = _enclosing_area(corners1, corners2)
    return _ratio(intersection, union) - _ratio(enclosing - union, enclosing)


def encode_deltas(boxes_xyxy, anchors_xyxy, weights=(1.0, 1.0, 1.0, 1.0)):
    """Deltas that map anchors to boxes: shifts of the centre in anchor sizes, and logarithms of the two scales.

    Girshick et al. 2014 (R-CNN), appendix C. Sides below a millionth of a pixel count as a millionth, so that
    padding rows and boxes without area give finite numbers.

    Args:
        boxes_xyxy: Boxes `[..., 4]` to encode.
        anchors_xyxy: Anchors `[..., 4]`, one for each box, or a shape that broadcasts.
        weights: Factors of dx, dy, dw, dh: (1, 1, 1, 1) for anchors, (10, 10, 5, 5) for the second stage of R-CNNs.

    Returns:
        Deltas `[..., 4]`, float32.

    >>> keras.ops.convert_to_numpy(encode_deltas([2, 0, 6, 4], [0, 0, 4, 4])).tolist()
    [0.5, 0.0, 0.0, 0.0]
    """
    x, y, width, height = _centres_and_sides(boxes_xyxy)
    anchor_x, anchor_y, anchor_width, anchor_height = _centres_and_sides(anchors_xyxy)
    width, height, anchor_width, anchor_height = (
        ops.maximum(side, MIN_SIDE) for side in (width, height, anchor_width, anchor_height)
    )
    return ops.stack(
        [
            weights[0] * (x - anchor_x) / anchor_width,
            weights[1] * (y - anchor_y) / anchor_height,
            weights[2] * ops.log(width / anchor_width),
            weights[3] * ops.log(height / anchor_height),
        ],
        axis=-1,
    )


def decode_deltas(deltas, anchors_xyxy, weights=(1.0, 1.0, 1.0, 1.0)):
    """Boxes from deltas and anchors: the inverse of `encode_deltas`.

    Girshick et al. 2014 (R-CNN), appendix C. A box grows to at most 1000/16 times its anchor, so that an early, extreme
    prediction stays finite.

    Args:
        deltas: Deltas `[..., 4]`. One box for each class: `[..., classes, 4]` with anchors `[..., 1, 4]`.
        anchors_xyxy: Anchors `[..., 4]`, one for each delta, or a shape that broadcasts.
        weights: The same factors as in `encode_deltas`.

    Returns:
        Boxes `[..., 4]`, float32.

    >>> keras.ops.convert_to_numpy(decode_deltas([0.5, 0, 0, 0], [0, 0, 4, 4])).tolist()
    [2.0, 0.0, 6.0, 4.0]
    """
    dx, dy, dw, dh = (delta / weight for delta, weight in zip(columns(deltas), weights, strict=True))
    anchor_x, anchor_y, anchor_width, anchor_height = _centres_and_sides(anchors_xyxy)
    x, y = dx * anchor_width + anchor_x, dy * anchor_height + anchor_y
    half_width = 0.5 * anchor_width * ops.exp(ops.minimum(dw, MAX_LOG_SCALE))
    half_height = 0.5 * anchor_height * ops.exp(ops.minimum(dh, MAX_LOG_SCALE))
    return ops.stack([x - half_width, y - half_height, x + half_width, y + half_height], axis=-1)
