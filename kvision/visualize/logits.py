"""Logits of a network that ends in probabilities."""

import keras
import numpy as np
from keras import ops

from kvision._keras import call_of, graph_of

SHAPING = ("Reshape", "Flatten", "Identity", "Squeeze", "ExpandDims", "Cast")  # before them a softmax is the last
OPERATIONS = {"Softmax": "softmax", "LogSoftmax": "log_softmax", "Sigmoid": "sigmoid"}


def logit_changes(model):
    """What turns the outputs of a model into logits: `(object, attribute, value)` to be replaced for a while.

    A softmax, log-softmax or sigmoid that ends the graph is taken away, as a layer, as the `activation=` of one, as a
    bare operation, and in a nested model. A model that is not functional gives none.
    """
    return [(operation, attribute, _identity) for operation, attribute, _ in ends(model)]


def ends(model):
    """What makes probabilities at the end of a graph: `(object, attribute, kind)`, the kinds those of `kind_of`."""
    found = []
    for tensor in keras.tree.flatten(getattr(graph_of(model), "outputs", None) or ()):
        operation, inputs = call_of(tensor)
        while type(operation).__name__ in SHAPING and inputs:
            operation, inputs = call_of(inputs[0])
        if isinstance(operation, keras.Model):
            found += ends(operation)
        elif isinstance(operation, keras.layers.Softmax):
            found.append((operation, "call", "softmax"))
        elif not isinstance(operation, keras.Layer):
            if kind := OPERATIONS.get(type(operation).__name__):
                found.append((operation, "call", kind))
        elif kind := kind_of(vars(operation).get("activation")):
            is_all = isinstance(operation, keras.layers.Activation)
            found.append((operation, "call" if is_all else "activation", kind))
    return found


def kind_of(function):
    """`"softmax"`, `"log_softmax"` or `"sigmoid"`, by trying, however it is written; None of anything else."""
    if not callable(function) or isinstance(function, keras.Layer):
        return None
    row = np.array([[-2.0, 0.0, 3.0]], "float32")
    try:
        outputs = ops.convert_to_numpy(function(ops.convert_to_tensor(row)))
    except Exception:  # a function of something else
        return None
    softmax = np.exp(row) / np.exp(row).sum()
    for kind, each in (("softmax", softmax), ("log_softmax", np.log(softmax)), ("sigmoid", 1 / (1 + np.exp(-row)))):
        if np.shape(outputs) == row.shape and np.allclose(outputs, each, atol=1e-4):
            return kind
    return None


def look_like_probabilities(outputs, model=None):
    """Whether outputs [n, classes] are positive and sum to 1 in every row.

    Args:
        outputs: They.
        model: If its graph is not known, so that no sigmoid at its end could be seen, outputs that all lie in [0, 1]
            look like those of one.
    """
    if outputs.ndim != 2 or not np.all(outputs >= 0):
        return False
    if model is not None and not getattr(graph_of(model), "outputs", None) and np.all(outputs <= 1):
        return True
    return outputs.shape[1] > 1 and bool(np.allclose(outputs.sum(axis=1), 1, atol=1e-2))


def _identity(inputs, *args, **kwargs):
    return inputs
