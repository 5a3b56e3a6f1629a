"""Scaled dot-product attention: Vaswani et al. 2017, "Attention Is All You Need", section 3.2."""

import keras
from keras import ops

_MASKED = -1e9  # exp of it is 0 in float32, and a row whose keys are all masked stays finite


def scaled_dot_product_attention(query, key, value, *, bias=None, mask=None, dropout=None, return_weights=False):
    """softmax(q·kᵀ / √d + bias)·v, equation 1; the softmax is float32 under 16-bit inputs.

    Args:
        query: `[..., t, d]`, the heads among the leading axes.
        key: `[..., s, d]`.
        value: `[..., s, e]`.
        bias: Added to the scaled products, broadcast to `[..., t, s]`, float32; None adds nothing.
        mask: Boolean, broadcast to `[..., t, s]`: True where a query may attend to a key; None permits all. A
            query whose keys are all masked gets the mean of all values.
        dropout: Applied to the attention weights, for example a `keras.layers.Dropout`.
        return_weights: Whether to return the attention weights as well, before their dropout.

    Returns:
        `[..., t, e]`, in the dtype of `value`; with `return_weights` a pair of it and `[..., t, s]`, likewise.

    >>> scaled_dot_product_attention(*[keras.ops.ones((2, 3, 5, 4))] * 3).shape
    TensorShape([2, 3, 5, 4])
    """
    scores = ops.matmul(query * query.shape[-1] ** -0.5, ops.swapaxes(key, -1, -2))
    scores = ops.cast(scores, keras.backend.result_type(scores.dtype, "float32"))
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = ops.where(mask, scores, _MASKED)
    one_key = scores.shape[-1] == 1  # Keras warns of a softmax over a single number
    weights = ops.cast(ops.ones_like(scores) if one_key else ops.softmax(scores), value.dtype)
    mixed = ops.matmul(weights if dropout is None else dropout(weights), value)
    return (mixed, weights) if return_weights else mixed


def split_heads(x, parts, num_heads):
    """The parts of one projection, cut into heads: `[b, t, parts·c]` → a list of `[b, heads, t, c/heads]`."""
    tokens, width = ops.shape(x)[1], x.shape[-1] // (parts * num_heads)
    heads = ops.transpose(ops.reshape(x, (-1, tokens, parts, num_heads, width)), (2, 0, 3, 1, 4))
    return ops.unstack(heads, parts, axis=0)


def merge_heads(x):
    """`[b, heads, t, d]` → `[b, t, heads·d]`."""
    _, num_heads, _, width = x.shape
    return ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (-1, ops.shape(x)[2], num_heads * width))
