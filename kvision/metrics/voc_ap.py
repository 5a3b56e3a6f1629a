"""Average precision as PASCAL VOC counts it."""

import numpy as np

from kvision.metrics import mask_codes
from kvision.metrics.average_precision import UNDEFINED, AveragePrecision, columns

VOLUME = tuple(round(0.1 * step, 1) for step in range(1, 10))  # thresholds of AP^r_vol


class VOCAveragePrecision(AveragePrecision):
    """Average precision at one IoU threshold, by the rules of the PASCAL VOC development kit; of boxes and of regions.

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

    With `masks=True` the same rules are applied to the overlap of regions besides: `mask_AP` is AP^r of Hariharan et
    al. 2014, *Simultaneous Detection and Segmentation*, section 5.1, whose mean over the classes is mAP^r, and
    `mask_AP_vol` its mean over the thresholds 0.1, 0.2 … 0.9, AP^r_vol. COCO's `mask_AP50` is another number: it
    averages the precision at 101 recall levels and lets a detection take the best object that is still free; this is
    the area under the curve, and a detection stands for the object it overlaps most, taken or not. `update_state` then
    reads `"masks"` [b, n, h, w] or `"box_masks"` [b, n, s, s] of both sides.

    Args:
        classes: Names of the classes, or their number; None takes the labels as they come.
        eleven_points: Whether to count as in 2007.
        iou_threshold: IoU, in (0, 1], from which a detection is a true positive.
        masks: Whether to measure masks besides boxes.

    Raises:
        ImportError: If masks are measured and faster-coco-eval is missing (`pip install 'kvision[coco]'`).
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

    def __init__(self, classes=None, eleven_points=False, iou_threshold=0.5, masks=False):
        if not 0 < iou_threshold <= 1:
            raise ValueError(f"The IoU threshold lies in (0, 1]: got {iou_threshold}. VOC's is 0.5.")
        self.eleven_points = eleven_points
        self.iou_threshold = iou_threshold
        self.masks = masks
        if masks:
            mask_codes.library()
            self._entries = self._entries | {"masks", "box_masks", "image_size"}
        super().__init__(classes)

    def by_threshold(self, thresholds=VOLUME):
        """AP at each of several IoU thresholds, `{threshold: number}`: of masks if those are measured.

        Raises:
            ValueError: If a threshold is out of range.

        >>> metric = VOCAveragePrecision()
        >>> targets = {"boxes": [[[0.0, 0.0, 10.0, 10.0]]], "labels": [[0]]}
        >>> found = {"boxes": [[[0.0, 0.0, 10.0, 6.0]]], "scores": [[0.9]], "labels": [[0]]}
        >>> metric.update_state(targets, found)
        >>> metric.by_threshold((0.5, 0.75))
        {0.5: 1.0, 0.75: 0.0}
        """
        if not all(0 < threshold <= 1 for threshold in thresholds):
            raise ValueError(f"IoU thresholds lie in (0, 1]: got {tuple(thresholds)}.")
        kind = "mask" if self.masks else "box"
        return {threshold: _mean(self._average_precisions(kind, threshold)) for threshold in thresholds}

    def _take(self, targets, detections):
        present = targets["labels"] >= 0
        difficult = targets.get("difficult", np.zeros(present.shape)).astype(bool)
        comparable = present[:, None] & (detections["labels"][:, :, None] == targets["labels"][:, None])
        no_target = np.full((*detections["labels"].shape, 1), -1.0)  # there may be no target to compare with
        counted = detections["labels"] >= 0
        image, _ = np.indices(detections["labels"].shape)
        found = {"image": image[counted] + self._num_images}
        found |= {name: detections[f"{name}s"][counted] for name in ("label", "score")}
        for kind, overlaps in self._all_overlaps(targets, detections).items():
            overlaps = np.concatenate([np.where(comparable, overlaps, -1.0), no_target], -1)
            nearest = overlaps.argmax(-1)
            ignored = np.pad(difficult, ((0, 0), (0, 1)))[image, nearest]
            columns_of_kind = {"overlap": overlaps.max(-1), "nearest": nearest, "ignored": ignored}
            found |= {f"{kind} {name}": column[counted] for name, column in columns_of_kind.items()}
        self._found.append(found)
        self._truth.append({"label": targets["labels"][present & ~difficult]})

    def _all_overlaps(self, targets, detections):
        """IoU of all pairs, [b, k, n], of boxes and, where they are measured, of masks."""
        overlaps = {"box": _overlaps(*(_without_padding(side) for side in (detections, targets)))}
        if self.masks:
            overlaps["mask"] = np.zeros(overlaps["box"].shape)
            sides = (detections["labels"] >= 0, targets["labels"] >= 0)
            codes = mask_codes.codes_of(targets, detections)[::-1]
            parts = (np.split(each, np.cumsum(rows.sum(1))[:-1]) for each, rows in zip(codes, sides, strict=True))
            for image, (one, two) in enumerate(zip(*parts, strict=True)):
                rows, columns_ = (np.flatnonzero(side[image]) for side in sides)
                overlaps["mask"][image][np.ix_(rows, columns_)] = mask_codes.overlaps_of(one, two)
        return overlaps

    def _summary(self, chosen):
        if self._measured is None:
            self._measured = {"AP": self._average_precisions("box", self.iou_threshold)}
            if self.masks:
                self._measured["mask_AP"] = self._average_precisions("mask", self.iou_threshold)
                volume = [self._average_precisions("mask", threshold) for threshold in VOLUME]
                self._measured["mask_AP_vol"] = np.mean(volume, axis=0)
        return {name: _mean(values[chosen]) for name, values in self._measured.items()}

    def _average_precisions(self, kind, threshold):
        """AP of each class that has an object, by ascending label."""
        if not self._truth:
            return np.empty(0)
        names = ("image", "label", "score", *(f"{kind} {name}" for name in ("overlap", "nearest", "ignored")))
        found, truth = columns(self._found, names), columns(self._truth, ("label",))
        hit = found[f"{kind} overlap"] >= threshold
        order = np.lexsort((found["image"], -found["score"]))
        order = order[~(hit & found[f"{kind} ignored"])[order]]
        label, hit, image, nearest = (
            column[order] for column in (found["label"], hit, found["image"], found[f"{kind} nearest"])
        )
        candidates = np.flatnonzero(hit)
        target = image * (nearest.max(initial=0) + 1) + nearest
        _, first = np.unique(target[candidates], return_index=True)
        true = np.zeros(len(hit), bool)
        true[candidates[first]] = True
        objects = {label: np.count_nonzero(truth["label"] == label) for label in self._present().tolist()}
        return np.array([_area_under_curve(true[label == each], n, self.eleven_points) for each, n in objects.items()])


def _mean(values):
    return float(values.mean()) if values.size else UNDEFINED


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
