"""A linear classifier is fooled in closed form (Karpathy 2015, "Breaking linear classifiers on ImageNet").

For logits W·x + b the nearest boundary to another class, w = w_other − w_label, lies at the margin over ‖w‖ in
Euclidean norm, along w, and over ‖w‖₁ in the largest change of a value, along sign(w). Many pixels that change by
little each add up: the larger the image, the smaller the change. Within bounds, pixels that reach theirs stay there and
the others go further, which is found by bisection and is the smallest change as well.
"""

import numpy as np
from keras import ops

from kvision.errors import choose
from kvision.visualize.adversarial.attack import check_positive, prepare
from kvision.visualize.adversarial.blocks import Kept

LINEAR = 1e-2  # of the largest logit, by which a linear model may differ from W·x + b: 16 bits
BISECTIONS = 60
NORMS = {"l2": lambda weights: weights, "linf": np.sign}  # the direction of the smallest change


def fool_linear_classifier(
    model,
    images,
    *,
    labels=None,
    target=None,
    norm="l2",
    overshoot=1e-3,
    bounds=(0.0, 255.0),
    preprocess=None,
    batch_size=32,
):
    """Find the smallest changes that make a linear classifier err, in closed form.

    Args:
        model: A built `keras.Model` whose logits are W·x + b of the images x, such as a dense layer on all pixels with
            a rescaling before it and a softmax behind it; or a `Classifier` of one.
        images: [b, h, w, c] within `bounds`: what the model takes, or with `preprocess`, what that takes.
        labels: The true class of each image; None: the predicted one. An image taken for another one stays as it is.
        target: A class to be taken for, or one for each image: the smallest change against the class that is most
            likely is made until it is the target, which is smallest for two classes. None: the nearest class.
        norm: What is smallest, `"l2"`, the Euclidean norm, or `"linf"`, the largest change of a value.
        overshoot: Fraction by which a change goes on past the boundary, above 0.
        bounds: The least and the largest value of a pixel, in the units of the images.
        preprocess: A linear function from images to what the model takes, such as `model.preprocessing`.
        batch_size: Images that are run at a time.

    Returns:
        An `Attack`: `l2_distance` is margin/‖w‖·(1 + overshoot) where no bound is reached, and `linf_distance`
        margin/‖w‖₁·(1 + overshoot). Without `success`, no change within the bounds fools the classifier.

    Raises:
        ValueError: on a model that is not linear, and as `fast_gradient`.

    >>> model = keras.Sequential([keras.Input((1, 2, 1)), layers.Flatten(), layers.Dense(2)])
    >>> model.set_weights([np.array([[3.0, 0.0], [4.0, 0.0]]), np.zeros(2)])
    >>> images = np.full((1, 1, 2, 1), 10.0)  # the margin is 70
    >>> attack = kvision.visualize.adversarial.fool_linear_classifier(model, images, bounds=(-255, 255))
    >>> round(float(attack.l2_distance[0]), 2), attack.predicted.tolist()
    (14.01, [1])
    """
    direction = choose("norm", NORMS, norm)
    check_positive(overshoot=overshoot)
    case = prepare(
        model, images, labels=labels, target=target, bounds=bounds, preprocess=preprocess, batch_size=batch_size
    )
    weights, biases = _linear(case)
    search = _Search(weights, biases, direction, np.asarray(case.bounds), overshoot)
    shape = case.images.shape[1:]
    kept = Kept(case)
    for rows, count in case.blocks():
        targets = [None] * len(rows) if case.targets is None else case.targets[rows]
        found = [
            search.nearest(case.images[row].ravel().astype("float64"), case.labels[row], target)
            for row, target in zip(rows, targets, strict=True)
        ]
        kept.update(rows, count, np.stack(found).reshape(len(rows), *shape).astype("float32"))
    return kept.attack()


class _Search:
    """The smallest change of one image, of a classifier W·x + b."""

    def __init__(self, weights, biases, direction, bounds, overshoot):
        self.weights, self.biases, self.direction = weights, biases, direction
        self.bounds, self.overshoot = bounds, overshoot

    def nearest(self, image, label, target):
        """The image changed towards the target, or to the nearest class."""
        if target is not None:
            return self._towards(image, target)
        logits = self.weights @ image + self.biases
        if logits.argmax() != label:
            return image
        others = [other for other in range(len(logits)) if other != label]
        reaches = {other: self._reach(logits, label, other) for other in others}
        best, size = image, np.inf
        for other in sorted(others, key=reaches.get):
            if reaches[other] >= size:  # a bound only makes it farther
                break
            changed = self._over(image, label, other)
            moved = self._size(changed - image)
            if changed is not image and moved < size:
                best, size = changed, moved
        return best

    def _towards(self, image, target):
        for _ in range(4 * len(self.biases)):
            strongest = int((self.weights @ image + self.biases).argmax())
            if strongest == target:
                break
            image = self._over(image, strongest, target)
        return image

    def _reach(self, logits, label, other):
        """The size of the smallest change without bounds, in the norm."""
        weights = self.weights[other] - self.weights[label]
        along = self.direction(weights)
        gain = weights @ along
        return np.inf if gain == 0 else (logits[label] - logits[other]) / gain * self._size(along)

    def _size(self, change):
        return np.abs(change).max() if self.direction is np.sign else np.linalg.norm(change)

    def _over(self, image, label, other):
        """The image just past the boundary of two classes; itself where the bounds do not let it pass."""
        weights = self.weights[other] - self.weights[label]
        along = self.direction(weights)
        margin = (self.weights[label] - self.weights[other]) @ image + self.biases[label] - self.biases[other]
        wanted = (1 + self.overshoot) * margin

        def changed(factor):
            return np.clip(image + factor * along, *self.bounds)

        def gained(factor):
            return weights @ (changed(factor) - image)

        low, high = 0.0, wanted / max(weights @ along, 1e-300)  # the closed form
        if np.isclose(gained(high), wanted, rtol=1e-9):
            return changed(high)
        least = np.abs(along[along != 0]).min() if np.any(along) else 1.0
        high = (self.bounds[1] - self.bounds[0]) / least  # every pixel has reached its bound
        if gained(high) < wanted:
            return image
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (low, middle) if gained(middle) >= wanted else (middle, high)
        return changed(high)


def _linear(case):
    """Weights [classes, pixels] and biases [classes] in the units of the images, checked on images and on noise."""
    classifier, logits = case.classifier, case.logits
    shape, classes = case.images.shape[1:], logits.shape[1]
    name = classifier.model.name
    rows = []
    for start in range(0, classes, len(case.images[: case.batch_size])):
        index = np.minimum(np.arange(start, start + len(case.images[: case.batch_size])), classes - 1)
        gradients = ops.convert_to_numpy(classifier.class_gradients(case.images[np.zeros_like(index)], index))
        rows.append(gradients[: classes - start].reshape(-1, np.prod(shape)).astype("float64"))
    weights = np.concatenate(rows)
    biases = logits[0] - weights @ case.images[0].ravel()
    noise = np.random.default_rng(0).uniform(*case.bounds, (4, *shape)).astype("float32")
    both = np.concatenate([case.images, noise])
    found = np.concatenate([logits, classifier.logits(noise, case.batch_size)])
    error = np.abs(found - (both.reshape(len(both), -1) @ weights.T + biases)).max()
    if not error <= LINEAR * max(np.abs(found).max(), 1e-6):
        raise ValueError(
            f"{name} is not linear: its logits differ by {error:.3g} from those of its gradient at the first image. "
            "Expected W·x + b; use deep_fool, which takes any classifier."
        )
    return weights, biases
