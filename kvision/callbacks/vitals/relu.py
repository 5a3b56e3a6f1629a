"""Which ReLUs a model has, however they are written."""

import keras
import numpy as np
from keras import ops

from kvision._keras import layers_of, replaced
from kvision.trackers.events import unique_names


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


def active_units(outputs):
    """[units] bool: which units, along the last axis, are above 0 (or NaN) anywhere."""
    return ops.logical_not(ops.max(ops.stop_gradient(outputs), axis=tuple(range(len(outputs.shape) - 1))) <= 0)


def bare_relus(model):
    """`(name, operation)` of the ReLUs in the graphs of `model` that no layer holds."""
    operations = {
        id(operation): operation
        for layer in layers_of(model, include_self=True)
        for operation in getattr(layer, "operations", ())
        if type(operation).__name__ in ("Relu", "Relu6", "ReLU", "LeakyRelu")
        and not isinstance(operation, keras.Layer)
        and getattr(operation, "negative_slope", 0) == 0
    }.values()
    return list(zip(unique_names(operation.name for operation in operations), operations, strict=True))


def inactive_on(data, model, operations):
    """`{name: [units] bool}`: units of bare ReLUs that are 0 for all of `data`, by one forward pass."""
    active = {}

    def recording(name, call):
        def recorded(*args, **kwargs):
            outputs = call(*args, **kwargs)
            axes = tuple(range(len(outputs.shape) - 1))
            active[name] = active.get(name, False) | ops.convert_to_numpy(ops.any(outputs > 0, axis=axes))
            return outputs

        return recorded

    with replaced([(operation, "call", recording(name, operation.call)) for name, operation in operations]):
        model(data, training=False)
    return {name: ~units for name, units in active.items()}
