"""Boxes: formats, areas, overlaps, and the deltas that detectors regress.

Every function computes in float32, whatever it is given, and takes any number of leading dimensions. A format is four
numbers on the last axis: `xyxy` (left, top, right, bottom), `xywh` (left, top, width, height), `cxcywh` (centre, width,
height). A box whose right lies left of its left, or whose bottom lies above its top, has the area 0; no function
divides by such an area, so values and gradients stay finite.
"""

import math

from keras import ops

SMALLEST_AREA = 1e-12
SMALLEST_SIDE = 1e-6
LARGEST_LOG_SCALE = math.log(1000 / 16)


def columns(boxes):
    """The four numbers of each box apart, each `[...]`, in float32."""
    boxes = ops.cast(boxes, "float32")
    return boxes[..., 0], boxes[..., 1], boxes[..., 2], boxes[..., 3]


def _centres_and_sides(boxes_xyxy):
    """Centre x, centre y, width and height of each box, apart."""
    left, top, right, bottom = columns(boxes_xyxy)
    width, height = right - left, bottom - top
    return left + 0.5 * width, top + 0.5 * height, width, height


def cxcywh_to_xyxy(boxes_cxcywh):
    """Corners of boxes given by centre and size.

    Args:
        boxes_cxcywh: Boxes `[..., 4]`.

    Returns:
        Boxes `[..., 4]` as left, top, right, bottom; float32.
    """
    x, y, width, height = columns(boxes_cxcywh)
    return ops.stack([x - 0.5 * width, y - 0.5 * height, x + 0.5 * width, y + 0.5 * height], axis=-1)


def xyxy_to_cxcywh(boxes_xyxy):
    """Centre and size of boxes given by corners.

    Args:
        boxes_xyxy: Boxes `[..., 4]`.

    Returns:
        Boxes `[..., 4]` as centre x, centre y, width, height; float32.
    """
    left, top, right, bottom = columns(boxes_xyxy)
    return ops.stack([0.5 * (left + right), 0.5 * (top + bottom), right - left, bottom - top], axis=-1)


def xywh_to_xyxy(boxes_xywh):
    """Corners of boxes given by left, top and size (COCO's files).

    Args:
        boxes_xywh: Boxes `[..., 4]`.

    Returns:
        Boxes `[..., 4]` as left, top, right, bottom; float32.
    """
    left, top, width, height = columns(boxes_xywh)
    return ops.stack([left, top, left + width, top + height], axis=-1)


def xyxy_to_xywh(boxes_xyxy):
    """Left, top and size of boxes given by corners.

    Args:
        boxes_xyxy: Boxes `[..., 4]`.

    Returns:
        Boxes `[..., 4]` as left, top, width, height; float32.
    """
    left, top, right, bottom = columns(boxes_xyxy)
    return ops.stack([left, top, right - left, bottom - top], axis=-1)


def relative_to_absolute(boxes, image_size):
    """Pixels of boxes given as shares of the picture, in any of the three formats.

    Args:
        boxes: Boxes `[..., n, 4]`, 1 being the whole width or height.
        image_size: Height and width in pixels: a pair, or `[..., 2]` with the leading dimensions of `boxes`.

    Returns:
        Boxes `[..., n, 4]` in pixels, in the format they came in; float32.
    """
    return ops.cast(boxes, "float32") * _width_height_twice(image_size)


def absolute_to_relative(boxes, image_size):
    """Shares of the picture of boxes given in pixels, in any of the three formats.

    Args:
        boxes: Boxes `[..., n, 4]` in pixels.
        image_size: Height and width in pixels: a pair, or `[..., 2]` with the leading dimensions of `boxes`.

    Returns:
        Boxes `[..., n, 4]`, 1 being the whole width or height, in the format they came in; float32.
    """
    return ops.cast(boxes, "float32") / _width_height_twice(image_size)


def _width_height_twice(image_size):
    """`[..., 1, 4]`: width, height, width, height, ready to meet boxes."""
    image_size = ops.cast(image_size, "float32")
    height, width = image_size[..., 0], image_size[..., 1]
    return ops.stack([width, height, width, height], axis=-1)[..., None, :]


def clip_xyxy(boxes_xyxy, image_size):
    """Boxes cut off at the borders of their picture.

    Args:
        boxes_xyxy: Boxes `[..., n, 4]` in pixels.
        image_size: Valid height and width in pixels: a pair, or `[..., 2]` with the leading dimensions of the boxes.

    Returns:
        Boxes `[..., n, 4]` within 0…width and 0…height; float32. A box wholly outside becomes one without area.
    """
    return ops.clip(ops.cast(boxes_xyxy, "float32"), 0.0, _width_height_twice(image_size))


def _share(part, whole):
    """`part / whole`, and 0 with a gradient of 0 where the whole is nothing."""
    exists = whole > SMALLEST_AREA
    return ops.where(exists, part / ops.where(exists, whole, 1.0), 0.0)


def _area(corners):
    left, top, right, bottom = corners
    return ops.relu(right - left) * ops.relu(bottom - top)


def _intersection(corners1, corners2):
    (left1, top1, right1, bottom1), (left2, top2, right2, bottom2) = corners1, corners2
    return _area(
        (ops.maximum(left1, left2), ops.maximum(top1, top2), ops.minimum(right1, right2), ops.minimum(bottom1, bottom2))
    )


def _hull(corners1, corners2):
    """Area of the smallest box around both."""
    (left1, top1, right1, bottom1), (left2, top2, right2, bottom2) = corners1, corners2
    return _area(
        (ops.minimum(left1, left2), ops.minimum(top1, top2), ops.maximum(right1, right2), ops.maximum(bottom1, bottom2))
    )


def iou_of_columns(corners1, corners2):
    """Intersection over union of boxes already taken apart by `columns`, with broadcasting."""
    shared = _intersection(corners1, corners2)
    return _share(shared, _area(corners1) + _area(corners2) - shared)


def covered_share_of_columns(corners, cover_corners):
    """The share of each box that another box covers, with broadcasting: COCO's overlap with a crowd."""
    return _share(_intersection(corners, cover_corners), _area(corners))


def _paired_or_all(boxes1_xyxy, boxes2_xyxy, pairwise):
    """Columns of the two sets that broadcast box by box, or to every pair."""
    corners1, corners2 = columns(boxes1_xyxy), columns(boxes2_xyxy)
    if pairwise:
        corners1, corners2 = [c[..., :, None] for c in corners1], [c[..., None, :] for c in corners2]
    return corners1, corners2


def area_xyxy(boxes_xyxy):
    """Areas of boxes; 0 for a box turned inside out.

    Args:
        boxes_xyxy: Boxes `[..., 4]`.

    Returns:
        Areas `[...]`, float32.
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
    """
    return iou_of_columns(*_paired_or_all(boxes1_xyxy, boxes2_xyxy, pairwise))


def giou_xyxy(boxes1_xyxy, boxes2_xyxy, pairwise=True):
    """Generalised intersection over union: IoU less the share of the box around both that their union leaves empty.

    Rezatofighi et al. 2019 (https://arxiv.org/abs/1902.09630), algorithm 1.

    Args:
        boxes1_xyxy: Boxes `[..., n, 4]`.
        boxes2_xyxy: Boxes `[..., m, 4]`.
        pairwise: Whether to compare every box with every other. If False the sets are compared box by box, with
            broadcasting.

    Returns:
        Values in [-1, 1], float32: `[..., n, m]`, or the broadcast shape `[...]` if not `pairwise`.
    """
    corners1, corners2 = _paired_or_all(boxes1_xyxy, boxes2_xyxy, pairwise)
    shared = _intersection(corners1, corners2)
    union = _area(corners1) + _area(corners2) - shared
    hull = _hull(corners1, corners2)
    return _share(shared, union) - _share(hull - union, hull)


def encode_deltas(boxes_xyxy, anchors_xyxy, weights=(1.0, 1.0, 1.0, 1.0)):
    """Deltas that turn anchors into boxes: shifts of the centre in anchor sizes, and logarithms of the two scales.

    Girshick et al. 2014 (R-CNN), appendix C. Sides below a millionth count as a millionth, so that padding rows and
    boxes without area give finite numbers.

    Args:
        boxes_xyxy: Boxes `[..., 4]` to be described.
        anchors_xyxy: Anchors `[..., 4]`, one for each box, or a shape that broadcasts.
        weights: Factors of dx, dy, dw, dh: (1, 1, 1, 1) for anchors, (10, 10, 5, 5) for the second stage of R-CNNs.

    Returns:
        Deltas `[..., 4]`, float32.
    """
    x, y, width, height = _centres_and_sides(boxes_xyxy)
    anchor_x, anchor_y, anchor_width, anchor_height = _centres_and_sides(anchors_xyxy)
    width, height, anchor_width, anchor_height = (
        ops.maximum(side, SMALLEST_SIDE) for side in (width, height, anchor_width, anchor_height)
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
    """Boxes that deltas make out of anchors: the inverse of `encode_deltas`.

    A box grows to at most 1000/16 times its anchor, so that an early, wild prediction stays finite.

    Args:
        deltas: Deltas `[..., 4]`. One box for each class: `[..., classes, 4]` with anchors `[..., 1, 4]`.
        anchors_xyxy: Anchors `[..., 4]`, one for each delta, or a shape that broadcasts.
        weights: The factors given to `encode_deltas`.

    Returns:
        Boxes `[..., 4]`, float32.
    """
    dx, dy, dw, dh = (delta / weight for delta, weight in zip(columns(deltas), weights, strict=True))
    anchor_x, anchor_y, anchor_width, anchor_height = _centres_and_sides(anchors_xyxy)
    x, y = dx * anchor_width + anchor_x, dy * anchor_height + anchor_y
    half_width = 0.5 * anchor_width * ops.exp(ops.minimum(dw, LARGEST_LOG_SCALE))
    half_height = 0.5 * anchor_height * ops.exp(ops.minimum(dh, LARGEST_LOG_SCALE))
    return ops.stack([x - half_width, y - half_height, x + half_width, y + half_height], axis=-1)
