"""What a classifier gets wrong on a data set: top losses, confusion and calibration."""

import typing

import numpy as np
from keras import ops

from kvision.drawing import confusion_chart, grid, reliability_diagram
from kvision.metrics.calibration import Calibration
from kvision.visualize.images import checked_images
from kvision.visualize.interpretation import Interpretation, enlarged, visible
from kvision.visualize.logits import ends
from kvision.visualize.probe import Probe
from kvision.visualize.targets import gives_probabilities

SIDE = 204  # pixels of the longer side of an image in a grid
LONG = 24  # letters of two names, from which each has a line of its own
MOST_CLASSES = 30  # of a confusion matrix that is drawn
SMALLEST = np.finfo("float32").tiny  # in place of a probability of 0, which has no logarithm


class TopLoss(typing.NamedTuple):
    """An image with one of the highest losses.

    Args:
        index: Of the image, in the order of the data.
        loss: The cross-entropy, natural logarithm.
        label: Its class.
        prediction: The class of the highest probability.
        probability: Of the prediction.
        label_probability: Of the label.
        image: [h, w, c], as it was given.
    """

    index: int
    loss: float
    label: int
    prediction: int
    probability: float
    label_probability: float
    image: object


class Confused(typing.NamedTuple):
    """A class that is taken for another one: their names, how often, and of how many images of that class."""

    label: str
    prediction: str
    count: int
    total: int


class ClassifierInterpretation(Interpretation):
    """What a classifier gets wrong on a data set; `Interpretation(model, data)` makes it, and tells the arguments.

    Whether the model gives logits or probabilities is told by its graph: the logits before a softmax or sigmoid at its
    end are used. Outputs of a model whose graph is not known are probabilities if those of the first batch are positive
    and sum to 1 (for one output: lie in [0, 1]), else logits. One output stands for two classes.

    Attributes:
        num_images: Images that were measured.
        num_classes: Classes of the model.
        confusion: int64 [classes, classes]: rows are the labels, columns the predictions, in the order of the labels.
        accuracy: The fraction that is right.
        loss: The mean cross-entropy, natural logarithm.
        losses, labels, predictions, probabilities: Of each image [n], the last one of the prediction.
    """

    def top_losses(self, k=9):
        """The images with the highest losses, as `TopLoss`, the highest first.

        Args:
            k: How many, at most `keep`; fewer where the data have fewer.

        Raises:
            ValueError: on more than were kept.
        """
        self._check_count(k)
        found = []
        for loss, index, image in sorted(self._kept, key=lambda entry: entry[:2], reverse=True)[:k]:
            row = -index
            label, prediction = int(self.labels[row]), int(self.predictions[row])
            found.append(
                TopLoss(row, loss, label, prediction, float(self.probabilities[row]), float(np.exp(-loss)), image)
            )
        return found

    @property
    def confusion(self):
        cells = self.labels * self.num_classes + self.predictions
        return np.bincount(cells, minlength=self.num_classes**2).reshape(self.num_classes, self.num_classes)

    def most_confused(self, min_count=1):
        """The pairs of classes that are taken for each other most often, as `Confused`, the most frequent first.

        Args:
            min_count: How often at least.
        """
        matrix = self.confusion
        totals = matrix.sum(axis=1)
        wrong = matrix - np.diag(np.diag(matrix))
        pairs = np.argwhere(wrong >= max(min_count, 1)).tolist()
        pairs = sorted(pairs, key=lambda pair: -wrong[tuple(pair)])
        return [
            Confused(self.name_of(row), self.name_of(column), int(wrong[row, column]), int(totals[row]))
            for row, column in pairs
        ]

    def calibration(self, bins=15):
        """How sure predictions are and how often they are right: a `kvision.metrics.Calibration`.

        Its `expected_error` is the expected calibration error of Guo et al. 2017, `maximum_error` the largest gap.

        Args:
            bins: Of equal width.
        """
        return Calibration.of(self.probabilities, self.predictions == self.labels, bins)

    @property
    def accuracy(self):
        return float((self.predictions == self.labels).mean())

    @property
    def loss(self):
        return float(self.losses.mean())

    @property
    def losses(self):
        return self._column(0)

    @property
    def labels(self):
        return self._column(1)

    @property
    def predictions(self):
        return self._column(2)

    @property
    def probabilities(self):
        return self._column(3)

    def draw_top_losses(self, k=9, side=SIDE):
        """The images of the highest losses in a grid, below them loss and probability, then label → prediction.

        Args:
            k: How many, at most `keep`.
            side: Pixels of the longer side of each.

        Returns:
            [height, width, 3] uint8.
        """
        found = self.top_losses(k)
        captions = []
        for each in found:
            label, prediction = self.name_of(each.label), self.name_of(each.prediction)
            between = "\n" if len(label + prediction) > LONG else " "
            captions.append(f"loss {each.loss:.2f}, {each.probability:.2f}\n{label}{between}→ {prediction}")
        return grid([enlarged(image, side) for image in visible([each.image for each in found])], captions=captions)

    def draw_confusion(self):
        """The confusion matrix as a matplotlib figure; of more than 30 classes those that are confused most."""
        matrix = self.confusion
        title = f"accuracy {self.accuracy:.3f}, {self.num_images} images"
        chosen = np.arange(self.num_classes)
        if self.num_classes > MOST_CLASSES:
            wrong = matrix - np.diag(np.diag(matrix))
            confusions = wrong.sum(axis=0) + wrong.sum(axis=1)
            weights = confusions if confusions.any() else matrix.sum(axis=1)
            chosen = np.argsort(-weights, kind="stable")[:MOST_CLASSES]
            chosen = np.sort(chosen[weights[chosen] > 0])
            rest = "that are confused most" if confusions.any() else "of most images: none is confused"
            title += f"\nthe {len(chosen)} of {self.num_classes} classes {rest}"
        return confusion_chart(matrix[np.ix_(chosen, chosen)], [self.name_of(label) for label in chosen], title)

    def draw_calibration(self, bins=15):
        """The reliability diagram as a matplotlib figure."""
        found = self.calibration(bins)
        title = f"calibration error {found.expected_error:.3f} expected, {found.maximum_error:.3f} maximum"
        return reliability_diagram(found.confidences, found.accuracies, found.counts, title)

    def __str__(self):
        calibration, confused = self.calibration(), self.most_confused()
        lines = [
            f"{self.model.name} on {self.num_images} images of {self.num_classes} classes: accuracy "
            f"{self.accuracy:.3f}, mean loss {self.loss:.3f}."
        ]
        matrix = self.confusion
        totals = matrix.sum(axis=1)
        recalls = np.where(totals > 0, np.diag(matrix) / np.maximum(totals, 1), np.inf)
        lowest = int(recalls.argmin())
        if not confused:
            lines.append("Every image is classified right.")
        else:
            pairs = "; ".join(f"{c.label} as {c.prediction}, {c.count} of {c.total}" for c in confused[:3])
            lines.append(f"Most confused: {pairs}.")
            lines.append(f"The lowest recall has {self.name_of(lowest)}: {recalls[lowest]:.3f} of {totals[lowest]}.")
        more = "surer than it is right" if calibration.overconfidence > 0 else "less sure than it is right"
        lines.append(
            f"Expected calibration error {calibration.expected_error:.3f}, maximum {calibration.maximum_error:.3f}: on "
            f"average the model is {abs(calibration.overconfidence):.3f} {more}."
        )
        (worst,) = self.top_losses(1)
        lines.append(
            f"The highest loss, {worst.loss:.3f}, has image {worst.index}: {self.name_of(worst.label)}, predicted "
            f"{self.name_of(worst.prediction)} with {worst.probability:.3f}."
        )
        return "\n".join(lines)

    def _begin(self, images, targets):
        name = self.model.name
        if hasattr(targets, "keys"):
            raise ValueError(
                f"{name} is a classifier: expected labels [b] or one-hot [b, classes], got targets with "
                f"{sorted(targets.keys())}. Boxes are for detectors."
            )
        kinds = {kind for _, _, kind in ends(self.model)}
        self._probe = Probe(self.model, preprocess=self.preprocess)
        images = checked_images(self.model, images, self.preprocess)
        self._size = len(images)
        outputs = self._outputs(images)
        self.num_classes = max(outputs.shape[1], 2)
        if "sigmoid" in kinds and outputs.shape[1] > 1:
            raise ValueError(
                f"{name} ends in a sigmoid for each of {outputs.shape[1]} classes, which says nothing of the others: "
                "expected one class an image, by a softmax or logits."
            )
        self._are_probabilities = not kinds and gives_probabilities(self._probe, outputs, images)
        self._labels_of(targets, len(images), 0)
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise ValueError(
                f"{name} has {self.num_classes} classes: class_names must be as many, got {len(self.class_names)}."
            )
        theirs, own = (getattr(each, "class_names", None) for each in (self._data, self.model))
        if theirs is not None and own is not None and tuple(theirs) != tuple(own):
            label = next((n for n, pair in enumerate(zip(theirs, own, strict=False)) if pair[0] != pair[1]), len(own))
            raise ValueError(
                f"{name}: the class_names of the data and of the model differ from label {label} on: got "
                f"{tuple(theirs)[label : label + 3]} and {tuple(own)[label : label + 3]}. Read the data with "
                "classes=model.class_names."
            )

    def _reset(self):
        super()._reset()
        self._columns = []

    def _column(self, index):
        joined = np.concatenate([rows[index] for rows in self._columns]) if self._columns else np.empty(0)
        return joined.astype("int64") if index in (1, 2) else joined

    def _take(self, images, targets):
        images = np.asarray(images)
        labels = self._labels_of(targets, len(images), self.num_images)
        logits = self._logits(checked_images(self.model, images, self.preprocess))
        if not np.isfinite(logits).all():
            row = self.num_images + int(np.flatnonzero(~np.isfinite(logits).all(axis=1))[0])
            raise ValueError(
                f"{self.model.name} predicts numbers that are not finite for image {row}: it has diverged. Lower its "
                "learning rate."
            )
        shifted = logits - logits.max(axis=1, keepdims=True)
        logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        rows = np.arange(len(labels))
        predictions = logs.argmax(axis=1)
        losses = -logs[rows, labels]
        self._columns.append((losses, labels, predictions, np.exp(logs[rows, predictions])))
        for row in np.argsort(-losses, kind="stable")[: self.keep].tolist():
            self._keep(losses[row], self.num_images + row, lambda row=row: np.array(images[row]))
        self.num_images += len(labels)

    def _outputs(self, images):
        """What the probe gives for images, [b, classes] float64; a smaller batch is filled up: one trace for all."""
        count = len(images)
        images = images[np.minimum(np.arange(max(count, self._size)), count - 1)]
        outputs = self._probe(images).outputs
        if not hasattr(outputs, "shape") or len(outputs.shape) != 2:
            got = tuple(outputs.shape) if hasattr(outputs, "shape") else type(outputs).__name__
            raise ValueError(
                f"{self.model.name} gives {got}: expected logits or probabilities [b, classes] of a classifier."
            )
        return np.asarray(ops.convert_to_numpy(ops.cast(outputs, "float32")), "float64")[:count]

    def _logits(self, images):
        outputs = self._outputs(images)
        if outputs.shape[1] == 1:
            if self._are_probabilities:
                outputs = np.concatenate([1 - outputs, outputs], axis=1)
            else:
                return np.concatenate([np.zeros_like(outputs), outputs], axis=1)
        return np.log(np.maximum(outputs, SMALLEST)) if self._are_probabilities else outputs

    def _labels_of(self, targets, count, start):
        """Labels as int64 [b], checked; `start` is the index of the first image, for the message."""
        labels, classes = np.asarray(targets), self.num_classes
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.ndim == 2 and labels.shape == (count, classes) and labels.dtype.kind in "fiub":
            if not (np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all()):
                wrong = ~(np.isin(labels, (0, 1)).all(axis=1) & (labels.sum(axis=1) == 1))
                row = int(np.flatnonzero(wrong)[0])
                raise ValueError(
                    f"Interpretation: image {start + row} has the labels {labels[row][:8].tolist()}: expected one-hot, "
                    "one 1 and else 0. Mixed or several labels have no confusion matrix."
                )
            return labels.argmax(axis=1)
        whole = labels.dtype.kind in "iub" or (labels.dtype.kind == "f" and (labels == np.floor(labels)).all())
        if labels.shape != (count,) or not whole:
            raise ValueError(
                f"Interpretation: {self.model.name} has {classes} classes: expected integer labels [b] or one-hot [b, "
                f"{classes}] for {count} images, got {labels.dtype} {labels.shape}."
            )
        labels = labels.astype("int64")
        wrong = (labels < 0) | (labels >= classes)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise ValueError(
                f"Interpretation: image {start + row} has the label {labels[row]}: expected 0 to {classes - 1}, the "
                f"classes of {self.model.name}."
            )
        return labels
