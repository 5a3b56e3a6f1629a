"""Average precision as PASCAL VOC counts it."""

import numpy as np

from kvision.metrics.average_precision import UNDECIDED, AveragePrecision, columns


class VOCAveragePrecision(AveragePrecision):
    """Average precision at one IoU threshold, by the rules of the PASCAL VOC development kit.

    Everingham et al. 2010, *The PASCAL Visual Object Classes (VOC) Challenge*, section 4.2, and the kit's
    `VOCevaldet`. Detections of a class are ranked by score over all images. Each is compared with all objects of its
    class in its image and stands for the one it overlaps most: it is true if that overlap reaches the threshold and no
    detection of a higher score stands for the same object, else false. It counts neither way if that object is marked
    `difficult`; difficult objects need not be found.

    - From 2010 on (the default) AP is the area under the precision-recall curve, precision being at each recall the
      highest at that or any higher recall.
    - In 2007 (`eleven_points=True`) it is the mean of that precision at recall 0, 0.1 … 1. A level is reached by
      whole numbers, 10 · found ≥ level · objects, so that rounding decides nothing.

    VOC's files number pixels from 1 and count the last as inside, therefore the kit adds 1 to every width and height.
    Boxes of the data contract are the edges themselves (left and top one less than in the file), in any scale, so
    nothing is added here and the overlaps are the kit's.

    `update` reads `"difficult"` [b, n] of the targets; without it no object is.

    The one number is `AP`: `result` gives its mean over the classes that have an object to be found (what VOC's papers
    call mAP), `per_class` that of each class. Where there is no such object it is −1.

    Args:
        classes: Names of the classes, or their number; None takes the labels as they come.
        eleven_points: Whether to count as in 2007.
        iou_threshold: Overlap, in (0, 1], that makes a detection true.

    Raises:
        ValueError: If the threshold is out of range.

    Example:

    >>> metric = VOCAveragePrecision(classes=["dog"])
    >>> targets = {"boxes": [[[10.0, 10.0, 60.0, 60.0]]], "labels": [[0]]}
    >>> boxes = [[[0.0, 0.0, 9.0, 9.0], [10.0, 10.0, 60.0, 50.0]]]
    >>> metric.update(targets, {"boxes": boxes, "scores": [[0.9, 0.8]], "labels": [[0, 0]]})
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
        real = targets["labels"] >= 0
        difficult = targets.get("difficult", np.zeros(real.shape)).astype(bool)
        overlaps = _overlaps(*(_without_padding(side) for side in (detections, targets)))
        comparable = real[:, None] & (detections["labels"][:, :, None] == targets["labels"][:, None])
        overlaps = np.where(comparable, overlaps, -1.0)
        nothing = np.full((*detections["labels"].shape, 1), -1.0)  # there may be no target to compare with
        overlaps, difficult = np.concatenate([overlaps, nothing], -1), np.pad(difficult, ((0, 0), (0, 1)))
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
        self._truth.append({"label": targets["labels"][real & ~difficult[:, :-1]]})

    def _summary(self, chosen):
        if self._measured is None:
            self._measured = np.array(list(self._average_precisions()))
        values = self._measured[chosen]
        return {"AP": float(values.mean()) if values.size else UNDECIDED}

    def _average_precisions(self):
        if not self._truth:
            return
        found, truth = columns(self._found, ("image", "label", "score", "true")), columns(self._truth, ("label",))
        ranked = np.lexsort((found["image"], -found["score"]))
        found = {name: column[ranked] for name, column in found.items()}
        for label in self._present():
            true = found["true"][found["label"] == label]
            yield _under_curve(true, np.count_nonzero(truth["label"] == label), self.eleven_points)


def _without_padding(side):
    """Boxes in float64, 0 where they are padding."""
    return np.where(side["labels"][..., None] >= 0, side["boxes"], 0.0).astype("float64")


def _overlaps(boxes, others):
    """IoU of all pairs, [b, k, n], of boxes [b, k, 4] and [b, n, 4]."""
    boxes, others = boxes[:, :, None], others[:, None]
    sides = np.minimum(boxes[..., 2:], others[..., 2:]) - np.maximum(boxes[..., :2], others[..., :2])
    shared = np.prod(np.maximum(sides, 0.0), -1)
    union = np.prod(boxes[..., 2:] - boxes[..., :2], -1) + np.prod(others[..., 2:] - others[..., :2], -1) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _under_curve(true, objects, eleven_points):
    """AP of a ranking (whether each detection is true) in which `objects` are to be found."""
    found = np.cumsum(true)
    precision = found / np.arange(1, len(true) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]  # the highest at this or any higher recall
    if not eleven_points:
        return precision[true].sum() / objects
    places = np.searchsorted(10 * found, np.arange(11) * objects)
    return np.append(precision, 0.0)[places].mean()
