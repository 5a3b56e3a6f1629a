"""Multi-head attention over tokens (Vaswani et al. 2017) and inside the windows of a map (Liu et al. 2021)."""

import math

import keras
from keras import ops

from kvision.ops.attention import merge_heads, scaled_dot_product_attention, split_heads
from kvision.ops.windows import (
    relative_position_index,
    shifted_window_mask,
    window_merge,
    window_partition,
    windows_over,
)


class _Attention(keras.layers.Layer):
    """What both attentions share: the two projections, `qkv` in one matrix, and the dropout of the weights."""

    def __init__(self, num_heads, dropout_rate=0.0, kernel_initializer="glorot_uniform", **options):
        super().__init__(**options)
        if num_heads < 1:
            raise ValueError(f"{type(self).__name__}: num_heads must be at least 1, got {num_heads}.")
        self.num_heads = num_heads
        self.dropout_rate = dropout_rate
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.dropout = keras.layers.Dropout(dropout_rate, dtype=self.dtype_policy, name="dropout")

    def _build_projections(self, channels):
        if channels % self.num_heads:
            raise ValueError(
                f"{self.name}: num_heads must divide the channels, got {self.num_heads} heads for {channels} channels."
            )
        self.qkv = self._dense(3 * channels, "qkv")
        self.proj = self._dense(channels, "proj")
        self.qkv.build((None, channels))
        self.proj.build((None, channels))

    def _dense(self, units, name):
        initializer = self.kernel_initializer.clone()  # one instance used twice would give both kernels the same values
        return keras.layers.Dense(units, kernel_initializer=initializer, dtype=self.dtype_policy, name=name)

    def get_config(self):
        return super().get_config() | {
            "num_heads": self.num_heads,
            "dropout_rate": self.dropout_rate,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


@keras.saving.register_keras_serializable("kvision")
class MultiHeadAttention(_Attention):
    """Several attentions in parallel, each head with its own projection.

    Vaswani et al. 2017, section 3.2.2. Queries, keys and values come out of one matrix `qkv` [c, 3c], in the order and
    layout of torch's `in_proj` and timm's `qkv`; self-attention is one matrix product.

    Args:
        num_heads: Divides the channels.
        dropout_rate: Of the attention weights, in [0, 1).
        kernel_initializer: Of both projections.

    Call:
        query: [b, t, c].
        key: [b, s, c]; None: the query, which is self-attention.
        value: [b, s, c]; None: the key.
        attention_mask: Boolean [t, s], [b, t, s] or [b, heads, t, s], each axis that size or 1: True where a query may
            attend to a key.
        return_weights: Whether to return the attention weights too, [b, heads, t, s], before their dropout.

    Shapes: [b, t, c] → [b, t, c].

    Raises:
        ValueError: On build, when the heads do not divide the channels; when a value comes without its key.

    >>> MultiHeadAttention(3)(keras.ops.ones((2, 5, 12))).shape
    TensorShape([2, 5, 12])
    """

    def build(self, query_shape):
        self._build_projections(query_shape[-1])

    def call(self, query, key=None, value=None, attention_mask=None, return_weights=False, training=None):
        if key is None and value is not None:
            raise ValueError(f"{self.name}: a value needs the key it belongs to: got value= without key=.")
        if key is None:
            query, key, value = split_heads(self.qkv(query), 3, self.num_heads)
        elif key is query and value is not None:  # self-attention with positions: one product less
            (query, key), (value,) = self._project(query, 0, 2), self._project(value, 2, 3)
        else:
            (query,), (key, value) = self._project(query, 0, 1), self._keys_and_values(key, value)
        if attention_mask is not None and len(attention_mask.shape) == 3:
            attention_mask = attention_mask[:, None]  # the same for all heads
        heads, weights = scaled_dot_product_attention(
            query,
            key,
            value,
            mask=attention_mask,
            dropout=lambda weights: self.dropout(weights, training=training),
            return_weights=True,
        )
        outputs = self.proj(merge_heads(heads))
        return (outputs, weights) if return_weights else outputs

    def _keys_and_values(self, key, value):
        if value is None:
            return self._project(key, 1, 3)
        return *self._project(key, 1, 2), *self._project(value, 2, 3)

    def _project(self, x, first, last):
        """The heads of the parts `first` to `last` of query, key and value."""
        channels = self.proj.units
        if x.shape[-1] != channels:
            raise ValueError(f"{self.name}: keys and values need the queries' {channels} channels, got {x.shape[-1]}.")
        columns = slice(first * channels, last * channels)
        if self.qkv.quantization_mode:  # its kernel are integers, which the layer alone can scale
            x = self.qkv(x)[..., columns]
        else:
            x = ops.matmul(x, self.qkv.kernel[:, columns]) + self.qkv.bias[columns]
        return split_heads(x, last - first, self.num_heads)

    def compute_output_shape(self, query_shape):
        return query_shape

    def multiply_adds(self, query_shape):
        """Multiply-adds of the two products of self-attention, without the projections."""
        batch, tokens, channels = query_shape
        return 2 * (batch or 1) * tokens**2 * channels


@keras.saving.register_keras_serializable("kvision")
class WindowAttention(_Attention):
    """Multi-head self-attention inside the windows of a map, with a learned bias by relative position.

    Liu et al. 2021, section 3.2. Windows tile the map; with a shift they tile the cyclically shifted map, and pixels
    that were not contiguous do not attend to each other. Maps whose size the window does not divide are padded with
    zeros, as in torchvision. An axis that one window covers is not shifted.

    Args:
        num_heads: Divides the channels.
        window: Rows and columns of a window.
        shift: Rows and columns to shift by, 0 to window - 1.
        dropout_rate: Of the attention weights, in [0, 1).
        kernel_initializer: Of both projections and the bias table.

    Shapes: [b, h, w, c] → [b, h, w, c], sizes static.

    Raises:
        ValueError: When the shift is not below the window; on build, when the heads do not divide the channels.

    >>> WindowAttention(2, window=4, shift=2)(keras.ops.ones((1, 10, 8, 6))).shape
    TensorShape([1, 10, 8, 6])
    """

    def __init__(self, num_heads, window=7, shift=0, **options):
        super().__init__(num_heads, **options)
        if not 0 <= shift < window:
            raise ValueError(f"WindowAttention: shift must lie in 0 to window - 1, got shift={shift}, window={window}.")
        self.window = window
        self.shift = shift

    def build(self, input_shape):
        self._build_projections(input_shape[-1])
        self.relative_position_bias_table = self.add_weight(
            shape=((2 * self.window - 1) ** 2, self.num_heads),
            initializer=self.kernel_initializer.clone(),
            autocast=False,
            name="relative_position_bias_table",
        )

    def call(self, inputs, training=None):
        size = tuple(inputs.shape[1:3])
        windows = windows_over(size, self.window)
        shift = tuple(self.shift if count > 1 else 0 for count in windows)
        x = window_partition(inputs, self.window, shift)
        heads = split_heads(self.qkv(x), 3, self.num_heads)
        # [b·windows, heads, pixels, d] → [b, windows, heads, pixels, d], so that each window gets its own mask.
        query, key, value = (ops.reshape(part, (-1, math.prod(windows), *part.shape[1:])) for part in heads)
        bias = self._bias(size, shift)
        heads = scaled_dot_product_attention(
            query, key, value, bias=bias, dropout=lambda weights: self.dropout(weights, training=training)
        )
        x = self.proj(merge_heads(ops.reshape(heads, (-1, *heads.shape[2:]))))
        return window_merge(x, size, self.window, shift)

    def _bias(self, size, shift):
        """The table expanded to pairs of pixels, [heads, pixels, pixels]; with a shift [windows, heads, …], masked."""
        pixels = self.window**2
        table = ops.transpose(ops.convert_to_tensor(self.relative_position_bias_table))
        index = relative_position_index(self.window).ravel()
        bias = ops.reshape(ops.take(table, index, axis=1), (self.num_heads, pixels, pixels))
        if not any(shift):
            return bias
        return ops.where(shifted_window_mask(size, self.window, shift)[:, None], bias, -1e9)

    def compute_output_shape(self, input_shape):
        return input_shape

    def multiply_adds(self, input_shape):
        """Multiply-adds of the two products inside the windows, without the projections: linear in the map's pixels."""
        count = math.prod(windows_over(input_shape[1:3], self.window))
        return 2 * (input_shape[0] or 1) * count * self.window**4 * input_shape[-1]

    def get_config(self):
        return super().get_config() | {"window": self.window, "shift": self.shift}
