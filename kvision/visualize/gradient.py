"""Gradient of a class score by the pixels, plain, times the image, or averaged over noisy copies (SmoothGrad).

Simonyan, Vedaldi & Zisserman 2014, "Deep Inside Convolutional Networks: Visualising Image Classification Models and
Saliency Maps", section 3; Smilkov et al. 2017, "SmoothGrad: removing noise by adding noise", section 3.
Deviation: gradients stay signed and keep their channels; `saliency_map` makes the map of the first paper of them.
"""

import math

import numpy as np
from keras import ops

from kvision.visualize.images import check_differentiable, checked_images
from kvision.visualize.probe import Probe
from kvision.visualize.progress import progress
from kvision.visualize.targets import chunks, target_score


def gradient(model, images, target=None, *, times_input=False, preprocess=None, batch_size=32, verbose=0):
    """The gradient of a score by the pixels: how the score changes where a pixel grows a little.

    Simonyan 2014, section 3; times the input: Shrikumar 2016, "Not just a black box", section 3. It tells of the
    surroundings of an image, so it is small where the score is saturated.

    Args:
        model: A built `keras.Model` with one input of images.
        images: [b, h, w, c] or [h, w, c], as the model takes them, or as `preprocess` does.
        target: A class index, one for each image, None (the predicted class), or a function of the outputs → [b]. Of a
            model that ends in probabilities it is the logit.
        times_input: Whether each gradient is multiplied by its pixel: what the pixel adds to a linear score.
        preprocess: A function from `images` to what the model takes, through which the gradient goes.
        batch_size: Images of a chunk.
        verbose: 1 shows a progress bar.

    Returns:
        float32 [b, h, w, c], signed, in units of score by units of `images`. Ctrl-C gives the first ones.

    Raises:
        ValueError: on a model that is not built or whose input is of integers, on images of another size or range, and
            on classes that it does not have.

    >>> model = keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
    >>> gradient(model, np.ones((5, 2, 2, 1)), target=0).shape
    (5, 2, 2, 1)
    """
    probe = Probe(model, preprocess=preprocess)
    images = checked_images(model, images, preprocess)
    check_differentiable(model)
    score, arguments = target_score(probe, images, target, batch_size)
    gradients = image_gradients(probe, images, score, arguments, batch_size, verbose)
    return gradients * images[: len(gradients)] if times_input else gradients


def smooth_grad(
    model, images, target=None, *, noise=0.15, samples=25, preprocess=None, batch_size=32, seed=0, verbose=0
):
    """The mean gradient of noisy copies of each image, in which what changes from pixel to pixel is averaged away.

    Smilkov 2017, section 3. The class of an image is predicted without noise.

    Args:
        model, images, target, preprocess, batch_size, verbose: As of `gradient`.
        noise: Standard deviation of the Gaussian noise as a fraction of the range of each image, largest minus smallest
            value: 0.1 to 0.2 in the paper.
        samples: Copies of each image; little changes above 50.
        seed: Of the noise, which is the same for any `batch_size`.

    Returns:
        float32 [b, h, w, c], signed. Ctrl-C gives the means of the copies there are, of the images reached.

    Raises:
        ValueError: as `gradient`, and on negative noise or fewer than one sample.

    >>> model = keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
    >>> smooth_grad(model, np.ones((5, 2, 2, 1)), target=0, samples=2).shape
    (5, 2, 2, 1)
    """
    if not (noise >= 0 and samples >= 1):
        raise ValueError(
            f"smooth_grad needs noise of at least 0, a fraction of the range of an image, and at least 1 sample: got "
            f"noise={noise!r}, samples={samples!r}."
        )
    probe = Probe(model, preprocess=preprocess)
    images = checked_images(model, images, preprocess)
    check_differentiable(model)
    score, arguments = target_score(probe, images, target, batch_size)
    run = probe.with_gradients(score)
    deviations = noise * (images.max(axis=(1, 2, 3)) - images.min(axis=(1, 2, 3)))
    sums, counts = np.zeros_like(images), np.zeros(len(images), int)
    copies = np.arange(samples * len(images))
    for rows, count in chunks_with_progress(batch_size, verbose, copies):
        index = rows % len(images)
        drawn = [np.random.default_rng((seed, row)).standard_normal(images.shape[1:], "float32") for row in rows]
        noisy = images[index] + deviations[index][:, None, None, None] * np.stack(drawn)
        _, gradients, _ = run(noisy.astype("float32"), *(each[index] for each in arguments))
        np.add.at(sums, index[:count], ops.convert_to_numpy(gradients)[:count])
        np.add.at(counts, index[:count], 1)
    reached = counts > 0
    return sums[reached] / counts[reached][:, None, None, None].astype("float32")


def saliency_map(gradients):
    """The class saliency map of Simonyan 2014, section 3.1: the largest magnitude over the channels.

    Args:
        gradients: [b, h, w, c], what `gradient` and its kin give.

    Returns:
        [b, h, w], 0 or more.

    Raises:
        ValueError: on another number of axes.

    >>> saliency_map(np.array([[[[1.0, -3.0]]]])).tolist()
    [[[3.0]]]
    """
    if np.ndim(gradients) != 4:
        raise ValueError(f"saliency_map takes gradients [b, h, w, c]: got {list(np.shape(gradients))}.")
    return np.abs(gradients).max(axis=-1)


def image_gradients(probe, images, score, arguments, batch_size, verbose):
    """Gradients by the images of scores, as `Probe.with_gradients` takes them, chunk by chunk.

    Returns:
        float32 [b, h, w, c], or the first of them after Ctrl-C.
    """
    run = probe.with_gradients(score)
    parts = []
    for *rows, count in chunks_with_progress(batch_size, verbose, images, *arguments):
        _, gradients, _ = run(*rows)
        parts.append(ops.convert_to_numpy(gradients)[:count])
    return np.concatenate(parts)


def chunks_with_progress(batch_size, verbose, *arrays):
    """`chunks` of arrays with a progress bar; the first Ctrl-C makes the present one the last."""
    return progress(chunks(batch_size, *arrays), math.ceil(len(arrays[0]) / max(1, batch_size)), verbose)
