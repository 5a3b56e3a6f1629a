"""Intersection over union of the boundaries of the classes, which large insides do not hide."""

import math
import numbers

import keras
from keras import ops

from kvision.metrics.mean_iou import ious
from kvision.metrics.pixel_confusion import PixelConfusion
from kvision.ops import boundaries, confusion_matrix


@keras.saving.register_keras_serializable("kvision")
class BoundaryIoU(PixelConfusion):
    """Mean intersection over union of the pixels near the contours of each class.

    Cheng et al. 2021, *Boundary IoU: Improving Object-Centric Image Segmentation Evaluation*, section 3: of the labels
    and of the predictions, each class keeps the pixels within a distance of its own contour, on the inner side; the
    overlap of both is measured. The border of the image is a contour, too, as in the authors' code. Pixels are summed
    up over all images, and the mean is over the classes that occur, as in `MeanIoU`.

    Ignored pixels are of no class, neither in the labels nor in the predictions: a perfect prediction scores 1.

    Args:
        num_classes, ignore_class, sparse_y_pred, class_names, name, dtype: As of `MeanIoU`.
        distance: From the contour: in (0, 1) a fraction of the diagonal of the label maps, padding included (the paper
            has 0.02), or a whole number of pixels from 1 on.

    Raises:
        ValueError: As `MeanIoU`; on another distance, and in `update_state` on label maps that are not [b, h, w] or
            whose size is not known where the distance is a fraction of it.

    Example:

    >>> labels = np.zeros((1, 32, 32), "int32")
    >>> labels[:, 8:24, 8:24] = 1
    >>> metric = BoundaryIoU(2, distance=2)
    >>> metric.update_state(labels, np.roll(labels, 1, axis=1))
    >>> {label: round(value, 3) for label, value in metric.result_by_class().items()}
    {0: 0.829, 1: 0.6}
    """

    _extra_states = 1  # a pixel away from the boundary of its class

    def __init__(
        self,
        num_classes,
        ignore_class=None,
        sparse_y_pred=None,
        class_names=None,
        distance=0.02,
        name="boundary_iou",
        dtype=None,
    ):
        super().__init__(num_classes, ignore_class, sparse_y_pred, class_names, name, dtype)
        is_number = isinstance(distance, numbers.Real) and not isinstance(distance, bool)
        if not is_number or not (0 < distance < 1 or (distance >= 1 and distance == int(distance))):
            raise ValueError(
                f"BoundaryIoU: distance is a fraction of the diagonal in (0, 1), or a whole number of pixels: got "
                f"{distance!r}. The paper's is 0.02."
            )
        self.distance = distance

    def _matrix_of(self, labels, predictions):
        if len(labels.shape) != 3:
            raise ValueError(f"BoundaryIoU needs label maps [b, h, w]: got labels of shape {tuple(labels.shape)}.")
        labels, predictions = (ops.cast(each, "int32") for each in (labels, predictions))
        _, invalid = confusion_matrix(labels, predictions, self.num_classes, self.ignore_class)
        if self.ignore_class is not None:
            predictions = ops.where(labels == self.ignore_class, self.ignore_class, predictions)
        distance = self._pixels(labels.shape[1:])
        near, away = [], self.num_classes
        for each in (labels, predictions):
            inner = ops.where(boundaries(each, distance), each, away)
            near.append(inner if self.ignore_class is None else ops.where(each == self.ignore_class, away, inner))
        matrix, _ = confusion_matrix(*near, away + 1)
        return matrix, invalid

    def _pixels(self, size):
        if self.distance >= 1:
            return int(self.distance)
        if None in size:
            raise ValueError(
                f"BoundaryIoU: a distance of {self.distance} of the diagonal needs label maps of a known size: got "
                f"{tuple(size)}. Give the distance in pixels, or batches of one size."
            )
        return max(1, round(self.distance * math.hypot(*size)))

    def _values(self):
        values, occurs = ious(self._matrix())
        return values[: self.num_classes], occurs[: self.num_classes]

    def get_config(self):
        return {**super().get_config(), "distance": self.distance}
