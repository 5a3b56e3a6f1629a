"""What a detector finds in a few images, drawn at the end of every epoch."""

import keras
import numpy as np

from kvision.callbacks.image_grids import grids, image_bytes
from kvision.contract import MASK_THRESHOLD, check_targets, images_of, paste_mask_scores, paste_masks
from kvision.detection.batches import detection_batches, predict_batch
from kvision.detection.detector import Detector
from kvision.drawing import detections
from kvision.trackers.clock import optimizer_steps
from kvision.trackers.events import Images, Overlay
from kvision.trackers.tracker import emit

SIDE = 312  # pixels of the longer side of an image in a grid


class DetectionImages(keras.callbacks.Callback):
    """Draws detections over what is true, at the end of an epoch, for whoever records the run.

    The first images of `data` are kept when training begins. The local report shows them in at most four grids, drawn
    by `kvision.drawing`: a coloured box with a white rim is found, a white one is missed, one without a rim is wrong.
    W&B receives the plain images with its own boxes and masks (`images/detections`), in the layers `detections` and
    `truth`, whose classes and scores can be chosen on its page. Masks are drawn where the model predicts them.

    Args:
        data: A `tf.data.Dataset`, a list or a `keras.utils.PyDataset` of batches `(images, targets)`, or one tuple
            `(images, targets)` of arrays, in the data contract (`kvision.contract`). Validation data, not shuffled.
        num_images: Number of images, the first of the data.
        every: Epochs from one drawing to the next.
        score_threshold: The score from which a detection is drawn, in [0, 1].
        classes: Names of the classes, in the order of the labels; None takes the detector's `class_names`, or writes
            the label.

    Raises:
        ValueError: for numbers out of range; and before the first batch, for data that are empty, break the data
            contract or cannot be drawn, and for a model that does not predict detections.

    Example:

    ```python
    images = kvision.callbacks.DetectionImages(validation, classes=found.class_names)
    detector.fit(train, epochs=12, callbacks=[images, kvision.callbacks.Report("runs/trees")])
    ```
    """

    def __init__(self, data, num_images=16, every=1, score_threshold=0.5, classes=None):
        super().__init__()
        for name, value in (("num_images", num_images), ("every", every)):
            if value < 1:
                raise ValueError(f"DetectionImages: {name} must be at least 1, got {value}.")
        if not 0 <= score_threshold <= 1:
            raise ValueError(f"DetectionImages: score_threshold lies in 0 to 1, got {score_threshold}.")
        self.data = data
        self.num_images = num_images
        self.every = every
        self.score_threshold = score_threshold
        self.classes = None if classes is None else tuple(classes)
        self._batches = []

    def on_train_begin(self, logs=None):
        self._batches, left = [], self.num_images
        for batch in detection_batches(self.data):
            inputs, targets = keras.tree.map_structure(np.asarray, batch)
            self._check(inputs, targets)
            count = min(left, len(targets["labels"]))
            self._batches.append((inputs, targets, count))
            left -= count
            if not left:
                break
        if not self._batches:
            raise ValueError("DetectionImages: the data are empty. Give at least one batch (images, targets).")

    def _check(self, inputs, targets):
        """Raises on what could not be drawn when the first epoch is over."""
        images, model = images_of(inputs), self.model
        classes = model.head.classes if isinstance(model, Detector) else None
        check_targets(images.shape, targets, classes)
        if images.shape[-1] not in (1, 3):
            raise ValueError(f"DetectionImages draws images of 1 or 3 channels: got {images.shape}.")
        if not self._batches:
            predict_batch(model, inputs, targets)

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self.every:
            return
        model = self.model
        overlays, drawn = [], []
        for inputs, targets, count in self._batches:
            found = predict_batch(model, inputs, targets)
            for row in range(count):
                image = image_bytes(images_of(inputs)[row])
                rows = ({name: np.asarray(values[row]) for name, values in each.items()} for each in (targets, found))
                overlay, valid = self._overlay(image, *rows, len(overlays))
                overlays.append(overlay)
                drawn.append(_drawn(overlay, valid))
        sheets = grids("detections", drawn, [overlay.caption for overlay in overlays])
        emit(self, Images(optimizer_steps(model), sheets, {"detections": overlays}))

    def _overlay(self, image, true, found, index):
        """What lies over an image, and the height and width in which the image is valid."""
        if "box_masks" in true and "masks" not in true:
            true["masks"] = paste_masks(true["box_masks"], true["boxes"], image.shape[:2])
        if "box_masks" in found and "masks" not in found:
            found["masks"] = paste_mask_scores(found["box_masks"], found["boxes"], image.shape[:2])
        if "masks" not in found:
            true.pop("masks", None)
        layers = {
            "detections": _layer(found, found["scores"] >= self.score_threshold),
            "truth": _layer({name: rows for name, rows in true.items() if name != "scores"}, True),
        }
        counts = [len(layer["labels"]) for layer in layers.values()]
        caption = "image {}: {} found, {} true".format(int(true.get("image_id", index)), *counts)
        height, width = true.get("image_size", image.shape[:2])
        classes = self.classes or getattr(self.model, "class_names", None)
        return Overlay(image, layers, classes, caption), (slice(height), slice(width))


def _layer(rows, chosen):
    """The boxes of an image that can be drawn, and what belongs to them."""
    boxes = rows["boxes"]
    chosen = (
        chosen & (rows["labels"] >= 0) & np.isfinite(boxes).all(axis=-1) & (boxes[:, 2:] > boxes[:, :2]).all(axis=-1)
    )
    layer = {name: rows[name][chosen] for name in ("boxes", "labels", "scores", "masks") if name in rows}
    return layer | {"masks": layer["masks"] >= MASK_THRESHOLD} if "masks" in layer else layer


def _drawn(overlay, valid):
    """Detections over the truth, without the padding."""
    found, true = (
        layer | {"masks": layer["masks"][:, *valid]} if "masks" in layer else layer for layer in overlay.layers.values()
    )
    boxes = found["boxes"]
    rest = {name: rows for name, rows in found.items() if name != "boxes"}
    return detections(overlay.image[valid], boxes, **rest, classes=overlay.classes, truth=true, side=SIDE)
