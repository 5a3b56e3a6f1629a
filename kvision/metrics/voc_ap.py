"""Average precision as PASCAL VOC counts it."""

import numpy as np

from kvision.metrics.average_precision import UNDEFINED, AveragePrecision, columns


class VOCAveragePrecision(AveragePrecision):
    """Average precision at one IoU threshold, by the rules of the PASCAL VOC development kit.

    Everingham et al. 2010, *The PASCAL Visual Object Classes (VOC) Challenge*, section 4.2, and the kit's
    `VOCevaldet`. Detections of a class are ranked by score over all images. Each is assigned to
    the object of its class and image that it overlaps most: it is a true positive if that IoU reaches the threshold and
    no detection of a higher score is assigned to the same object, else a false positive. It is ignored if that object
    is marked `difficult`; difficult objects need not be detected.

    - From 2010 on (the default) AP is the area under the precision-recall curve, precision being at each recall the
      highest at that or any higher recall.
    - In 2007 (`eleven_points=True`) it is the mean of that precision at recall 0, 0.1 … 1. Whether a level is
      reached is computed in integers, 10 · true positives ≥ level · objects, so that rounding does not matter.

    VOC's files number pixels from 1 and include the last one, therefore the kit adds 1 to every width and height.
    Boxes of the data contract are the edges themselves (left and top one less than in the file), in any scale, so
    nothing is added here and the overlaps are the kit's.

    `update_state` reads `"difficult"` [b, n] of the targets; without it no object is difficult.

    The one number is `AP`: `result` gives its mean over the classes that have an object to be detected (what VOC's
    papers call mAP), `per_class` that of each class. Where there is no such object it is −1.

    Args:
        classes: Names of the classes, or their number; None takes the labels as they come.
        eleven_points: Whether to count as in 2007.
        iou_threshold: IoU, in (0, 1], from which a detection is a true positive.

    Raises:
        ValueError: If the threshold is out of range.

    Example:

    >>> metric = VOCAveragePrecision(classes=["dog"])
    >>> targets = {"boxes": [[[10.0, 10.0, 60.0, 60.0]]], "labels": [[0]]}
    >>> boxes = [[[0.0, 0.0, 9.0, 9.0], [10.0, 10.0, 60.0, 50.0]]]
    >>> metric.update_state(targets, {"boxes": boxes, "scores": [[0.9, 0.8]], "labels": [[0, 0]]})
    >>> metric.result()
    {'AP': 0.5}
    """

    _entries = frozenset(("boxes", "labels", "scores", "difficult"))

    def __init__(self, classes=None, eleven_points=False, iou_threshold=0.5):
        if not 0 < iou_threshold <= 1:
            raise ValueError(f"The IoU threshold lies in (0, 1]: got {iou_threshold}. VOC's is 0.5.")
        self.eleven_points = eleven_points
        self.iou_threshold = iou_threshold
        super().__init__(classes)

    def _take(self, targets, detections):
        present = targets["labels"] >= 0
        difficult = targets.get("difficult", np.zeros(present.shape)).astype(bool)
        overlaps = _overlaps(*(_without_padding(side) for side in (detections, targets)))
        comparable = present[:, None] & (detections["labels"][:, :, None] == targets["labels"][:, None])
        overlaps = np.where(comparable, overlaps, -1.0)
        no_target = np.full((*detections["labels"].shape, 1), -1.0)  # there may be no target to compare with
        overlaps, difficult = np.concatenate([overlaps, no_target], -1), np.pad(difficult, ((0, 0), (0, 1)))
        image, _ = np.indices(detections["labels"].shape)
        nearest = overlaps.argmax(-1)
        hit = overlaps.max(-1) >= self.iou_threshold
        counted = (detections["labels"] >= 0) & ~(hit & difficult[image, nearest])
        ranked = np.argsort(-detections["scores"][counted], kind="stable")
        label, score, hit, image, nearest = (
            array[counted][ranked] for array in (detections["labels"], detections["scores"], hit, image, nearest)
        )
        candidates = np.flatnonzero(hit)
        _, first = np.unique(image[candidates] * difficult.shape[1] + nearest[candidates], return_index=True)
        true = np.zeros(len(hit), bool)
        true[candidates[first]] = True
        self._found.append({"image": image + self._num_images, "label": label, "score": score, "true": true})
        self._truth.append({"label": targets["labels"][present & ~difficult[:, :-1]]})

    def _summary(self, chosen):
        if self._measured is None:
            self._measured = np.array(list(self._average_precisions()))
        values = self._measured[chosen]
        return {"AP": float(values.mean()) if values.size else UNDEFINED}

    def _average_precisions(self):
        if not self._truth:
            return
        found, truth = columns(self._found, ("image", "label", "score", "true")), columns(self._truth, ("label",))
        ranked = np.lexsort((found["image"], -found["score"]))
        found = {name: column[ranked] for name, column in found.items()}
        for label in self._present():
            true = found["true"][found["label"] == label]
            yield _area_under_curve(true, np.count_nonzero(truth["label"] == label), self.eleven_points)


def _without_padding(side):
    """Boxes in float64, 0 where they are padding."""
    return np.where(side["labels"][..., None] >= 0, side["boxes"], 0.0).astype("float64")


def _overlaps(boxes, others):
    """IoU of all pairs, [b, k, n], of boxes [b, k, 4] and [b, n, 4]."""
    boxes, others = boxes[:, :, None], others[:, None]
    sides = np.minimum(boxes[..., 2:], others[..., 2:]) - np.maximum(boxes[..., :2], others[..., :2])
    intersection = np.prod(np.maximum(sides, 0.0), -1)
    union = np.prod(boxes[..., 2:] - boxes[..., :2], -1) + np.prod(others[..., 2:] - others[..., :2], -1) - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def _area_under_curve(true, objects, eleven_points):
    """AP of a ranking (whether each detection is true) with `objects` to be detected."""
    found = np.cumsum(true)
    precision = found / np.arange(1, len(true) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]  # the highest at this or any higher recall
    if not eleven_points:
        return precision[true].sum() / objects
    indices = np.searchsorted(10 * found, np.arange(11) * objects)
    return np.append(precision, 0.0)[indices].mean()
