"""DeepFool (Moosavi-Dezfooli 2016, "DeepFool: a simple and accurate method to fool deep neural networks", algorithm 2).

The Euclidean form: to the nearest boundary of the linearized classifier, again and again until the class is another.
As in the authors' code, the overshoot 1 + η is part of every iterate, and few other classes are considered, the most
likely ones. Deviation: a difference of logits below 1e-4 counts as 1e-4, so that an image on a boundary leaves it (the
code adds 1e-4 to each distance, in units that depend on those of the images).
"""

import numpy as np
from keras import ops

from kvision.visualize.adversarial.attack import check_counts, check_positive, prepare
from kvision.visualize.adversarial.blocks import attack_blocks

LEAST_DIFFERENCE = 1e-4  # of two logits


def deep_fool(
    model,
    images,
    *,
    labels=None,
    candidates=10,
    steps=50,
    overshoot=0.02,
    bounds=(0.0, 255.0),
    preprocess=None,
    batch_size=32,
    verbose=0,
):
    """Find a smallest change, by its Euclidean norm, that makes a classifier err (Moosavi-Dezfooli 2016).

    Args:
        model: A built `keras.Model` of images → logits or probabilities [b, classes], or a `Classifier` of one.
        images: [b, h, w, c] within `bounds`: what the model takes, or with `preprocess`, what that takes.
        labels: The true class of each image; None: the predicted one. An image taken for another one stays as it is.
        candidates: How many other classes are considered, the most likely ones; each costs a gradient a step.
        steps: The most of them; an image ends with its success.
        overshoot: Fraction by which a change goes on past the boundary, above 0.
        bounds: The least and the largest value of a pixel, in the units of the images.
        preprocess: A function from images to what the model takes, such as `model.preprocessing`.
        batch_size: Images attacked at a time.
        verbose: 1 shows a bar.

    Returns:
        An `Attack`, whose `l2_distance` is small where a class is badly separated. Ctrl-C ends it after the present
        step, with the images not reached as they were given.

    Raises:
        ValueError: on images outside the bounds, classes that the model does not have, a model that is no classifier,
            and numbers that are not above 0.

    >>> model = keras.Sequential([keras.Input((4, 4, 1)), layers.Flatten(), layers.Dense(3)])
    >>> images = np.random.default_rng(0).uniform(100, 150, (2, 4, 4, 1))
    >>> kvision.visualize.adversarial.deep_fool(model, images).success.tolist()
    [True, True]
    """
    check_counts(candidates=candidates, steps=steps)
    check_positive(overshoot=overshoot)
    case = prepare(model, images, labels=labels, bounds=bounds, preprocess=preprocess, batch_size=batch_size)
    order = np.argsort(-case.logits, axis=1, kind="stable")
    others = order[order != case.labels[:, None]].reshape(len(order), -1)[:, :candidates].astype("int32")

    def run(rows, start):
        images, changes = case.images[rows], np.zeros_like(case.images[rows])
        fooled = case.are_fooled(case.logits[rows].argmax(axis=1), rows)
        for _ in range(steps):
            if fooled.all():
                return
            changes = changes + np.where(_wide(fooled), 0, _step(case, images, rows, others[rows]))
            moved = np.clip(case.images[rows] + (1 + overshoot) * changes, *case.bounds).astype("float32")
            images = np.where(_wide(fooled), images, moved)
            fooled = case.are_fooled(case.classifier.logits(images, len(images)).argmax(axis=1), rows)
            yield images

    return attack_blocks(case, run, steps, verbose=verbose)


def _step(case, images, rows, others):
    """The change of each image to the nearest boundary of the linearized classifier, between its label and `others`."""
    nearest = np.full(len(rows), np.inf)
    steps = np.zeros_like(images)
    for other in others.T:
        found = case.classifier.differences(images, other, case.labels[rows])
        differences, gradients = (ops.convert_to_numpy(each) for each in found)
        squares = np.square(gradients.astype("float64")).sum(axis=(1, 2, 3))
        sizes = np.maximum(np.abs(differences), LEAST_DIFFERENCE)
        distances = np.divide(sizes, np.sqrt(squares), out=np.full(len(rows), np.inf), where=squares > 0)
        closer = distances < nearest
        factors = np.divide(sizes, squares, out=np.zeros(len(rows)), where=squares > 0).astype("float32")
        nearest = np.where(closer, distances, nearest)
        steps = np.where(_wide(closer), _wide(factors) * gradients, steps)
    return steps


def _wide(values):
    """[b] to be multiplied with images."""
    return values[:, None, None, None]
