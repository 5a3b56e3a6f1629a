"""Compound scaling: the paper's constants, coefficients and multiplications; outputs are compared in test_parity.py."""

import keras
import numpy as np
import pytest

from kvision.applications import EfficientNet, EfficientNetB0, compound_scaling
from kvision.applications.classification.efficientnet import VARIANTS
from tests.support import assert_close


def test_constants_of_section_3_3():
    one = compound_scaling(1)
    assert (one["depth"], one["width"]) == (1.2, 1.1)
    assert round(1.2 * 1.1**2 * 1.15**2, 2) == 1.92
    assert compound_scaling(0) == {"depth": 1.0, "width": 1.0, "resolution": 224}


@pytest.mark.parametrize(("variant", "phi"), [("b1", 0.5), ("b2", 1), ("b3", 2)])
def test_published_rows_are_roundings_of_it(variant, phi):
    """The larger ones were rounded upwards more and more."""
    row, scaled = VARIANTS[variant], compound_scaling(phi)
    assert abs(row["depth"] - scaled["depth"]) <= 0.05
    assert abs(row["width"] - scaled["width"]) <= 0.051
    assert abs(row["resolution"] - scaled["resolution"]) <= 4


def multiply_adds(model):
    """Of all convolutions and the classifier; the two of squeeze and excitation see one pixel."""
    total = 0
    for layer in model._flatten_layers(include_self=False):
        if hasattr(layer, "kernel"):
            inside = layer.name in ("fc1", "fc2")
            pixels = 1 if inside else np.prod(layer.output.shape[1:-1], dtype="int64")
            total += int(pixels * np.prod(layer.kernel.shape))
    return total


@pytest.mark.parametrize(
    ("variant", "published"),
    [("b0", 0.39), ("b1", 0.70), ("b4", 4.2), pytest.param("b7", 37, marks=pytest.mark.slow)],
)
def test_multiplications_of_table_2(variant, published):
    with keras.StatelessScope():
        model = EfficientNet(variant)
    assert_close(multiply_adds(model) / 1e9, published, tolerance=(0.05, 0))  # B4 is 4.39 by any count


@pytest.mark.parametrize(
    ("alone", "pixels", "blocks", "channels"),
    [({"depth": 2.0}, 224, 32, 320), ({"width": 2.0}, 224, 16, 640), ({"resolution": 448}, 448, 16, 320)],
    ids=str,
)
def test_one_dimension_alone(alone, pixels, blocks, channels):
    with keras.StatelessScope():
        model = EfficientNetB0(include_top=False, features=("C5",), **alone)
    names = {".".join(layer.name.split(".")[:3]) for layer in model.layers if ".block." in layer.name}
    assert (model.input_shape[1], len(names), model.output["C5"].shape[-1]) == (pixels, blocks, channels)


def test_compound_scaling_builds():
    with keras.StatelessScope():
        model = EfficientNet("b0", **compound_scaling(0.5))
    assert model.input_shape == (None, 240, 240, 3)


def test_earlier_blocks_are_dropped_less_often():
    with keras.StatelessScope():
        model = EfficientNetB0(stochastic_depth_rate=0.32)
    rates = [layer.rate for layer in model.layers if layer.name.endswith("stochastic_depth")]
    # B0 has 16 blocks, rate 0.02 · index; those that change size or width have no shortcut
    assert [round(rate / 0.02) for rate in rates] == [2, 4, 6, 7, 9, 10, 12, 13, 14]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "valid"}, "Unknown padding of EfficientNet: got 'valid'.*'symmetric', 'same'"),
        ({"padding": "same", "weights": "imagenet"}, "weights='imagenet' are torchvision's.*got padding='same'"),
        ({"epsilon": 1e-3, "weights": "imagenet"}, 'of padding="symmetric" and its epsilon.*epsilon=0.001'),
    ],
)
def test_published_weights_belong_to_one_padding(options, message):
    with pytest.raises(ValueError, match=message):
        EfficientNetB0(**options)


def test_the_authors_statistics_reach_every_norm():
    with keras.StatelessScope():
        model = EfficientNet("tiny", padding="same", epsilon=1e-3, momentum=0.99)
    norms = [layer for layer in model.layers if hasattr(layer, "moving_mean")]
    assert {(layer.epsilon, layer.momentum) for layer in norms} == {(1e-3, 0.99)}
    strided = [layer for layer in model.layers if getattr(layer, "strides", None) == (2, 2)]
    assert {layer.padding for layer in strided} == {"same"}
    assert len(strided) == 5
