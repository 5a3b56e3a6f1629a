"""FCN on ResNet: which weights go where. The numbers are compared with torchvision in `test_fcn_resnet_parity.py`."""

import keras
import numpy as np
import pytest

from kvision import applications as A
from kvision import weights
from tests.weights.states import torch_state

SHAPE = {"input_shape": (64, 64, 3), "classes": 3}


def torchvision_state(model):
    """As torchvision would hold it: the ResNet below `backbone.`."""
    state = torch_state(model)
    state |= {key: np.abs(array) for key, array in state.items() if key.endswith("running_var")}
    return {key if "classifier" in key else f"backbone.{key}": value for key, value in state.items()}


def test_a_file_with_the_auxiliary_head_serves_both_forms():
    whole = A.FCNResNet("tiny", auxiliary=True, **SHAPE)
    state = torchvision_state(whole)
    weights.load_torch(whole, state)
    assert np.array_equal(whole.get_layer("aux_classifier.4").bias, state["aux_classifier.4.bias"])
    logits_alone = weights.load_torch(A.FCNResNet("tiny", **SHAPE), state)
    images = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype("float32")
    assert np.array_equal(whole(images)["logits"], logits_alone(images))


def test_other_classes_start_the_scores_fresh(capsys):
    state = torchvision_state(A.FCNResNet("tiny", auxiliary=True, **SHAPE))
    model = weights.load_torch(A.FCNResNet("tiny", **SHAPE | {"classes": 5}), state)
    assert "classifier.4 starts fresh: the file has another number of classes" in capsys.readouterr().out
    assert not np.any(model.get_layer("classifier.4").kernel)
    assert np.array_equal(model.get_layer("classifier.1").gamma, state["classifier.1.weight"])


def test_the_weights_of_a_classifier_are_those_of_the_trunk(capsys):
    state = torch_state(A.ResNet("tiny", input_shape=(64, 64, 3), classes=7))
    model = weights.load_torch(A.FCNResNet("tiny", **SHAPE), state, source="timm")
    assert "the file has none" in capsys.readouterr().out
    assert np.array_equal(model.get_layer("layer4.0.bn3").gamma, state["layer4.0.bn3.weight"])


def test_maps_have_stride_8_and_the_forms_have_weights():
    with keras.StatelessScope(initialize_variables=False):
        model = A.FCNResNet50(input_shape=(96, 64, 3))
    assert {level: info["stride"] for level, info in model.feature_info.items()} == {
        "C1": 2,
        "C2": 4,
        "C3": 8,
        "C4": 8,
        "C5": 8,
    }
    assert weights.published_names(model) == ("imagenet", "imagenet_v2", "coco")
    with pytest.raises(ValueError, match="weights='coco' is neither a file nor .*none for this variant"):
        A.FCNResNet("tiny", weights="coco")


@pytest.mark.slow
def test_both_heads_train_with_a_weight_each():
    model = A.FCNResNet("tiny", auxiliary=True, norm="group", **SHAPE)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)
    parts = {"logits": 1.0, "auxiliary_logits": 0.5}
    model.compile(keras.optimizers.SGD(0.0), loss=dict.fromkeys(parts, loss), loss_weights=parts)
    images = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype("float32")
    labels = np.zeros((1, 64, 64), "int32")
    history = model.fit(images, dict.fromkeys(parts, labels), verbose=0).history
    np.testing.assert_allclose(history["loss"], 1.5 * np.log(3), rtol=1e-5)
