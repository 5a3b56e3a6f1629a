"""Attention layers and transformer blocks against torch's layers with the same weights."""

import keras
import numpy as np
import pytest

from kvision import weights
from kvision.layers import (
    MultiHeadAttention,
    TransformerDecoderBlock,
    TransformerEncoderBlock,
    resize_position_embeddings,
)
from kvision.layers.transformer import TORCH_RENAMES
from tests.support import PARITY, assert_close

pytestmark = pytest.mark.parity

TOKENS = np.random.default_rng(0).normal(size=(2, 5, 12)).astype("float32")
MEMORY = np.random.default_rng(1).normal(size=(2, 7, 12)).astype("float32")


def load(layer, module, *inputs):
    """Torch's weights in our layer, whose name is "part", by the renames that networks use."""
    tensors = [keras.Input(x.shape[1:]) for x in inputs]
    model = keras.Model(tensors, layer(*tensors))
    attention = [(r"^part\.", ""), (r"^qkv\.", "in_proj_"), (r"^proj\.", "out_proj.")]
    weights.remember(model, {"torchvision": [*TORCH_RENAMES, *attention]})
    weights.load_torch(model, module.state_dict())
    return layer


def torch_module(module):
    import torch

    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        tensor.normal_(0.5 if "norm" in name and "weight" in name else 0.0, 0.4, generator=generator)
    return module.eval()


def torch_call(module, *arrays, **options):
    import torch

    with torch.no_grad():
        options = {key: None if value is None else torch.from_numpy(value) for key, value in options.items()}
        return module(*map(torch.from_numpy, arrays), **options)


@pytest.mark.parametrize("masked", [True, False])
def test_equals_torch_multi_head_attention(masked):
    import torch

    module = torch_module(torch.nn.MultiheadAttention(12, 3, batch_first=True))
    layer = load(MultiHeadAttention(3, name="part"), module, TOKENS, MEMORY, MEMORY)
    allowed = np.random.default_rng(3).random((5, 7)) < 0.6
    allowed[:, 0] = True
    values = MEMORY[..., ::-1].copy()
    want, _ = torch_call(module, TOKENS, MEMORY, values, attn_mask=~allowed if masked else None)
    got = layer(TOKENS, MEMORY, values, attention_mask=allowed if masked else None)
    assert_close(got, want.numpy(), tolerance=PARITY)


@pytest.mark.parametrize("pre_norm", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_equals_torch_encoder_layer(pre_norm, activation):
    import torch

    ours = {"pre_norm": pre_norm, "activation": activation}
    options = {"activation": activation, "norm_first": pre_norm, "batch_first": True, "layer_norm_eps": 1e-6}
    module = torch_module(torch.nn.TransformerEncoderLayer(12, 3, 24, **options))
    layer = load(TransformerEncoderBlock(3, 24, **ours, name="part"), module, TOKENS)
    filled_up = np.array([[False] * 5, [False] * 3 + [True] * 2])
    want = torch_call(module, TOKENS, src_key_padding_mask=filled_up).numpy()
    got = keras.ops.convert_to_numpy(layer(TOKENS, attention_mask=~filled_up[:, None, None]))
    assert_close(got[~filled_up], want[~filled_up], tolerance=PARITY)  # torch may leave zeros where it is filled up


@pytest.mark.parametrize("pre_norm", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_equals_torch_decoder_layer(pre_norm, activation):
    import torch

    ours = {"pre_norm": pre_norm, "activation": activation}
    options = {"activation": activation, "norm_first": pre_norm, "batch_first": True, "layer_norm_eps": 1e-6}
    module = torch_module(torch.nn.TransformerDecoderLayer(12, 3, 24, **options))
    layer = load(TransformerDecoderBlock(3, 24, **ours, name="part"), module, TOKENS, MEMORY)
    causal = np.tril(np.ones((5, 5), bool))
    filled_up = np.array([[False] * 7, [False] * 3 + [True] * 4])
    want = torch_call(module, TOKENS, MEMORY, tgt_mask=~causal, memory_key_padding_mask=filled_up)
    got = layer(TOKENS, MEMORY, attention_mask=causal, memory_mask=~filled_up[:, None, None])
    assert_close(got, want.numpy(), tolerance=PARITY)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("new_grid", [(24, 24), (7, 9), (14, 20)])
def test_resizing_equals_torch(interpolation, new_grid):
    import torch

    table = np.random.default_rng(0).normal(size=(1, 197, 8)).astype("float32")
    grid = torch.from_numpy(table[:, 1:].reshape(1, 14, 14, 8)).permute(0, 3, 1, 2)
    want = torch.nn.functional.interpolate(grid, size=new_grid, mode=interpolation, antialias=True)
    want = want.permute(0, 2, 3, 1).reshape(1, -1, 8).numpy()
    got = resize_position_embeddings(table, new_grid, interpolation=interpolation)
    assert_close(got[:, 1:], want, tolerance=PARITY)
    assert_close(got[:, :1], table[:, :1])
