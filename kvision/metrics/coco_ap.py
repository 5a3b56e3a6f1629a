"""Average precision and recall as COCO counts them, for boxes and masks."""

import contextlib
import gc
import itertools
import json
import numbers
import pathlib
import warnings

import numpy as np

from kvision.metrics import mask_codes
from kvision.metrics.average_precision import UNDEFINED, AveragePrecision, columns
from kvision.metrics.confusion import confusion_matrix

_EMPTY = np.empty((10, 101, 0, 4, 3)), np.empty((10, 0, 4, 3))  # precision and recall of no class
_ALL, _SMALL, _MEDIUM, _LARGE = range(4)


class COCOAveragePrecision(AveragePrecision):
    """The twelve numbers of COCO's detection benchmark (Lin et al. 2014, arXiv 1405.0312, and its evaluation server).

    Equal to pycocotools', computed by faster-coco-eval.

    - `AP`: mean over classes, over IoU thresholds 0.50, 0.55 … 0.95 and over 101 recall levels of the precision;
      `AP50` and `AP75` at one threshold.
    - `AP_small`, `AP_medium`, `AP_large`: for objects of an area up to 32², from 32² to 96², and above.
    - `AR1`, `AR10`, `AR100`: mean recall with at most so many detections for each class in each image, and `AR_small`,
      `AR_medium`, `AR_large` with at most 100.
    - With masks the same twelve again by the overlap of masks, named `mask_AP` and so on.
    - `by_threshold()` gives AP at each of the ten thresholds, `confusion_matrix()` which classes are taken for which,
      `coco_results()` what COCO's evaluation server takes.

    A number to which no object contributes (AP_small without small objects, say) is −1, as in COCO's own tool. Objects
    without any detection give 0. An image without objects counts: its detections are false positives.

    Areas are measured in the original image: boxes and masks are divided by the `scale` of their image (without one, 1)
    and its square. The targets' `area` is used where present, for boxes and masks alike, as COCO does. A target
    marked `crowd` is neither a true positive nor a false negative, and detections within it are ignored.

    `update_state` reads `"crowd"`, `"area"`, `"scale"`, `"image_id"` of the targets and, for masks, of both sides
    `"masks"` [b, n, h, w] or `"box_masks"` [b, n, s, s]. Masks are kept as run-length codes.

    Args:
        classes: Names of the classes, or their number; None takes the labels as they come.
        masks: Whether to measure masks besides boxes.
        max_detections: Detections of a class in an image that count, the best ones, above 10; `AR100` is named after
            it. COCO's benchmark has 100: with 300 objects of a class in an image, perfect detections then reach an AP
            of about a third. Raise the detector's `num_detections` with it.

    Raises:
        ImportError: If faster-coco-eval is missing (`pip install 'kvision[coco]'`).
        ValueError: On another number of detections.

    Example:

    >>> boxes = [[[10.0, 10.0, 60.0, 60.0], [80.0, 20.0, 90.0, 40.0]]]
    >>> metric = COCOAveragePrecision(classes=["cat"])
    >>> found = {"boxes": boxes, "scores": [[0.9, 0.8]], "labels": [[0, -1]]}
    >>> metric.update_state({"boxes": boxes, "labels": [[0, 0]]}, found)
    >>> round(metric.result()["AP50"], 3), metric.per_class()["cat"]["AR100"]
    (0.505, 0.5)
    """

    _entries = frozenset(("boxes", "labels", "scores", "crowd", "area", "scale", "image_id"))

    def __init__(self, classes=None, masks=False, max_detections=100):
        mask_codes.library()
        if not isinstance(max_detections, numbers.Integral) or max_detections <= 10:
            raise ValueError(
                f"COCOAveragePrecision: max_detections is a whole number above 10 (AR1 and AR10 stand beside it): got "
                f"{max_detections!r}. COCO's is 100."
            )
        self.masks = masks
        self.max_detections = int(max_detections)
        if masks:
            self._entries = self._entries | {"masks", "box_masks", "image_size"}
        super().__init__(classes)

    def reset_state(self):
        super().reset_state()
        self._image_ids = []  # of each batch, None where its targets have none
        self._most_objects = 0

    def by_threshold(self):
        """AP at each IoU threshold by itself, `{0.5: number, 0.55: …, 0.95: …}`: of masks if those are measured."""
        self._summary(slice(None))
        precision, _ = self._measured["segm" if self.masks else "bbox"]
        return {round(0.5 + 0.05 * row, 2): _mean(values[..., _ALL, 2]) for row, values in enumerate(precision)}

    def confusion_matrix(self, score_threshold=0.5, iou_threshold=0.5):
        """Which classes are taken for which, by the overlap of boxes.

        Args:
            score_threshold: Detections below it are left out, in [0, 1].
            iou_threshold: Overlap from which a detection takes an object, in (0, 1].

        Returns:
            int64 [classes + 1, classes + 1]: rows are the objects' classes, columns the detections'; the last row is
            background that was detected, the last column objects that were missed. Each object is taken once at most,
            by the detection of the highest score; what lies in a crowd is left out.

        Raises:
            ValueError: On thresholds out of range.

        >>> metric = COCOAveragePrecision(classes=["cat", "dog"])
        >>> boxes = [[[10.0, 10.0, 60.0, 60.0], [80.0, 20.0, 90.0, 40.0]]]
        >>> found = {"boxes": boxes, "scores": [[0.9, 0.2]], "labels": [[1, 1]]}
        >>> metric.update_state({"boxes": boxes, "labels": [[0, 1]]}, found)
        >>> metric.confusion_matrix().tolist()
        [[0, 1, 0], [0, 0, 1], [0, 0, 0]]
        """
        if not 0 <= score_threshold <= 1 or not 0 < iou_threshold <= 1:
            raise ValueError(
                f"confusion_matrix: score_threshold lies in [0, 1] and iou_threshold in (0, 1]: got "
                f"{score_threshold!r} and {iou_threshold!r}."
            )
        truth = columns(self._truth, ("image", "label", "bbox", "crowd")) if self._truth else _no_rows("crowd")
        found = columns(self._found, ("image", "label", "bbox", "score")) if self._found else _no_rows("score")
        labels = np.concatenate([truth["label"], found["label"], [-1]])
        num_classes = len(self.classes) if self.classes is not None else int(labels.max()) + 1
        return confusion_matrix(truth, found, num_classes, score_threshold, iou_threshold)

    def coco_results(self, path=None, category_ids=None):
        """The detections as COCO's results, in pixels of the original images; masks are not among them.

        Args:
            path: Of a JSON file to write; None writes nothing.
            category_ids: The id of each class, in the order of the labels, such as
                `kvision.applications.coco.CATEGORY_IDS`; None: the labels themselves.

        Returns:
            A list of `{"image_id", "category_id", "bbox": [left, top, width, height], "score"}`.

        Raises:
            ValueError: If the targets came without `"image_id"`, or a label has no category.

        >>> metric, boxes = COCOAveragePrecision(), [[[10.0, 10.0, 60.0, 60.0]]]
        >>> targets = {"boxes": boxes, "labels": [[0]], "image_id": [139], "scale": [0.5]}
        >>> metric.update_state(targets, {"boxes": boxes, "scores": [[0.5]], "labels": [[0]]})
        >>> metric.coco_results(category_ids=[18])
        [{'image_id': 139, 'category_id': 18, 'bbox': [20.0, 20.0, 100.0, 100.0], 'score': 0.5}]
        """
        if any(ids is None for ids in self._image_ids):
            raise ValueError(
                'coco_results: the targets came without "image_id" [b], by which COCO knows the images. The readers of '
                "`kvision.data` deliver it."
            )
        found = columns(self._found, ("image", "label", "bbox", "score")) if self._found else _no_rows("score")
        ids = np.concatenate([*self._image_ids, np.empty(0, "int64")])
        if category_ids is not None and len(found["label"]) and found["label"].max() >= len(category_ids):
            raise ValueError(
                f"coco_results: the detections hold the label {found['label'].max()}, but category_ids has "
                f"{len(category_ids)} entries: give one for each class."
            )
        rows = zip(*(found[name].tolist() for name in ("image", "label", "bbox", "score")), strict=True)
        results = [
            {
                "image_id": ids[image - 1].item(),
                "category_id": label if category_ids is None else int(category_ids[label]),
                "bbox": box,
                "score": score,
            }
            for image, label, box, score in rows
        ]
        if path is not None:
            pathlib.Path(path).write_text(json.dumps(results), encoding="utf-8")
        return results

    def _take(self, targets, detections):
        images, rows = targets["labels"].shape
        scale = targets.get("scale", np.ones(images)).astype("float64")
        truth = self._columns(targets, scale)
        found = self._columns(detections, scale)
        present = targets["labels"] >= 0
        truth["crowd"] = targets.get("crowd", np.zeros((images, rows)))[present].astype("int64")
        found["score"] = detections["scores"][detections["labels"] >= 0].astype("float64")
        if self.masks:
            truth["segm"], found["segm"] = mask_codes.codes_of(targets, detections)
            for batch in (truth, found):
                batch["segm area"] = mask_codes.areas_of(batch["segm"]) / scale[batch["image"]] ** 2
        if "area" in targets:
            area = targets["area"][present].astype("float64")
            truth |= {name: area for name in ("bbox area", "segm area") if name in truth}
        self._warn_of_many(truth)
        for batch in (truth, found):
            batch["image"] += self._num_images + 1
        self._truth.append(truth)
        self._found.append(found)
        self._image_ids.append(targets.get("image_id"))

    def _warn_of_many(self, truth):
        """Once for a data set."""
        _, counts = np.unique(truth["image"] + 1j * truth["label"], return_counts=True)
        most = int(max(counts, default=0))
        if most > self.max_detections >= self._most_objects:
            warnings.warn(
                f"An image has {most} objects of one class, but {self.max_detections} detections of a class count: "
                f"average precision stays below {self.max_detections / most:.2f} there. Pass "
                f"COCOAveragePrecision(max_detections={most}) or more, and the same as num_detections to the detector.",
                stacklevel=4,
            )
        self._most_objects = max(self._most_objects, most)

    def _columns(self, arrays, scale):
        """The columns that targets and detections share, without the padding."""
        present = arrays["labels"] >= 0
        image = np.nonzero(present)[0]
        boxes_xywh = arrays["boxes"][present].astype("float64")
        boxes_xywh[:, 2:] -= boxes_xywh[:, :2]
        boxes_xywh /= scale[image, None]
        area = boxes_xywh[:, 2] * boxes_xywh[:, 3]
        return {
            "image": image,
            "label": arrays["labels"][present].astype("int64"),
            "bbox": boxes_xywh,
            "bbox area": area,
        }

    def _summary(self, chosen):
        if self._measured is None:
            kinds = ("bbox", "segm") if self.masks else ("bbox",)
            with _no_garbage_collection():
                self._measured = {kind: self._measure(kind) for kind in kinds}
        numbers = {}
        for kind, (precision, recall) in self._measured.items():
            prefix = "mask_" if kind == "segm" else ""
            twelve = _twelve(precision[:, :, chosen], recall[:, chosen], self.max_detections)
            numbers |= {prefix + name: value for name, value in twelve.items()}
        return numbers

    def _measure(self, kind):
        """Precision [threshold, recall level, class, area range, limit] and recall without the second axis."""
        present = self._present()
        if not len(present):
            return _EMPTY
        library = mask_codes.library()
        names = {"image", "label", kind, f"{kind} area"}
        truth = columns(self._truth, names | {"crowd"})
        found = columns(self._found, names | {"score"})
        relevant = np.isin(found["label"], present)  # detections of other classes change nothing
        found = {name: column[relevant] for name, column in found.items()}
        found["crowd"] = np.zeros(len(found["label"]), "int64")
        size = {"height": 1, "width": 1}  # required but unused: the codes hold their own size
        listing = {
            "images": [{"id": number, **size} for number in range(1, self._num_images + 1)],
            "categories": [{"id": label, "name": str(label)} for label in present.tolist()],
        }
        sides = [
            library.COCO({**listing, "annotations": _annotations(side, kind)}, print_function=_quiet)
            for side in (truth, found)
        ]
        evaluation = library.COCOeval_faster(*sides, iouType=kind, print_function=_quiet)
        evaluation.params.maxDets = [1, 10, self.max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
        return np.asarray(evaluation.eval["precision"]), np.asarray(evaluation.eval["recall"])


def _annotations(side, kind):
    """One dict per row, as in COCO's files; ids run from 1, since 0 means no match."""
    shape = {"bbox": "bbox", "segm": "segmentation"}[kind]
    side = {"score": np.zeros(len(side["label"]))} | side
    names = ("image", "label", kind, f"{kind} area", "crowd", "score")
    rows = zip(itertools.count(1), *(side[name].tolist() for name in names), strict=False)
    return [
        {
            "id": number,
            "image_id": image,
            "category_id": label,
            shape: geometry,
            "area": area,
            "iscrowd": crowd,
            "score": score,
        }
        for number, image, label, geometry, area, crowd, score in rows
    ]


@contextlib.contextmanager
def _no_garbage_collection():
    """Many rows without reference cycles: searching them for garbage would take a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _no_rows(last):
    integers = dict.fromkeys(("image", "label", last), np.empty(0, "int64"))
    return integers | {"bbox": np.empty((0, 4))}


def _quiet(*_):
    """Replaces a print function."""


def _twelve(precision, recall, max_detections):
    return {
        "AP": _mean(precision[..., _ALL, 2]),
        "AP50": _mean(precision[0, ..., _ALL, 2]),
        "AP75": _mean(precision[5, ..., _ALL, 2]),
        "AP_small": _mean(precision[..., _SMALL, 2]),
        "AP_medium": _mean(precision[..., _MEDIUM, 2]),
        "AP_large": _mean(precision[..., _LARGE, 2]),
        "AR1": _mean(recall[..., _ALL, 0]),
        "AR10": _mean(recall[..., _ALL, 1]),
        f"AR{max_detections}": _mean(recall[..., _ALL, 2]),
        "AR_small": _mean(recall[..., _SMALL, 2]),
        "AR_medium": _mean(recall[..., _MEDIUM, 2]),
        "AR_large": _mean(recall[..., _LARGE, 2]),
    }


def _mean(values):
    """Mean of the defined values, −1 if there are none."""
    values = values[values > -1]
    return float(values.mean()) if values.size else UNDEFINED
