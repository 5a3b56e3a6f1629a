"""Errors of a detector by kind, and what each kind costs in average precision."""

import bisect
import numbers

import numpy as np

from kvision.metrics.average_precision import UNDEFINED, AveragePrecision, columns
from kvision.metrics.error_kinds import CODES, ERROR_KINDS, IGNORED, TRUE_POSITIVE, ImageErrors, find_errors

RECALL_LEVELS = np.linspace(0, 1, 101)  # those of COCO
_TRUE, _IGNORED, _MISSED = (CODES.index(name) for name in (TRUE_POSITIVE, IGNORED, "missed"))


class DetectionErrors(AveragePrecision):
    """Errors of detections by kind, and the average precision that each kind costs: the method of TIDE.

    Bolya et al. 2020, *TIDE: A General Toolbox for Identifying Object Detection Errors* (arXiv 2008.08115), section 2.
    A detection is a true positive if it takes, by falling score, an object of its class that it overlaps by at least
    `iou_threshold` and that none took before. Any other is an error of one kind, and an object may be missed:

    - `class`: it overlaps an object of another class by at least `iou_threshold`.
    - `localization`: it overlaps an object of its class by `background_threshold` to `iou_threshold`.
    - `both`: so it overlaps an object of another class.
    - `duplicate`: it overlaps an object that a detection of a higher score took.
    - `background`: it overlaps no object by more than `background_threshold`.
    - `missed`: no detection takes the object, and none would after its class or its place was mended.

    `result` gives `AP50`, at COCO's 101 recall levels, and for each kind `dAP_<kind>`: by how much it would rise if the
    errors of that kind alone were mended. A class or localization error becomes a true positive, unless its object is
    taken already; other false positives are removed; missed objects are no longer counted. `dAP_false_positive` is what
    all false positives cost and `dAP_false_negative` what all undetected objects do. The costs do not add up: mending
    one error lets another one weigh more. Numbers are in [0, 1].

    `AP50` is that of `COCOAveragePrecision`. From the authors' code (tidecv 1.0.1) it differs in this: classes without
    an object do not count as an AP of 0; a detection within a crowd is no error of any kind; a detection that overlaps
    its object by `iou_threshold` exactly, when that is taken, is a duplicate. Boxes are measured, not masks.

    `update_state` reads `"crowd"` [b, n] of the targets.

    Args:
        classes: Names of the classes, or their number; None takes the labels as they come.
        iou_threshold: IoU, in (0, 1], from which a detection takes an object; `AP50` is named after it.
        background_threshold: IoU, in [0, `iou_threshold`), up to which a detection is background.
        max_detections: Detections of an image that count, those of the highest scores.

    Raises:
        ValueError: On thresholds out of range, and as `COCOAveragePrecision`.

    Example:

    >>> metric = DetectionErrors(classes=["cat", "dog"])
    >>> boxes = [[[10.0, 10.0, 60.0, 60.0], [80.0, 20.0, 90.0, 40.0]]]
    >>> found = {"boxes": boxes, "scores": [[0.9, 0.8]], "labels": [[0, 0]]}
    >>> metric.update_state({"boxes": boxes, "labels": [[0, 1]]}, found)
    >>> metric.counts()["class"], round(metric.result()["AP50"], 3), round(metric.result()["dAP_class"], 3)
    (1, 0.5, 0.5)
    """

    _entries = frozenset(("boxes", "labels", "scores", "crowd"))

    def __init__(self, classes=None, iou_threshold=0.5, background_threshold=0.1, max_detections=100):
        if not 0 <= background_threshold < iou_threshold <= 1:
            raise ValueError(
                "DetectionErrors: expected 0 ≤ background_threshold < iou_threshold ≤ 1, got "
                f"background_threshold={background_threshold!r} and iou_threshold={iou_threshold!r}. TIDE's are 0.1 "
                "and 0.5."
            )
        if not isinstance(max_detections, numbers.Integral) or max_detections < 1:
            raise ValueError(f"DetectionErrors: max_detections must be at least 1, got {max_detections!r}.")
        self.iou_threshold = iou_threshold
        self.background_threshold = background_threshold
        self.max_detections = int(max_detections)
        super().__init__(classes)

    @property
    def num_images(self):
        """Images so far."""
        return self._num_images

    def reset_state(self):
        super().reset_state()
        self._starts = []  # the number of the first image of each batch
        self._curves = None

    def counts(self):
        """How many errors of each kind there are, `{kind: number}`; ignored detections are none."""
        kinds = self._detections()["kind"]
        missed = int(self._objects()["missed"].sum())
        return {kind: int((kinds == code).sum()) for code, kind in enumerate(ERROR_KINDS[:-1])} | {"missed": missed}

    def of_image(self, index):
        """What became of each detection and object of an image, an `ImageErrors`.

        Args:
            index: Of the image, in the order of `update_state`.

        Raises:
            ValueError: On an index of no image.
        """
        if not 0 <= index < self._num_images:
            raise ValueError(f"DetectionErrors: expected an image from 0 to {self._num_images - 1}, got {index}.")
        batch = bisect.bisect_right(self._starts, index) - 1
        found = {name: column[self._found[batch]["image"] == index] for name, column in self._found[batch].items()}
        truth = {name: column[self._truth[batch]["image"] == index] for name, column in self._truth[batch].items()}
        kinds = np.array([CODES[code] for code in found["kind"]], object)
        return ImageErrors(found["row"], kinds, found["object"], truth["row"][truth["missed"]])

    def worst(self, k=9):
        """The images whose errors cost most, `[(index, cost)]`, the worst first.

        The cost of an image is by how much AP would rise if all errors of this image were mended, as `result` mends
        them; of equal costs the image with more errors comes first. Images without an error are left out.

        Args:
            k: How many at most.
        """
        costs = self.image_costs()
        found, truth = self._detections(), self._objects()
        errors = np.bincount(found["image"][found["kind"] < _MISSED], minlength=self._num_images)
        errors = errors + np.bincount(truth["image"][truth["missed"]], minlength=self._num_images)
        order = np.lexsort((-errors, -np.round(costs, 12)))
        return [(int(index), float(costs[index])) for index in order[: max(k, 0)] if errors[index]]

    def image_costs(self, images=None):
        """By how much AP would rise if all errors of one image were mended, [images].

        Args:
            images: Indices of the images; None: all.
        """
        images = np.arange(self._num_images) if images is None else np.asarray(images, "int64")
        present = self._present()
        if not len(present):
            return np.zeros(len(images))
        before = self._values()["AP"]
        curves = self._class_curves()
        touched = {}  # the classes that the errors of an image have a part in
        for position, curve in enumerate(curves):
            errors = curve["image"][curve["kind"] < _MISSED]
            for image in np.union1d(errors, curve["missed"]).tolist():
                touched.setdefault(image, []).append(position)
        costs = np.zeros(len(images))
        for row, image in enumerate(images.tolist()):
            after = before.copy()
            for position in touched.get(image, ()):
                curve = curves[position]
                after[position] = _average_precision(curve, curve["image"] == image, (curve["missed"] == image).sum())
            costs[row] = max(_mean(after) - _mean(before), 0.0)
        return costs

    def __str__(self):
        numbers_, counts = self.result(), self.counts()
        name = self._name()
        if numbers_[name] == UNDEFINED:
            return f"{self._num_images} images without an object."
        lines = [f"{self._num_images} images, {name} {numbers_[name]:.3f}", f"{'error':<16}{'count':>8}{'d' + name:>8}"]
        lines += [f"{kind:<16}{counts[kind]:>8}{numbers_[f'dAP_{kind}']:>8.3f}" for kind in ERROR_KINDS]
        both = ("false_positive", "false_negative")
        return "\n".join([*lines, *(f"{k.replace('_', ' '):<16}{'':>8}{numbers_[f'dAP_{k}']:>8.3f}" for k in both)])

    def _name(self):
        return f"AP{round(100 * self.iou_threshold)}"

    def _take(self, targets, detections):
        self._curves = None
        self._starts.append(self._num_images)
        found, truth = [], []
        for image in range(len(targets["labels"])):
            true, given = ({name: rows[image] for name, rows in side.items()} for side in (targets, detections))
            errors = find_errors(true, given, self.iou_threshold, self.background_threshold, self.max_detections)
            taken = np.append(errors.objects, -1)[errors.taken]
            labels = given["labels"][errors.rows].astype("int64")
            found.append(
                {
                    "image": np.full(len(errors.rows), self._num_images + image),
                    "row": errors.rows,
                    "label": labels,
                    "score": given["scores"][errors.rows].astype("float64"),
                    "kind": errors.kind,
                    "object": taken,
                    "fixes": errors.fixes,
                    "fixed label": np.where(errors.fixes, np.append(true["labels"], -1)[taken], labels),
                }
            )
            truth.append(
                {
                    "image": np.full(len(errors.objects), self._num_images + image),
                    "row": errors.objects,
                    "label": true["labels"][errors.objects].astype("int64"),
                    "detected": errors.detected,
                    "missed": errors.missed,
                }
            )
        if found:
            self._found.append(columns(found, found[0]))
            self._truth.append(columns(truth, truth[0]))
        else:
            self._starts.pop()

    def _detections(self):
        names = ("image", "label", "score", "kind", "fixes", "fixed label")
        if self._found:
            return columns(self._found, names)
        return dict.fromkeys(names, np.empty(0, "int64"))

    def _objects(self):
        names = ("image", "label", "detected", "missed")
        if self._truth:
            return columns(self._truth, names)
        return dict.fromkeys(names, np.empty(0, "int64")) | dict.fromkeys(names[2:], np.empty(0, bool))

    def _class_curves(self):
        """For each class that has objects what decides its AP, by falling score."""
        if self._curves is None:
            found, truth = self._detections(), self._objects()
            order = np.argsort(-found["score"], kind="stable")
            order = order[found["kind"][order] != _IGNORED]
            found = {name: column[order] for name, column in found.items()}
            self._curves = []
            for label in self._present().tolist():
                rows = (found["label"] == label) | (found["fixes"] & (found["fixed label"] == label))
                curve = {name: column[rows] for name, column in found.items()}
                own = truth["label"] == label
                self._curves.append(
                    curve
                    | {
                        "own": curve["label"] == label,
                        "gains": curve["fixes"] & (curve["fixed label"] == label),
                        "num_objects": int(own.sum()),
                        "undetected": int((own & ~truth["detected"]).sum()),
                        "missed": truth["image"][own & truth["missed"]],
                    }
                )
        return self._curves

    def _values(self):
        """The AP of each class as it is, and after each kind of error was mended."""
        if self._measured is None:
            curves = self._class_curves()

            def each(function):
                return np.array([function(curve) for curve in curves], "float64")

            def mended(code):
                return each(
                    lambda curve: _average_precision(
                        curve, curve["kind"] == code, len(curve["missed"]) if code == _MISSED else 0
                    )
                )

            nothing = len(CODES)
            self._measured = {"AP": mended(nothing)} | {kind: mended(code) for code, kind in enumerate(ERROR_KINDS)}
            self._measured["false_positive"] = each(lambda curve: _of_ranking(_hits(curve), curve["num_objects"]))
            self._measured["false_negative"] = each(
                lambda curve: _average_precision(curve, curve["kind"] == nothing, curve["undetected"])
            )
        return self._measured

    def _summary(self, chosen):
        values = {name: column[chosen] for name, column in self._values().items()}
        if not len(values["AP"]):
            return {self._name() if name == "AP" else f"dAP_{name}": UNDEFINED for name in values}
        before = _mean(values.pop("AP"))
        return {self._name(): before} | {f"dAP_{name}": max(_mean(v) - before, 0.0) for name, v in values.items()}


def _average_precision(curve, mended, fewer):
    """AP of a class with the chosen errors mended and so many objects fewer; NaN where nothing is left to measure."""
    counts = (curve["own"] & ~mended) | (curve["gains"] & mended)
    true = ((curve["kind"] == _TRUE) | mended)[counts]
    return _of_ranking(true, curve["num_objects"] - fewer)


def _hits(curve):
    return np.ones(int((curve["own"] & (curve["kind"] == _TRUE)).sum()), bool)


def _of_ranking(true, num_objects):
    """AP at 101 recall levels of a ranking: whether each detection is true, by falling score."""
    if not num_objects:
        return 0.0 if len(true) else float("nan")
    found = np.cumsum(true)
    precision = found / np.arange(1, len(true) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]  # the highest at this or any higher recall
    indices = np.searchsorted(found / num_objects, RECALL_LEVELS, side="left")
    return float(np.append(precision, 0.0)[indices].mean())


def _mean(values):
    """Of the classes that have something to measure; 1 where none has, since nothing is wrong."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else 1.0
