"""Frozen layers do not move, batch statistics included; the others do."""

import keras
import numpy as np
import pytest

from kvision.applications import ResNet, RetinaNet
from kvision.training import freeze, transfer_recipe


def test_what_is_frozen_does_not_move_statistics_included():
    model = freeze(ResNet("tiny", input_shape=(32, 32, 3), classes=3), up_to="layer2.0.relu3")
    model.compile("sgd", "sparse_categorical_crossentropy")
    before = {w.path: w.numpy() for w in model.weights}
    rng = np.random.default_rng(0)
    model.fit(rng.normal(size=(4, 32, 32, 3)).astype("float32"), np.arange(4) % 3, verbose=0)
    changed = {w.path for w in model.weights if not np.array_equal(before[w.path], w.numpy())}
    frozen = {path for path in before if path.startswith(("conv1", "bn1", "layer1", "layer2"))}
    assert not changed & frozen
    assert {"layer3.0.bn1/moving_mean", "layer4.0.conv1/kernel", "fc/kernel"} <= changed


def test_branches_beside_the_layer_stay_free():
    image = keras.Input((4,))
    left = keras.layers.Dense(3, name="left")(image)
    right = keras.layers.Dense(3, name="right")(image)
    both = keras.layers.Add(name="sum")([left, right])
    model = freeze(keras.Model(image, keras.layers.Dense(2, name="top")(both)), up_to="left")
    assert [model.get_layer(name).trainable for name in ("left", "right", "sum", "top")] == [False, True, True, True]


def test_sequential_models_too():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="a"), keras.layers.Dense(2, name="b")])
    freeze(model, up_to="a")
    assert [layer.trainable for layer in model.layers] == [False, True]


def test_a_layer_used_elsewhere_does_not_pull_in_other_graphs():
    shared = keras.layers.Dense(4, name="shared")
    other_image = keras.Input((4,))
    other = keras.layers.Dense(4, name="other")
    shared(other(other_image))
    image = keras.Input((4,))
    freeze(keras.Model(image, keras.layers.Dense(2)(shared(image))), up_to="shared")
    assert other.trainable


def test_unknown_layers_list_the_nearest():
    with pytest.raises(ValueError, match="got 'layer2.0.rel'.*'layer2.0.relu"):
        freeze(ResNet("tiny", input_shape=(32, 32, 3)), up_to="layer2.0.rel")


def test_a_compiled_model_is_told_to_compile_again(capsys):
    model = ResNet("tiny", input_shape=(32, 32, 3))
    model.compile("sgd", "mse")
    freeze(model, up_to="conv1")
    assert "compile the model again" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("images", "similar", "train"),
    [
        (20, True, "classifier"),
        (20, False, "classifier on earlier features"),
        (300, True, "last stages"),
        (300, False, "all"),
        (5000, True, "all"),
        (5000, False, "all"),
    ],
)
def test_recipe_of_the_lecture(images, similar, train):
    assert transfer_recipe(images, similar).train == train


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        transfer_recipe(0, similar=True)


@pytest.fixture(scope="module")
def detector():
    backbone = ResNet("tiny", include_top=False, input_shape=(64, 64, 3), features=("C3", "C4", "C5"), norm="group")
    return RetinaNet(input_shape=(64, 64, 3), classes=2, channels=8, backbone=backbone)


@pytest.mark.parametrize(
    ("up_to", "frozen", "free"),
    [
        ("layer2.0.relu3", {"conv1", "layer1.0.conv1", "layer2.0.conv3"}, {"layer3.0.conv1", "layer4.0.bn3"}),
        ("resnet_tiny", {"conv1", "layer4.0.conv3"}, {"head.regression_head.bbox_reg"}),
        (
            "backbone.fpn",
            {"conv1", "layer4.0.conv3", "inner_blocks.0.0"},
            {"head.regression_head.bbox_reg"},
        ),
    ],
)
def test_the_backbone_inside_a_detector(detector, up_to, frozen, free):
    detector.trainable = True
    assert freeze(detector, up_to=up_to) is detector
    trainable = {weight.path.rsplit("/", 1)[0].split("/")[-1] for weight in detector.trainable_weights}
    names = {weight.path.rsplit("/", 1)[0].split("/")[-1] for weight in detector.weights}
    assert frozen | free <= names
    assert not frozen & trainable
    assert free <= trainable


def test_of_two_layers_of_one_name_inside_the_model_meant_is_asked_for():
    inner = [keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="deep")], name=name) for name in "ab"]
    image = keras.Input((4,))
    model = keras.Model(image, inner[1](inner[0](image)), name="both")
    with pytest.raises(ValueError, match="'deep' is the name of 2 layers of both, in 'a' and 'b'"):
        freeze(model, up_to="deep")
    freeze(model.get_layer("b"), up_to="deep")  # the advice
    assert [part.get_layer("deep").trainable for part in inner] == [True, False]
    freeze(model, up_to="b")
    assert not model.trainable_weights
