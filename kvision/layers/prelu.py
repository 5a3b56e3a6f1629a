"""PReLU (He, Zhang, Ren, Sun 2015, "Delving Deep into Rectifiers", section 2.1)."""

import keras


@keras.saving.register_keras_serializable("kvision")
class PReLU(keras.layers.PReLU):
    """ReLU with a trained slope for negative inputs, one per channel, at any rank.

    Args:
        alpha_initializer: Of the slopes; None is the paper's constant 0.25.
        **options: Those of `keras.layers.PReLU` but `shared_axes`: all axes but the channels share a slope.

    Shapes: [..., c] → the same.

    >>> layer = PReLU()
    >>> tuple(layer(keras.ops.zeros((2, 8, 8, 5))).shape), layer.count_params()
    ((2, 8, 8, 5), 5)
    """

    def __init__(self, alpha_initializer=None, **options):
        super().__init__(alpha_initializer or keras.initializers.Constant(0.25), **options)

    def build(self, input_shape):
        self.shared_axes = list(range(1, len(input_shape) - 1)) or None
        super().build(input_shape)

    def get_config(self):
        config = super().get_config()
        config.pop("shared_axes")
        return config
