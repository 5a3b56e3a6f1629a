"""Images as the techniques take them: checked before any work begins."""

import keras
import numpy as np

from kvision._keras import graph_of
from kvision.network import Preprocessing

SLACK = 0.5  # of the range a preprocessing gives, by which images may leave it


def checked_images(model, images, preprocess=None):
    """Images [b, h, w, c] as float32, checked against what a model takes.

    Args:
        model: A built `keras.Model` with one input of images.
        images: An array of any numeric type, [b, h, w, c], or one image [h, w, c].
        preprocess: What turns them into what the model takes; None: nothing.

    Returns:
        A NumPy array [b, h, w, c].

    Raises:
        ValueError: on another number of axes, size or channels, none at all, values that are not finite, and images of
            0…255 where the model carries a `preprocessing` that gives another range and none was passed, or of 0…1
            where one of 0…255 was.
    """
    images = np.asarray(keras.ops.convert_to_numpy(images) if not isinstance(images, np.ndarray | list) else images)
    images = images[None] if images.ndim == 3 else images
    inputs = getattr(graph_of(model), "inputs", None) or [None]
    if len(inputs) > 1:
        names = ", ".join(tensor.name for tensor in inputs)
        raise ValueError(f"{model.name} has {len(inputs)} inputs, {names}: expected one, of images.")
    expected = tuple(inputs[0].shape) if inputs[0] is not None else (None,) * 4
    fits = images.ndim == 4 and len(expected) == 4 and len(images) > 0
    if not fits or any(e not in (None, g) for g, e in zip(images.shape[1:], expected[1:], strict=True)):
        shape = ", ".join("any" if size is None else str(size) for size in expected[1:])
        raise ValueError(
            f"{model.name} takes images [b, {shape}]: got {list(images.shape)}. Resize them, or build the model for "
            "their size."
        )
    images = images.astype("float32")
    if not np.isfinite(images).all():
        wrong = int(np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))[0])
        raise ValueError(f"Image {wrong} holds values that are not finite: expected finite pixels.")
    _check_range(model, images, preprocess)
    return images


def check_differentiable(model):
    """Raise where the input of a model is of integers, through which no gradient flows."""
    for tensor in getattr(graph_of(model), "inputs", None) or ():
        if not keras.backend.is_float_dtype(tensor.dtype):
            raise ValueError(
                f"The input {tensor.name!r} of {model.name} is {tensor.dtype}, through which no gradient flows: "
                'expected a float dtype. Build the model on keras.Input(shape, dtype="float32").'
            )


def _check_range(model, images, preprocess):
    low, high = float(images.min()), float(images.max())
    if isinstance(preprocess, Preprocessing):
        if 0 < high <= 1 and low >= 0:
            raise ValueError(
                f"preprocess takes images of 0…255: got values from {low:.3g} to {high:.3g}. Multiply them by 255."
            )
        return
    carried = getattr(model, "preprocessing", None)
    if preprocess is None and isinstance(carried, Preprocessing):
        ends = carried(np.stack([np.zeros(images.shape[-1]), np.full(images.shape[-1], 255.0)]))
        span = float(ends.max() - ends.min())
        if high > float(ends.max()) + SLACK * span:
            raise ValueError(
                f"The preprocessing of {model.name} gives values from {float(ends.min()):.3g} to "
                f"{float(ends.max()):.3g}: got images from {low:.3g} to {high:.3g}. Pass "
                "preprocess=model.preprocessing, or preprocessed images."
            )
