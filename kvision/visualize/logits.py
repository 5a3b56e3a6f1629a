"""Logits of a network that ends in probabilities."""

import keras
import numpy as np
from keras import ops

from kvision._keras import call_of, graph_of

SHAPING = (
    "Reshape",
    "Flatten",
    "Identity",
    "Squeeze",
    "ExpandDims",
    "Cast",
)  # behind which a softmax still is the last


def logit_changes(model):
    """What turns the outputs of a model into logits: `(object, attribute, value)` to be replaced for a while.

    A softmax, log-softmax or sigmoid that ends the graph is taken away, as a layer, as the `activation=` of one, as a
    bare operation, and in a nested model. A model that is not functional gives none.
    """
    changes = []
    for tensor in keras.tree.flatten(getattr(graph_of(model), "outputs", None) or ()):
        operation, inputs = call_of(tensor)
        while type(operation).__name__ in SHAPING and inputs:
            operation, inputs = call_of(inputs[0])
        if isinstance(operation, keras.Model):
            changes += logit_changes(operation)
        elif isinstance(operation, keras.layers.Softmax) or _is_operation(operation):
            changes.append((operation, "call", _identity))
        elif gives_probabilities(vars(operation).get("activation")):
            is_all = isinstance(operation, keras.layers.Activation)
            changes.append((operation, "call", _identity) if is_all else (operation, "activation", _identity))
    return changes


def gives_probabilities(function):
    """Whether `function` is a softmax, a log-softmax or a sigmoid, by trying, however it is written."""
    if not callable(function) or isinstance(function, keras.Layer):
        return False
    row = np.array([[-2.0, 0.0, 3.0]], "float32")
    try:
        outputs = ops.convert_to_numpy(function(ops.convert_to_tensor(row)))
    except Exception:  # a function of something else
        return False
    softmax = np.exp(row) / np.exp(row).sum()
    return any(
        np.shape(outputs) == row.shape and np.allclose(outputs, each, atol=1e-4)
        for each in (softmax, np.log(softmax), 1 / (1 + np.exp(-row)))
    )


def look_like_probabilities(outputs):
    """Whether outputs [n, classes] are positive and sum to 1 in every row."""
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        return False
    return bool(np.all(outputs >= 0) and np.allclose(outputs.sum(axis=1), 1, atol=1e-2))


def _is_operation(operation):
    is_layer = isinstance(operation, keras.Layer)
    return not is_layer and type(operation).__name__ in ("Softmax", "LogSoftmax", "Sigmoid")


def _identity(inputs, *args, **kwargs):
    return inputs
