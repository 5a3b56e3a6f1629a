"""What a detector gets wrong on a data set: errors by kind, what each kind costs, and the worst images."""

import typing

import numpy as np

from kvision.contract import check_class_names, check_targets, images_of
from kvision.detection.batches import predict_batch
from kvision.detection.detector import Detector
from kvision.drawing import ERROR_COLOURS, LIGHT, detection_errors, error_bars, grid, legend_strip
from kvision.metrics.average_precision import UNDEFINED
from kvision.metrics.detection_errors import DetectionErrors
from kvision.metrics.error_kinds import ERROR_KINDS, IGNORED, TRUE_POSITIVE
from kvision.visualize.interpretation import Interpretation, as_bytes

SIDE = 312  # pixels of the longer side of an image in a grid
LEGEND = 420  # pixels of the legend's width, by which its letters grow

MEANING = {
    "class": "boxes fit objects of another class",
    "localization": "boxes have the right class and overlap their object too little",
    "both": "boxes have another class and overlap the object too little",
    "duplicate": "objects are detected twice: see the threshold of non-maximum suppression",
    "background": "something is detected where nothing is",
    "missed": "objects are not detected at all",
}


class WorstImage(typing.NamedTuple):
    """An image with its errors.

    Args:
        index: Of the image, in the order of the data.
        cost: By how much AP would rise without the errors of this image.
        errors: A `kvision.metrics.ImageErrors`: the kind of each detection, and the missed objects.
        detections: `{"boxes", "scores", "labels"}` of the image.
        targets: `{"boxes", "labels"}` of the image.
        image: [h, w, c], as it was given, without its padding where `image_size` tells it.
    """

    index: int
    cost: float
    errors: object
    detections: dict
    targets: dict
    image: object


class DetectorInterpretation(Interpretation):
    """What a detector gets wrong on a data set; `Interpretation(model, data)` makes it, and tells the arguments.

    Errors are told apart by the method of TIDE (Bolya et al. 2020), see `kvision.metrics.DetectionErrors`.

    Attributes:
        num_images: Images that were measured.
        errors: The `DetectionErrors`: `errors.result()`, `errors.per_class()`, `errors.counts()`.
    """

    @property
    def costs(self):
        """What each kind costs in AP, `{kind: number}`; −1 without an object."""
        numbers = self.errors.result()
        return {kind: numbers[f"dAP_{kind}"] for kind in ERROR_KINDS}

    @property
    def counts(self):
        """How many errors of each kind there are, `{kind: number}`."""
        return self.errors.counts()

    def worst(self, k=9):
        """The images whose errors cost the most AP, as `WorstImage`, the worst first.

        They are chosen among the images that were kept: those with the highest sum of the scores of wrong detections
        and of 1 for each missed object. `errors.worst(k)` ranks all images, and has no pixels.

        Args:
            k: How many, at most `keep`; fewer where fewer have errors.

        Raises:
            ValueError: on more than were kept.
        """
        self._check_count(k)
        kept = {-index: made for weight, index, made in self._kept if weight > 0}
        costs = dict(zip(kept, self.errors.image_costs(list(kept)).tolist(), strict=True))
        weights = {-index: weight for weight, index, _ in self._kept}
        order = sorted(kept, key=lambda index: (-round(costs[index], 12), -weights[index], index))
        return [WorstImage(index, costs[index], self.errors.of_image(index), *kept[index]) for index in order[:k]]

    def draw_worst(self, k=9, score_threshold=0.3, side=SIDE):
        """The worst images in a grid, their errors named and each kind in a colour of its own.

        Args:
            k: How many, at most `keep`.
            score_threshold: Score from which detections are drawn, in [0, 1]; missed objects always are.
            side: Pixels of the longer side of each.

        Returns:
            [height, width, 3] uint8.

        Raises:
            ValueError: where no image has an error.
        """
        found = self.worst(k)
        if not found:
            raise ValueError("Interpretation: no image has an error: there is nothing to draw.")
        drawn = [self.drawn(each, score_threshold, side) for each in found]
        sheet = grid(drawn, captions=[self.caption(each) for each in found])
        entries = [(colour, kind.replace("_", " ")) for kind, colour in ERROR_COLOURS.items()]
        legend = legend_strip([*entries, (LIGHT, "ground truth")], min(sheet.shape[1], LEGEND))
        rest = np.full((legend.shape[0], sheet.shape[1] - legend.shape[1], 3), 255, "uint8")
        return np.concatenate([sheet, np.concatenate([legend, rest], axis=1)])

    def drawn(self, worst, score_threshold=0.3, side=SIDE):
        """One `WorstImage` with its errors drawn, [height, width, 3] uint8."""
        boxes, kinds, texts = self.marked(worst, score_threshold)
        truth = worst.targets["boxes"][worst.targets["labels"] >= 0]
        return detection_errors(as_bytes(worst.image), boxes, kinds, texts, truth, side=side, legend=False)

    def marked(self, worst, score_threshold=0.3):
        """What is drawn of a `WorstImage`: boxes [n, 4], their kinds and their texts, the highest score last."""
        errors, found, true = worst.errors, worst.detections, worst.targets
        marks = [
            (true["boxes"][row], "missed", f"missed: {self.name_of(true['labels'][row])}") for row in errors.missed
        ]
        for row, kind, target in reversed(list(zip(errors.rows, errors.kinds, errors.objects, strict=True))):
            score = found["scores"][row]
            if score < score_threshold or kind == IGNORED:
                continue
            text = f"{self.name_of(found['labels'][row])} {score:.2f}"
            if kind != TRUE_POSITIVE:
                text = f"{kind}: {text}"
            if kind in ("class", "both"):
                text += f", is {self.name_of(true['labels'][target])}"
            marks.append((found["boxes"][row], kind, text))
        boxes, kinds, texts = zip(*marks, strict=True) if marks else ((), (), ())
        return np.reshape(boxes, (-1, 4)), kinds, texts

    def caption(self, worst):
        """A line for below a `WorstImage`."""
        counts = {kind: int((worst.errors.kinds == kind).sum()) for kind in ERROR_KINDS}
        counts["missed"] = len(worst.errors.missed)
        return f"image {worst.index}: " + ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)

    def draw_errors(self):
        """What each kind of error costs, with the number of errors, as a matplotlib figure."""
        numbers = self.errors.result()
        name = next(iter(numbers))
        costs = {kind.removeprefix("dAP_"): max(cost, 0.0) for kind, cost in numbers.items() if kind != name}
        return error_bars(costs, self.counts, f"{name} {numbers[name]:.3f}, {self.num_images} images")

    def __str__(self):
        costs, counts = self.costs, self.counts
        lines = [f"{self.model.name}: {self.errors}"]
        if costs["missed"] == UNDEFINED:
            return lines[0]
        most = max(costs, key=costs.get)
        if costs[most] > 0:
            lines.append(
                f"Most is lost to {most} errors, {costs[most]:.3f} by {counts[most]} of them: {MEANING[most]}."
            )
        else:
            lines.append("No kind of error costs anything.")
        return "\n".join(lines)

    def _begin(self, inputs, targets):
        if self.preprocess is not None:
            raise ValueError(
                f"{self.model.name} is a detector, which takes images of 0…255: preprocess has no effect. Leave it out."
            )
        model = self.model
        check_class_names(self._data, getattr(model, "class_names", None), model.name)
        self.errors = DetectionErrors()
        classes = model.head.classes if isinstance(model, Detector) else None
        if isinstance(model, Detector):
            model.check_image_size(inputs)
            if self.class_names is not None and len(self.class_names) != classes:
                raise ValueError(
                    f"{model.name} has {classes} classes: class_names must be as many, got {len(self.class_names)}."
                )
        check_targets(tuple(np.shape(images_of(inputs))), targets, classes)
        predict_batch(model, inputs, targets)

    def _reset(self):
        super()._reset()
        self.errors.reset_state()

    def _take(self, inputs, targets):
        found = predict_batch(self.model, inputs, targets)
        self.errors.update_state(targets, found)
        images = images_of(inputs)
        for row in range(len(images)):
            index = self.num_images + row
            errors = self.errors.of_image(index)
            wrong = errors.rows[~np.isin(errors.kinds, (TRUE_POSITIVE, IGNORED))]
            weight = float(found["scores"][row][wrong].sum()) + len(errors.missed)
            self._keep(weight, index, lambda row=row: self._cut(images[row], found, targets, row))
        self.num_images += len(images)

    @staticmethod
    def _cut(image, found, targets, row):
        """What is kept of an image: detections, targets and pixels, copied, so that the batch is let go."""
        height, width = targets["image_size"][row] if "image_size" in targets else image.shape[:2]
        sides = ((found, ("boxes", "scores", "labels")), (targets, ("boxes", "labels")))
        kept = ({name: np.array(side[name][row]) for name in names} for side, names in sides)
        return *kept, np.array(image[: int(height), : int(width)])
