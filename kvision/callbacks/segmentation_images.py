"""What a segmentation network makes of a few images, drawn at the end of every epoch."""

import keras
import numpy as np

from kvision.callbacks.image_grids import grids, image_bytes
from kvision.contract import check_label_maps
from kvision.detection.batches import detection_batches
from kvision.drawing import LIGHT, class_colour, legend_strip, segmentation, segmentation_errors
from kvision.trackers.clock import optimizer_steps
from kvision.trackers.events import Images, Overlay
from kvision.trackers.tracker import emit

SIDE = 204  # pixels of the longer side of each of the three images in a row
NO_CLASS = -1


class SegmentationImages(keras.callbacks.Callback):
    """Draws predicted label maps beside the true ones and the errors, at the end of an epoch, for whoever records it.

    The first images of `data` are kept when training begins. The local report shows them in at most four grids: in a
    row the prediction and the truth over the image, and the image in grey with wrong pixels in vermilion and ignored
    ones veiled, with the mean IoU of this image below. W&B receives the plain images with masks of its own
    (`images/segmentation`), in the layers `predictions`, `truth` and `errors`, whose classes can be chosen on its page.

    Args:
        data: A `tf.data.Dataset`, a list or a `keras.utils.PyDataset` of batches `(images, maps)`, or one tuple
            `(images, maps)` of arrays: images [b, h, w, c] as the model takes them, c 1 or 3, and maps [b, h, w] or
            [b, h, w, 1] of integers. Validation data, not shuffled. Images that are not of 0…255 are drawn stretched.
        num_images: Number of images, the first of the data.
        every: Epochs from one drawing to the next.
        class_names: Names of the classes, in the order of the labels; None takes the model's `class_names`, or writes
            the label.
        ignored_label: The label of pixels of no class.
        background: A class that gets no colour; None colours all.
        output: Name or index of the model's output that has the scores [b, h, w, classes], where it has several.

    Raises:
        ValueError: for numbers out of range; and before the first batch, for data that are empty or cannot be drawn,
            labels that are no class, and a model that does not predict scores for each pixel.

    Example:

    ```python
    images = kvision.callbacks.SegmentationImages(validation, class_names=validation.class_names)
    model.fit(train, epochs=12, callbacks=[images, kvision.callbacks.Report("runs/roads")])
    ```
    """

    def __init__(self, data, num_images=8, every=1, class_names=None, ignored_label=255, background=None, output=None):
        super().__init__()
        for name, value in (("num_images", num_images), ("every", every)):
            if value < 1:
                raise ValueError(f"SegmentationImages: {name} must be at least 1, got {value}.")
        self.data = data
        self.num_images = num_images
        self.every = every
        self.class_names = None if class_names is None else tuple(class_names)
        self.ignored_label = ignored_label
        self.background = background
        self.output = output
        self._batches = []

    def on_train_begin(self, logs=None):
        self._batches, left = [], self.num_images
        for images, maps in detection_batches(self.data, kind="segmentation data"):
            images, maps = np.asarray(images), np.asarray(maps)
            maps = maps[..., 0] if maps.ndim == 4 and maps.shape[-1] == 1 else maps
            self._check(images, maps)
            count = min(left, len(maps))
            self._batches.append((images, maps, count))
            left -= count
            if not left:
                break
        if not self._batches:
            raise ValueError("SegmentationImages: the data are empty. Give at least one batch (images, maps).")

    def _check(self, images, maps):
        """Raises on what could not be drawn when the first epoch is over."""
        if images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise ValueError(f"SegmentationImages draws images [b, h, w, 1 or 3]: got {images.shape}.")
        if maps.shape != images.shape[:3] or maps.dtype.kind not in "iub":
            raise ValueError(
                f"SegmentationImages: maps are integers [b, h, w] of the size of the images {images.shape}: got "
                f"{maps.dtype} {maps.shape}."
            )
        if self._batches:
            return
        classes = self._scores(images).shape[-1]
        check_label_maps(maps, maps.shape[1:], classes, self.ignored_label, "SegmentationImages", "first batch")

    def _scores(self, images):
        """What the model gives for each pixel, [b, h, w, classes]."""
        found = self.model.predict_on_batch(images)
        if isinstance(found, dict | list | tuple):
            keys = sorted(found) if isinstance(found, dict) else list(range(len(found)))
            if self.output not in keys:
                raise ValueError(
                    f"SegmentationImages: {self.model.name} has several outputs, {keys}: got output={self.output!r}, "
                    "expected that of the scores."
                )
            found = found[self.output]
        elif self.output is not None:
            raise ValueError(
                f"SegmentationImages: {self.model.name} has one output: got output={self.output!r}. Leave it out."
            )
        found = np.asarray(found)
        if found.ndim != 4 or found.shape[1:3] != images.shape[1:3] or found.shape[-1] < 2:
            raise ValueError(
                f"SegmentationImages: {self.model.name} must predict scores [b, h, w, classes] in the size of the "
                f"images {images.shape}: got {found.shape}."
            )
        return found[: len(images)]  # under a distribution strategy each replica predicts the whole batch

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self.every:
            return
        names = self.class_names or getattr(self.model, "class_names", None)
        overlays, rows, present = [], [], set()
        for images, maps, count in self._batches:
            predicted = self._scores(images).argmax(axis=-1)
            for image, truth, labels in zip(_visible(images)[:count], maps, predicted, strict=False):
                truth = np.where(truth == self.ignored_label, NO_CLASS, truth).astype("int32")
                iou = _mean_iou(truth, labels)
                caption = f"image {len(overlays)}: " + ("all ignored" if iou is None else f"mean IoU {iou:.3f}")
                errors = np.where(truth == NO_CLASS, NO_CLASS, labels != truth)
                layers = {
                    "predictions": {"label_map": labels},
                    "truth": {"label_map": truth},
                    "errors": {"label_map": errors, "classes": ("right", "wrong")},
                }
                overlays.append(Overlay(image, layers, names, caption))
                rows.append(self._row(image, labels, truth))
                present |= set(np.unique(truth).tolist()) | set(np.unique(labels[truth != NO_CLASS]).tolist())
        sheets = grids("segmentation", rows, [overlay.caption for overlay in overlays], columns=1)
        entries = [(class_colour(k), _name(k, names)) for k in sorted(present - {NO_CLASS, self.background})]
        sheets = {name: np.concatenate([s, legend_strip(entries, s.shape[1])]) for name, s in sheets.items()}
        emit(self, Images(optimizer_steps(self.model), sheets, {"segmentation": overlays}))

    def _row(self, image, labels, truth):
        """Prediction, truth and errors side by side, without the padding."""
        some = truth != NO_CLASS
        if some.any():  # what is ignored to the end of the image is padding, or no loss
            height, width = (1 + np.flatnonzero(some.any(axis=axis))[-1] for axis in (1, 0))
            image, labels, truth = (each[:height, :width] for each in (image, labels, truth))
        options = {"ignored_label": NO_CLASS, "legend": False, "side": SIDE}
        drawn = [
            segmentation(image, labels, background=self.background, **options),
            segmentation(image, truth, background=self.background, **options),
            segmentation_errors(image, labels, truth, **options),
        ]
        gap = np.full((drawn[0].shape[0], 4, 3), LIGHT, "uint8")
        return np.concatenate([drawn[0], gap, drawn[1], gap, drawn[2]], axis=1)


def _visible(images):
    """Images as bytes; those prepared for a network, of another range, are stretched to 0…255."""
    low, high = (float(number) for number in (images.min(), images.max()))
    if low < 0 or high <= 1:
        images = (images.astype("float32") - low) * (255 / max(high - low, 1e-6))
    return [image_bytes(image) for image in images]


def _mean_iou(truth, labels):
    """Of one image, over the classes that it or the prediction has; None where all is ignored."""
    truth, labels = (each[truth != NO_CLASS] for each in (truth, labels))
    ious = [
        ((truth == k) & (labels == k)).sum() / ((truth == k) | (labels == k)).sum() for k in np.union1d(truth, labels)
    ]
    return float(np.mean(ious)) if ious else None


def _name(label, names):
    return str(names[label]) if names is not None and label < len(names) else str(label)
