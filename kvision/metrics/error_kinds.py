"""What is wrong with the detections of one image: the kinds of errors of TIDE.

Bolya et al. 2020, *TIDE: A General Toolbox for Identifying Object Detection Errors* (arXiv 2008.08115), section 2.2.
"""

import typing

import numpy as np

ERROR_KINDS = ("class", "localization", "both", "duplicate", "background", "missed")
TRUE_POSITIVE, IGNORED = "true_positive", "ignored"
CODES = (*ERROR_KINDS, TRUE_POSITIVE, IGNORED)  # a kind as a small number is its index here
_NONE = -1


class ImageErrors(typing.NamedTuple):
    """What became of each detection and object of an image.

    Args:
        rows: [k] indices of the detections, by falling score.
        kinds: [k] of each: `"class"`, `"localization"`, `"both"`, `"duplicate"`, `"background"`, `"true_positive"`, or
            `"ignored"` within a crowd.
        objects: [k] the index of the object that a detection takes, or should have taken; −1 for none.
        missed: Indices of the objects that no detection takes or would take if its class or its place were right.
    """

    rows: object
    kinds: object
    objects: object
    missed: object


class Found(typing.NamedTuple):
    """The detections of an image [k], by falling score, and its objects [n] without crowds, as numbers."""

    rows: object  # of the detections
    kind: object  # of each, an index of CODES
    taken: object  # the object that it takes or should have taken, as an index of `objects`
    fixes: object  # whether it becomes the true positive of that object if its error is mended
    objects: object  # rows of the objects
    detected: object  # whether a detection takes it
    missed: object  # whether none does, or would if its error was mended


def find_errors(targets, detections, iou_threshold, background_threshold, max_detections):
    """The errors of one image.

    Args:
        targets: `"boxes"` [n, 4] xyxy, `"labels"` [n], padding −1, and, optional, `"crowd"` [n].
        detections: `"boxes"` [k, 4], `"scores"` [k] and `"labels"` [k], padding −1.
        iou_threshold: From which a detection takes an object.
        background_threshold: Up to which a detection has nothing to do with an object.
        max_detections: Of the image, those of the highest scores.

    Returns:
        A `Found`.
    """
    rows = np.flatnonzero(detections["labels"] >= 0)
    rows = rows[np.argsort(-detections["scores"][rows], kind="stable")][:max_detections]
    crowd = np.asarray(targets.get("crowd", np.zeros(len(targets["labels"])))).astype(bool)
    objects = np.flatnonzero((targets["labels"] >= 0) & ~crowd)
    crowds = np.flatnonzero((targets["labels"] >= 0) & crowd)
    boxes, labels = detections["boxes"][rows].astype("float64"), detections["labels"][rows]
    overlaps, _ = _overlaps(boxes, targets["boxes"][objects].astype("float64"))
    same = labels[:, None] == targets["labels"][objects]
    own, other = overlaps * same, overlaps * ~same
    taken = _taken(own, iou_threshold)
    detected = np.zeros(len(objects), bool)
    detected[taken[taken != _NONE]] = True

    highest_own, highest_other, highest = (each.max(axis=1, initial=0) for each in (own, other, overlaps))
    nearest_own, nearest_other = (_nearest(each) for each in (own, other))
    _, inside = _overlaps(boxes, targets["boxes"][crowds].astype("float64"))
    in_crowd = ((inside >= iou_threshold) & (labels[:, None] == targets["labels"][crowds])).any(axis=1)
    kind = np.select(
        [
            taken != _NONE,
            in_crowd,
            (highest_own >= background_threshold) & (highest_own < iou_threshold) & (highest_own > 0),
            highest_other >= iou_threshold,
            highest_own >= iou_threshold,
            highest <= background_threshold,
        ],
        [CODES.index(name) for name in (TRUE_POSITIVE, IGNORED, "localization", "class", "duplicate", "background")],
        CODES.index("both"),
    )
    by_kind = {"class": nearest_other, "localization": nearest_own, "duplicate": nearest_own, "both": nearest_other}
    for name, nearest in by_kind.items():
        taken = np.where(kind == CODES.index(name), nearest, taken)

    mendable = np.isin(kind, [CODES.index("class"), CODES.index("localization")])
    fixes = np.zeros(len(rows), bool)
    claimed = detected.copy()
    for row in np.flatnonzero(mendable):  # of several that would take one object, that of the highest score does
        if not claimed[taken[row]]:
            fixes[row] = claimed[taken[row]] = True
    return Found(rows, kind, taken, fixes, objects, detected, ~claimed)


def _taken(own, iou_threshold):
    """The object of its class that each detection takes, by falling score, of those still free."""
    free = own.copy()
    taken = np.full(len(own), _NONE)
    for row in np.flatnonzero(own.max(axis=1, initial=0) >= iou_threshold):
        best = free[row].argmax()
        if free[row, best] >= iou_threshold:
            taken[row] = best
            free[:, best] = 0
    return taken


def _nearest(overlaps):
    return overlaps.argmax(axis=1) if overlaps.shape[1] else np.full(len(overlaps), _NONE)


def _overlaps(boxes_xyxy, others_xyxy):
    """IoU, and the fraction of each box inside each other one, [k, n]."""
    boxes, others = boxes_xyxy[:, None], others_xyxy[None]
    sides = np.minimum(boxes[..., 2:], others[..., 2:]) - np.maximum(boxes[..., :2], others[..., :2])
    common = np.prod(np.maximum(sides, 0), axis=-1)
    area, other_area = (np.prod(np.maximum(each[..., 2:] - each[..., :2], 0), axis=-1) for each in (boxes, others))
    union = area + other_area - common
    return tuple(
        np.divide(common, whole, out=np.zeros_like(common), where=whole > 0) for whole in (union, area + 0 * common)
    )
