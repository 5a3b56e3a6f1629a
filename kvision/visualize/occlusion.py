"""Occlusion: how far a score drops where a window of the image is covered.

Zeiler & Fergus 2014, "Visualizing and Understanding Convolutional Networks" (arXiv 2013), section 4.2.
Deviations: the map shows the drop of the logit, not the probability itself; each pixel has the mean of all windows that
cover it, and the last windows of a row lie against the border, so that every window is whole.
"""

import numpy as np
from keras import ops

from kvision.visualize.gradient import chunks_with_progress
from kvision.visualize.images import checked_images
from kvision.visualize.probe import Probe
from kvision.visualize.targets import target_score


def occlusion(
    model,
    images,
    target=None,
    *,
    window=None,
    stride=None,
    fill=None,
    preprocess=None,
    batch_size=32,
    verbose=0,
):
    """How far the score drops where a window is covered, on average over the windows that cover a pixel.

    Zeiler 2013, section 4.2. It runs a forward pass for each window: ((h − window) / stride + 1)² of them an image.

    Args:
        model, images, target, preprocess, verbose: As of `gradient`; the model need not be differentiable.
        window: Side of the window in pixels, or height and width. None: a seventh of the shorter side, 32 of 224.
        stride: Pixels from window to window, at most their side, or downwards and sideways. None: a quarter of it.
        fill: What covers: a number in the units of `images`, or one for each channel. None: the mean of each channel of
            the image, the paper's grey.
        batch_size: Covered images of a forward pass.

    Returns:
        float32 [b, h, w], positive where covering lowers the score, in units of the score. Ctrl-C gives the images
        begun; where no window of the last one has been, it is NaN.

    Raises:
        ValueError: as `gradient`, and on windows that do not fit the image, strides that leave gaps, and a fill of
            another shape.

    >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
    >>> occlusion(model, np.ones((5, 8, 8, 1)), target=0, window=4, stride=2).shape
    (5, 8, 8)
    """
    plain = Probe(model, preprocess=preprocess)
    images = checked_images(model, images, preprocess)
    window = _pair("window", max(1, round(min(images.shape[1:3]) / 7)) if window is None else window)
    stride = _pair("stride", [max(1, side // 4) for side in window] if stride is None else stride)
    if any(not 1 <= side <= length for side, length in zip(window, images.shape[1:3], strict=True)):
        raise ValueError(f"window must fit images of {list(images.shape[1:3])} pixels: got {list(window)}.")
    if any(not 1 <= step <= side for step, side in zip(stride, window, strict=True)):
        raise ValueError(
            f"stride lies between 1 and the window {list(window)}, or pixels are left out: got {list(stride)}."
        )
    fills = fill_colours(images, fill)
    score, arguments = target_score(plain, images, target, batch_size, probabilities=True)
    tops, lefts = (_starts(*each) for each in zip(images.shape[1:3], window, stride, strict=True))
    # Each image is run once uncovered: by a window below its last row.
    windows = np.array([(images.shape[1], 0), *((top, left) for top in tops for left in lefts)], "int32")
    probe = Probe(model, preprocess=_covering(window, preprocess))
    whole = ops.convert_to_tensor(images), ops.convert_to_tensor(fills)
    scores = np.full((len(images), len(windows)), np.nan, "float32")
    pairs = np.arange(scores.size)
    for rows, count in chunks_with_progress(batch_size, verbose, pairs):
        index = (rows // len(windows)).astype("int32")
        look = probe((*whole, ops.convert_to_tensor(index), ops.convert_to_tensor(windows[rows % len(windows)])))
        given = score(look, *(each[index] for each in arguments))
        scores.flat[rows[:count]] = ops.convert_to_numpy(ops.cast(given, "float32"))[:count]
    scores = scores[~np.isnan(scores[:, 0])]
    drops = (scores[:, :1] - scores[:, 1:]).reshape(-1, len(tops), len(lefts))
    rows, columns = (_covered(*each) for each in zip((tops, lefts), window, images.shape[1:3], strict=True))
    return _mean_over_windows(drops, rows, columns)


def _pair(name, value):
    pair = (value, value) if np.ndim(value) == 0 else tuple(value)
    if len(pair) != 2 or any(int(each) != each for each in pair):
        raise ValueError(f"{name} is a number of pixels, or two, along height and width: got {value!r}.")
    return tuple(int(each) for each in pair)


def fill_colours(images, fill):
    """What covers each image: [b, c]."""
    if fill is None:
        return images.mean(axis=(1, 2))
    fill = np.asarray(fill, "float32")
    if fill.shape not in ((), images.shape[-1:]):
        raise ValueError(f"fill is a number, or one for each of the {images.shape[-1]} channels: got {fill.tolist()}.")
    return np.broadcast_to(fill, (len(images), images.shape[-1])).copy()


def _starts(length, side, step):
    """Where windows begin along an axis; the last one ends at the border."""
    return np.unique([*range(0, length - side, step), length - side])


def _covered(starts, side, length):
    """Which pixels of an axis each window covers: [windows, length]."""
    pixels = np.arange(length)
    return ((pixels >= starts[:, None]) & (pixels < starts[:, None] + side)).astype("float64")


def _covering(window, preprocess):
    """What turns images, fills, indices of images and corners of windows into what the model takes.

    The covered images are made where the model runs, so that none of them is sent there.
    """

    def cover(packed):
        images, fills, index, corners = packed
        height, width, channels = images.shape[1:]
        top, left = corners[:, :1], corners[:, 1:]
        rows, columns = ops.arange(height), ops.repeat(ops.arange(width), channels)
        rows = ops.cast((rows >= top) & (rows < top + window[0]), "float32")[:, :, None]
        columns = ops.cast((columns >= left) & (columns < left + window[1]), "float32")[:, None, :]
        inside = rows * columns  # [n, h, w · c], whose long rows are faster than short ones of c
        chosen = ops.reshape(ops.take(images, index, axis=0), inside.shape)
        colours = ops.tile(ops.take(fills, index, axis=0), (1, width))[:, None, :]
        covered = ops.reshape(chosen * (1 - inside) + colours * inside, (-1, height, width, channels))
        return covered if preprocess is None else preprocess(covered)

    return cover


def _mean_over_windows(drops, rows, columns):
    known = ~np.isnan(drops)
    total = np.einsum("brc,rh,cw->bhw", np.where(known, drops, 0.0), rows, columns, optimize=True)
    count = np.einsum("brc,rh,cw->bhw", known.astype("float64"), rows, columns, optimize=True)
    return np.where(count > 0.5, total / np.maximum(count, 1), np.nan).astype("float32")
