"""Which ReLUs a model has, however they are written."""

import keras
import numpy as np
from keras import ops

from kvision._keras import layers_of


def relu_attribute(layer):
    """Name of the attribute of `layer` that is a ReLU: `"call"` where it is nothing else, `"activation"`, or None."""
    if isinstance(layer, keras.layers.ReLU | keras.layers.LeakyReLU):
        return "call" if layer.negative_slope == 0 else None
    if not is_relu(vars(layer).get("activation")):
        return None
    return "call" if isinstance(layer, keras.layers.Activation) else "activation"


def is_relu(function):
    """Whether `function` is 0 left of 0 and positive far right of it, by trying: any ReLU, however it is written."""
    if not callable(function) or isinstance(function, keras.Layer):
        return False
    try:
        left, right = np.split(ops.convert_to_numpy(function(ops.convert_to_tensor([-8.0, -1.0, -0.1, 8.0]))), [3])
    except Exception:  # a function of something else: no ReLU
        return False
    return bool(np.all(left == 0) and np.all(right > 0))


def bare_relus(model):
    """The ReLUs in the graphs of `model` that no layer holds, as operations."""
    operations = {
        id(operation): operation
        for layer in layers_of(model, include_self=True)
        for operation in getattr(layer, "operations", ())
        if type(operation).__name__ in ("Relu", "Relu6", "ReLU", "LeakyRelu")
        and not isinstance(operation, keras.Layer)
        and getattr(operation, "negative_slope", 0) == 0
    }
    return list(operations.values())
