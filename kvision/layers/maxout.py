"""Maxout (Goodfellow et al. 2013, "Maxout Networks", section 2)."""

import operator

import keras
from keras import ops


@keras.saving.register_keras_serializable("kvision")
class Maxout(keras.layers.Layer):
    """The largest of several affine maps of the channels: hᵢ(x) = maxⱼ (x·Wᵢⱼ + bᵢⱼ).

    Args:
        units: Output channels; None keeps the input's, so that the layer can stand where an activation stands.
        pieces: Number of affine maps the maximum is taken over, ≥ 2. ReLU, leaky ReLU and |x| are special cases of 2.
        kernel_initializer, bias_initializer: As in `keras.layers.Dense`.

    Shapes: [..., c] → [..., units].

    >>> tuple(Maxout(4, pieces=3)(keras.ops.zeros((2, 8))).shape)
    (2, 4)
    """

    def __init__(self, units=None, pieces=2, kernel_initializer="he_normal", bias_initializer="zeros", **options):
        super().__init__(**options)
        if pieces < 2:
            raise ValueError(f"Maxout takes the maximum over at least 2 pieces, got pieces={pieces}.")
        self.units = units and operator.index(units)
        self.pieces = operator.index(pieces)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)

    def build(self, input_shape):
        channels = input_shape[-1]
        width = (self.units or channels) * self.pieces
        self.kernel = self.add_weight(shape=(channels, width), initializer=self.kernel_initializer, name="kernel")
        self.bias = self.add_weight(shape=(width,), initializer=self.bias_initializer, name="bias")

    def call(self, inputs):
        maps = ops.matmul(inputs, self.kernel) + self.bias
        return ops.max(ops.reshape(maps, (*ops.shape(inputs)[:-1], -1, self.pieces)), axis=-1)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units or input_shape[-1])

    def get_config(self):
        return super().get_config() | {
            "units": self.units,
            "pieces": self.pieces,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
        }
