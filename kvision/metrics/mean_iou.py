"""Mean intersection over union of semantic segmentation, and the accuracy of its pixels."""

import keras
import numpy as np
from keras import ops

from kvision.metrics.pixel_confusion import PixelConfusion


@keras.saving.register_keras_serializable("kvision")
class MeanIoU(PixelConfusion):
    """Mean intersection over union of the classes (mIoU), from one confusion matrix of all pixels.

    Everingham et al. 2010, *The PASCAL Visual Object Classes (VOC) Challenge*, section 4.3, and Long, Shelhamer,
    Darrell 2015, *Fully Convolutional Networks*, section 5: pixels are summed up over the whole data set, not averaged
    by image. A class that neither labels nor predictions hold has no part in the mean; neither has `ignore_class`, if
    it is one of the classes.

    It differs from `keras.metrics.MeanIoU` in what that does in silence: labels that are no class are an error, in a
    compiled step, which can raise none, the result is NaN; counts stay exact beyond the 2e9 pixels of an int32; and
    predictions may be logits as they come.

    Args:
        num_classes: Classes with the background, which count from 0.
        ignore_class: The label of pixels that are left out, such as 255; None counts all.
        sparse_y_pred: Whether predictions are label maps; if not they have a last axis of `num_classes` scores or
            logits, the highest of which counts. None tells by their shape and type.
        class_names: Names of the classes for `result_by_class`; None numbers them.
        name, dtype: As of every Keras metric; the result is float32 whatever `dtype`.

    Raises:
        ValueError: On arguments that cannot be; in `update_state` on shapes that do not fit and, where it is called
            eagerly, on labels that are no class.

    Example:

    >>> metric = MeanIoU(2, ignore_class=255, class_names=("ground", "tree"))
    >>> metric.update_state([[[0, 0], [1, 255]]], [[[0, 1], [1, 1]]])
    >>> float(metric.result()), metric.result_by_class()
    (0.5, {'ground': 0.5, 'tree': 0.5})

    ```python
    metric = kvision.metrics.MeanIoU(21, ignore_class=255)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)
    model.compile("sgd", loss, metrics=[metric])
    ```
    """

    def __init__(
        self, num_classes, ignore_class=None, sparse_y_pred=None, class_names=None, name="mean_iou", dtype=None
    ):
        super().__init__(num_classes, ignore_class, sparse_y_pred, class_names, name, dtype)

    def _values(self):
        return ious(self._matrix())

    def summary(self):
        """The four numbers of the FCN paper, section 5, so far: `{name: number}`, NaN before a pixel was counted.

        `pixel_accuracy`, `mean_accuracy` (over the classes that are labelled), `mean_iou` and
        `frequency_weighted_iou`.

        >>> metric = MeanIoU(2)
        >>> metric.update_state([[[0, 0], [0, 1]]], [[[0, 0], [1, 1]]])
        >>> {name: round(value, 3) for name, value in metric.summary().items()}
        {'pixel_accuracy': 0.75, 'mean_accuracy': 0.833, 'mean_iou': 0.583, 'frequency_weighted_iou': 0.625}
        """
        matrix = self.confusion_matrix().astype("float64")
        hits, labelled = np.diag(matrix), matrix.sum(axis=1)
        union = labelled + matrix.sum(axis=0) - hits
        measured = np.arange(self.num_classes) != self.ignore_class
        accuracies = hits[measured & (labelled > 0)] / labelled[measured & (labelled > 0)]
        occurs = measured & (union > 0)
        overlaps = hits[occurs] / union[occurs]
        total = labelled.sum()
        if not total:
            return dict.fromkeys(
                ("pixel_accuracy", "mean_accuracy", "mean_iou", "frequency_weighted_iou"), float("nan")
            )
        return {
            "pixel_accuracy": float(hits.sum() / total),
            "mean_accuracy": float(accuracies.mean()),
            "mean_iou": float(overlaps.mean()),
            "frequency_weighted_iou": float((labelled[occurs] * overlaps).sum() / total),
        }


def ious(matrix):
    """Intersection over union of each class of a confusion matrix [n, n], and whether it occurs."""
    hits = ops.diagonal(matrix)
    union = ops.sum(matrix, axis=0) + ops.sum(matrix, axis=1) - hits
    return hits / ops.maximum(union, 1.0), union > 0


@keras.saving.register_keras_serializable("kvision")
class PixelAccuracy(PixelConfusion):
    """The fraction of the pixels whose class is predicted right.

    Long, Shelhamer, Darrell 2015, *Fully Convolutional Networks*, section 5. `result_by_class` gives that of the pixels
    of each class. Where the background fills most of the image it is near 1 whatever the network does: `MeanIoU` tells
    more.

    Args:
        num_classes, ignore_class, sparse_y_pred, class_names, name, dtype: As of `MeanIoU`.

    Raises:
        ValueError: As `MeanIoU`.

    Example:

    >>> metric = PixelAccuracy(2, ignore_class=255)
    >>> metric.update_state([[[0, 0], [1, 255]]], [[[0, 1], [1, 1]]])
    >>> round(float(metric.result()), 4), metric.result_by_class()
    (0.6667, {0: 0.5, 1: 1.0})
    """

    def __init__(
        self, num_classes, ignore_class=None, sparse_y_pred=None, class_names=None, name="pixel_accuracy", dtype=None
    ):
        super().__init__(num_classes, ignore_class, sparse_y_pred, class_names, name, dtype)

    def _mean(self):
        matrix = self._matrix()
        return ops.sum(ops.diagonal(matrix)) / ops.maximum(ops.sum(matrix), 1.0)

    def _values(self):
        matrix = self._matrix()
        labelled = ops.sum(matrix, axis=1)
        return ops.diagonal(matrix) / ops.maximum(labelled, 1.0), labelled > 0
