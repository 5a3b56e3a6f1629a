"""Average precision and recall as COCO counts them, for boxes and masks."""

import contextlib
import gc
import itertools

import numpy as np

from kvision.contract import paste_masks
from kvision.metrics.average_precision import UNDEFINED, AveragePrecision, columns

_EMPTY = np.empty((10, 101, 0, 4, 3)), np.empty((10, 0, 4, 3))  # precision and recall of no class
_ALL, _SMALL, _MEDIUM, _LARGE = range(4)


def _faster_coco_eval():
    try:
        import faster_coco_eval
    except ImportError as error:
        raise ImportError(
            "COCO's average precision is computed by faster-coco-eval, which is not installed. "
            "Run: pip install 'kvision[coco]'"
        ) from error
    return faster_coco_eval


class COCOAveragePrecision(AveragePrecision):
    """The twelve numbers of COCO's detection benchmark (Lin et al. 2014, arXiv 1405.0312, and its evaluation server).

    Equal to pycocotools', computed by faster-coco-eval.

    - `AP`: mean over classes, over IoU thresholds 0.50, 0.55 … 0.95 and over 101 recall levels of the precision;
      `AP50` and `AP75` at one threshold.
    - `AP_small`, `AP_medium`, `AP_large`: for objects of an area up to 32², from 32² to 96², and above.
    - `AR1`, `AR10`, `AR100`: mean recall with at most so many detections for each class in each image, and `AR_small`,
      `AR_medium`, `AR_large` with at most 100.
    - With masks the same twelve again by the overlap of masks, named `mask_AP` and so on.
    - `by_threshold()` gives AP at each of the ten thresholds.

    A number to which no object contributes (AP_small without small objects, say) is −1, as in COCO's own tool. Objects
    without any detection give 0. An image without objects counts: its detections are false positives.

    Areas are measured in the original image: boxes and masks are divided by the `scale` of their image (without one, 1)
    and its square. The targets' `area` is used where present, for boxes and masks alike, as COCO does. A target
    marked `crowd` is neither a true positive nor a false negative, and detections within it are ignored.

    `update` reads `"crowd"`, `"area"`, `"scale"` and, for masks, `"masks"` [b, n, h, w] or `"box_masks"` [b, n, s, s]
    of the targets and `"masks"` [b, k, h, w] of the detections. Masks are kept as run-length codes.

    Args:
        classes: Names of the classes, or their number; None takes the labels as they come.
        masks: Whether to measure masks besides boxes.

    Raises:
        ImportError: If faster-coco-eval is missing (`pip install 'kvision[coco]'`).

    Example:

    >>> boxes = [[[10.0, 10.0, 60.0, 60.0], [80.0, 20.0, 90.0, 40.0]]]
    >>> metric = COCOAveragePrecision(classes=["cat"])
    >>> found = {"boxes": boxes, "scores": [[0.9, 0.8]], "labels": [[0, -1]]}
    >>> metric.update({"boxes": boxes, "labels": [[0, 0]]}, found)
    >>> round(metric.result()["AP50"], 3), metric.per_class()["cat"]["AR100"]
    (0.505, 0.5)
    """

    _entries = frozenset(("boxes", "labels", "scores", "crowd", "area", "scale"))

    def __init__(self, classes=None, masks=False):
        _faster_coco_eval()
        self.masks = masks
        if masks:
            self._entries = self._entries | {"masks", "box_masks"}
        super().__init__(classes)

    def by_threshold(self):
        """AP at each IoU threshold by itself, `{0.5: number, 0.55: …, 0.95: …}`: of masks if those are measured."""
        self._summary(slice(None))
        precision, _ = self._measured["segm" if self.masks else "bbox"]
        return {round(0.5 + 0.05 * row, 2): _mean(values[..., _ALL, 2]) for row, values in enumerate(precision)}

    def _take(self, targets, detections):
        images, rows = targets["labels"].shape
        scale = targets.get("scale", np.ones(images)).astype("float64")
        truth = self._columns(targets, scale)
        found = self._columns(detections, scale)
        present = targets["labels"] >= 0
        truth["crowd"] = targets.get("crowd", np.zeros((images, rows)))[present].astype("int64")
        found["score"] = detections["scores"][detections["labels"] >= 0].astype("float64")
        if self.masks:
            truth["segm"], found["segm"] = self._codes(targets, detections)
            for batch in (truth, found):
                batch["segm area"] = _mask_areas(batch["segm"]) / scale[batch["image"]] ** 2
        if "area" in targets:
            area = targets["area"][present].astype("float64")
            truth |= {name: area for name in ("bbox area", "segm area") if name in truth}
        for batch in (truth, found):
            batch["image"] += self._num_images + 1
        self._truth.append(truth)
        self._found.append(found)

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

    def _codes(self, targets, detections):
        """Run-length codes of a batch's targets and detections, without the padding."""
        masks, others = detections.get("masks"), targets.get("masks", targets.get("box_masks"))
        if masks is None or others is None:
            side = "detections" if masks is None else "targets"
            raise ValueError(
                f"masks=True needs masks on both sides: got none in the {side}. "
                'Give "masks" [b, n, h, w], or "box_masks" in the targets, or measure boxes only.'
            )
        size = masks.shape[2:]
        if masks.ndim != 4 or ("masks" in targets and others.shape[2:] != size):
            raise ValueError(
                f"Masks of one image differ in size: got targets {others.shape} and detections {masks.shape}, "
                "expected [b, n, h, w] and [b, k, h, w] of the padded image."
            )
        found, truth = [], []
        for image in range(len(masks)):
            found += _encode(masks[image][detections["labels"][image] >= 0])
            rows = np.flatnonzero(targets["labels"][image] >= 0)
            whole = others[image][rows]
            if "masks" not in targets:
                whole = paste_masks(whole, targets["boxes"][image, rows], size)
            truth += _encode(whole)
        return np.array(truth, "object"), np.array(found, "object")

    def _summary(self, chosen):
        if self._measured is None:
            kinds = ("bbox", "segm") if self.masks else ("bbox",)
            with _no_garbage_collection():
                self._measured = {kind: self._measure(kind) for kind in kinds}
        numbers = {}
        for kind, (precision, recall) in self._measured.items():
            prefix = "mask_" if kind == "segm" else ""
            twelve = _twelve(precision[:, :, chosen], recall[:, chosen])
            numbers |= {prefix + name: value for name, value in twelve.items()}
        return numbers

    def _measure(self, kind):
        """Precision [threshold, recall level, class, area range, limit] and recall without the second axis."""
        present = self._present()
        if not len(present):
            return _EMPTY
        library = _faster_coco_eval()
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


def _quiet(*_):
    """Replaces a print function."""


def _twelve(precision, recall):
    return {
        "AP": _mean(precision[..., _ALL, 2]),
        "AP50": _mean(precision[0, ..., _ALL, 2]),
        "AP75": _mean(precision[5, ..., _ALL, 2]),
        "AP_small": _mean(precision[..., _SMALL, 2]),
        "AP_medium": _mean(precision[..., _MEDIUM, 2]),
        "AP_large": _mean(precision[..., _LARGE, 2]),
        "AR1": _mean(recall[..., _ALL, 0]),
        "AR10": _mean(recall[..., _ALL, 1]),
        "AR100": _mean(recall[..., _ALL, 2]),
        "AR_small": _mean(recall[..., _SMALL, 2]),
        "AR_medium": _mean(recall[..., _MEDIUM, 2]),
        "AR_large": _mean(recall[..., _LARGE, 2]),
    }


def _mean(values):
    """Mean of the defined values, −1 if there are none."""
    values = values[values > -1]
    return float(values.mean()) if values.size else UNDEFINED


def _encode(masks):
    """Run-length codes of masks [n, h, w], along the rows: COCO's run down the columns, which would take a copy."""
    binary = masks >= 0.5 if masks.dtype.kind == "f" else masks != 0
    return _faster_coco_eval().mask.encode(binary.view("uint8").T) if len(masks) else []


def _mask_areas(codes):
    """Pixels of each mask."""
    return np.asarray(_faster_coco_eval().mask.area(codes.tolist()) if len(codes) else [], "float64")
