"""Loading others' weights: the leaf rules, both ways of the key check, and nothing changed on a mismatch."""

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

from kvision import weights
from kvision.applications import VGG
from tests.support import assert_close
from tests.weights.states import torch_state, unchanged


def test_every_weight_arrives_in_its_layout(model):
    state = torch_state(model)
    weights.load_torch(model, state)
    kernel = model.get_layer("layer1.0.conv2").kernel
    assert_close(kernel, state["layer1.0.conv2.weight"].transpose(2, 3, 1, 0))
    assert_close(model.get_layer("fc").kernel, state["fc.weight"].T)
    assert_close(model.get_layer("layer1.0.bn2").moving_variance, state["layer1.0.bn2.running_var"])


def test_a_dense_layer_behind_a_flattened_map_is_reordered():
    model = VGG("tiny", input_shape=(224, 224, 3), classes=3)
    state = torch_state(model)
    weights.load_torch(model, state)
    got = keras.ops.convert_to_numpy(model.get_layer("classifier.0").kernel).reshape(7, 7, 16, 32)
    want = state["classifier.0.weight"].reshape(32, 16, 7, 7)
    assert_close(got[2, 5, 11, 3], want[3, 11, 2, 5])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda state: state.pop("conv1.weight"), r"conv1/kernel: wants \(7, 7, 3, 8\) from 'conv1.weight'.*not there"),
        (lambda state: state.update(surplus=np.zeros(3)), "'surplus' of the file has no counterpart"),
        (lambda state: state.update({"fc.bias": np.zeros(5)}), r"fc/bias: wants \(3,\), 'fc.bias' gives \(5,\)"),
    ],
    ids=["missing", "surplus", "another shape"],
)
def test_on_a_mismatch_nothing_changes(model, fault, message):
    state = torch_state(model)
    fault(state)
    with unchanged(model), pytest.raises(ValueError, match=message):
        weights.load_torch(model, state)


def test_renames_apply_to_our_keys(own_model):
    state = {key.replace("layer1.", "stage_one."): value for key, value in torch_state(own_model).items()}
    weights.remember(own_model, {"timm": [(r"^layer1\.", "stage_one.")]})
    weights.load_torch(own_model, state, source="timm")
    assert_close(own_model.get_layer("layer1.0.bn1").gamma, state["stage_one.0.bn1.weight"])


def test_older_names_of_a_file_are_brought_to_todays(own_model):
    state = torch_state(own_model)
    older = {key.replace("layer1.0.", "layer1.block1."): value for key, value in state.items()}
    rules = [(r"^layer1\.block(\d)\.", lambda found: f"layer1.{int(found[1]) - 1}.")]
    with unchanged(own_model), pytest.raises(ValueError, match="from 'layer1.0.conv1.weight', which is not there"):
        weights.load_torch(own_model, older)
    weights.remember(own_model, older_names={"torchvision": rules})
    for spelling in (state, older):
        own_model.get_layer("layer1.0.conv1").kernel.assign(0 * own_model.get_layer("layer1.0.conv1").kernel)
        weights.load_torch(own_model, spelling)
        assert_close(own_model.get_layer("layer1.0.conv1").kernel, state["layer1.0.conv1.weight"].transpose(2, 3, 1, 0))
    with (
        unchanged(own_model),
        pytest.raises(ValueError, match="'layer1.block1.conv1.weight' of the file has no counterpart"),
    ):
        weights.load_torch(own_model, state | {"layer1.block1.conv1.weight": state["layer1.0.conv1.weight"]})


def test_an_epsilon_reaches_every_batch_normalisation_and_is_saved(own_model, tmp_path):
    nested = keras.Sequential([keras.Input((32, 32, 3)), own_model])
    assert weights.set_epsilon(nested, 0.0) is nested
    nested.save(tmp_path / "net.keras")
    for net in (own_model, keras.saving.load_model(tmp_path / "net.keras")):
        epsilons = [layer.epsilon for layer in net._flatten_layers() if hasattr(layer, "moving_variance")]
        assert len(epsilons) == 17
        assert set(epsilons) == {0.0}


def test_names_of_foreign_weights_outlive_save_and_load(tmp_path):
    model = VGG("tiny", input_shape=(32, 32, 3), classes=3)
    model.save(tmp_path / "net.keras")
    state = torch_state(model)
    renamed = {
        key.replace("classifier.0.", "pre_logits.fc1.")
        .replace("classifier.3.", "pre_logits.fc2.")
        .replace("classifier.6.", "head.fc."): value
        for key, value in state.items()
    }
    for copy in (keras.saving.load_model(tmp_path / "net.keras"), keras.models.clone_model(model)):
        weights.load_torch(copy, renamed, source="timm")
        assert_close(copy.get_layer("classifier.6").kernel, state["classifier.6.weight"].T)


def test_unknown_sources_are_refused(model):
    with pytest.raises(ValueError, match="Unknown source: got 'tim'.*'timm'"):
        weights.load_torch(model, {}, source="tim")


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (lambda state: state.pop("layer1.0.conv1.weight"), "file lacks layers"),
        (lambda state: state.update(extra=np.zeros(2)), "model lacks layers"),
        (lambda state: state.update({"bn1.weight": np.zeros(9), "bn1.bias": np.zeros(9)}), "number of classes"),
        (lambda state: state.update({"conv1.weight": np.zeros((8, 4, 7, 7))}), "another number of channels"),
        (lambda state: state.update({"fc.bias": np.zeros(3, "int8")}), "quantised"),
        (lambda state: state.update({k: np.zeros(1) for k in list(state)[:9]}), "another variant"),
    ],
)
def test_the_likely_cause_is_told(model, fault, cause):
    state = torch_state(model)
    fault(state)
    with pytest.raises(ValueError, match=f"(?s)it has [0-9]+ weights, the file .*Likely cause: .*{cause}") as caught:
        weights.load_torch(model, state)
    assert str(caught.value).count("\n  ") <= 6  # five faults, and how many more


def test_a_file_by_another_sources_names_is_known_by_them(model, tmp_path):
    """Such as the published one of timm, fetched by hand."""
    net = VGG("tiny", input_shape=(32, 32, 3), classes=3)
    state = torch_state(net)
    names = {"classifier.0.": "pre_logits.fc1.", "classifier.3.": "pre_logits.fc2.", "classifier.6.": "head.fc."}
    theirs = dict(state)
    for ours, name in names.items():
        theirs = {key.replace(ours, name): value for key, value in theirs.items()}
    save_file(theirs, tmp_path / "model.safetensors")
    for path in (tmp_path / "model.safetensors", theirs, {"state_dict": {f"module.{k}": v for k, v in theirs.items()}}):
        net = VGG("tiny", input_shape=(32, 32, 3), classes=3)
        weights.load_torch(net, path)
        assert_close(net.get_layer("classifier.6").kernel, state["classifier.6.weight"].T)
