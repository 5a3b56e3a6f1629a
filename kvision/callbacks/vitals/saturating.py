"""Which activations saturate at both ends, and which of their units do."""

import keras
import numpy as np
from keras import ops

TAIL = 0.1  # a unit is saturated where the derivative is below this fraction of its largest


def bounds_attribute(layer):
    """`(attribute, bounds)` of the activation of `layer`.

    The attribute is `"call"` where the layer is nothing else, `"activation"`, or None without one that is not linear;
    the bounds are (0, 1) of a sigmoid, (-1, 1) of a tanh, and None of others.
    """
    if isinstance(layer, keras.layers.ReLU | keras.layers.LeakyReLU | keras.layers.ELU | keras.layers.PReLU):
        return "call", None
    function = vars(layer).get("activation")
    if function is None or function is keras.activations.linear or not callable(function):
        return None, None
    return ("call" if isinstance(layer, keras.layers.Activation) else "activation"), bounds_of(function)


def bounds_of(function):
    """(0, 1) of a sigmoid and (-1, 1) of a tanh, by trying, however they are written; None of anything else."""
    if isinstance(function, keras.Layer):
        return None
    try:
        outputs = ops.convert_to_numpy(function(ops.convert_to_tensor([[-30.0, -2.0, 0.0, 2.0, 30.0]])))[0]
    except Exception:  # a function of something else
        return None
    for bounds, middle, inner in (((0, 1), 0.5, 0.8808), ((-1, 1), 0.0, 0.964)):
        if np.allclose(outputs, [bounds[0], sum(bounds) - inner, middle, inner, bounds[1]], atol=1e-3):
            return bounds
    return None


def saturated_units(outputs, bounds):
    """Bool, shaped as the outputs of a sigmoid or tanh: where its derivative is below `TAIL` of its largest."""
    low, high = bounds
    return (outputs - low) * (high - outputs) < TAIL * ((high - low) / 2) ** 2
