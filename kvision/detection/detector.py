"""The model of all detectors: a `TaskModel` whose targets are boxes."""

import os

import keras
import numpy as np
from keras import ops

from kvision.contract import (
    check_class_names,
    check_pixels,
    check_same_classes,
    check_targets,
    images_of,
    paste_mask_scores,
)
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
    `"images"` and more, which joins the features as it came: `"proposals"`, or `"image_size"` [b, 2], the height and
    width of each image without its padding, to which boxes are cut.

    ```python
    detector = kvision.applications.RetinaNet(input_shape=(256, 256, 3), classes=3)
    detector.compile(keras.optimizers.SGD(0.01, momentum=0.9, global_clipnorm=1.0))
    detector.fit(images, {"boxes": boxes, "labels": labels})
    detector.detect(["street.jpg", "square.jpg"])[0]["boxes"]  # in pixels of the photo
    ```
    """

    predictions_name = "detections"
    higher_is_better = (
        r"(mask_)?A[PR](\d+|_small|_medium|_large|_vol)?"  # of `metrics`, in the logs of `DetectionMetrics`
    )
    metrics_advice = "Average precision is measured by `callbacks.DetectionMetrics`."
    weights_advice = ': mark what not to learn by "crowd" or the label -1'

    def detect(self, photos, batch_size=8, masks=False):
        """What is in photos of any size, each in its own pixels.

        A photo is scaled and padded as the readers of `kvision.data` do (`kvision.data.letterbox`); its boxes are cut
        to it and scaled back.

        Args:
            photos: A list of arrays [h, w, 3] or [h, w] in 0…255, PIL images, or paths of files; or one of them.
                Files are turned upright as their EXIF data say, as the readers do and `kvision.data.read_image`.
            batch_size: Photos in a batch.
            masks: Whether to paste the masks into the photos, at their full size.

        Returns:
            A dict for each photo (for one photo the dict alone), its k detections by falling score, without padding:
            `"boxes"` [k, 4], left, top, right, bottom; `"scores"` [k]; `"labels"` [k]; `"names"`, a list of k, if the
            detector has `class_names`; `"box_masks"` [k, 28, 28], scores in 0…1 relative to the boxes, if it has masks,
            and with `masks` also `"masks"` [k, h, w] uint8.

        Raises:
            ValueError: on arrays of another shape, files that cannot be read, `masks` of a detector without, and a
                detector that needs more than images (give it what `kvision.data.letterbox` makes, by `predict`).
        """
        from kvision.data.letterbox import letterbox, read_photo  # loads tf.data, whatever the backend

        if self.trunk is None:
            raise ValueError(f"{self.name} is fed with features, not with images: call predict.")
        *size, channels = self.trunk.inputs[0].shape[1:]
        if hasattr(photos, "element_spec"):
            raise ValueError(f"{self.name}.detect takes photos: got a data set, which is for predict.")
        one = isinstance(photos, str | os.PathLike)
        one = one or (not isinstance(photos, list | tuple) and len(np.shape(photos)) in (2, 3))
        photos = [photos] if one else list(photos)
        found = []
        for start in range(0, len(photos), batch_size):
            batch = [read_photo(photo, channels) for photo in photos[start : start + batch_size]]
            images, where = letterbox(batch, size, channels)
            inputs = {"images": images, "image_size": where["image_size"]}
            if len(batch) < batch_size < len(photos):  # one number for all: each other would be compiled anew
                rows = np.minimum(np.arange(batch_size), len(batch) - 1)
                inputs = {name: values[rows] for name, values in inputs.items()}
            detections = self.predict(inputs, batch_size, verbose=0)
            rows = ({name: values[row] for name, values in detections.items()} for row in range(len(batch)))
            sizes = [photo.shape[:2] for photo in batch]
            found += map(self._in_the_photo, rows, where["scale"], sizes, [masks] * len(batch))
        return found[0] if one else found

    def _in_the_photo(self, rows, scale, size, masks):
        """The detections of one photo, without padding."""
        rows = {name: values[rows["labels"] >= 0] for name, values in rows.items()}
        height, width = size
        rows["boxes"] = np.clip(rows["boxes"] / scale, 0, np.array([width, height] * 2, "float32"))
        if self.class_names is not None:
            rows["names"] = [self.class_names[label] for label in rows["labels"]]
        if masks:
            if "box_masks" not in rows:
                raise ValueError(f"{self.name} has no masks: call detect without masks=True, or build MaskRCNN.")
            rows["masks"] = paste_mask_scores(rows["box_masks"], rows["boxes"], size)
        return rows

    def predict(self, x, *arguments, **options):
        """As `keras.Model.predict`: detections in pixels of the padded images; of photos, see `detect`."""
        self.check_image_size(x)
        self._check_pixels(x)
        self._check_given_labels(x)
        return super().predict(x, *arguments, **options)

    def fit(self, x=None, y=None, *arguments, **options):
        """As `TaskModel.fit`; validation data whose labels mean other classes are refused."""
        check_same_classes(x, options.get("validation_data"), self.name)
        return super().fit(x, y, *arguments, **options)

    def _check(self, x, y, what):
        check_class_names(x, self.class_names, self.name)
        super()._check(x, y, what)

    def features(self, inputs, training=None):
        self.check_image_size(inputs)
        return super().features(inputs, training)

    def check(self, x, y):
        """Raise on a batch that breaks the data contract or lacks what the head needs."""
        self.check_image_size(x)
        check_targets(tuple(images_of(x).shape), y, self.head.classes)
        if tuple(y["labels"].shape)[1] == 0:
            raise ValueError(
                f"{self.name}: the targets have no rows, boxes {tuple(y['boxes'].shape)}: a batch needs at least one, "
                "for images without boxes a row of zeros with the label -1."
            )
        self._check_pixels(x)
        self._check_given_labels(x)
        super().check(x, y)

    def check_image_size(self, x):
        """Raise on images of another size than the detector was built for, before Keras meets them in its midst."""
        images = x.get("images") if hasattr(x, "keys") else x
        if isinstance(images, list | tuple):
            raise ValueError(
                f"{self.name} takes a batch of images as one array: got a {type(images).__name__} of {len(images)}. "
                "Stack images of one size by np.stack(images); give photos of any size to `detect`."
            )
        if self.trunk is None or not hasattr(images, "shape"):
            return
        if len(images.shape) == 3:
            raise ValueError(
                f"{self.name} takes batches of images: got one image of shape {tuple(images.shape)}. Give image[None], "
                "or call `detect`."
            )
        expected, got = tuple(self.trunk.inputs[0].shape[1:]), tuple(images.shape[1:])
        differs = any(None not in pair and pair[0] != pair[1] for pair in zip(expected, got, strict=False))
        if len(got) != len(expected) or differs:
            raise ValueError(
                f"{self.name} was built for images of {expected} (height, width, channels): got {got}. Read them with "
                f"image_size={expected[:2]}, scale photos by `detect` or `kvision.data.letterbox`, or build it with "
                f"input_shape={got}."
            )

    def _check_pixels(self, x):
        images = x.get("images") if hasattr(x, "keys") else x
        if self.trunk is not None and hasattr(images, "shape") and len(images.shape) == 4:
            check_pixels(images, self.name)

    def _check_given_labels(self, x):
        """Raise on detections given beside the images, such as those to draw masks of, of classes it does not have."""
        labels = np.asarray(ops.convert_to_numpy(x["labels"])) if hasattr(x, "keys") and "labels" in x else np.zeros(0)
        if labels.size and labels.max() >= self.head.classes:
            raise ValueError(
                f"{self.name} has {self.head.classes} classes, counted from 0: the detections given beside the images "
                f"have the label {labels.max()}. Build it with the classes of the detector that found them."
            )

    def check_step(self, x, y):
        """One number of boxes an image: each other would be compiled anew."""
        if y["boxes"].shape[1] is None:
            raise ValueError(
                f"{self.name} compiles for one number of boxes an image: got batches of different ones. Pad all "
                "targets to the same number of rows with the label -1, as the readers of `kvision.data` do."
            )
