"""Filter response normalisation (Singh & Krishnan 2020, "Filter Response Normalization Layer", section 3)."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("kvision")
class FilterResponseNormalization(keras.layers.Layer):
    """Divide each channel of each image by its root mean square over the map: gamma · x / √(mean(x²) + epsilon) + beta.

    Singh & Krishnan 2020, section 3. Depends on no other image and no other channel; nothing is subtracted, so
    `ThresholdedLinearUnit` follows instead of ReLU. Statistics are float32 under any policy.

    Args:
        epsilon: Added to the mean square, > 0.

    Shapes: [b, h, w, c] → the same.

    >>> tuple(FilterResponseNormalization()(keras.ops.ones((1, 4, 4, 3))).shape)
    (1, 4, 4, 3)
    """

    def __init__(self, epsilon=1e-6, **options):
        super().__init__(**options)
        self.epsilon = epsilon

    def build(self, input_shape):
        # Without autocast: 16 bits would round gamma and beta before the float32 arithmetic.
        self.gamma = self.add_weight(shape=input_shape[-1:], initializer="ones", autocast=False, name="gamma")
        self.beta = self.add_weight(shape=input_shape[-1:], initializer="zeros", autocast=False, name="beta")

    def call(self, inputs):
        x = ops.cast(inputs, "float32")
        mean_square = ops.mean(ops.square(x), axis=(1, 2), keepdims=True)
        scale = ops.cast(self.gamma, "float32") * ops.rsqrt(mean_square + self.epsilon)
        return ops.cast(x * scale + ops.cast(self.beta, "float32"), self.compute_dtype)

    def get_config(self):
        return super().get_config() | {"epsilon": self.epsilon}


@keras.saving.register_keras_serializable("kvision")
class ThresholdedLinearUnit(keras.layers.Layer):
    """max(x, tau) with one trained threshold per channel, which starts at 0 like ReLU's.

    Singh & Krishnan 2020, equation 5.

    Shapes: [..., c] → the same.

    >>> tuple(ThresholdedLinearUnit()(keras.ops.ones((1, 4, 4, 3))).shape)
    (1, 4, 4, 3)
    """

    def build(self, input_shape):
        self.tau = self.add_weight(shape=input_shape[-1:], initializer="zeros", name="tau")

    def call(self, inputs):
        return ops.maximum(inputs, self.tau)
