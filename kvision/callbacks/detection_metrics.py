"""Average precision of a detector at the end of every epoch."""

import keras
import numpy as np

from kvision.callbacks.validated_weights import ValidatedWeights
from kvision.contract import check_class_names, check_targets, images_of
from kvision.detection.batches import detection_batches, predict_batch
from kvision.detection.detector import Detector
from kvision.metrics import COCOAveragePrecision
from kvision.metrics.average_precision import UNDEFINED


class DetectionMetrics(keras.callbacks.Callback):
    """Measures average precision on validation data and puts it into the logs.

    At the end of an epoch, after Keras's own validation and on the same weights (those of `SwapEMAWeights`, too), the
    model predicts the validation data batch by batch, and
    `val_AP`, `val_AP50`, `val_AP75`, `val_AP_small`, `val_AP_medium`, `val_AP_large`, `val_AR1`, `val_AR10`,
    `val_AR100`, `val_AR_small`, `val_AR_medium` and `val_AR_large` enter `logs`; with masks the same twelve by masks,
    `val_mask_AP` and so on; `kvision.metrics.COCOAveragePrecision` tells what they mean. A number that no object
    decides, such as `val_AP_large` without a large object, is left out.

    Callbacks listed after it can use them: `EarlyStopping(monitor="val_AP")`; a model that is no `Detector` needs
    `mode="max"` there, since Keras does not know the name. Trackers (W&B, the report, the history) record them wherever
    they stand. The training step is untouched; nothing is printed.

    Args:
        validation_data: A `tf.data.Dataset`, a list or a `keras.utils.PyDataset` of batches `(images, targets)`, or one
            tuple `(images, targets)` of arrays. Targets follow the data contract (`kvision.contract`).
        every: Epochs from one measurement to the next; the epochs between have no such entries in their logs.
        masks: Whether to measure masks besides boxes.
        metric: What to measure instead of COCO's numbers: `kvision.metrics.VOCAveragePrecision()`, or another object
            with `reset_state()`, `update_state(targets, detections)` and `result()`, which gives `{name: number}`.
        batch_size: Images predicted at once where `validation_data` is a tuple of arrays.

    Where targets have `"image_size"`, a `Detector` cuts its boxes to it. For more than 100 objects of a class in an
    image: `metric=COCOAveragePrecision(max_detections=300)`.

    Attributes:
        metric: The metric; `metric.per_class()` gives the numbers of each class at the last measurement.

    Raises:
        ValueError: For data that cannot be read twice (a generator) or never end; before the first batch, for data that
            are empty, whose first batch breaks the data contract or has labels beyond the detector's classes, or whose
            `class_names` are not the detector's; and at the end of an epoch, for a model that does not predict
            detections.
        ImportError: If faster-coco-eval is missing (`pip install 'kvision[coco]'`).

    Example:

    ```python
    precision = kvision.callbacks.DetectionMetrics(validation)
    stop = keras.callbacks.EarlyStopping(monitor="val_AP", patience=5)
    detector.fit(train, epochs=50, callbacks=[precision, stop])
    precision.metric.per_class()
    ```
    """

    def __init__(self, validation_data, every=1, masks=False, metric=None, batch_size=8):
        super().__init__()
        if every < 1:
            raise ValueError(f"DetectionMetrics measures every so many epochs: got every={every}, expected at least 1.")
        if validation_data is None:
            raise ValueError("DetectionMetrics needs validation data: got None. Give those that fit validates on.")
        if hasattr(validation_data, "__next__"):
            raise ValueError(
                f"Validation data are read at the end of every epoch: got a {type(validation_data).__name__}, which "
                "can be read only once. Give a tf.data.Dataset, a list, a keras.utils.PyDataset or a tuple of arrays."
            )
        if hasattr(validation_data, "cardinality") and int(validation_data.cardinality()) == -1:
            raise ValueError("Validation data never end: got an infinite tf.data.Dataset. Leave out repeat().")
        if masks and metric is not None:
            raise ValueError("Got masks=True and a metric of your own: give the one or the other.")
        self.validation_data = validation_data
        self.every = every
        self.metric = COCOAveragePrecision(masks=masks) if metric is None else metric
        self.batch_size = batch_size
        self._masks = masks
        self._validated = ValidatedWeights()

    def on_train_begin(self, logs=None):
        data = self.validation_data
        check_class_names(data, getattr(self.model, "class_names", None), self.model.name)
        if not (isinstance(data, tuple) and len(data) == 2 and hasattr(data[1], "keys")):
            data = next(detection_batches(data, self.batch_size), (None, None))
        images, targets = data
        if images is None or not len(keras.tree.flatten(images)[0]):
            raise ValueError("Validation data are empty: got no batch. Give at least one batch (images, targets).")
        classes = self.model.head.classes if isinstance(self.model, Detector) else None
        if isinstance(self.model, Detector):
            self.model.check_image_size(images)
        check_targets(tuple(np.shape(images_of(images))), targets, classes)
        if self._masks and not {"masks", "box_masks"} & set(targets.keys()):
            raise ValueError(
                'masks=True needs "masks" or "box_masks" in the targets of the validation data: got '
                f"{sorted(targets.keys())}. Give them (the readers take masks=True), or measure boxes only."
            )
        self._validated.forget()

    def on_test_batch_begin(self, batch, logs=None):
        self._validated.see(self.model)

    def on_epoch_end(self, epoch, logs=None):
        if logs is None or (epoch + 1) % self.every:
            self._validated.forget()
            return
        with self._validated.in_place(self.model):
            measured = self.measure(self.model)
        logs.update({f"val_{name}": value for name, value in measured.items() if value != UNDEFINED})

    def measure(self, model):
        """`{name: number}` of a detector now, on all validation data: what epochs put into the logs as `val_…`."""
        self.metric.reset_state()
        for inputs, targets in detection_batches(self.validation_data, self.batch_size):
            self.metric.update_state(targets, predict_batch(model, inputs, targets))
        return self.metric.result()
