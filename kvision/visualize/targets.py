"""What is looked at: a class, any score of the outputs, or a unit of a layer."""

import math

import keras
import numpy as np
from keras import ops

from kvision.visualize.logits import look_like_probabilities

NOISE = 1e4  # deviation of images such as none is


def class_indices(probe, images, target, batch_size=32, probabilities=False):
    """The class of each image as int32 [b]: as given, or the one with the highest logit.

    Args:
        probe: A `Probe` of a model with outputs [b, classes], or [b, 1] of two classes.
        images: [b, h, w, c], checked.
        target: A class index, one for each image, or None for the predicted class of each.
        batch_size: Of the forward passes.
        probabilities: Whether a model may give them where no end of its graph can be taken away.

    Raises:
        ValueError: on outputs of another form, on probabilities that could not be turned into logits, and on classes
            that the model does not have.
    """
    name = probe.model.name
    outputs = [probe(chunk).outputs for chunk, _ in chunks(batch_size, images)]
    if not hasattr(outputs[0], "shape") or len(outputs[0].shape) != 2:
        got = tuple(outputs[0].shape) if hasattr(outputs[0], "shape") else type(outputs[0]).__name__
        raise ValueError(
            f"{name} gives {got}: expected logits [b, classes]. Give target=function(outputs) → a score of each image "
            "[b]."
        )
    outputs = np.concatenate([ops.convert_to_numpy(each) for each in outputs])[: len(images)]
    is_probable = gives_probabilities(probe, outputs, next(chunks(batch_size, images))[0])
    if is_probable and not probabilities:
        raise ValueError(
            f"{name} gives probabilities, whose gradient vanishes where it is sure, and its softmax or sigmoid was not "
            "found: expected logits. Build it without that end, or give target=function(outputs) → scores [b], such as "
            "the logarithm of one."
        )
    classes = max(2, outputs.shape[1])
    if target is None:
        single = outputs[:, 0] > (0.5 if is_probable else 0.0)
        return (outputs.argmax(axis=1) if outputs.shape[1] > 1 else single).astype("int32")
    given = np.asarray(target)
    if given.dtype.kind not in "iu" or given.shape not in ((), (len(images),)):
        raise ValueError(
            f"target is a class index, one for each of the {len(images)} images, None, or a function of the outputs: "
            f"got {target!r}."
        )
    wrong = np.atleast_1d(given)[(np.atleast_1d(given) < 0) | (np.atleast_1d(given) >= classes)]
    if wrong.size:
        raise ValueError(f"{name} has the classes 0 to {classes - 1}: got target {int(wrong[0])}.")
    return np.broadcast_to(given, (len(images),)).astype("int32")


def gives_probabilities(probe, outputs, images):
    """Whether the outputs of a model are probabilities, where no end of its graph told: they stay so for any images.

    Args:
        probe: A `Probe` of it.
        outputs: [n, classes], in NumPy.
        images: A chunk of images, whose form is that of noise in which logits would leave [0, 1].
    """
    if not look_like_probabilities(outputs, probe.model):
        return False
    noise = np.random.default_rng(0).normal(0, NOISE, images.shape).astype("float32")
    return look_like_probabilities(ops.convert_to_numpy(probe(noise).outputs), probe.model)


def target_score(probe, images, target, batch_size=32, probabilities=False):
    """`(score, arguments)` for `Probe.with_gradients`: of classes, or of a function of the outputs.

    Args: as of `class_indices`; `target` may be a function of the outputs → [b] besides.

    Returns:
        `score(look, *arguments)` → [b], and a tuple of arrays with a row for each image: its class, or none.
    """
    if callable(target):

        def of_outputs(look):
            scores = target(look.outputs)
            if len(scores.shape) != 1:
                raise ValueError(f"target gives {tuple(scores.shape)}: expected a score for each image [b].")
            return scores

        return of_outputs, ()
    return class_score, (class_indices(probe, images, target, batch_size, probabilities),)


def class_score(look, classes):
    """The logit of a class for each image: [b]."""
    return ops.take_along_axis(class_logits(look.outputs), ops.cast(classes, "int32")[:, None], axis=1)[:, 0]


def class_logits(outputs):
    """Logits [b, classes]; a model of one logit z has two classes, whose scores are −z and z."""
    return outputs if outputs.shape[1] > 1 else ops.concatenate([-outputs, outputs], axis=1)


def check_unit(layer, shape, unit):
    """A unit of a layer as a tuple: `(channel,)`, or the whole index of one value `(row, column, channel)`.

    Args:
        layer: Its name, for the error.
        shape: Of its outputs, the batch included.
        unit: A channel, of the last axis, or an index of all axes but the batch.

    Raises:
        ValueError: on one out of range or of another number of axes.
    """
    index = (unit,) if np.ndim(unit) == 0 else tuple(unit)
    if not all(isinstance(each, int | np.integer) for each in index):
        raise ValueError(f"A unit of {layer!r} is a channel or an index of all axes, in whole numbers: got {unit!r}.")
    sizes = tuple(shape[1:]) if len(index) > 1 or len(shape) == 2 else (shape[-1],)
    if len(index) != len(sizes) or any(not 0 <= i < size for i, size in zip(index, sizes, strict=True)):
        raise ValueError(
            f"The layer {layer!r} gives [b, {', '.join(map(str, shape[1:]))}]: got unit {unit!r}. Give a channel from "
            f"0 to {shape[-1] - 1}, or an index of all axes within these sizes."
        )
    return tuple(int(i) for i in index)


def unit_values(activations, unit):
    """The values of a unit for each image: [b, positions], where a channel has one for each position.

    Args:
        activations: [b, …, channels].
        unit: What `check_unit` gave.
    """
    if len(unit) > 1 or len(activations.shape) == 2:
        return activations[(slice(None), *unit)][:, None]
    return ops.reshape(activations[..., unit[0]], (-1, math.prod(activations.shape[1:-1])))


def chunks(batch_size, *arrays):
    """`(rows, …, how many count)` of arrays, as many each time, the last ones repeated to fill: one trace for all.

    Args:
        batch_size: Rows of a chunk; fewer where there are not so many.
        *arrays: With equally many rows.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    rows = len(arrays[0])
    size = min(batch_size, rows)
    for start in range(0, rows, size):
        index = np.minimum(np.arange(start, start + size), rows - 1)
        yield (*(array[index] for array in arrays), min(size, rows - start))


def in_chunks(function, batch_size, *arrays):
    """`function` of chunks of arrays, its results joined row by row as NumPy arrays."""
    parts = []
    for *rows, count in chunks(batch_size, *arrays):
        result = function(*rows)
        parts.append(keras.tree.map_structure(lambda each, count=count: ops.convert_to_numpy(each)[:count], result))
    return keras.tree.map_structure(lambda *each: np.concatenate(each), *parts)
