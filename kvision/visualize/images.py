"""Images as the techniques take them: checked before any work begins."""

import keras
import numpy as np

from kvision._keras import graph_of
from kvision.network import Preprocessing
from kvision.visualize.places import places

SLACK = 0.5  # of the range a preprocessing gives, by which images may leave it


def checked_images(model, images, preprocess=None):
    """Images [b, h, w, c] as float32, checked against what a model takes.

    Args:
        model: A built `keras.Model` with one input of images.
        images: An array of any numeric type, [b, h, w, c], or one image [h, w, c].
        preprocess: A function of tensors that turns them into what the model takes, perhaps of another size; None:
            they are that.

    Returns:
        A NumPy array [b, h, w, c].

    Raises:
        ValueError: on another number of axes, size or channels, none at all, values that are not finite, a `preprocess`
            that gives no tensor, and images of another range, where that is known: of 0…1 where a `Rescaling` begins
            the model or a `preprocess` of ours or Keras's was passed, of 0…255 where the model carries a
            `preprocessing` that gives another range and none was passed.
    """
    if preprocess is not None and not callable(preprocess):
        raise ValueError(f"preprocess is a function from images to what {model.name} takes: got {preprocess!r}.")
    images = np.asarray(images if isinstance(images, np.ndarray | list) else keras.ops.convert_to_numpy(images))
    images = images[None] if images.ndim == 3 else images
    if images.ndim != 4 or not images.size or images.dtype.kind not in "uifb":
        raise ValueError(
            f"Expected images [b, h, w, c] of numbers, at least one: got {images.dtype} {list(images.shape)}."
        )
    images = images.astype("float32")
    if not np.isfinite(images).all():
        wrong = int(np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))[0])
        raise ValueError(f"Image {wrong} holds values that are not finite: expected finite pixels.")
    _check_range(model, images, preprocess)
    _check_shape(model, images.shape if preprocess is None else _prepared_shape(images[:1], preprocess))
    return images


def check_differentiable(model):
    """Raise where the input of a model is of integers, through which no gradient flows."""
    for tensor in getattr(graph_of(model), "inputs", None) or ():
        if not keras.backend.is_float_dtype(tensor.dtype):
            raise ValueError(
                f"The input {tensor.name!r} of {model.name} is {tensor.dtype}, through which no gradient flows: "
                'expected a float dtype. Build the model on keras.Input(shape, dtype="float32").'
            )


def rescales(model):
    """Whether the first layer of a model turns 0…255 into something smaller."""
    first = next((layer for layer in places(model).values() if not isinstance(layer, keras.Model)), None)
    if not isinstance(first, keras.layers.Rescaling):
        return False
    return bool(np.all((np.asarray(first.scale) > 0) & (np.asarray(first.scale) <= 0.01)))


def _check_shape(model, shape):
    inputs = getattr(graph_of(model), "inputs", None) or [None]
    if len(inputs) > 1:
        names = ", ".join(tensor.name for tensor in inputs)
        raise ValueError(f"{model.name} has {len(inputs)} inputs, {names}: expected one, of images.")
    expected = (None,) * 4 if inputs[0] is None else tuple(inputs[0].shape)
    if len(expected) == len(shape) and all(e in (None, g) for g, e in zip(shape[1:], expected[1:], strict=True)):
        return
    wanted = ", ".join("any" if size is None else str(size) for size in expected[1:])
    advice = "Resize them, or build the model for their size."
    if len(expected) != len(shape):
        advice = "Give a model of images."
    elif expected[-1] not in (None, shape[-1]):
        advice = f"Give images of {expected[-1]} channels."
    raise ValueError(f"{model.name} takes images [b, {wanted}]: got {list(shape)}. {advice}")


def _prepared_shape(images, preprocess):
    """The shape of images behind `preprocess`, which is tried on one."""
    given, advice = "an error", "It is called with tensors, in a graph: use keras.ops, or a layer."
    try:
        prepared = preprocess(keras.ops.convert_to_tensor(images))
        given = type(prepared).__name__
    except (AttributeError, TypeError, NotImplementedError) as error:
        raise ValueError(f"preprocess fails on a tensor: {error}. {advice}") from error
    if not keras.ops.is_tensor(prepared):
        raise ValueError(f"preprocess gives {given}: expected a tensor. {advice}")
    return tuple(prepared.shape)


def _check_range(model, images, preprocess):
    low, high = float(images.min()), float(images.max())
    of_bytes = isinstance(preprocess, Preprocessing) or _module(preprocess).startswith("keras.")
    if of_bytes or (preprocess is None and rescales(model)):
        name = f"{model.name} begins with a Rescaling of" if preprocess is None else "preprocess takes"
        if 0 < high <= 1 and low >= 0:
            raise ValueError(f"{name} images of 0…255: got values from {low:.3g} to {high:.3g}. Multiply them by 255.")
        if preprocess is None and (low < -SLACK * 255 or high > (1 + SLACK) * 255):
            raise ValueError(f"{name} images of 0…255: got values from {low:.3g} to {high:.3g}.")
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


def _module(function):
    return getattr(function, "__module__", None) or ""
