"""Squeeze and excitation (Hu, Shen, Albanie, Sun, Wu 2017, "Squeeze-and-Excitation Networks", section 3)."""

import keras
from keras import ops

from kvision.layers.conventions import conventions


@keras.saving.register_keras_serializable("kvision")
class SqueezeExcite(keras.layers.Layer):
    """Scale the channels of a map by gates computed from its global average: x · sigmoid(W₂ δ(W₁ mean(x) + b₁) + b₂).

    Hu et al. 2017, section 3.

    Args:
        squeeze_channels: Width of the bottleneck between the two 1x1 convolutions, >= 1.
        activation: δ, a name that `kvision.layers.conventions.activation_layer` knows; the paper's is ReLU.
        kernel_initializer, bias_initializer: Names as in `kvision.layers.conventions.conventions`, or Initializers.

    Shapes: [b, h, w, c] → the same.

    >>> tuple(SqueezeExcite(2)(keras.ops.ones((1, 4, 4, 8))).shape)
    (1, 4, 4, 8)
    """

    def __init__(
        self, squeeze_channels, activation="relu", kernel_initializer="he", bias_initializer="zero", **options
    ):
        super().__init__(**options)
        if squeeze_channels < 1:
            raise ValueError(f"SqueezeExcite: squeeze_channels must be at least 1, got {squeeze_channels}.")
        self.squeeze_channels = squeeze_channels
        self.activation = activation
        self.kernel_initializer = _name_or_object(kernel_initializer)
        self.bias_initializer = _name_or_object(bias_initializer)

    def build(self, input_shape):
        bound = conventions(None, self.activation, self.kernel_initializer, self.bias_initializer)
        self.fc1 = bound.conv(self.squeeze_channels, 1, dtype=self.dtype_policy, name="fc1")
        self.delta = bound.activation(name="activation")
        self.delta.dtype_policy = self.dtype_policy
        self.fc2 = bound.conv(input_shape[-1], 1, dtype=self.dtype_policy, name="fc2")
        squeezed = (input_shape[0], 1, 1, self.squeeze_channels)
        self.fc1.build((input_shape[0], 1, 1, input_shape[-1]))
        self.delta.build(squeezed)
        self.fc2.build(squeezed)

    def call(self, inputs):
        weights = self.fc2(self.delta(self.fc1(ops.mean(inputs, axis=(1, 2), keepdims=True))))
        return inputs * ops.sigmoid(weights)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return super().get_config() | {
            "squeeze_channels": self.squeeze_channels,
            "activation": self.activation,
            "kernel_initializer": _plain(self.kernel_initializer),
            "bias_initializer": _plain(self.bias_initializer),
        }


def _name_or_object(initializer):
    return initializer if isinstance(initializer, str) else keras.initializers.get(initializer)


def _plain(initializer):
    return initializer if isinstance(initializer, str) else keras.initializers.serialize(initializer)
