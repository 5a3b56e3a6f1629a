"""What the model gets wrong at the end of an epoch, drawn: top losses and confusion, or errors by kind."""

import keras
import numpy as np

from kvision.callbacks.image_grids import grids
from kvision.callbacks.validated_weights import ValidatedWeights
from kvision.metrics import ERROR_KINDS
from kvision.trackers.clock import optimizer_steps
from kvision.trackers.events import Images, Overlay
from kvision.trackers.tracker import emit
from kvision.visualize.classifier_interpretation import ClassifierInterpretation
from kvision.visualize.interpretation import Interpretation, as_bytes

POOL = 4  # images kept for each that is drawn: those of a detector are ranked at the end


class InterpretationImages(keras.callbacks.Callback):
    """Draws what the model gets wrong on validation data, at the end of an epoch, for whoever records the run.

    It is `kvision.visualize.Interpretation` after Keras's own validation and on the same weights (those of
    `SwapEMAWeights`, too). Of a classifier the report and W&B get `top_losses`, the `confusion` matrix and the
    reliability diagram `calibration`, and the logs get `val_calibration_error`, the expected calibration error of Guo
    et al. 2017. Of a detector they get `errors`, what each kind of error costs in average precision (TIDE, Bolya et al.
    2020), and the `worst` images with their errors; W&B draws their boxes by itself, in the layers `errors` and
    `truth`. The training is untouched; nothing is printed.

    Args:
        data: A `tf.data.Dataset`, a list or a `keras.utils.PyDataset` of batches `(images, targets)`, or one tuple
            `(images, targets)` of arrays; targets are labels, or the dict of the data contract (`kvision.contract`).
            Validation data, not shuffled.
        num_images: Images that are drawn, of the highest losses or errors.
        every: Epochs from one pass over the data to the next.
        class_names: Names of the classes, in the order of the labels; None takes those of the model or of the data.
        preprocess: A function from the images of `data` to what a classifier takes; None: they are what it takes.
        batch_size: Images at once where `data` is a tuple of arrays.

    Attributes:
        interpretation: The `kvision.visualize.Interpretation` of the last pass; None before training.

    Raises:
        ValueError: for numbers out of range; and before the first batch, for what `Interpretation` refuses.

    Example:

    ```python
    images = kvision.callbacks.InterpretationImages(validation)
    model.fit(train, validation_data=validation, epochs=12, callbacks=[images, kvision.callbacks.Report("runs/digits")])
    print(images.interpretation)
    ```
    """

    def __init__(self, data, num_images=9, every=1, class_names=None, preprocess=None, batch_size=32):
        super().__init__()
        for name, value in (("num_images", num_images), ("every", every)):
            if value < 1:
                raise ValueError(f"InterpretationImages: {name} must be at least 1, got {value}.")
        self.data = data
        self.num_images = num_images
        self.every = every
        self.interpretation = None
        self._options = {"class_names": class_names, "preprocess": preprocess, "batch_size": batch_size}
        self._validated = ValidatedWeights()

    def on_train_begin(self, logs=None):
        keep = POOL * self.num_images
        self.interpretation = Interpretation(self.model, self.data, keep=keep, measure=False, **self._options)
        self._validated.forget()

    def on_test_batch_begin(self, batch, logs=None):
        self._validated.see(self.model)

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self.every:
            self._validated.forget()
            return
        found, step = self.interpretation, optimizer_steps(self.model)
        with self._validated.in_place(self.model):
            found.read(found.batches())  # Ctrl-C is for the training here
        if isinstance(found, ClassifierInterpretation):
            if logs is not None:
                logs.setdefault("val_calibration_error", found.calibration().expected_error)
            images = {
                "top_losses": found.draw_top_losses(self.num_images),
                "confusion": found.draw_confusion(),
                "calibration": found.draw_calibration(),
            }
            emit(self, Images(step, images))
            return
        emit(self, Images(step, {"errors": found.draw_errors()}))
        worst = found.worst(self.num_images)
        if worst:
            sheets = grids("worst", [found.drawn(each) for each in worst], [found.caption(each) for each in worst])
            emit(self, Images(step, sheets, {"worst": [_overlay(found, each) for each in worst]}))


def _overlay(found, worst):
    """The image with its errors and its objects as boxes; the classes of the errors are their kinds."""
    boxes, kinds, _ = found.marked(worst)
    classes = (*ERROR_KINDS, "true_positive")
    true = worst.targets["labels"] >= 0
    labels = worst.targets["labels"][true]
    highest = int(labels.max(initial=-1))
    layers = {
        "errors": {"boxes": boxes, "labels": np.array([classes.index(kind) for kind in kinds], "int64")},
        "truth": {"boxes": worst.targets["boxes"][true], "labels": labels + len(classes)},
    }
    named = (*classes, *(found.name_of(label) for label in range(highest + 1)))
    return Overlay(as_bytes(worst.image), layers, named, found.caption(worst))
