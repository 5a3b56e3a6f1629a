"""Torch's names and layouts: which array of a state dict belongs to which weight, and how it is turned."""

import re

import keras
import numpy as np

from kvision._keras import inbound_nodes, producer
from kvision.errors import unknown
from kvision.weights.comparison import Entry, compared, weights_of
from kvision.weights.files import MOST_EXPANSION, Refused
from kvision.weights.sources import sources_of

SOURCES = ("torchvision", "timm", "transformers", "effdet", "detr", "torchfcn")

# How a weight of ours is called in torch. Others keep their name.
LEAVES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}

# Entries of a state dict that are no weights: counters, and constants that follow from the architecture.
NOT_WEIGHTS = ("num_batches_tracked", "relative_position_index", "attn_mask")


def matched(model, state, source):
    """A `Fitted` of every weight of the model, or the ValueError that says what does not fit."""
    rules = rules_of(model, source)
    left = {key: value for key, value in state.items() if not key.endswith(NOT_WEIGHTS)}
    count, entries = len(left), []
    for layer, variable in weights_of(model):
        key = torch_key(variable.path, rules)
        value = left.pop(key, None)
        if value is not None:
            value = _from_torch(layer, variable, _numpy(key, value))
        entries.append(Entry(layer, variable, variable.path, value, key))
    absent = tuple(torch_key(f"{name}/kernel", rules).removesuffix("weight") for name in sources_of(model).top)
    return compared(model, entries, [key for key in left if not key.startswith(absent)], count)


def rules_of(model, source):
    if source not in SOURCES:
        raise unknown("source", source, SOURCES)
    return sources_of(model).renames.get(source, [])


def keys_of(model, source):
    """What torch calls the weights of a model, those of its top last."""
    rules, sources = rules_of(model, source), sources_of(model)
    weights = sorted(weights_of(model), key=lambda owned: sources.is_top(owned[0].name))
    return [torch_key(variable.path, rules) for _, variable in weights]


def torch_key(path, rules):
    *modules, leaf = path.split("/")
    return renamed(".".join([*modules, LEAVES.get(leaf, leaf)]), rules)


def renamed(key, rules):
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def _numpy(key, value):
    if not hasattr(value, "detach"):
        return np.asarray(value)  # of a mapped file nothing is read yet
    value = value.detach().cpu()
    if value.numel() * value.element_size() > MOST_EXPANSION * value.untyped_storage().nbytes():
        raise Refused(
            f"{key!r} declares the shape {tuple(value.shape)} and holds {value.untyped_storage().nbytes()} bytes."
        )
    value = value.int_repr() if value.is_quantized else value
    return (value.float() if value.is_floating_point() else value).numpy()


def _from_torch(layer, variable, array):
    """Torch counts channels first and keeps dense kernels transposed."""
    leaf = variable.path.rsplit("/", 1)[-1]
    if leaf == "kernel" and isinstance(layer, keras.layers.DepthwiseConv2D) and array.ndim == 4:
        return np.transpose(array, (2, 3, 0, 1))
    if leaf == "kernel" and array.ndim == 4:
        array = np.transpose(array, (2, 3, 1, 0))
        return array.reshape(-1, array.shape[-1]) if isinstance(layer, keras.layers.Dense) else array
    if leaf == "kernel" and array.ndim == 2 and isinstance(layer, keras.layers.Dense):
        return _after_flatten(layer, array).T
    if leaf == "kernel" and array.ndim == 2 and isinstance(layer, keras.layers.Conv2D):
        return _as_window(variable.shape, array)
    return array


def _as_window(shape, array):
    """A dense kernel [out, c·h·w] as that of a convolution whose window is the flattened map."""
    height, width, channels, _ = shape
    if array.shape[1] != height * width * channels:
        return array
    return np.transpose(array.reshape(-1, channels, height, width), (2, 3, 1, 0))


def _after_flatten(layer, array):
    """A dense kernel [out, c·h·w] that follows a flattened map, reordered to [out, h·w·c]."""
    if not inbound_nodes(layer):  # a part of another layer, where Keras keeps no graph
        return array
    operation = producer(layer.input)
    while isinstance(operation, keras.layers.Dropout):
        operation = producer(operation.input)
    if not isinstance(operation, keras.layers.Flatten) or len(operation.input.shape) != 4:
        return array
    height, width, channels = operation.input.shape[1:]
    if array.shape[1] != height * width * channels:
        return array
    maps = array.reshape(len(array), channels, height, width)
    return np.transpose(maps, (0, 2, 3, 1)).reshape(array.shape)
