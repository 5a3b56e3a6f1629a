"""Deformable stages: the offset parameters of the papers' networks, which initially equal the plain network."""

import keras
import numpy as np
import pytest

from kvision import applications as A
from kvision.applications.classification.resnet import PadChannels
from tests.support import assert_close

SHAPE = (64, 64, 3)


def count(**options):
    with keras.StatelessScope(initialize_variables=False):
        return sum(np.prod(weight.shape, dtype="int64") for weight in A.ResNet50(**options).trainable_weights)


@pytest.mark.parametrize(
    ("levels", "modulated", "more"),
    [
        (("C3", "C4", "C5"), False, 580_842),
        (("C3", "C4", "C5"), True, 871_263),
        (("C5",), False, 248_886),
        (("C5",), True, 373_329),
        ((), True, 0),
    ],
)
def test_offset_parameters(levels, modulated, more):
    """A 3x3 window of c channels needs (9c + 1)·18 for its offsets, (9c + 1)·27 with the factors of v2."""
    assert count(deformable=levels, modulated=modulated) - count() == more


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("modulated", [True, False])
def test_deformable_stages_initially_equal_plain_ones(block, modulated):
    options = {"input_shape": SHAPE, "classes": 3, "block": block}
    plain = A.ResNet("tiny", **options)
    deformable = A.ResNet("tiny", deformable=("C4", "C5"), modulated=modulated, **options)
    weights = {weight.path: weight for weight in plain.weights}
    for weight in deformable.weights:
        if "conv_offset" not in weight.path:
            weight.assign(weights.pop(weight.path))
    assert not weights
    images = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype("float32")
    assert_close(deformable(images), plain(images))


def test_only_the_stages_asked_for_are_deformable():
    model = A.ResNet("tiny", input_shape=SHAPE, classes=3, deformable=("C3",))
    stages = {weight.path.split(".")[0] for weight in model.weights if "conv_offset" in weight.path}
    assert stages == {"layer2"}


@pytest.mark.slow
def test_deformable_stages_train(tmp_path):
    model = A.ResNet("tiny", input_shape=SHAPE, classes=3, deformable=("C5",), norm="group")
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    images = np.random.default_rng(0).normal(size=(4, *SHAPE)).astype("float32")
    model.fit(images, np.array([0, 1, 2, 0]), epochs=2, verbose=0)
    offsets = [weight for weight in model.weights if "conv_offset" in weight.path]
    assert offsets
    assert all(np.any(keras.ops.convert_to_numpy(weight)) for weight in offsets)
    model.save(tmp_path / "model.keras")
    assert_close(keras.saving.load_model(tmp_path / "model.keras")(images), model(images))


def test_an_unknown_level_is_refused():
    with pytest.raises(ValueError, match="deformable level"):
        A.ResNet50(deformable=("C6",))


def test_the_stride_of_a_bottleneck_sits_on_its_3x3_convolution():
    """Version 1.5: with the stride on the first 1x1, as in the paper, three quarters of the map would go unseen."""
    model = A.ResNet("tiny", input_shape=SHAPE, classes=3)
    strides = {number: [] for number in (1, 2, 3)}
    for stage in (2, 3, 4):
        for number, found in strides.items():
            found.append(model.get_layer(f"layer{stage}.0.conv{number}").strides)
    assert strides == {1: [(1, 1)] * 3, 2: [(2, 2)] * 3, 3: [(1, 1)] * 3}


@pytest.mark.parametrize(("channels", "before"), [(8, 2), (7, 1), (4, 0)])
def test_option_a_keeps_every_other_pixel_between_channels_of_zero(channels, before):
    """Section 4.2's identity shortcut, the new channels split evenly as in its usual implementations."""
    x = np.random.default_rng(0).normal(size=(2, 5, 6, 4)).astype("float32")
    want = np.zeros((2, 3, 3, channels), "float32")
    for row, column, channel in np.ndindex(3, 3, 4):
        want[:, row, column, before + channel] = x[:, 2 * row, 2 * column, channel]
    assert_close(PadChannels(channels, 2)(x), want)


@pytest.mark.parametrize(("builder", "shortcuts", "padded"), [(A.ResNet20, 9, 2), (A.PlainNet20, 0, 0)])
def test_plain_networks_have_no_shortcuts(builder, shortcuts, padded):
    with keras.StatelessScope(initialize_variables=False):
        layers = builder().layers
    assert [sum(isinstance(layer, kind) for layer in layers) for kind in (keras.layers.Add, PadChannels)] == [
        shortcuts,
        padded,
    ]
