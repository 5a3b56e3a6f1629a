"""What is particular to Swin Transformers: windows that shift, merging, sizes that do not fit, the cost."""

import keras
import numpy as np
import pytest

from kvision.applications import Swin
from kvision.applications.classification.swin import PatchMerging
from tests.applications.classification.test_vit import images_of, multiply_adds_of_attention, numpy
from tests.support import assert_close


def test_attention_costs_as_many_multiply_adds_per_pixel_at_every_size(monkeypatch):
    costs = {}
    for size in [(56, 56), (56, 112), (112, 112), (168, 112)]:
        model = Swin("tiny", depths=(2, 2), input_shape=(*size, 3), include_top=False)
        costs[size] = multiply_adds_of_attention(monkeypatch, model, images_of(*size, count=1))
    # Equation 2: 2·M²·hw·C each block; the second stage has a quarter of the positions and twice the channels.
    by_pixel = 2 * 2 * 49 * (32 / 16 + 64 / 64)
    assert costs == {size: by_pixel * size[0] * size[1] for size in costs}


def reach(blocks):
    """Which positions of a 14x14 map feel a change of the first pixel, after so many blocks."""
    model = Swin("tiny", depths=(2,), input_shape=(56, 56, 3), include_top=False)
    inner = keras.Model(model.input, model.get_layer(f"layers.0.blocks.{blocks - 1}.add2").output)
    images = images_of(56, 56, count=1)
    changed = images.copy()
    changed[:, 0, 0] += 1
    return np.abs(numpy(inner(changed)) - numpy(inner(images))).max(axis=(0, 3)) > 0


def test_shifted_windows_join_what_windows_part():
    window = np.pad(np.ones((7, 7)), ((0, 7), (0, 7)))
    assert_close(reach(1), window)
    joined = np.pad(np.ones((10, 10)), ((0, 4), (0, 4)))  # shifted by 3, rows 0…2 and 3…9 meet in a window each
    assert_close(reach(2), joined)


def test_every_other_block_is_shifted():
    with keras.StatelessScope(initialize_variables=False):
        model = Swin("T")
    shifts = [layer.shift for layer in model.layers if layer.name.endswith(".attn")]
    assert shifts == [0, 3] * 6


@pytest.mark.parametrize(("variant", "last"), [("T", 0.2), ("S", 0.3), ("B", 0.5), ("L", 0.2)])
def test_stochastic_depth_rises_to_that_of_the_paper(variant, last):
    with keras.StatelessScope(initialize_variables=False):
        model = Swin(variant)
    for branch in ("drop_path1", "drop_path2"):
        rates = [layer.rate for layer in model.layers if layer.name.endswith(branch)]
        assert_close(rates, np.linspace(0, last, len(rates)))


def test_given_rates_reach_their_layers():
    with keras.StatelessScope(initialize_variables=False):
        model = Swin("tiny", dropout_rate=0.3, attention_dropout_rate=0.2)
    assert {layer.rate for layer in model.layers if layer.name.endswith(".attn_drop")} == {0.3}
    assert {layer.dropout_rate for layer in model.layers if layer.name.endswith(".mlp")} == {0.3}
    assert {layer.dropout_rate for layer in model.layers if layer.name.endswith(".attn")} == {0.2}


@pytest.mark.parametrize("size", [(4, 6), (5, 3)])
def test_merging_equals_the_twin(size):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype("float32")
    layer = PatchMerging()
    layer(x)
    rng = np.random.default_rng(1)
    gamma, beta, kernel = (rng.normal(size=shape) for shape in ((12,), (12,), (12, 6)))
    layer.set_weights([gamma, beta, kernel])
    filled = np.pad(x, ((0, 0), (0, size[0] % 2), (0, size[1] % 2), (0, 0)))
    got = numpy(layer(x))
    assert got.shape == (2, filled.shape[1] // 2, filled.shape[2] // 2, 6)
    for row, column in np.ndindex(got.shape[1:3]):
        near = [(0, 0), (1, 0), (0, 1), (1, 1)]  # rows before columns, as the published weights have it
        tokens = np.concatenate([filled[:, 2 * row + down, 2 * column + right] for down, right in near], -1)
        centred = tokens - tokens.mean(-1, keepdims=True)
        tokens = centred / np.sqrt(tokens.var(-1, keepdims=True) + 1e-5) * gamma + beta
        assert_close(got[:, row, column], tokens @ kernel)


@pytest.mark.parametrize(
    ("size", "maps"),
    [((32, 32), [(8, 8), (4, 4), (2, 2), (1, 1)]), ((75, 101), [(19, 26), (10, 13), (5, 7), (3, 4)])],
)
def test_every_pixel_of_any_size_reaches_a_map(size, maps):
    levels = ("C2", "C3", "C4", "C5")
    model = Swin("tiny", input_shape=(*size, 3), include_top=False, features=levels)
    assert [tuple(model.output[level].shape[1:3]) for level in levels] == maps
    images = images_of(*size, count=1)
    changed = images.copy()
    changed[:, -1, -1] += 1
    before, after = model(images), model(changed)
    assert np.abs(numpy(after["C2"]) - numpy(before["C2"]))[:, -1, -1].max() > 0


def test_levels_are_normalised():
    model = Swin("tiny", input_shape=(64, 64, 3), include_top=False, features=("C2", "C4", "C5"))
    maps = model(images_of(64, 64))
    for level, norm in (("C2", "norm0"), ("C4", "norm2"), ("C5", "norm3")):
        values = numpy(maps[level])
        assert_close(values.mean(-1), np.zeros(values.shape[:-1]))
        assert_close(values.std(-1), np.ones(values.shape[:-1]), tolerance=(1e-2, 0.0))  # epsilon
        assert model.get_layer(norm).output.shape[1:] == values.shape[1:]
    assert "norm1" not in [layer.name for layer in model.layers]
    assert "norm" not in [layer.name for layer in model.layers]


@pytest.mark.parametrize("window", [4, 5])
def test_other_windows(window):
    model = Swin("tiny", depths=(2, 2), window=window, input_shape=(52, 40, 3), classes=3)
    assert np.isfinite(numpy(model(images_of(52, 40)))).all()
    assert [layer.shift for layer in model.layers if layer.name.endswith(".attn")] == [0, 2, 0, 2]
