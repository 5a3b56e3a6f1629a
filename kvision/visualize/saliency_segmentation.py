"""Segmentation of the object of a class out of its saliency (Simonyan 2014, "Deep inside convolutional networks",
section 3.2).

Two mixtures of Gaussians model the colours of the object, from the pixels of high saliency, and of the ground, from
those of low saliency; GrabCut (Rother 2004, as OpenCV has it) cuts the image between both, and the largest connected
component is the object. As in the paper, saliency decides about no pixel itself. The paper cuts once with the authors'
graph cut; GrabCut learns the models anew from what it cut, `iterations` times in all.
"""

import logging

import numpy as np

from kvision.visualize.adversarial.attack import check_counts, check_within, checked_bounds
from kvision.visualize.images import check_differentiable, checked_images
from kvision.visualize.probe import Probe
from kvision.visualize.progress import progress
from kvision.visualize.targets import in_chunks, target_score


def segment_by_saliency(
    model,
    images,
    *,
    target=None,
    saliency=None,
    foreground=0.95,
    background=0.30,
    iterations=5,
    bounds=(0.0, 255.0),
    preprocess=None,
    batch_size=32,
    seed=0,
    verbose=0,
):
    """Segment the object that a classifier sees, without any mask to learn from (Simonyan 2014, section 3.2).

    Needs OpenCV: `pip install 'kvision[classic]'`.

    Args:
        model: A built `keras.Model` of images → logits or probabilities [b, classes].
        images: [b, h, w, 3] or [b, h, w, 1] within `bounds`: what the model takes, or with `preprocess`, what that
            takes.
        target: A class index, one for each image, None for the predicted class, or a function of the outputs → a score
            for each image [b].
        saliency: Maps [b, h, w] of any technique, of at least 0, instead of the gradient of the target: the largest
            magnitude over the channels.
        foreground, background: Quantiles of the saliency of an image: pixels above the first model the object, those
            up to the second the ground.
        iterations: Of GrabCut.
        bounds: The least and the largest value of a pixel, in the units of the images.
        preprocess: A function from images to what the model takes, such as `model.preprocessing`.
        batch_size: Images whose saliency is computed at a time.
        seed: Of the clustering of colours, set as OpenCV's own.
        verbose: 1 shows a bar.

    Returns:
        Masks, bool [b, h, w], True on the object. After Ctrl-C those of the images that were segmented. The log
        `kvision` names images whose mask is empty or whole.

    Raises:
        ValueError: on images outside the bounds or of another number of channels, quantiles out of order, saliency of
            another shape or without differences, and a target that the model does not have.
        ImportError: without OpenCV.

    >>> image = np.full((1, 16, 16, 3), 40.0)
    >>> image[0, 4:12, 5:11] = (200, 60, 60)
    >>> model = keras.Sequential([keras.Input((16, 16, 3)), layers.Flatten(), layers.Dense(2)])
    >>> saliency = np.zeros((1, 16, 16))
    >>> saliency[0, 6:9, 7:9] = 1.0
    >>> masks = kvision.visualize.segment_by_saliency(model, image, saliency=saliency)
    >>> masks.shape, int(masks.sum())
    ((1, 16, 16), 48)
    """
    check_counts(iterations=iterations)
    if not 0 < background < foreground < 1:
        raise ValueError(
            f"Quantiles: expected 0 < background < foreground < 1, got background={background}, "
            f"foreground={foreground}."
        )
    bounds = checked_bounds(bounds)
    images = checked_images(model, images, preprocess)
    check_within(images, bounds)
    if images.shape[-1] not in (1, 3):
        raise ValueError(
            f"GrabCut takes colours or grey values, [b, h, w, 3] or [b, h, w, 1]: got {list(images.shape)}."
        )
    cv2 = _opencv()
    if saliency is None:
        saliency = _gradient(model, images, target, preprocess, batch_size)
    elif target is not None:
        raise ValueError("target= chooses what the gradient is of: got saliency= as well. Give one of them.")
    saliency = _checked_saliency(saliency, images, foreground)
    masks = []
    for image, one in progress(list(zip(images, saliency, strict=True)), verbose=verbose):
        cv2.setRNGSeed(seed)
        values = (image - bounds[0]) * (255 / (bounds[1] - bounds[0]))
        pixels = np.round(np.repeat(values, 3 // image.shape[-1], axis=-1)).astype("uint8")
        masks.append(_segment(cv2, pixels, one, foreground, background, iterations))
    masks = np.stack(masks)
    _tell_of_empty(masks)
    return masks


def _tell_of_empty(masks):
    for found, what in ((~masks.any(axis=(1, 2)), "no pixel"), (masks.all(axis=(1, 2)), "every pixel")):
        if found.any():
            logging.getLogger("kvision").warning(
                "segment_by_saliency: %s of image %s is object, so GrabCut could not part it from the ground. Choose "
                "another target= or saliency=, or other quantiles foreground= and background=.",
                what,
                ", ".join(map(str, np.flatnonzero(found).tolist())),
            )


def _gradient(model, images, target, preprocess, batch_size):
    probe = Probe(model, preprocess=preprocess)
    check_differentiable(model)
    score, arguments = target_score(probe, images, target, batch_size)
    run = probe.with_gradients(score)
    gradients = in_chunks(lambda *chunk: run(*chunk)[1], batch_size, images, *arguments)
    return np.abs(gradients).max(axis=-1)


def _checked_saliency(saliency, images, foreground):
    saliency = np.asarray(saliency, "float32")
    if saliency.shape != images.shape[:3]:
        raise ValueError(f"saliency is a map for each image, {list(images.shape[:3])}: got {list(saliency.shape)}.")
    if not np.isfinite(saliency).all() or saliency.min() < 0:
        raise ValueError(
            "saliency is a magnitude, finite and at least 0: got values from "
            f"{saliency.min():.3g} to {saliency.max():.3g}. Give its absolute value, or what is positive of it."
        )
    for index, one in enumerate(saliency):
        if one.max() <= one.min():
            raise ValueError(
                f"The saliency of image {index} is {one.max():.3g} everywhere: expected differences. Choose another "
                "target, or leave the image out."
            )
    return saliency


def _segment(cv2, pixels, saliency, foreground, background, iterations):
    """The mask of one image of uint8 [h, w, 3]."""
    is_object = saliency > min(np.quantile(saliency, foreground), np.nextafter(saliency.max(), -np.inf))
    is_ground = (saliency <= np.quantile(saliency, background)) & ~is_object
    sure = is_object | is_ground
    models = np.zeros((1, 65)), np.zeros((1, 65))  # five Gaussians of colours each, as OpenCV keeps them
    labels = np.where(is_object[sure], cv2.GC_FGD, cv2.GC_BGD).astype("uint8")[None]
    cv2.grabCut(pixels[sure][None], labels, None, *models, 0, cv2.GC_INIT_WITH_MASK)  # from sure pixels alone
    labels = np.where(is_object, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype("uint8")
    cv2.grabCut(pixels, labels, None, *models, 1, cv2.GC_EVAL_FREEZE_MODEL)
    is_mixed = np.ptp(labels) > 0
    if iterations > 1 and is_mixed:
        cv2.grabCut(pixels, labels, None, *models, iterations - 1, cv2.GC_EVAL)
    return _largest_component(cv2, (labels == cv2.GC_PR_FGD).astype("uint8"))


def _largest_component(cv2, mask):
    count, components, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    if count < 2:  # the ground alone
        return np.zeros(mask.shape, bool)
    return components == 1 + statistics[1:, cv2.CC_STAT_AREA].argmax()


def _opencv():
    try:
        import cv2
    except ImportError:
        raise ImportError("GrabCut is OpenCV's: pip install 'kvision[classic]'") from None
    return cv2
