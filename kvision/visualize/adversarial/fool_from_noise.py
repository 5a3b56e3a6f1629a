"""Rubbish classes: from noise to a confident class (Goodfellow 2015, appendix A; Nguyen 2015, "Deep neural networks are
easily fooled").

Goodfellow's is one signed step from noise; here the steps are repeated until the class is as likely as asked for, which
is the gradient ascent of Nguyen 2015 with signs. Noise is drawn evenly within the bounds instead of from a Gaussian.
"""

import numpy as np
from keras import ops

from kvision.visualize.adversarial.attack import check_counts, check_positive, checked_bounds, prepare
from kvision.visualize.adversarial.blocks import attack_blocks
from kvision.visualize.adversarial.classifier import Classifier, input_shape, probabilities


def fool_from_noise(
    model,
    target=None,
    *,
    image_size=None,
    confidence=0.99,
    steps=100,
    step_size=None,
    bounds=(0.0, 255.0),
    preprocess=None,
    batch_size=32,
    seed=0,
    verbose=0,
):
    """Turn noise into images that a classifier takes for a class with confidence, and nobody else does.

    Args:
        model: A built `keras.Model` of images → logits or probabilities [b, classes], or a `Classifier` of one.
        target: A class, or several, an image for each; None: every class of the model.
        image_size: `(height, width)`, where the model takes any; None: the model's.
        confidence: The probability of the class at which an image is done, above 0 and below 1.
        steps: The most of them.
        step_size: Change of each value by a step, in the units of the images; None: 1/100 of the bounds.
        bounds: The least and the largest value of a pixel, in the units of what the model takes, or with
            `preprocess`, of what that takes.
        preprocess: A function from images to what the model takes, such as `model.preprocessing`.
        batch_size: Images made at a time.
        seed: Of the noise.
        verbose: 1 shows a bar.

    Returns:
        An `Attack` [targets, h, w, c], whose distances are those from the noise, and whose labels are what the noise
        was taken for. `success` tells that the class was reached with that confidence. Ctrl-C ends it after the present
        step, with what there is.

    Raises:
        ValueError: on classes that the model does not have, a size that it does not take, and numbers out of range.

    >>> model = keras.Sequential([keras.Input((4, 4, 1)), layers.Flatten(), layers.Dense(3)])
    >>> attack = kvision.visualize.adversarial.fool_from_noise(model)
    >>> attack.images.shape, attack.predicted.tolist(), bool((attack.confidence > 0.99).all())
    ((3, 4, 4, 1), [0, 1, 2], True)
    """
    check_counts(steps=steps)
    check_positive(step_size=step_size)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is a probability above 0 and below 1: got {confidence!r}.")
    bounds = checked_bounds(bounds)
    classifier = Classifier.of(model, preprocess)
    shape = _image_shape(classifier.model, image_size)
    targets = None if target is None else np.atleast_1d(np.asarray(target))
    if targets is None:
        targets = np.arange(classifier.logits(_noise(1, shape, bounds, seed), 1).shape[1])
    if targets.ndim != 1 or not targets.size or targets.dtype.kind not in "iu":
        raise ValueError(f"target is a class index, several of them, or None for every class: got {target!r}.")
    noise = _noise(len(targets), shape, bounds, seed)
    case = prepare(classifier, noise, bounds=bounds, batch_size=batch_size)
    if targets.min() < 0 or targets.max() >= case.logits.shape[1]:
        wrong = int(targets[(targets < 0) | (targets >= case.logits.shape[1])][0])
        raise ValueError(
            f"{classifier.model.name} has the classes 0 to {case.logits.shape[1] - 1}: got target {wrong}."
        )
    case = case._replace(targets=targets.astype("int32"))  # noise may be of its class already
    return _ascend(case, confidence, steps, step_size or (bounds[1] - bounds[0]) / 100, verbose)


def _ascend(case, confidence, steps, step_size, verbose):
    def are_confident(logits, targets=case.targets):
        return probabilities(logits)[np.arange(len(targets)), targets] >= confidence

    def run(rows, start):
        images, targets = case.images[rows], case.targets[rows]
        done = are_confident(case.logits[rows], targets)
        for _ in range(steps):
            if done.all():
                return
            _, gradients = case.classifier.margins(images, targets)
            moved = np.clip(images - step_size * np.sign(ops.convert_to_numpy(gradients)), *case.bounds)
            images = np.where(done[:, None, None, None], images, moved.astype("float32"))
            done = are_confident(case.classifier.logits(images, len(images)), targets)
            yield images

    return attack_blocks(case, run, steps, verbose=verbose, is_success=are_confident)


def _noise(count, shape, bounds, seed):
    return np.random.default_rng(seed).uniform(*bounds, (count, *shape)).astype("float32")


def _image_shape(model, image_size):
    height, width, channels = input_shape(model)
    size = image_size if image_size is not None else (height, width)
    if channels is None or len(size) != 2 or None in size:
        got = ", ".join("any" if each is None else str(each) for each in (height, width, channels))
        raise ValueError(
            f"{model.name} takes images [b, {got}], image_size={image_size}: expected a height, a width and a number "
            "of channels. Give image_size=(height, width), and a model of known channels."
        )
    if any(known not in (None, given) for known, given in zip((height, width), size, strict=True)):
        raise ValueError(f"{model.name} takes images of {height}x{width}: got image_size={image_size}. Leave it out.")
    return (*size, channels)
