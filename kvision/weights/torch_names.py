"""Torch's names and layouts: which array of a state dict belongs to which weight, and how it is turned."""

import re

import keras
import numpy as np

from kvision._keras import inbound_nodes, producer
from kvision.errors import unknown
from kvision.weights.comparison import mismatch, weights_of
from kvision.weights.sources import sources_of

SOURCES = ("torchvision", "timm", "transformers")

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


def matched(model, state, source, skip=()):
    """`[(variable, array)]` for every weight of the model, or the ValueError that says what does not fit."""
    rules = rules_of(model, source)
    left = {key: value for key, value in state.items() if not key.endswith(NOT_WEIGHTS)}
    count = len(left)
    pairs, faults = [], []
    for layer, variable in weights_of(model):
        if layer.name in skip:
            continue
        key = torch_key(variable.path, rules)
        if key not in left:
            faults.append(f"{variable.path}: wants {tuple(variable.shape)} from {key!r}, which is not there")
            continue
        array = _from_torch(layer, variable, _numpy(left.pop(key)))
        if array.shape != tuple(variable.shape):
            faults.append(f"{variable.path}: wants {tuple(variable.shape)}, {key!r} gives {array.shape}")
        pairs.append((variable, array))
    faults += [f"{key!r} of the file has no counterpart in the model" for key in left]
    if faults:
        raise mismatch(model, faults, count)
    return pairs


def write(pairs):
    for variable, array in pairs:
        variable.assign(array)


def rules_of(model, source):
    if source not in SOURCES:
        raise unknown("source", source, SOURCES)
    return sources_of(model).renames.get(source, [])


def torch_key(path, rules):
    *modules, leaf = path.split("/")
    return renamed(".".join([*modules, LEAVES.get(leaf, leaf)]), rules)


def renamed(key, rules):
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def _numpy(value):
    return value.detach().cpu().float().numpy() if hasattr(value, "detach") else np.asarray(value)


def _from_torch(layer, variable, array):
    """Torch counts channels first and keeps dense kernels transposed."""
    leaf = variable.path.rsplit("/", 1)[-1]
    if leaf == "kernel" and isinstance(layer, keras.layers.DepthwiseConv2D):
        return np.transpose(array, (2, 3, 0, 1))
    if leaf == "kernel" and array.ndim == 4:
        array = np.transpose(array, (2, 3, 1, 0))
        return array.reshape(-1, array.shape[-1]) if isinstance(layer, keras.layers.Dense) else array
    if leaf == "kernel" and isinstance(layer, keras.layers.Dense):
        return _after_flatten(layer, array).T
    return layer.fit_weight(array) if hasattr(layer, "fit_weight") else array


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
    maps = array.reshape(len(array), channels, height, width)
    return np.transpose(maps, (0, 2, 3, 1)).reshape(array.shape)


def fits(model, layer, state, source):
    """Whether the file's arrays for one layer have the shapes of its weights."""
    rules = rules_of(model, source)
    keys = {torch_key(variable.path, rules): variable for variable in layer.weights}
    return all(
        key in state and _from_torch(layer, variable, _numpy(state[key])).shape == tuple(variable.shape)
        for key, variable in keys.items()
    )
