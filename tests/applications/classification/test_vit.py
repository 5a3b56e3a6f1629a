"""What is particular to Vision Transformers: tokens, positions at other sizes, the residual stem, the cost."""

import keras
import numpy as np
import pytest

from kvision import weights
from kvision.applications import ViT, vit
from kvision.applications.classification.vit import StandardizedConv2D
from tests.support import PARITY, assert_close


def images_of(*size, count=2):
    return np.random.default_rng(0).normal(size=(count, *size, 3)).astype("float32")


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def multiply_adds_of_attention(monkeypatch, model, images):
    """Multiply-adds of the products of queries with keys and of weights with values; projections do not count."""
    matmul, counts = keras.ops.matmul, []

    def counting(a, b):
        counts.append(np.prod(a.shape) * b.shape[-1])
        return matmul(a, b)

    with monkeypatch.context() as patch:
        patch.setattr(keras.ops, "matmul", counting)
        model(images)
    return sum(counts)


def test_attention_costs_the_square_of_the_tokens(monkeypatch):
    costs = {}
    for pixels in (64, 128, 256):
        model = ViT("tiny", input_shape=(pixels, pixels, 3), classes=3)
        costs[pixels] = multiply_adds_of_attention(monkeypatch, model, images_of(pixels, pixels, count=1))
    blocks, channels = 2, 32
    assert costs == {pixels: blocks * 2 * channels * (1 + (pixels // 16) ** 2) ** 2 for pixels in costs}


def test_the_classifier_reads_the_class_token():
    model = ViT("tiny", input_shape=(32, 32, 3), classes=3, classifier_activation=None)
    tokens = keras.Model(model.input, model.get_layer("norm").output)
    kernel, bias = (numpy(w) for w in model.get_layer("head").weights)
    images = images_of(32, 32)
    assert tokens.output_shape == (None, 5, 32)
    assert_close(model(images), numpy(tokens(images))[:, 0] @ kernel + bias)


def test_patches_are_rows_first():
    """Token 1 + 3·row + column depends, before the blocks, on the pixels of its patch only."""
    model = ViT("tiny", input_shape=(32, 48, 3), classes=3)
    embed = keras.Model(model.input, model.get_layer("cls_token").output)
    images = images_of(32, 48, count=1)
    changed = images.copy()
    changed[:, 16:, 32:] += 1
    different = np.abs(numpy(embed(changed)) - numpy(embed(images))).max(axis=(0, 2)) > 0
    assert list(np.flatnonzero(different)) == [1 + 3 * 1 + 2]


@pytest.mark.parametrize(
    ("variant", "dropout", "stochastic_depth"),
    [("Ti/16", 0.0, 0.1), ("S/16", 0.0, 0.1), ("B/32", 0.1, 0.0), ("H/14", 0.1, 0.0)],
)
def test_rates_are_those_of_the_papers(variant, dropout, stochastic_depth):
    with keras.StatelessScope(initialize_variables=False):
        model = ViT(variant)
    blocks = [layer.get_config() for layer in model.layers if layer.name.startswith("blocks.")]
    assert {block["dropout_rate"] for block in blocks} == {dropout}
    assert model.get_layer("pos_drop").rate == dropout
    assert_close([block["stochastic_depth_rate"] for block in blocks], np.linspace(0, stochastic_depth, len(blocks)))


def test_given_rates_beat_the_row():
    with keras.StatelessScope(initialize_variables=False):
        model = ViT("tiny", dropout_rate=0.3, attention_dropout_rate=0.2, stochastic_depth_rate=0.0)
    config = model.get_layer("blocks.1").get_config()
    assert (config["dropout_rate"], config["attention_dropout_rate"], config["stochastic_depth_rate"]) == (0.3, 0.2, 0)


def test_weights_of_another_size_load(tmp_path):
    small = ViT("tiny", input_shape=(32, 32, 3), classes=3)
    small.save_weights(tmp_path / "small.weights.h5")
    large = ViT("tiny", input_shape=(64, 48, 3), classes=3, weights=str(tmp_path / "small.weights.h5"))
    for got, given in zip(large.weights, small.weights, strict=True):
        want = numpy(given)
        if got.path.startswith("pos_embed"):
            want = vit.resize_position_embeddings(want, (4, 3))
        assert_close(got, want)


def test_tokens_that_fill_no_square_change_nothing(tmp_path):
    oblong = ViT("tiny", input_shape=(32, 48, 3), classes=3)
    oblong.save_weights(tmp_path / "oblong.weights.h5")
    model = ViT("tiny", input_shape=(64, 64, 3), classes=3)
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"wants \(1, 17, 32\), the file gives \(1, 7, 32\)"):
        weights.load(model, tmp_path / "oblong.weights.h5")
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_a_plain_vit_has_no_levels():
    with pytest.raises(ValueError, match="no maps C2 to C5 to give: got features=\\('C4',\\)"):
        ViT("tiny", include_top=False, features=("C4",))


@pytest.mark.parametrize(
    ("size", "advice"), [((40, 64), r"\(32, 64\)"), ((64, 63), r"\(64, 64\)"), ((17, 20), r"\(16, 16\)")]
)
def test_patches_must_fit(size, advice):
    with pytest.raises(ValueError, match=f"multiples of the 16 pixels of a patch, got .* crop to {advice}"):
        ViT("tiny", input_shape=(*size, 3))


def test_standardised_convolution_equals_the_twin():
    layer = StandardizedConv2D(5, 3, padding="valid")
    images = images_of(6, 7)
    layer(images)
    kernel, bias = np.random.default_rng(1).normal(3.0, 2.0, (3, 3, 3, 5)), np.arange(5)
    layer.set_weights([kernel, bias])
    standard = np.stack([(k - k.mean()) / np.sqrt(k.var() + 1e-8) for k in np.moveaxis(kernel, -1, 0)], -1)
    want = np.empty((2, 4, 5, 5))
    for row in range(4):
        for column in range(5):
            window = images[:, row : row + 3, column : column + 3]
            want[:, row, column] = np.einsum("bhwc,hwco->bo", window, standard) + bias
    assert_close(layer(images), want)


@pytest.mark.slow
def test_the_hybrid_trains_and_reloads(tmp_path):
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    model = ViT("tiny_hybrid", input_shape=(32, 48, 3), classes=3)
    assert model.get_layer("patch_embed.proj").input.shape == (None, 2, 3, 1024)
    assert len({w.path for w in model.weights}) == len(model.weights)
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    history = model.fit(images_of(32, 48, count=4), np.array([0, 1, 2, 0]), batch_size=4, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    model.save(tmp_path / "hybrid.keras")
    copy = keras.saving.load_model(tmp_path / "hybrid.keras")
    assert_close(copy(images_of(32, 48)), model(images_of(32, 48)))


@pytest.mark.parity
def test_another_size_equals_timm_which_interpolates_alike():
    import timm
    import torch

    torch.manual_seed(0)
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, pretrained=False).eval()
    ours = ViT("Ti/16", depth=2, input_shape=(96, 160, 3), classifier_activation=None)
    weights.load_torch(ours, theirs.state_dict(), source="timm")
    theirs.set_input_size((96, 160))
    images = images_of(96, 160)
    with torch.no_grad():
        want = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    scale = np.abs(want).max()
    assert_close(numpy(ours(images)) / scale, want / scale, tolerance=PARITY)
