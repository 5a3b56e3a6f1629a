"""What trainings save: the network is found in it, whatever is around it, or what to do is said."""

import types

import numpy as np
import pytest

from kvision import weights
from kvision.applications import ResNet
from tests.weights.states import torch_state, unchanged, values


@pytest.fixture(scope="module")
def model():
    return ResNet("tiny", input_shape=(32, 32, 3), classes=3)


@pytest.fixture(scope="module")
def state(model):
    return torch_state(model)


def under(prefix, state):
    return {f"{prefix}{key}": value for key, value in state.items()}


def other(state):
    """The same network with other numbers."""
    return {key: value + 1 for key, value in state.items()}


OPTIMIZER = {"state": {0: {"step": np.array(3.0), "exp_avg": np.zeros(4)}}, "param_groups": [{"lr": 0.1}]}

# What is around the state dict, and what one line says is left alone.
AROUND = {
    "model": (lambda s: {"model": s, "optimizer": OPTIMIZER, "epoch": 3}, "reads 'model' of the file, not 'optimizer'"),
    "state_dict": (lambda s: {"state_dict": s, "epoch": 3, "arch": "resnet50"}, ""),
    "model_state_dict": (lambda s: {"model_state_dict": s, "loss": 0.1}, ""),
    "nested": (lambda s: {"checkpoint": {"teacher": {"backbone": s}}}, ""),
    "module.": (lambda s: under("module.", s), ""),
    "model.": (lambda s: under("model.", s), ""),
    "_orig_mod.": (lambda s: under("_orig_mod.", s), ""),
    "compiled inside": (lambda s: {key.replace("layer1.", "layer1._orig_mod."): a for key, a in s.items()}, ""),
    "all prefixes": (lambda s: {"state_dict": under("model._orig_mod.module.", s)}, ""),
    "Lightning": (
        lambda s: {
            "state_dict": under("net.", s) | {"loss.weight": np.ones(3)},
            "optimizer_states": [OPTIMIZER],
            "hyper_parameters": types.SimpleNamespace(lr=0.1),
            "pytorch-lightning_version": "2.0",
        },
        "reads 'state_dict.net' of the file, not 'state_dict.loss'",
    ),
    "a detector's backbone": (
        lambda s: under("backbone.body.", s) | {"rpn.head.conv.weight": np.ones((4, 4, 1, 1))},
        "reads 'backbone.body' of the file, not 'rpn'",
    ),
    "without counters": (lambda s: {k: a for k, a in s.items() if "num_batches" not in k}, ""),
    "averaged": (
        lambda s: {"model": other(s), "model_ema": under("module.", s) | {"n_averaged": np.array(9)}},
        "reads 'model_ema.module' of the file, not 'model', 'model_ema.n_averaged'",
    ),
    "teacher": (
        lambda s: under("student.", other(s)) | under("teacher.", s),
        "reads 'teacher' of the file, not 'student'",
    ),
}


@pytest.mark.parametrize("around", AROUND)
def test_the_network_is_found(model, state, around, capsys):
    wrap, told = AROUND[around]
    weights.load_torch(model, {key: np.zeros_like(value) for key, value in state.items()})
    weights.load_torch(model, wrap(state))
    assert np.array_equal(values(model)["fc/kernel"], state["fc.weight"].T)
    assert np.array_equal(values(model)["bn1/moving_variance"], state["bn1.running_var"])
    out = capsys.readouterr().out
    assert told in out if told else out == ""


def test_of_two_networks_the_one_meant_is_asked_for(model, state):
    both = under("encoder_q.", state) | under("encoder_k.", other(state))
    with (
        unchanged(model),
        pytest.raises(ValueError, match=r"2 times, under 'encoder_q.' and 'encoder_k.': say which") as caught,
    ):
        weights.load_torch(model, both)
    assert "load_torch(model, path, prefix='encoder_q.')" in str(caught.value)
    weights.load_torch(model, both, prefix="encoder_q.")  # the advice
    assert np.array_equal(values(model)["fc/kernel"], state["fc.weight"].T)
    weights.load_torch(model, both, prefix="encoder_k.")
    assert np.array_equal(values(model)["fc/kernel"], state["fc.weight"].T + 1)


def test_a_prefix_that_is_not_there_lists_those_that_are(model, state):
    with unchanged(model), pytest.raises(ValueError, match="nothing lies under prefix='encoder.'; there are 'student'"):
        weights.load_torch(model, under("student.", state), prefix="encoder.")


@pytest.mark.parametrize("content", [{"epoch": 3, "net": object()}, {}], ids=["no arrays", "nothing"])
def test_a_file_without_arrays_says_what_it_holds(model, content):
    held = "'epoch', 'net'" if content else "nothing"
    with unchanged(model), pytest.raises(ValueError, match=f"no arrays to load; the top of the file holds {held}"):
        weights.load_torch(model, content)


def test_a_dict_that_holds_itself_ends(model):
    loop = {"epoch": 3}
    loop["self"] = loop
    with pytest.raises(ValueError, match="no arrays to load"):
        weights.load_torch(model, loop)


def test_what_is_beside_the_weights_under_the_prefix_is_refused(model, state):
    with unchanged(model), pytest.raises(ValueError, match="'criterion.scale' of the file has no counterpart"):
        weights.load_torch(model, under("model.", state | {"criterion.scale": np.ones(2)}))
