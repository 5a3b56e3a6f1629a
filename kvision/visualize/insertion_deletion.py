"""Insertion and deletion: whether the pixels that a map calls important are those that the score depends on.

Petsiuk, Das & Saenko 2018, "RISE: Randomized Input Sampling for Explanation of Black-box Models", section 4.1.
Deviations: deleted pixels get the mean of their image, which for prepared images is near the paper's 0; the blurred
image that insertion begins with is smoothed by a whole Gaussian, of a deviation of a 20th of the shorter side.
"""

import dataclasses

import numpy as np
from keras import ops

from kvision.visualize.gradient import chunks_with_progress
from kvision.visualize.images import checked_images
from kvision.visualize.logits import ends
from kvision.visualize.occlusion import fill_colours
from kvision.visualize.probe import Probe
from kvision.visualize.targets import chunks, class_indices, gives_probabilities

BLUR = 1 / 20  # deviation as a fraction of the shorter side: 11 pixels of 224


@dataclasses.dataclass(frozen=True)
class InsertionDeletion:
    """The result of `insertion_deletion`.

    Args:
        insertion: Area under the curve of each image while pixels are inserted, in [0, 1]: [b], high for a good map.
        deletion: The same while they are deleted, low for a good map.
        insertion_curve, deletion_curve: Probability of the class after each step: [b, steps + 1].
        fractions: Of the pixels inserted or deleted by then: [steps + 1], from 0 to 1.
    """

    insertion: np.ndarray
    deletion: np.ndarray
    insertion_curve: np.ndarray
    deletion_curve: np.ndarray
    fractions: np.ndarray


def insertion_deletion(
    model, images, maps, target=None, *, steps=50, fill=None, preprocess=None, batch_size=32, verbose=0
):
    """How fast the probability of a class rises and falls while pixels are inserted and deleted, important ones first.

    Petsiuk 2018, section 4.1. Compare with maps of random numbers, `np.random.default_rng(0).random(maps.shape)`: a map
    that is no better tells nothing about the network.

    Args:
        model, images, preprocess, verbose: As of `gradient`; the model need not be differentiable.
        maps: [b, h, w], the larger the more important, of signed attributions their sum over the channels, or
            `saliency_map` of gradients.
        target: A class index, one for each image, or None for the predicted class.
        steps: Of equally many pixels each.
        fill: What deleted pixels get: a number in the units of `images`, or one for each channel. None: the mean of
            each channel of the image.
        batch_size: Changed images of a forward pass, of which there are 2 · (steps + 1) an image.

    Returns:
        An `InsertionDeletion`. Ctrl-C gives the first images.

    Raises:
        ValueError: as `gradient`, on maps of another shape or that are not finite, and fewer than one step.

    >>> model = keras.Sequential([keras.Input((4, 4, 1)), layers.Flatten(), layers.Dense(3)])
    >>> found = insertion_deletion(model, np.ones((2, 4, 4, 1)), np.random.rand(2, 4, 4), steps=4)
    >>> found.insertion.shape, found.deletion_curve.shape
    ((2,), (2, 5))
    """
    if callable(target):
        raise ValueError("insertion_deletion follows the probability of a class: expected a class index as target.")
    if steps < 1:
        raise ValueError(f"insertion_deletion needs at least 1 step, got {steps}.")
    probe = Probe(model, preprocess=preprocess)
    images = checked_images(model, images, preprocess)
    maps = np.asarray(maps)
    if maps.shape != images.shape[:3] or not np.isfinite(maps).all():
        raise ValueError(
            f"maps are finite and [b, h, w], {list(images.shape[:3])}: got {list(maps.shape)}. Of attributions of each "
            "channel take saliency_map, or the sum over the channels."
        )
    classes = class_indices(probe, images, target, batch_size, probabilities=True)
    fills = fill_colours(images, fill)[:, None, None, :]
    blurred = _blurred(images, BLUR * min(images.shape[1:3]))
    ranks = _ranks(maps)
    counts = np.round(np.linspace(0, maps[0].size, steps + 1)).astype(int)
    probabilities = _probabilities(model, preprocess, next(chunks(batch_size, images))[0])
    curves = np.full((len(images), 2, steps + 1), np.nan)
    points = np.arange(curves.size)
    for rows, count in chunks_with_progress(batch_size, verbose, points):
        index, is_deletion, step = np.unravel_index(rows, curves.shape)
        is_changed = (ranks[index] < counts[step][:, None, None])[..., None]
        deleting = is_deletion.astype(bool)[:, None, None, None]
        # A pixel shows the image where it was inserted, and where it was not deleted.
        shows_image = is_changed ^ deleting
        changed = np.where(shows_image, images[index], np.where(deleting, fills[index], blurred[index]))
        given = probabilities(changed)[np.arange(len(rows)), classes[index]]
        curves.flat[rows[:count]] = given[:count]
    curves = curves[~np.isnan(curves).any(axis=(1, 2))]
    fractions = counts / counts[-1]
    areas = ((curves[..., 1:] + curves[..., :-1]) / 2 * np.diff(fractions)).sum(axis=-1)
    return InsertionDeletion(areas[:, 0], areas[:, 1], curves[:, 0], curves[:, 1], fractions)


def _probabilities(model, preprocess, images):
    """A function from images to probabilities [b, classes] as a NumPy array; a model of one output has two classes."""
    probe = Probe(model, preprocess=preprocess, logits=False)
    kinds = {kind for _, _, kind in ends(model)}
    are_logits = not kinds and not gives_probabilities(probe, ops.convert_to_numpy(probe(images).outputs), images)

    def run(images):
        outputs = ops.cast(probe(images).outputs, "float32")
        is_single = outputs.shape[1] == 1
        if "log_softmax" in kinds:
            outputs = ops.exp(outputs)
        elif are_logits:
            outputs = ops.sigmoid(outputs) if is_single else ops.softmax(outputs, axis=-1)
        outputs = ops.convert_to_numpy(outputs)
        return np.concatenate([1 - outputs, outputs], axis=1) if is_single else outputs

    return run


def _ranks(maps):
    """The rank of each pixel, 0 for the most important one; of equal ones the first comes first: [b, h, w]."""
    flat = maps.reshape(len(maps), -1)
    order = np.argsort(-flat, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(flat.shape[1])[None], axis=1)
    return ranks.reshape(maps.shape)


def _blurred(images, deviation):
    """Images smoothed by a Gaussian, whose weights add up to 1 at the border, too."""

    def weights(length):
        distances = np.arange(length)[:, None] - np.arange(length)
        gaussian = np.exp(-0.5 * (distances / deviation) ** 2)
        return (gaussian / gaussian.sum(axis=1, keepdims=True)).astype("float32")

    return np.einsum("hi,wj,bijc->bhwc", *map(weights, images.shape[1:3]), images, optimize=True)
