"""Scaled dot-product attention against a twin of loops, and what it must do with masks and 16 bits."""

import keras
import numpy as np
import pytest

from kvision.ops.attention import merge_heads, scaled_dot_product_attention, split_heads
from tests.ops.differentiation import central_differences, value_and_gradients
from tests.ops.execution import MODES, execute
from tests.support import assert_close


def twin(query, key, value, bias, mask):
    """One query at a time. All `[b, heads, …]`, bias and mask already of full shape."""
    out = np.zeros((*query.shape[:-1], value.shape[-1]))
    for index in np.ndindex(query.shape[:-1]):
        b, h, _ = index
        scores = [
            query[index] @ key[b, h, s] / np.sqrt(query.shape[-1]) + bias[(*index, s)] for s in range(key.shape[2])
        ]
        weights = np.exp(np.array(scores) - max(scores)) * mask[index]
        out[index] = weights / weights.sum() @ value[b, h]
    return out


def example(t=4, s=5, d=3, e=2):
    rng = np.random.default_rng(0)
    shapes = [(2, 3, t, d), (2, 3, s, d), (2, 3, s, e), (3, t, s)]
    query, key, value, bias = (rng.normal(size=shape).astype("float32") for shape in shapes)
    mask = rng.random((2, 1, t, s)) < 0.6
    mask[..., 0] = True
    return query, key, value, bias, mask


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_equals_the_twin(with_bias, with_mask, mode):
    query, key, value, bias, mask = example()
    got = execute(
        lambda *qkv: scaled_dot_product_attention(
            *qkv, bias=bias if with_bias else None, mask=mask if with_mask else None
        ),
        query,
        key,
        value,
        mode=mode,
    )
    full = (2, 3, 4, 5)
    bias = np.broadcast_to(bias if with_bias else 0.0, full)
    mask = np.broadcast_to(mask if with_mask else 1.0, full)
    assert_close(got, twin(query, key, value, bias, mask))


def test_gradients_equal_the_differences_of_the_twin():
    query, key, value, bias, mask = example(t=2, s=3)
    upstream = np.random.default_rng(1).normal(size=(2, 3, 2, 2)).astype("float32")
    full = (2, 3, 2, 3)

    def ours(query, key, value, bias):
        return scaled_dot_product_attention(query, key, value, bias=bias, mask=mask)

    def theirs(query, key, value, bias):
        return twin(query, key, value, np.broadcast_to(bias, full), np.broadcast_to(mask, full))

    _, gradients = value_and_gradients(ours, (query, key, value, bias), upstream)
    for got, want in zip(gradients, central_differences(theirs, (query, key, value, bias), upstream), strict=True):
        assert_close(got, want)


def test_a_forbidden_key_has_no_influence_and_no_gradient():
    query, key, value, _, _ = example()
    mask = np.arange(5) != 2
    upstream = np.ones((2, 3, 4, 2), "float32")
    got, (_, key_gradient, value_gradient) = value_and_gradients(
        lambda *qkv: scaled_dot_product_attention(*qkv, mask=mask), (query, key, value), upstream
    )
    without = scaled_dot_product_attention(query, key[:, :, mask], value[:, :, mask])
    assert_close(got, without)
    assert not np.any(keras.ops.convert_to_numpy(key_gradient)[:, :, 2])
    assert not np.any(keras.ops.convert_to_numpy(value_gradient)[:, :, 2])


def test_a_query_without_any_key_gets_the_mean():
    query, key, value, _, _ = example()
    got = scaled_dot_product_attention(query, key, value, mask=np.zeros((4, 5), bool))
    assert_close(got, np.broadcast_to(value.mean(axis=2, keepdims=True), (2, 3, 4, 2)))


def test_a_single_key_is_always_looked_at():
    query, key, value, _, _ = example(s=1)
    assert_close(scaled_dot_product_attention(query, key, value), np.broadcast_to(value, (2, 3, 4, 2)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_inputs_have_a_float32_softmax(dtype):
    """4096 equal keys: weights of 1/4096 summed in 16 bits would stop growing long before they reach 1."""
    query, key, value = (keras.ops.ones((1, 1, size, 4), dtype) for size in (1, 4096, 4096))
    got = scaled_dot_product_attention(query, key, value)
    assert keras.backend.standardize_dtype(got.dtype) == dtype
    assert_close(keras.ops.cast(got, "float32"), np.ones((1, 1, 1, 4)), dtype)
    # -0.25 and 0.25 around a bias of 1000, which 16 bits would round away
    two = np.array([[1000.25, 999.75]], "float32")
    weight = scaled_dot_product_attention(
        query[:, :, :, :1] * 0, key[:, :, :2, :1], np.eye(2, dtype="float32")[None, None], bias=two
    )
    assert_close(keras.ops.cast(weight, "float32")[0, 0, 0], np.array([np.e**0.5, 1]) / (1 + np.e**0.5), dtype)


def test_dropout_acts_on_the_weights():
    query, key, value, _, _ = example()
    got = scaled_dot_product_attention(query, key, value, dropout=lambda weights: 2 * weights)
    assert_close(got, 2 * keras.ops.convert_to_numpy(scaled_dot_product_attention(query, key, value)))


def test_heads_are_the_columns_of_a_projection():
    x = np.arange(2 * 3 * 12).reshape(2, 3, 12).astype("float32")  # query, key, value of two heads of two channels
    query, key, value = (keras.ops.convert_to_numpy(part) for part in split_heads(x, 3, 2))
    assert query.shape == (2, 2, 3, 2)
    assert_close(query[:, 1], x[:, :, 2:4])
    assert_close(key[:, 0], x[:, :, 4:6])
    assert_close(value[:, 1], x[:, :, 10:12])
    assert_close(merge_heads(value), x[:, :, 8:])
