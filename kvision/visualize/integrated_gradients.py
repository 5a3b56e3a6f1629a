"""Integrated gradients: the gradient averaged on the straight way from a baseline, times the way.

Sundararajan, Taly & Yan 2017, "Axiomatic Attribution for Deep Networks", sections 3 and 5.
Deviation: the integral is a sum over the middles of equal steps, not over their ends (equation 3): its error falls with
the square of the steps.
"""

import logging

import numpy as np
from keras import ops

from kvision.network import Preprocessing
from kvision.visualize.gradient import chunks_with_progress
from kvision.visualize.images import check_differentiable, checked_images
from kvision.visualize.probe import Probe
from kvision.visualize.targets import chunks, target_score

LARGEST_GAP = 0.05  # of the difference of the scores: section 5 of the paper


def integrated_gradients(
    model,
    images,
    target=None,
    *,
    baseline=None,
    steps=50,
    return_gap=False,
    preprocess=None,
    batch_size=32,
    verbose=0,
):
    """What each pixel adds to the difference between the score of an image and that of a baseline.

    Sundararajan 2017, section 3. Completeness: the attributions of an image add up to that difference, but for the
    error of the sum, the gap. Where it exceeds 5 % of the difference, a line in the log `kvision` says so.

    Args:
        model, images, target, preprocess, batch_size, verbose: As of `gradient`.
        baseline: The image without what is looked for, in the units of `images`: a number, an image [h, w, c], or one
            for each image [b, h, w, c]. None: black, as in the paper, which is 0, or what the `preprocessing` that the
            model carries makes of 0 where `images` come out of it.
        steps: Of the sum, whose gradients are taken in the middle of equal steps from baseline to image; the paper
            takes 20 to 300.
        return_gap: Whether the gap is given, too.

    Returns:
        float32 [b, h, w, c], signed, in units of the score; with `return_gap` a tuple of these and the gap [b], sum of
        the attributions minus difference of the scores. Ctrl-C gives the first images.

    Raises:
        ValueError: as `gradient`, and on a baseline of another shape and fewer than one step.

    >>> model = keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
    >>> attributions, gap = integrated_gradients(model, np.ones((5, 2, 2, 1)), target=0, steps=4, return_gap=True)
    >>> attributions.shape, bool(np.abs(gap).max() < 1e-5)
    ((5, 2, 2, 1), True)
    """
    if steps < 1:
        raise ValueError(f"integrated_gradients needs at least 1 step, got {steps}: 20 to 300 are usual.")
    probe = Probe(model, preprocess=preprocess)
    images = checked_images(model, images, preprocess)
    check_differentiable(model)
    baselines = _baselines(model, images, baseline, preprocess)
    score, arguments = target_score(probe, images, target, batch_size)
    run = probe.with_gradients(score)
    sums = np.zeros_like(images)
    points = np.arange(steps * len(images))  # image by image
    done = 0
    for rows, count in chunks_with_progress(batch_size, verbose, points):
        index = rows // steps
        fractions = ((rows % steps + 0.5) / steps).astype("float32")[:, None, None, None]
        between = baselines[index] + fractions * (images[index] - baselines[index])
        _, gradients, _ = run(between, *(each[index] for each in arguments))
        np.add.at(sums, index[:count], ops.convert_to_numpy(gradients)[:count])
        done += count
    whole = done // steps
    images, baselines, arguments = images[:whole], baselines[:whole], [each[:whole] for each in arguments]
    attributions = (images - baselines) * sums[:whole] / np.float32(steps)
    gap = np.zeros(0)
    if whole:
        ends = [_scores(probe, score, each, arguments, batch_size) for each in (images, baselines)]
        difference = ends[0] - ends[1]
        gap = attributions.sum(axis=(1, 2, 3), dtype="float64") - difference
        _tell_of(gap, difference, steps)
    return (attributions, gap.astype("float32")) if return_gap else attributions


def _baselines(model, images, baseline, preprocess):
    if baseline is None:
        carried = getattr(model, "preprocessing", None)
        is_prepared = preprocess is None and isinstance(carried, Preprocessing)
        baseline = carried(np.zeros(images.shape[-1], "float32")) if is_prepared else 0.0
    baseline = np.asarray(baseline, "float32")
    if baseline.shape not in ((), images.shape[-1:], images.shape[1:], images.shape):
        raise ValueError(
            f"baseline is a number, an image {list(images.shape[1:])} or one for each image {list(images.shape)}: got "
            f"{list(baseline.shape)}."
        )
    return np.broadcast_to(baseline, images.shape)


def _scores(probe, score, images, arguments, batch_size):
    parts = []
    for *rows, count in chunks(batch_size, images, *arguments):
        parts.append(ops.convert_to_numpy(ops.cast(score(probe(rows[0]), *rows[1:]), "float32"))[:count])
    return np.concatenate(parts).astype("float64")


def _tell_of(gap, difference, steps):
    worst = int(np.argmax(np.abs(gap) - LARGEST_GAP * np.abs(difference)))
    if abs(gap[worst]) > LARGEST_GAP * abs(difference[worst]) + 1e-6:
        logging.getLogger("kvision").warning(
            "integrated_gradients: the attributions of image %d add up to %.3g, its score differs by %.3g from that of "
            "the baseline. Raise steps above %d.",
            worst,
            difference[worst] + gap[worst],
            difference[worst],
            steps,
        )
