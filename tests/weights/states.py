"""State dicts as torch would hold them, and a check that nothing moved."""

import contextlib

import numpy as np


def torch_state(model):
    """What torch would hold for a model of ours: names by the rules of torch, arrays channels first."""
    state = {}
    for variable in model.weights:
        module, leaf = variable.path.replace("/", ".").rsplit(".", 1)
        array = np.random.default_rng(len(state)).normal(size=variable.shape).astype("float32")
        if leaf == "kernel":
            state[f"{module}.weight"] = np.ascontiguousarray(
                array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
            )
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
