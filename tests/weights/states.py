"""State dicts as torch would hold them, and a check that nothing moved."""

import contextlib

import keras
import numpy as np

from kvision.weights.comparison import weights_of


def torch_state(model):
    """What torch would hold for a model of ours: names by the rules of torch, arrays channels first."""
    state = {}
    for layer, variable in weights_of(model):
        module, leaf = variable.path.replace("/", ".").rsplit(".", 1)
        array = np.random.default_rng(len(state)).normal(size=variable.shape).astype("float32")
        if leaf == "kernel":
            axes = (2, 3, 0, 1) if isinstance(layer, keras.layers.DepthwiseConv2D) else (3, 2, 0, 1)
            state[f"{module}.weight"] = np.ascontiguousarray(array.transpose(axes) if array.ndim == 4 else array.T)
        else:
            names = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
            state[f"{module}.{names.get(leaf, leaf)}"] = array
        if leaf == "moving_mean":
            state[f"{module}.num_batches_tracked"] = np.array(7)
    return state


@contextlib.contextmanager
def unchanged(model):
    before = model.get_weights()
    yield
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def values(model):
    """`{path: array}` of every weight."""
    return {weight.path: np.array(keras.ops.convert_to_numpy(weight)) for _, weight in weights_of(model)}
