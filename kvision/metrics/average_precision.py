"""What COCO's and VOC's average precision share: class names, and the check and storage of batches."""

import numbers

import numpy as np

UNDEFINED = -1.0  # of a number that no object contributes to, as in pycocotools


class AveragePrecision:
    """Base: `update_state` with every batch, then `result` and `per_class`; `reset_state` starts over.

    It computes in NumPy on the host, in float64, and is no `keras.metrics.Metric`: ranking all detections of a data
    set does not belong in a compiled step.
    """

    def __init__(self, classes=None):
        if isinstance(classes, numbers.Integral):
            classes = range(classes)
        self.classes = None if classes is None else tuple(classes)
        self.reset_state()

    def reset_state(self):
        """Forget every batch."""
        self._num_images = 0
        self._truth, self._found = [], []  # a dict of columns for each batch
        self._measured = None

    def update_state(self, targets, detections):
        """Add one batch; arrays of NumPy or of any backend.

        Args:
            targets: The dict of the data contract: `"boxes"` [b, n, 4], xyxy in pixels of the padded image,
                `"labels"` [b, n], padding −1, and further entries that the metric names. A box without area counts as
                padding.
            detections: What `Detector.predict` gives: `"boxes"` [b, k, 4], likewise, `"scores"` [b, k] and `"labels"`
                [b, k], padding −1, in any order. n and k may differ from batch to batch.

        Raises:
            ValueError: on a missing entry, on shapes that do not fit, on labels beyond the classes, and on a box or a
                score that is not finite.
        """
        targets = self._arrays("Targets", targets, ("boxes", "labels"))
        detections = self._arrays("Detections", detections, ("boxes", "scores", "labels"))
        if len(targets["labels"]) != len(detections["labels"]):
            raise ValueError(
                f"Got targets of {len(targets['labels'])} images and detections of {len(detections['labels'])}. "
                "Give the detections of these very images, in the same order."
            )
        targets["labels"] = np.where(_areas(targets["boxes"]) > 0, targets["labels"], -1)
        self._take(targets, detections)
        self._num_images += len(targets["labels"])
        self._measured = None

    def result(self):
        """The numbers over all classes, `{name: float}`."""
        return self._summary(slice(None))

    def per_class(self):
        """The numbers of each class by itself, `{class: {name: float}}`.

        The classes are those given at construction or, if none were, the labels of the targets.
        """
        present = self._present()
        named = {label: label for label in present.tolist()} if self.classes is None else dict(enumerate(self.classes))
        return {name: self._summary(present == label) for label, name in named.items()}

    def _present(self):
        """The labels of all objects, ascending."""
        return np.unique(np.concatenate([batch["label"] for batch in self._truth] or [np.empty(0, "int64")]))

    def _arrays(self, what, batch, required):
        """The entries as arrays; the required ones are present, fit each other and are finite outside padding."""
        if not hasattr(batch, "keys") or not set(required) <= set(batch.keys()):
            got = sorted(batch.keys()) if hasattr(batch, "keys") else type(batch).__name__
            raise ValueError(
                f"{what} are a dict with {', '.join(repr(name) for name in required)}: got {got}. See the data "
                "contract in `kvision.contract`; `Detector.predict` gives such detections."
            )
        arrays = {name: np.asarray(value) for name, value in batch.items() if name in self._entries}
        labels = arrays["labels"]
        expected = {"boxes": (*labels.shape, 4), "image_size": (*labels.shape[:1], 2)}
        expected |= dict.fromkeys(("scale", "image_id"), labels.shape[:1])
        for name in set(arrays) - {"masks", "box_masks"}:
            if labels.ndim != 2 or arrays[name].shape != expected.get(name, labels.shape):
                shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
                raise ValueError(
                    f"{what} have shapes that do not fit: got {shapes}, expected boxes [b, n, 4], scale and "
                    "image_id [b], image_size [b, 2] and the others [b, n]."
                )
        present = labels >= 0
        if self.classes is not None and (labels >= len(self.classes)).any():
            raise ValueError(
                f"{what} hold the label {labels.max()}, expected labels from 0 to {len(self.classes) - 1}: this metric "
                f"was made for {len(self.classes)} classes. Number the classes from 0, or name all of them."
            )
        for name in required[:-1]:
            finite = np.isfinite(arrays[name])
            invalid = present & ~(finite.all(-1) if name == "boxes" else finite)
            if invalid.any():
                image, row = np.argwhere(invalid)[0]
                raise ValueError(
                    f"{what} hold {name} that are not finite: image {image} of the batch, row {row}: "
                    f"{arrays[name][image, row]}. Mark rows to leave out by the label -1; a network that predicts "
                    "such numbers has diverged: lower its learning rate."
                )
        return arrays


def _areas(boxes_xyxy):
    """0 for an inverted box; of padding, whatever it is."""
    with np.errstate(invalid="ignore"):
        return np.prod(np.maximum(boxes_xyxy[..., 2:] - boxes_xyxy[..., :2], 0), axis=-1)


def columns(batches, names):
    """The columns of all batches, one below the other."""
    return {name: np.concatenate([batch[name] for batch in batches]) for name in names}
