"""Attention layers and transformer blocks: NumPy twins, symmetries, masks."""

import json

import keras
import numpy as np
import pytest

from kvision.layers import (
    MLP,
    LearnedPositions,
    MultiHeadAttention,
    SinusoidalPositions,
    TransformerDecoderBlock,
    TransformerEncoderBlock,
    WindowAttention,
    resize_position_embeddings,
)
from kvision.ops.positions import sinusoidal_encoding
from tests.support import TOLERANCES, assert_close

TOKENS = np.random.default_rng(0).normal(size=(2, 5, 12)).astype("float32")
MEMORY = np.random.default_rng(1).normal(size=(2, 7, 12)).astype("float32")
SHUFFLE = [3, 0, 4, 1, 2]
VASWANI = {"pre_norm": False, "activation": "relu"}
EPSILON = 0.1  # of the blocks that are compared with a twin: large enough to show


def numpy(tensor):
    return keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32"))


def randomised(layer, *inputs):
    """The layer, built, its weights as a trained one's: no zeros, no ones."""
    layer(*inputs)
    rng = np.random.default_rng(2)
    layer.set_weights([rng.normal(0.5 if w.name == "gamma" else 0.0, 0.4, w.shape) for w in layer.weights])
    return layer


def weights_of(layer, part=""):
    """The weights whose path within the layer begins with `part`, by the rest of their path."""
    paths = {weight.path.split("/", 1)[1]: numpy(weight) for weight in layer.weights}
    return {path.removeprefix(part): weight for path, weight in paths.items() if path.startswith(part)}


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention_twin(w, query, key, value, mask=None):
    """One of three heads after the other; `w` as `weights_of` a `MultiHeadAttention`."""
    kernels = np.split(w["qkv/kernel"], 3, axis=1)
    biases = np.split(w["qkv/bias"], 3)
    parts = [x @ k + b for x, k, b in zip((query, key, value), kernels, biases, strict=True)]
    width = query.shape[-1] // 3
    heads = []
    for head in range(3):
        q, k, v = (part[..., head * width : (head + 1) * width] for part in parts)
        scores = q @ np.swapaxes(k, 1, 2) / np.sqrt(width)
        heads.append(softmax(scores if mask is None else np.where(mask, scores, -1e9)) @ v)
    return np.concatenate(heads, -1) @ w["proj/kernel"] + w["proj/bias"]


@pytest.mark.parametrize("mask", [None, np.tril(np.ones((5, 5), bool))], ids=["all", "causal"])
def test_self_attention_equals_the_twin(mask):
    layer = randomised(MultiHeadAttention(3), TOKENS)
    assert_close(layer(TOKENS, attention_mask=mask), attention_twin(weights_of(layer), TOKENS, TOKENS, TOKENS, mask))


def test_cross_attention_equals_the_twin():
    layer = randomised(MultiHeadAttention(3), TOKENS)
    placed = MEMORY[..., ::-1].copy()  # one number added to all keys would change nothing
    assert_close(layer(TOKENS, MEMORY), attention_twin(weights_of(layer), TOKENS, MEMORY, MEMORY))
    assert_close(layer(TOKENS, placed, MEMORY), attention_twin(weights_of(layer), TOKENS, placed, MEMORY))
    assert_close(layer(TOKENS, TOKENS, TOKENS), layer(TOKENS))


def test_the_weights_that_are_given_mix_the_values():
    layer = randomised(MultiHeadAttention(3), TOKENS)
    outputs, weights = layer(TOKENS, MEMORY, return_weights=True)
    w = weights_of(layer)
    values = MEMORY @ w["qkv/kernel"][:, 24:] + w["qkv/bias"][24:]
    heads = [numpy(weights)[:, head] @ values[..., 4 * head : 4 * head + 4] for head in range(3)]
    assert weights.shape == (2, 3, 5, 7)
    assert_close(outputs, np.concatenate(heads, -1) @ w["proj/kernel"] + w["proj/bias"])
    block = randomised(TransformerDecoderBlock(3, 8), TOKENS, MEMORY)
    assert_close(block(TOKENS, MEMORY, return_weights=True)[0], block(TOKENS, MEMORY))
    mask = np.arange(7) < 4
    _, weights = block(TOKENS, MEMORY, memory_mask=mask[None], return_weights=True)
    assert (numpy(weights)[..., 4:] == 0).all()
    assert_close(numpy(weights).sum(-1), np.ones((2, 3, 5)))


def test_the_mask_may_differ_by_sample_and_head():
    layer = randomised(MultiHeadAttention(3), TOKENS)
    mask = np.random.default_rng(3).random((2, 1, 5, 5)) < 0.7
    mask[..., 0] = True
    assert_close(
        layer(TOKENS, attention_mask=mask), attention_twin(weights_of(layer), TOKENS, TOKENS, TOKENS, mask[:, 0])
    )


def test_a_mask_of_three_axes_is_one_for_each_sample():
    tokens = np.concatenate([TOKENS, TOKENS[:1] + 1])  # as many samples as heads
    layer = randomised(MultiHeadAttention(3), tokens)
    mask = np.random.default_rng(3).random((3, 5, 5)) < 0.7
    mask[..., 0] = True
    assert_close(layer(tokens, attention_mask=mask), attention_twin(weights_of(layer), tokens, tokens, tokens, mask))


@pytest.mark.parametrize("make", [lambda: MultiHeadAttention(3), lambda: TransformerEncoderBlock(3, 24)])
def test_without_positions_attention_knows_no_order(make):
    layer = randomised(make(), TOKENS)
    assert_close(layer(TOKENS[:, SHUFFLE]), numpy(layer(TOKENS))[:, SHUFFLE])


def test_a_decoder_knows_no_order_of_its_memory():
    layer = randomised(TransformerDecoderBlock(3, 24), TOKENS, MEMORY)
    order = np.random.default_rng(3).permutation(7)
    assert_close(layer(TOKENS, MEMORY[:, order]), layer(TOKENS, MEMORY))


@pytest.mark.parametrize("make", [SinusoidalPositions, lambda: LearnedPositions((1, 5))])
def test_with_positions_the_order_counts(make):
    positions, block = make(), randomised(TransformerEncoderBlock(3, 24), TOKENS)
    in_order = numpy(block(positions(TOKENS)))[:, SHUFFLE]
    assert np.abs(numpy(block(positions(TOKENS[:, SHUFFLE]))) - in_order).max() > 1e-2


@pytest.mark.parametrize("temperature", [10_000.0, 20.0])
def test_sinusoidal_positions_add_their_encoding(temperature):
    got = SinusoidalPositions(temperature)(TOKENS)
    assert_close(got, TOKENS + numpy(sinusoidal_encoding(np.arange(5), 12, temperature)))


def test_a_causal_mask_hides_the_future():
    layer = randomised(TransformerEncoderBlock(3, 24), TOKENS)
    mask = np.tril(np.ones((5, 5), bool))
    changed = TOKENS.copy()
    changed[:, 3:] += 1
    before, after = numpy(layer(TOKENS, attention_mask=mask)), numpy(layer(changed, attention_mask=mask))
    assert_close(after[:, :3], before[:, :3])
    assert np.abs(after[:, 3:] - before[:, 3:]).max() > 1e-2


def test_a_memory_mask_hides_what_fills_it_up():
    layer = randomised(TransformerDecoderBlock(3, 24), TOKENS, MEMORY)
    got = layer(TOKENS, MEMORY, memory_mask=np.arange(7) < 4)
    assert_close(got, layer(TOKENS, MEMORY[:, :4]))


def norm_twin(w, name, x):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + EPSILON) * w[f"{name}/gamma"] + w[f"{name}/beta"]


def mlp_twin(w, x):
    hidden = np.maximum(x @ w["mlp/fc1/kernel"] + w["mlp/fc1/bias"], 0)
    return hidden @ w["mlp/fc2/kernel"] + w["mlp/fc2/bias"]


@pytest.mark.parametrize("pre_norm", [True, False])
@pytest.mark.parametrize("positions", [None, np.linspace(-1, 1, 60).reshape(1, 5, 12).astype("float32")])
def test_encoder_block_equals_the_twin(pre_norm, positions):
    options = {"pre_norm": pre_norm, "activation": "relu", "epsilon": EPSILON}
    layer = randomised(TransformerEncoderBlock(3, 24, **options), TOKENS)
    w = weights_of(layer)

    def attend(x):
        placed = x if positions is None else x + positions
        return attention_twin(weights_of(layer, "attn/"), placed, placed, x)

    want = branch_twin(w, "norm1", TOKENS, attend, pre_norm)
    want = branch_twin(w, "norm2", want, lambda x: mlp_twin(w, x), pre_norm)
    assert_close(layer(TOKENS, positions=positions), want)


@pytest.mark.parametrize("pre_norm", [True, False])
@pytest.mark.parametrize("placed", [True, False])
def test_decoder_block_equals_the_twin(pre_norm, placed):
    options = {"pre_norm": pre_norm, "activation": "relu", "epsilon": EPSILON}
    layer = randomised(TransformerDecoderBlock(3, 24, **options), TOKENS, MEMORY)
    w = weights_of(layer)
    here = np.linspace(-1, 1, 60).reshape(1, 5, 12).astype("float32") * placed
    there = np.linspace(1, -2, 84).reshape(1, 7, 12).astype("float32") * placed
    want = branch_twin(
        w, "norm1", TOKENS, lambda x: attention_twin(weights_of(layer, "attn/"), x + here, x + here, x), pre_norm
    )
    want = branch_twin(
        w,
        "norm2",
        want,
        lambda x: attention_twin(weights_of(layer, "cross_attn/"), x + here, MEMORY + there, MEMORY),
        pre_norm,
    )
    want = branch_twin(w, "norm3", want, lambda x: mlp_twin(w, x), pre_norm)
    options = {"positions": here, "memory_positions": there} if placed else {}
    assert_close(layer(TOKENS, MEMORY, **options), want)


def branch_twin(w, norm, x, branch, pre_norm):
    return x + branch(norm_twin(w, norm, x)) if pre_norm else norm_twin(w, norm, x + branch(x))


def window_twin(layer, x):
    """Every pixel attends to the pixels of its window that were contiguous, at a bias by their distance."""
    w = weights_of(layer)
    side = layer.window
    shift = [layer.shift if pixels > side else 0 for pixels in x.shape[1:3]]
    size = [-(-pixels // side) * side for pixels in x.shape[1:3]]
    filled = np.zeros((len(x), *size, x.shape[-1]))
    filled[:, : x.shape[1], : x.shape[2]] = x
    parts = np.split(filled @ w["qkv/kernel"] + w["qkv/bias"], 3, axis=-1)
    out = np.zeros_like(filled)
    width = x.shape[-1] // layer.num_heads

    def window_of(row, column):
        """In the shifted map: the window, and the position of the pixel in it."""
        row, column = (row - shift[0]) % size[0], (column - shift[1]) % size[1]
        return row // side, column // side

    pixels = list(np.ndindex(*size))
    for one in pixels:
        others = [
            other
            for other in pixels
            if window_of(*one) == window_of(*other) and all(abs(a - b) < side for a, b in zip(one, other, strict=True))
        ]
        steps = [(one[0] - row + side - 1) * (2 * side - 1) + one[1] - column + side - 1 for row, column in others]
        rows, columns = zip(*others, strict=True)
        for head in range(layer.num_heads):
            channels = slice(head * width, (head + 1) * width)
            query, keys, values = parts[0][:, *one, channels], parts[1][:, rows, columns, channels], parts[2]
            scores = np.einsum("bc,bkc->bk", query, keys) / np.sqrt(width)
            scores = scores + w["relative_position_bias_table"][steps, head]
            out[:, *one, channels] = np.einsum("bk,bkc->bc", softmax(scores), values[:, rows, columns, channels])
    return (out @ w["proj/kernel"] + w["proj/bias"])[:, : x.shape[1], : x.shape[2]]


@pytest.mark.parametrize(
    ("size", "shift"),
    [((6, 9), 0), ((6, 9), 1), ((5, 7), 1), ((3, 7), 1), ((2, 2), 1)],
    ids=["plain", "shifted", "filled up", "one axis shifted", "one window"],
)
def test_window_attention_equals_the_twin(size, shift):
    x = np.random.default_rng(0).normal(size=(2, *size, 8)).astype("float32")
    layer = randomised(WindowAttention(2, window=3, shift=shift), x)
    assert_close(layer(x), window_twin(layer, x))


def test_window_attention_takes_maps_of_other_sizes_than_it_was_built_for():
    layer = WindowAttention(2, window=3, shift=1)
    for size in ((6, 9), (5, 12), (9, 2)):
        x = np.random.default_rng(0).normal(size=(2, *size, 8)).astype("float32")
        assert_close(randomised(layer, x)(x), window_twin(layer, x))


def test_a_window_does_not_see_beyond_itself():
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 4)).astype("float32")
    layer = randomised(WindowAttention(1, window=4), x)
    changed = x.copy()
    changed[:, 0, 0] += 1
    different = np.abs(numpy(layer(changed)) - numpy(layer(x))).max(axis=(0, 3)) > 0
    assert_close(different, np.pad(np.ones((4, 4)), ((0, 4), (0, 4))))


LAYERS = {
    "attention": (lambda **o: MultiHeadAttention(3, dropout_rate=0.1, **o), (TOKENS,)),
    "window": (lambda **o: WindowAttention(3, window=2, shift=1, dropout_rate=0.1, **o), (TOKENS[:, :, None],)),
    "mlp": (lambda **o: MLP(24, dropout_rate=0.1, **o), (TOKENS,)),
    "encoder": (lambda **o: TransformerEncoderBlock(3, 24, dropout_rate=0.1, **VASWANI, **o), (TOKENS,)),
    "decoder": (lambda **o: TransformerDecoderBlock(3, 24, stochastic_depth_rate=0.1, **o), (TOKENS, MEMORY)),
    "learned": (lambda **o: LearnedPositions((2, 2), prefix_tokens=1, **o), (TOKENS,)),
    "sinusoidal": (lambda **o: SinusoidalPositions(100.0, **o), (TOKENS,)),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


@every_layer
def test_config_round_trip_and_save(name, tmp_path):
    make, inputs = LAYERS[name]
    tensors = [keras.Input(x.shape[1:]) for x in inputs]
    model = keras.Model(tensors, make(name="part")(*tensors))
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    assert copy.get_layer("part").get_config() == model.get_layer("part").get_config()
    assert [w.path for w in copy.weights] == [w.path for w in model.weights]
    assert len({w.path for w in model.weights}) == len(model.weights)
    assert_close(copy(list(inputs)), model(list(inputs)))


@pytest.mark.parametrize("make", [TransformerEncoderBlock, TransformerDecoderBlock])
def test_configs_of_blocks_are_json_for_objects_too(make):
    options = {"activation": keras.activations.silu, "kernel_initializer": keras.initializers.HeNormal(seed=1)}
    block = make(3, 24, **options)
    config = json.loads(json.dumps(block.get_config()))
    copy = make.from_config(config)
    assert copy.get_config() == block.get_config()
    assert copy.mlp.activation is keras.activations.silu
    assert copy.attn.kernel_initializer.get_config() == options["kernel_initializer"].get_config()


@every_layer
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_16_bit(name, policy):
    make, inputs = LAYERS[name]
    layer, exact = make(dtype=policy), make()
    exact(*inputs)
    got = layer(*inputs)
    layer.set_weights(exact.get_weights())
    dtype = policy.removeprefix("mixed_")
    assert keras.backend.standardize_dtype(got.dtype) == dtype
    rtol, atol = TOLERANCES[dtype]
    assert_close(numpy(layer(*inputs)), exact(*inputs), tolerance=(4 * rtol, 4 * atol))  # six layers deep


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in ("learned", "sinusoidal")])
def test_dropout_is_off_at_inference_and_on_in_training(name):
    make, inputs = LAYERS[name]
    layer = make()
    assert_close(layer(*inputs), layer(*inputs, training=False))
    first = numpy(layer(*inputs, training=True))
    assert any(not np.array_equal(numpy(layer(*inputs, training=True)), first) for _ in range(16))


@pytest.mark.parametrize(
    ("make", "inputs"), [(TransformerEncoderBlock, (TOKENS,)), (TransformerDecoderBlock, (TOKENS, MEMORY))]
)
def test_dropout_stands_behind_weights_and_dense_layers_but_qkv(make, inputs, monkeypatch):
    """Where dropout scales instead of dropping, training is inference with scaled weights."""

    def scaling(self, x, training=False):
        return x * (1 + self.rate) if training else x

    monkeypatch.setattr(keras.layers.Dropout, "call", scaling)
    layer = randomised(make(3, 24, dropout_rate=0.5, attention_dropout_rate=0.25), *inputs)
    in_training = numpy(layer(*inputs, training=True))
    scales = {"attn/proj/kernel": 1.25 * 1.5, "mlp/fc2/kernel": 1.5 * 1.5, "attn/proj/bias": 1.5, "mlp/fc2/bias": 1.5}
    for weight in layer.weights:
        weight.assign(weight * next((scale for path, scale in scales.items() if weight.path.endswith(path)), 1.0))
    assert_close(layer(*inputs), in_training)


def test_stochastic_depth_drops_whole_samples():
    many = np.repeat(TOKENS[:1], 64, axis=0)
    layer = randomised(TransformerEncoderBlock(3, 24, stochastic_depth_rate=0.5), many)
    unchanged = (numpy(layer(many, training=True)) == many).all(axis=(1, 2))
    assert 3 < unchanged.sum() < 32  # both branches dropped: a quarter of 64


def test_each_kernel_starts_from_its_own_numbers():
    layer = TransformerEncoderBlock(3, 12)
    layer(TOKENS)
    kernels = [numpy(w)[:, :12] for w in layer.weights if w.name == "kernel"]
    assert all(np.abs(a - b).max() > 1e-3 for i, a in enumerate(kernels) for b in kernels[:i])


@pytest.mark.parametrize("make", [MultiHeadAttention, WindowAttention])
def test_heads_divide_the_channels(make):
    x = TOKENS if make is MultiHeadAttention else TOKENS[:, :, None]
    with pytest.raises(ValueError, match="num_heads must divide the channels, got 5 heads for 12 channels"):
        make(5)(x)
    with pytest.raises(ValueError, match="num_heads must be at least 1, got 0"):
        make(0)


def test_wrong_calls():
    layer = MultiHeadAttention(3)
    with pytest.raises(ValueError, match="got value= without key="):
        layer(TOKENS, value=TOKENS)
    with pytest.raises(ValueError, match="need the queries' 12 channels, got 6"):
        MultiHeadAttention(3)(TOKENS, MEMORY[..., :6])
    with pytest.raises(ValueError, match="got shift=7, window=7"):
        WindowAttention(3, window=7, shift=7)
    with pytest.raises(ValueError, match=r"grid of \(2, 3\) patches and 0 tokens before them make 6 tokens, got 5"):
        LearnedPositions((2, 3))(TOKENS)


def test_resizing_to_the_same_grid_changes_nothing():
    table = np.random.default_rng(0).normal(size=(1, 7, 4)).astype("float32")
    assert_close(resize_position_embeddings(table, (2, 3), old_grid=(2, 3)), table)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_resizing_keeps_the_prefix_and_a_plane(interpolation):
    """Both interpolations give a plane back where no border is near."""
    rows, columns = np.mgrid[0:8, 0:8] + 0.5
    table = np.concatenate([[7.0, 8.0], (rows + 2 * columns).ravel()])[None, :, None]
    got = resize_position_embeddings(table, (16, 8), prefix_tokens=2, interpolation=interpolation)
    assert got.shape == (1, 2 + 128, 1)
    assert_close(got[0, :2, 0], [7.0, 8.0])
    rows, columns = np.mgrid[0:16, 0:8] + 0.5
    assert_close(got[0, 2:, 0].reshape(16, 8)[4:12, 2:6], (rows / 2 + 2 * columns)[4:12, 2:6])


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_what_is_finer_than_a_smaller_grid_averages_out(interpolation):
    stripes = np.tile([1.0, -1.0, -1.0, 1.0], (16, 4)).ravel()  # single points in the middle of new ones would give -1
    got = resize_position_embeddings(np.r_[5.0, stripes][None, :, None], (4, 4), interpolation=interpolation)
    assert_close(got[0, 1:, 0].reshape(4, 4)[:, 1:3], np.zeros((4, 2)), tolerance=(0, 0.1))  # a kernel of few points


@pytest.mark.parametrize("tokens", [1, 6, 8])
def test_resizing_needs_a_full_grid(tokens):
    with pytest.raises(ValueError, match="do not fill a square"):
        resize_position_embeddings(np.zeros((1, tokens, 4)), (2, 2))


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_loading_a_weight_file_of_another_grid_interpolates(prefix, tmp_path):
    def model(grid):
        tokens = keras.Input((prefix + grid[0] * grid[1], 4))
        return keras.Model(tokens, LearnedPositions(grid, prefix_tokens=prefix, name="positions")(tokens))

    small, large = model((2, 2)), model((4, 3))
    small.save_weights(tmp_path / "small.weights.h5")
    large.load_weights(tmp_path / "small.weights.h5")
    want = resize_position_embeddings(small.get_weights()[0], (4, 3), prefix_tokens=prefix)
    assert_close(large.get_weights()[0], want)
