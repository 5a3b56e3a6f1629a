"""Which classes a detector takes for which: the confusion matrix of boxes."""

import numpy as np

CROWD_FRACTION = 0.5  # of a detection inside a crowd, from which on it is left out


def confusion_matrix(truth, found, num_classes, score_threshold, iou_threshold):
    """How often an object of each class was detected as each class.

    Detections of an image are gone through by falling score. Each takes the object that it overlaps most, whatever its
    class, of those that none took before, if the overlap reaches the threshold; of equal overlaps that of its class. A
    detection that takes none is left out if at least half of it lies inside a crowd.

    Args:
        truth, found: Columns `image`, `label`, `bbox` (left, top, width, height), and `crowd` or `score`.
        num_classes: Labels run from 0 to one below.
        score_threshold: Detections below it are left out.
        iou_threshold: In (0, 1].

    Returns:
        int64 [num_classes + 1, num_classes + 1]: rows are the objects' classes, columns the detections'; the last row
        is background that was detected, the last column objects that were missed.
    """
    matrix = np.zeros((num_classes + 1, num_classes + 1), "int64")
    found = _rows(found, found["score"] >= score_threshold)
    for image in np.union1d(truth["image"], found["image"]):
        objects, detections = (_rows(side, side["image"] == image) for side in (truth, found))
        taken = _taken(objects, detections, iou_threshold)
        for index, label in zip(taken, detections["label"], strict=True):
            if index != _LEFT_OUT:
                matrix[num_classes if index == _NONE else objects["label"][index], label] += 1
        missed = np.setdiff1d(np.flatnonzero(objects["crowd"] == 0), taken)
        np.add.at(matrix, (objects["label"][missed], num_classes), 1)
    return matrix


_NONE, _LEFT_OUT = -1, -2


def _taken(objects, detections, iou_threshold):
    """The index of the object that each detection takes, or one of the two marks."""
    overlaps, inside = _overlaps(detections["bbox"], objects["bbox"])
    crowd = objects["crowd"] != 0
    in_crowd = (inside[:, crowd] >= CROWD_FRACTION).any(axis=1)
    same = detections["label"][:, None] == objects["label"]
    free = ~crowd
    taken = np.where(in_crowd, _LEFT_OUT, _NONE)
    for row in np.argsort(-detections["score"], kind="stable"):
        candidates = np.flatnonzero(free & (overlaps[row] >= iou_threshold))
        if candidates.size:
            best = candidates[np.lexsort((same[row, candidates], overlaps[row, candidates]))[-1]]
            taken[row], free[best] = best, False
    return taken


def _overlaps(boxes_xywh, others_xywh):
    """IoU, and the fraction of each box inside each other one, [n, m]."""
    boxes, others = boxes_xywh[:, None], others_xywh[None]
    ends = np.minimum(boxes[..., :2] + boxes[..., 2:], others[..., :2] + others[..., 2:])
    common = np.prod(np.maximum(ends - np.maximum(boxes[..., :2], others[..., :2]), 0), axis=-1)
    area, other_area = np.prod(boxes[..., 2:], axis=-1), np.prod(others[..., 2:], axis=-1)
    union = area + other_area - common
    return (
        np.divide(common, whole, out=np.zeros_like(common), where=whole > 0) for whole in (union, area + 0 * common)
    )


def _rows(side, chosen):
    return {name: column[chosen] for name, column in side.items()}
