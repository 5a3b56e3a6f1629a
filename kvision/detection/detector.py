"""The model of all detectors: a `TaskModel` whose targets are boxes."""

import keras

from kvision.contract import check_targets, images_of
from kvision.task_model import TaskModel


@keras.saving.register_keras_serializable("kvision")
class Detector(TaskModel):
    """A `TaskModel` for boxes: its targets follow the data contract (`kvision.contract`); it knows no architecture.

    Args:
        trunk: A functional `keras.Model` from images to a dict of features: backbone, neck and dense heads.
        head: As that of `TaskModel`, with `classes`, the number of classes without a background, whose `decode` gives
            `{"boxes", "scores", "labels", …}` of a fixed size, padding labelled −1.
        name: Of the model.

    Call: images [b, h, w, 3] in 0…255 → the dict of features and, unless training, `"detections"`. Or a dict of
    `"images"` and more, such as `"proposals"`, which joins the features as it came.

    ```python
    detector = kvision.applications.RetinaNet(input_shape=(256, 256, 3), classes=3)
    detector.compile(keras.optimizers.SGD(0.01, momentum=0.9, global_clipnorm=1.0))
    detector.fit(images, {"boxes": boxes, "labels": labels})
    detector.predict(images)["boxes"]
    ```
    """

    predictions_name = "detections"
    metrics_advice = "Average precision is measured by `callbacks.DetectionMetrics`."
    weights_advice = ': mark what not to learn by "crowd" or the label -1'

    def check(self, x, y):
        """Raise on a batch that breaks the data contract or lacks what the head needs."""
        check_targets(tuple(images_of(x).shape), y, self.head.classes)
        if tuple(y["labels"].shape)[1] == 0:
            raise ValueError(
                f"{self.name}: the targets have no rows, boxes {tuple(y['boxes'].shape)}: a batch needs at least one, "
                "for images without boxes a row of zeros with the label -1."
            )
        super().check(x, y)

    def check_step(self, x, y):
        """One number of boxes an image: each other would be compiled anew."""
        if y["boxes"].shape[1] is None:
            raise ValueError(
                f"{self.name} compiles for one number of boxes an image: got batches of different ones. Pad all "
                "targets to the same number of rows with the label -1, as the readers of `kvision.data` do."
            )
