"""What the metrics of semantic segmentation share: label maps out of predictions, and one sum over all pixels."""

import keras
import numpy as np
from keras import ops

from kvision._keras import more_is_better
from kvision.errors import checked_names
from kvision.ops import confusion_matrix
from kvision.ops._backend import kernels

BASE = 2**30  # where a count is carried over: JAX has int32 alone, and a data set has more pixels


class PixelConfusion(keras.metrics.Metric):
    """Base: sums up which class is taken for which, over all pixels of all batches, exactly however many they are.

    Args:
        num_classes, ignore_class, sparse_y_pred, class_names, name, dtype: As of `MeanIoU`.

    Raises:
        ValueError: On arguments that cannot be; in `update_state` on shapes that do not fit and, where it is called
            eagerly, on labels that are no class.
    """

    _extra_states = 0  # beside the classes, of a pixel

    def __init__(self, num_classes, ignore_class=None, sparse_y_pred=None, class_names=None, name=None, dtype=None):
        super().__init__(name=name, dtype=dtype)
        more_is_better(self)
        who = type(self).__name__
        for argument, value in (("num_classes", num_classes), ("ignore_class", ignore_class)):
            is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
            if not is_whole and (argument == "num_classes" or value is not None):
                raise ValueError(f"{who}: {argument} is a whole number: got {value!r}.")
        if num_classes < 2:
            raise ValueError(
                f"{who}: num_classes counts the background, too, and is at least 2: got {num_classes}. A network with "
                "one logit per pixel has two classes: give its predictions as label maps, `logits > 0`."
            )
        self.num_classes = int(num_classes)
        self.ignore_class = None if ignore_class is None else int(ignore_class)
        self.sparse_y_pred = sparse_y_pred
        self.class_names = checked_names(who, class_names, self.num_classes)
        states = self.num_classes + self._extra_states
        # Both parts of each count, and behind them that of pixels whose label is no class.
        self._counts = self.add_variable((2, states**2 + 1), "zeros", dtype="int", name="counts")

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Count the pixels of one batch.

        Args:
            y_true: Label maps [b, h, w] or [b, h, w, 1].
            y_pred: Scores or logits [b, h, w, num_classes], or label maps like `y_true`.
            sample_weight: None: pixels are counted, not weighed.
        """
        if sample_weight is not None:
            raise ValueError(
                f"{type(self).__name__} counts pixels and weighs none: got a sample_weight. List it in metrics=, not "
                "in weighted_metrics=, and mark the pixels to leave out by the label ignore_class."
            )
        labels, predictions = self._label_maps(ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred))
        matrix, invalid = self._matrix_of(labels, predictions)
        if kernels.is_known(invalid) and int(invalid):
            raise ValueError(self._about_invalid(*map(ops.convert_to_numpy, (labels, predictions))))
        counts = ops.concatenate([ops.reshape(matrix, (-1,)), invalid[None]])
        carried, rest = ops.unstack(ops.convert_to_tensor(self._counts))
        rest = rest + ops.cast(counts, self._counts.dtype)
        self._counts.assign(ops.stack([carried + rest // BASE, rest % BASE]))

    def _matrix_of(self, labels, predictions):
        """The confusion matrix of a batch of label maps, and the number of invalid pixels."""
        return confusion_matrix(labels, predictions, self.num_classes, self.ignore_class)

    def _label_maps(self, y_true, y_pred):
        """Labels and predicted labels, [b, h, w] both."""
        true, predicted = tuple(y_true.shape), tuple(y_pred.shape)
        column = (*true[:-1], self.num_classes)
        has_scores = _fits(predicted, (*true, self.num_classes)) or (true[-1:] == (1,) and _fits(predicted, column))
        has_scores = has_scores and self.sparse_y_pred is not True
        is_whole = self.sparse_y_pred is True or keras.backend.is_int_dtype(y_pred.dtype)
        is_map = is_whole and any(_fits(one, other) for one in _forms(predicted) for other in _forms(true))
        if not has_scores and (not is_map or self.sparse_y_pred is False):
            raise ValueError(
                f"{type(self).__name__}: got labels {true} and predictions {predicted} of "
                f"{keras.backend.standardize_dtype(y_pred.dtype)}, expected labels [b, h, w] and predictions [b, h, w, "
                f"{self.num_classes}] of the same height and width, or label maps of integers [b, h, w]. Resize the "
                "predictions to the labels, and give num_classes the number of scores; label maps of floats need "
                "sparse_y_pred=True."
            )
        if has_scores:
            y_pred = ops.argmax(y_pred, axis=-1)
        labels, predictions = (
            ops.squeeze(each, -1) if len(each.shape) == 4 or len(each.shape) > len(other.shape) else each
            for each, other in ((y_true, y_pred), (y_pred, y_true))
        )
        return labels, predictions

    def _about_invalid(self, labels, predictions):
        """The message about pixels whose label is no class."""
        no_class = [(each < 0) | (each >= self.num_classes) for each in (labels, predictions)]
        counted = np.ones(labels.shape, bool) if self.ignore_class is None else labels != self.ignore_class
        in_labels = (no_class[0] & counted).any()
        what, values, wrong = (
            ("labels", labels, no_class[0]) if in_labels else ("predictions", predictions, no_class[1])
        )
        wrong &= counted
        position = np.argwhere(wrong)[0]
        return (
            f"{type(self).__name__}: {wrong.sum()} pixels of the {what} are no class: the first, {_where(position)}, "
            f"is {values[tuple(position)]}, expected {self._expected()}. Raise num_classes, or mark the pixels to "
            "leave out by the label ignore_class."
        )

    def _expected(self):
        """The labels that can be, in words."""
        ignored = "" if self.ignore_class is None else f" or the ignored {self.ignore_class}"
        return f"0 to {self.num_classes - 1}{ignored}"

    def confusion_matrix(self):
        """All pixels so far: int64 [num_classes, num_classes], rows are the labels, columns the predictions.

        Raises:
            ValueError: If pixels had a label that is no class, which a compiled step cannot tell.
        """
        carried, rest = ops.convert_to_numpy(self._counts).astype("int64")
        counts = carried * BASE + rest
        if counts[-1]:
            raise ValueError(
                f"{type(self).__name__}: {counts[-1]} pixels had labels or predictions that are no class, expected "
                f"{self._expected()}: the result is worth nothing. Check num_classes and ignore_class, then the data."
            )
        states = self.num_classes + self._extra_states
        return counts[:-1].reshape(states, states)[: self.num_classes, : self.num_classes]

    def result_by_class(self):
        """`{class: number}` so far, NaN for a class without a pixel."""
        self.confusion_matrix()  # raises where it is worth nothing
        values, occurs = map(ops.convert_to_numpy, self._values())
        names = self.class_names or range(self.num_classes)
        return {
            name: float(value) if there else float("nan")
            for name, value, there in zip(names, values, occurs, strict=True)
        }

    def result(self):
        """The number so far, float32; 0 before a pixel was counted, NaN where a label was no class."""
        return ops.where(self._invalid() > 0, float("nan"), self._mean())

    def _mean(self):
        """The mean over the classes that occur."""
        values, occurs = self._values()
        if self.ignore_class in range(self.num_classes):
            occurs = ops.logical_and(occurs, ops.arange(self.num_classes) != self.ignore_class)
        occurs = ops.cast(occurs, "float32")
        return ops.sum(values * occurs) / ops.maximum(ops.sum(occurs), 1.0)

    def _values(self):
        """The number of each class [num_classes], and whether the class occurs. Of subclasses."""
        raise NotImplementedError

    def _matrix(self):
        """The confusion matrix [states, states], float32."""
        carried, rest = ops.unstack(ops.cast(self._counts, "float32"))
        states = self.num_classes + self._extra_states
        return ops.reshape((carried * BASE + rest)[:-1], (states, states))

    def _invalid(self):
        return ops.sum(self._counts[:, -1])

    def get_config(self):
        names = ("num_classes", "ignore_class", "sparse_y_pred", "class_names")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def _forms(shape):
    """A shape, and without its last axis if that has one element."""
    return (shape, shape[:-1]) if shape[-1:] == (1,) else (shape,)


def _fits(got, expected):
    """Whether shapes are equal, as far as they are known."""
    known = zip(got, expected, strict=False)
    return len(got) == len(expected) and all(None in pair or pair[0] == pair[1] for pair in known)


def _where(position):
    names = ("image", "row", "column") if len(position) == 3 else [f"axis {axis}" for axis in range(len(position))]
    return ", ".join(f"{name} {index}" for name, index in zip(names, position, strict=True))
