"""Calibration: whether a network is right as often as it is sure."""

import dataclasses

import keras
import numpy as np
from keras import ops

from kvision._keras import less_is_better
from kvision.ops._backend import kernels

BINS = 15  # of Guo 2017
SLACK = 1e-3  # by which a probability may leave [0, 1], and rows of 16 bits a sum of 1 by more


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How sure predictions were and how often they were right, in bins of equal width.

    Guo et al. 2017, *On Calibration of Modern Neural Networks* (arXiv 1706.04599), section 2. A bin holds the
    predictions whose confidence, the probability of the predicted class, lies in (low, high]; 0 is in the first.

    Args:
        counts: [bins] predictions in each.
        confidences: [bins] their mean confidence, NaN in an empty bin.
        accuracies: [bins] the fraction of them that is right, NaN in an empty bin.

    >>> found = Calibration.of([0.95, 0.9, 0.6, 0.6], [True, True, True, False], bins=10)
    >>> round(found.expected_error, 4), round(found.maximum_error, 4), round(found.overconfidence, 4)
    (0.0875, 0.1, 0.0125)
    """

    counts: object
    confidences: object
    accuracies: object

    @classmethod
    def of(cls, confidences, correct, bins=BINS):
        """That of predictions: their confidences in [0, 1], and whether each is right.

        Raises:
            ValueError: On confidences beyond [0, 1], other shapes, and fewer than one bin.
        """
        confidences, correct = np.asarray(confidences, "float64"), np.asarray(correct)
        if bins < 1 or confidences.ndim != 1 or correct.shape != confidences.shape:
            raise ValueError(
                f"Calibration: expected confidences [n], correct [n] and at least one bin: got {confidences.shape}, "
                f"{correct.shape} and bins={bins!r}."
            )
        if not ((confidences >= 0) & (confidences <= 1)).all():
            raise ValueError(
                f"Calibration: confidences are probabilities in [0, 1]: got {confidences.min():.3g} to "
                f"{confidences.max():.3g}. Of logits take the softmax."
            )
        index = np.clip(np.ceil(confidences * bins).astype(int) - 1, 0, bins - 1)
        counts = np.bincount(index, minlength=bins)
        sums = (np.bincount(index, each, minlength=bins) for each in (confidences, correct))
        with np.errstate(invalid="ignore"):
            return cls(counts, *(each / counts for each in sums))

    @property
    def edges(self):
        """[bins + 1], from 0 to 1."""
        return np.linspace(0, 1, len(self.counts) + 1)

    @property
    def expected_error(self):
        """Expected calibration error: the mean gap between confidence and accuracy of the bins, by their counts."""
        return float(np.sum(self._gaps() * self.counts) / max(np.sum(self.counts), 1))

    @property
    def maximum_error(self):
        """Maximum calibration error: the largest gap of a bin."""
        return float(self._gaps().max())

    @property
    def overconfidence(self):
        """Mean confidence minus accuracy, over all predictions: above 0 where the network is too sure."""
        gaps = np.nan_to_num(np.subtract(self.confidences, self.accuracies))
        return float(np.sum(gaps * self.counts) / max(np.sum(self.counts), 1))

    def _gaps(self):
        return np.abs(np.nan_to_num(np.subtract(self.confidences, self.accuracies)))


@keras.saving.register_keras_serializable("kvision")
class ExpectedCalibrationError(keras.metrics.Metric):
    """Expected calibration error (ECE) as a metric of `compile`, over all batches.

    Guo et al. 2017, *On Calibration of Modern Neural Networks* (arXiv 1706.04599), equation 3, with bins of equal width
    that hold their upper edge: the mean gap between how sure predictions are and how often they are right. It is 0 for
    a perfectly calibrated network, however often that errs, and grows where a network is surer than it is right.

    torchmetrics' `MulticlassCalibrationError` gives the same, but for confidences at the very edge of a bin, which it
    puts into the next one, those of 1 into one of their own.

    Args:
        bins: Their number.
        from_logits: Whether predictions are logits, whose softmax (or sigmoid, for one output) is taken.
        name, dtype: As of every Keras metric; it is computed in float32 whatever `dtype`.

    Predictions are [b, classes], or [b, 1] for two classes, labels integers [b] or [b, 1], or one-hot [b, classes].

    Raises:
        ValueError: On arguments that cannot be; in `update_state` on shapes that do not fit, on a `sample_weight` and,
            where it is called eagerly, on labels that are no class and predictions that are no probabilities. In a
            compiled step, which can raise none, the result is NaN then.

    Example:

    >>> metric = ExpectedCalibrationError()
    >>> metric.update_state([0, 1], [[0.9, 0.1], [0.7, 0.3]])
    >>> round(float(metric.result()), 4)
    0.4

    ```python
    model.compile("adam", "sparse_categorical_crossentropy", metrics=[kvision.metrics.ExpectedCalibrationError()])
    ```
    """

    def __init__(self, bins=BINS, from_logits=False, name="calibration_error", dtype=None):
        super().__init__(name=name, dtype=dtype)
        less_is_better(self)
        if not isinstance(bins, int | np.integer) or isinstance(bins, bool) or bins < 1:
            raise ValueError(f"ExpectedCalibrationError: bins is a whole number of at least 1: got {bins!r}.")
        self.bins = int(bins)
        self.from_logits = bool(from_logits)
        # In whole numbers, which stay exact: predictions and right ones of each bin, the whole part of the sum of their
        # confidences, and in the last column what was invalid. The rest of that sum is below 1.
        self._counts = self.add_variable((3, self.bins + 1), "zeros", dtype="int32", name="counts")
        self._rest = self.add_variable((self.bins,), "zeros", dtype="float32", name="rest")

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Count the predictions of one batch.

        Args:
            y_true: Integers [b] or [b, 1], or one-hot [b, classes].
            y_pred: Probabilities, or logits, [b, classes] or [b, 1].
            sample_weight: None: predictions are counted, not weighed.
        """
        if sample_weight is not None:
            raise ValueError(
                "ExpectedCalibrationError counts predictions and weighs none: got a sample_weight. List it in "
                "metrics=, not in weighted_metrics=."
            )
        scores = ops.cast(ops.convert_to_tensor(y_pred), "float32")
        labels = _labels(ops.convert_to_tensor(y_true), tuple(scores.shape))
        probabilities = _probabilities(scores, self.from_logits)
        confidences = ops.max(probabilities, axis=-1)
        hits = ops.equal(ops.cast(ops.argmax(probabilities, axis=-1), "int32"), labels)
        invalid = _invalid(labels, probabilities)
        if kernels.is_known(invalid) and bool(ops.any(invalid)):
            raise ValueError(_about_invalid(*map(ops.convert_to_numpy, (labels, probabilities, invalid))))
        confidences = ops.where(invalid, 0.0, confidences)
        index = ops.clip(ops.cast(ops.ceil(confidences * self.bins), "int32") - 1, 0, self.bins - 1)
        member = ops.cast(ops.equal(index[:, None], ops.arange(self.bins)), "float32")
        rest = self._rest + ops.sum(member * confidences[:, None], axis=0)
        whole = ops.floor(rest)
        added = ops.stack(
            [ops.sum(member, axis=0), ops.sum(member * ops.cast(hits, "float32")[:, None], axis=0), whole]
        )
        wrong = ops.broadcast_to(ops.sum(ops.cast(invalid, "float32")), (3, 1))
        self._counts.assign(self._counts + ops.cast(ops.concatenate([added, wrong], axis=1), "int32"))
        self._rest.assign(rest - whole)

    def result(self):
        """The number so far, float32; 0 before a prediction was counted, NaN where one could not be."""
        number, hits, whole = ops.unstack(ops.convert_to_tensor(self._counts))
        gaps = ops.cast(whole - hits, "float32")[:-1] + self._rest  # a small difference of large whole numbers
        error = ops.sum(ops.abs(gaps)) / ops.maximum(ops.cast(ops.sum(number[:-1]), "float32"), 1.0)
        return ops.where(number[-1] > 0, float("nan"), error)

    def calibration(self):
        """What was counted so far as a `Calibration`; `kvision.drawing.reliability_diagram` draws its bins."""
        number, hits, whole = ops.convert_to_numpy(self._counts)[:, :-1].astype("float64")
        with np.errstate(invalid="ignore"):
            confidences = (whole + ops.convert_to_numpy(self._rest)) / number
            return Calibration(number.astype("int64"), confidences, hits / number)

    def get_config(self):
        return {**super().get_config(), "bins": self.bins, "from_logits": self.from_logits}


def _labels(y_true, predictions):
    """Labels as int32 [b]."""
    shape = tuple(y_true.shape)
    classes = predictions[-1] if len(predictions) == 2 else None
    is_column = len(shape) == 2 and shape[1] == 1
    if classes is None or not (len(shape) == 1 or is_column or (len(shape) == 2 and shape[1] == classes)):
        raise ValueError(
            f"ExpectedCalibrationError: got labels {shape} and predictions {predictions}, expected labels [b], [b, 1] "
            "or one-hot [b, classes] and predictions [b, classes], or [b, 1] for two classes."
        )
    if is_column or len(shape) == 1:
        return ops.cast(ops.reshape(y_true, (-1,)), "int32")
    return ops.cast(ops.argmax(y_true, axis=-1), "int32")


def _probabilities(scores, from_logits):
    if scores.shape[-1] == 1:
        scores = ops.sigmoid(scores) if from_logits else scores
        return ops.concatenate([1 - scores, scores], axis=-1)
    return ops.softmax(scores, axis=-1) if from_logits else scores


def _invalid(labels, probabilities):
    """Which rows cannot be counted, [b]."""
    is_class = ops.equal(labels, ops.clip(labels, 0, probabilities.shape[-1] - 1))
    inside = ops.logical_and(probabilities >= -SLACK, probabilities <= 1 + SLACK)  # NaN is not
    return ops.logical_not(ops.logical_and(is_class, ops.all(inside, axis=-1)))


def _about_invalid(labels, probabilities, invalid):
    row = int(np.flatnonzero(invalid)[0])
    classes = probabilities.shape[-1]
    if not 0 <= labels[row] < classes:
        return (
            f"ExpectedCalibrationError: row {row} has the label {labels[row]}, expected 0 to {classes - 1}: the "
            f"predictions have {classes} classes."
        )
    return (
        f"ExpectedCalibrationError: row {row} has the predictions {np.round(probabilities[row][:4], 3).tolist()}…, "
        "expected probabilities in [0, 1]. Of a network without a softmax: from_logits=True."
    )
