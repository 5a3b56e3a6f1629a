"""Transformer blocks: Vaswani et al. 2017, "Attention Is All You Need", section 3.1; pre-norm as in ViT."""

import keras
from keras import ops

from kvision.layers.attention import MultiHeadAttention
from kvision.layers.layer_normalization import LayerNormalization
from kvision.layers.stochastic_depth import StochasticDepth
from kvision.ops.activations import gelu

# Weights of torch.nn.TransformerEncoderLayer and TransformerDecoderLayer, as `kvision.weights` renames keys.
TORCH_RENAMES = [
    (r"\.cross_attn\.", ".multihead_attn."),
    (r"\.attn\.", ".self_attn."),
    (r"\.qkv\.(weight|bias)$", r".in_proj_\1"),
    (r"\.proj\.(weight|bias)$", r".out_proj.\1"),
    (r"\.mlp\.fc([12])\.", r".linear\1."),
]


@keras.saving.register_keras_serializable("kvision")
class MLP(keras.layers.Layer):
    """Two dense layers on the channels, the position-wise feed-forward network.

    Vaswani et al. 2017, section 3.3.

    Args:
        hidden_units: Width between the two.
        activation: `"gelu"` (exact), another name of `keras.activations`, or a function.
        dropout_rate: After each of the two, in [0, 1).
        kernel_initializer: Of both kernels.

    Shapes: [..., c] → [..., c].

    >>> MLP(32)(keras.ops.ones((2, 5, 8))).shape
    TensorShape([2, 5, 8])
    """

    def __init__(
        self, hidden_units, activation="gelu", dropout_rate=0.0, kernel_initializer="glorot_uniform", **options
    ):
        super().__init__(**options)
        self.hidden_units = hidden_units
        self.activation = gelu if activation == "gelu" else keras.activations.get(activation)
        self.dropout_rate = dropout_rate
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.dropout = keras.layers.Dropout(dropout_rate, dtype=self.dtype_policy, name="dropout")

    def build(self, input_shape):
        self.fc1 = self._dense(self.hidden_units, self.activation, "fc1")
        self.fc2 = self._dense(input_shape[-1], None, "fc2")
        self.fc1.build(input_shape)
        self.fc2.build((*input_shape[:-1], self.hidden_units))

    def _dense(self, units, activation, name):
        initializer = self.kernel_initializer.clone()
        return keras.layers.Dense(units, activation, kernel_initializer=initializer, dtype=self.dtype_policy, name=name)

    def call(self, inputs, training=None):
        x = self.dropout(self.fc1(inputs), training=training)
        return self.dropout(self.fc2(x), training=training)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return super().get_config() | {
            "hidden_units": self.hidden_units,
            "activation": keras.activations.serialize(self.activation),
            "dropout_rate": self.dropout_rate,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


class _TransformerBlock(keras.layers.Layer):
    """What encoder and decoder blocks share: residual branches, normalised before (ViT) or after (Vaswani)."""

    def __init__(
        self,
        num_heads,
        hidden_units,
        *,
        pre_norm=True,
        activation="gelu",
        dropout_rate=0.0,
        attention_dropout_rate=0.0,
        stochastic_depth_rate=0.0,
        epsilon=1e-6,
        kernel_initializer="glorot_uniform",
        **options,
    ):
        super().__init__(**options)
        self._config = {
            "num_heads": num_heads,
            "hidden_units": hidden_units,
            "pre_norm": pre_norm,
            "activation": activation if isinstance(activation, str) else keras.activations.serialize(activation),
            "dropout_rate": dropout_rate,
            "attention_dropout_rate": attention_dropout_rate,
            "stochastic_depth_rate": stochastic_depth_rate,
            "epsilon": epsilon,
            "kernel_initializer": keras.initializers.serialize(keras.initializers.get(kernel_initializer)),
        }
        self.pre_norm = pre_norm
        self.dropout = keras.layers.Dropout(dropout_rate, dtype=self.dtype_policy, name="dropout")
        self.stochastic_depth = StochasticDepth(stochastic_depth_rate, dtype=self.dtype_policy, name="stochastic_depth")

    def _attention(self, name):
        config = self._config
        return MultiHeadAttention(
            config["num_heads"],
            dropout_rate=config["attention_dropout_rate"],
            kernel_initializer=config["kernel_initializer"],
            dtype=self.dtype_policy,
            name=name,
        )

    def _mlp(self):
        config = self._config
        return MLP(
            config["hidden_units"],
            activation=config["activation"],
            dropout_rate=config["dropout_rate"],
            kernel_initializer=config["kernel_initializer"],
            dtype=self.dtype_policy,
            name="mlp",
        )

    def _norm(self, name):
        return LayerNormalization(epsilon=self._config["epsilon"], dtype=self.dtype_policy, name=name)

    def _residual(self, x, norm, branch, training):
        """x + branch(norm(x)), or norm(x + branch(x)); a dropped branch adds nothing for that sample."""
        y = self.stochastic_depth(branch(norm(x) if self.pre_norm else x), training=training)
        return x + y if self.pre_norm else norm(x + y)

    def compute_output_shape(self, x_shape):
        return x_shape

    def get_config(self):
        return super().get_config() | self._config


@keras.saving.register_keras_serializable("kvision")
class TransformerEncoderBlock(_TransformerBlock):
    """Self-attention, then an MLP, each on a residual branch.

    Vaswani et al. 2017, figure 1 left, is `pre_norm=False, activation="relu", dropout_rate=0.1` and equals
    `torch.nn.TransformerEncoderLayer`; the defaults are the block of ViT.

    Args:
        num_heads: Divides the channels.
        hidden_units: Width of the MLP.
        pre_norm: Whether a branch normalises its input (pre-norm), or the sum is normalised (post-norm).
        activation: Of the MLP: `"gelu"` or another name of `keras.activations`.
        dropout_rate: After each dense layer but `qkv`, in [0, 1).
        attention_dropout_rate: Of the attention weights, in [0, 1).
        stochastic_depth_rate: Probability that a sample skips a branch in training (Huang et al. 2016), in [0, 1).
        epsilon: Of the layer normalisations.
        kernel_initializer: Of all kernels.

    Call:
        x: [b, t, c].
        positions: Added to queries and keys, not to values, broadcast to [b, t, c] (as DETR does); None adds nothing.
        attention_mask: Boolean [t, t], [b, t, t] or [b, heads, t, t]: True where a token may attend to another.

    Shapes: [b, t, c] → [b, t, c].

    >>> TransformerEncoderBlock(4, 64)(keras.ops.ones((2, 5, 16))).shape
    TensorShape([2, 5, 16])
    """

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.norm1, self.attn = self._norm("norm1"), self._attention("attn")
        self.norm2, self.mlp = self._norm("norm2"), self._mlp()

    def build(self, x_shape):
        for layer in (self.norm1, self.attn, self.norm2, self.mlp):
            layer.build(x_shape)

    def call(self, x, positions=None, attention_mask=None, training=None):
        def attend(y):
            y = _self_attention(self.attn, y, positions, attention_mask, training)
            return self.dropout(y, training=training)

        x = self._residual(x, self.norm1, attend, training)
        return self._residual(x, self.norm2, lambda y: self.mlp(y, training=training), training)


@keras.saving.register_keras_serializable("kvision")
class TransformerDecoderBlock(_TransformerBlock):
    """Self-attention, attention to an encoder's memory, then an MLP, each on a residual branch.

    Vaswani et al. 2017, figure 1 right, is `pre_norm=False, activation="relu", dropout_rate=0.1` and equals
    `torch.nn.TransformerDecoderLayer`.

    Args:
        num_heads, hidden_units, pre_norm, activation, dropout_rate, attention_dropout_rate, stochastic_depth_rate,
        epsilon, kernel_initializer: As in `TransformerEncoderBlock`.

    Call:
        x: [b, t, c].
        memory: [b, s, c], the encoder's output.
        positions: Added to the queries and to the keys of the self-attention; None adds nothing.
        memory_positions: Added to the keys of the memory, not to its values; None adds nothing.
        attention_mask: Boolean [t, t], [b, t, t] or [b, heads, t, t].
        memory_mask: Boolean [t, s], [b, t, s] or [b, heads, t, s].
        return_weights: Whether to return the weights of the attention to the memory too, [b, heads, t, s].

    Shapes: [b, t, c] → [b, t, c].

    >>> TransformerDecoderBlock(4, 64)(keras.ops.ones((2, 5, 16)), keras.ops.ones((2, 9, 16))).shape
    TensorShape([2, 5, 16])
    """

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.norm1, self.attn = self._norm("norm1"), self._attention("attn")
        self.norm2, self.cross_attn = self._norm("norm2"), self._attention("cross_attn")
        self.norm3, self.mlp = self._norm("norm3"), self._mlp()

    def build(self, x_shape):
        for layer in (self.norm1, self.attn, self.norm2, self.cross_attn, self.norm3, self.mlp):
            layer.build(x_shape)

    def call(
        self,
        x,
        memory,
        positions=None,
        memory_positions=None,
        attention_mask=None,
        memory_mask=None,
        return_weights=False,
        training=None,
    ):
        weights = []

        def attend(y):
            y = _self_attention(self.attn, y, positions, attention_mask, training)
            return self.dropout(y, training=training)

        def cross_attend(y):
            query, key = _with_positions(y, positions), _with_positions(memory, memory_positions)
            y, attention = self.cross_attn(
                query, key, memory, attention_mask=memory_mask, return_weights=True, training=training
            )
            weights.append(attention)
            return self.dropout(y, training=training)

        x = self._residual(x, self.norm1, attend, training)
        x = self._residual(x, self.norm2, cross_attend, training)
        x = self._residual(x, self.norm3, lambda y: self.mlp(y, training=training), training)
        return (x, *weights) if return_weights else x


def _self_attention(attention, x, positions, mask, training):
    if positions is None:
        return attention(x, attention_mask=mask, training=training)
    positioned = _with_positions(x, positions)
    return attention(positioned, positioned, x, attention_mask=mask, training=training)


def _with_positions(x, positions):
    return x if positions is None else x + ops.cast(positions, x.dtype)
