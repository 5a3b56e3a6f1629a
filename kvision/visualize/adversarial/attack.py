"""What an attack is given, checked, and what it gives."""

import dataclasses
import typing

import numpy as np

from kvision.visualize.adversarial.classifier import Classifier
from kvision.visualize.images import checked_images
from kvision.visualize.targets import chunks

LEAST_LIKELY = "least_likely"


@dataclasses.dataclass(frozen=True, eq=False)
class Attack:
    """What an attack gave for each image.

    Args:
        images: [b, h, w, c] float32 within the bounds, in the units of the images given.
        success: [b] bool, whether an image is no longer taken for its label, or is taken for its target.
        labels: [b] int32, the classes that were to be lost: those given, or those predicted.
        predicted: [b] int32, the classes that the attacked images are taken for.
        confidence: [b] float32, the probabilities of these.
        l2_distance: [b] float32, the Euclidean norm of each change.
        linf_distance: [b] float32, the largest change of a value.
        complete: Whether the attack came to its end; False after Ctrl-C.
    """

    images: np.ndarray
    success: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    l2_distance: np.ndarray
    linf_distance: np.ndarray
    complete: bool = True


class Case(typing.NamedTuple):
    """What is attacked, checked.

    Args:
        classifier: A `Classifier`.
        images: [b, h, w, c] float32.
        labels: int32 [b].
        targets: int32 [b], or None.
        logits: Of the images, [b, classes] float32.
        bounds: The least and the largest value of a pixel.
        batch_size: Images attacked at a time.
    """

    classifier: Classifier
    images: np.ndarray
    labels: np.ndarray
    targets: np.ndarray | None
    logits: np.ndarray
    bounds: tuple
    batch_size: int

    def blocks(self):
        """`(index of images, how many count)`, equally many each time."""
        return chunks(self.batch_size, np.arange(len(self.images)))

    def are_fooled(self, predicted, rows=slice(None)):
        """Whether images `rows`, taken for `predicted`, are attacked with success."""
        if self.targets is None:
            return predicted != self.labels[rows]
        return predicted == self.targets[rows]


def prepare(model, images, *, labels=None, target=None, bounds=(0.0, 255.0), preprocess=None, batch_size=32):
    """A `Case`, whose checks run one chunk of the images at most before they raise.

    Raises:
        ValueError: on images outside of the bounds or of another size, a model that is no classifier, labels and
            targets that are none of its classes, and a target that is the label already.
    """
    bounds = checked_bounds(bounds)
    classifier = Classifier.of(model, preprocess)
    model = classifier.model
    images = checked_images(model, images, classifier.preprocess)
    check_within(images, bounds)
    labels, target = (_as_classes(*each, len(images)) for each in (("labels", labels), ("target", target)))
    check_counts(batch_size=batch_size)
    classes = classifier.check(images[:batch_size], bounds)
    for name, given in (("labels", labels), ("target", target)):
        if isinstance(given, np.ndarray) and not np.all((given >= 0) & (given < classes)):
            wrong = given[(given < 0) | (given >= classes)][0]
            raise ValueError(f"{model.name} has the classes 0 to {classes - 1}: got {name} {wrong}.")
    logits = classifier.logits(images, batch_size)
    labels = logits.argmax(axis=1).astype("int32") if labels is None else labels
    if isinstance(target, str):
        others = np.where(np.arange(classes) == labels[:, None], np.inf, logits)
        target = others.argmin(axis=1).astype("int32")
    if target is not None and np.any(target == labels):
        wrong = int(np.flatnonzero(target == labels)[0])
        raise ValueError(
            f"Image {wrong} has the label {labels[wrong]} and the same target: expected another class. Choose one, or "
            "leave such images out."
        )
    return Case(classifier, images, labels, target, logits, bounds, batch_size)


def checked_bounds(bounds):
    """The least and the largest value of a pixel as floats, rounded as pixels are."""
    values = np.asarray(bounds, "float32") if np.shape(bounds) == (2,) else None
    if values is None or not np.isfinite(values).all() or not values[0] < values[1]:
        raise ValueError(
            f"bounds are the least and the largest value of a pixel, such as (0, 255) or (-1, 1): got {bounds!r}."
        )
    return float(values[0]), float(values[1])


def check_epsilon(epsilon, most):
    """Raise on a budget that is no number from 0 to `most`, which no change within the bounds exceeds."""
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float | np.number) or not 0 <= epsilon <= most:
        raise ValueError(
            f"epsilon is in the units of the images, from 0 to {most:.6g}, the largest change that their bounds allow: "
            f"got {epsilon!r}."
        )


def check_positive(**numbers):
    """Raise on numbers that are not above 0; None passes."""
    for name, value in numbers.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be above 0, got {value!r}.")


def check_counts(**numbers):
    """Raise on numbers that are no whole ones of at least 1; None passes."""
    for name, value in numbers.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1):
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")


def check_within(images, bounds):
    """Raise on images that leave the bounds, or that are of 0…1 where these are those of 0…255."""
    low, high = float(images.min()), float(images.max())
    if low < bounds[0] or high > bounds[1]:
        raise ValueError(
            f"The bounds of the images are {bounds[0]:g} to {bounds[1]:g}: got values from {low:.6g} to {high:.6g}. "
            "Give the range of their units, such as bounds=(-1, 1), or images within."
        )
    if bounds == (0.0, 255.0) and 0 < high <= 1:
        raise ValueError(
            f"The bounds of the images are 0 to 255: got values from {low:.3g} to {high:.3g}. Give bounds=(0, 1), "
            "and epsilon in these units, or multiply the images by 255."
        )


def _as_classes(name, given, rows):
    """Classes given as int32 [b], None, or the name of the least likely ones."""
    if given is None or (name == "target" and isinstance(given, str) and given == LEAST_LIKELY):
        return given
    classes = np.asarray(given)
    classes = classes[:, 0] if classes.shape == (rows, 1) else classes
    if classes.dtype.kind not in "iu" or classes.shape not in ((), (rows,)):
        expected = f"a class index, one for each of the {rows} images, or None"
        got = repr(given) if classes.size < 10 else f"{classes.dtype} {list(classes.shape)}"
        raise ValueError(f"{name} is {expected}: got {got}.")
    return np.broadcast_to(classes, (rows,)).astype("int32")
