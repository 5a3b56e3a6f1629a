"""Local contrast normalization (Jarrett, Kavukcuoglu, Ranzato, LeCun 2009; Farabet et al. 2013, section 3)."""

import keras
import numpy as np
from keras import ops

from kvision.ops.resize import weigh_rows_and_columns


@keras.saving.register_keras_serializable("kvision")
class LocalContrastNormalization(keras.layers.Layer):
    """Subtract the mean of the window around each pixel and divide by its standard deviation, channel by channel.

    Farabet 2013, section 3.1: "each local 15x15 patch has zero-mean and unit variance". At the edge the window is what
    lies inside the image. Everything is float32.

    Args:
        size: Rows and columns of the window, odd, in pixels.
        epsilon: The least that is divided by, > 0: flat areas stay flat. In the units of the image.

    Shapes: [b, h, w, c] of a static size → the same.

    Raises:
        ValueError: on an even size, and an epsilon that is not positive.

    >>> float(LocalContrastNormalization(15)(keras.ops.ones((1, 8, 8, 1)))[0, 0, 0, 0])
    0.0
    """

    def __init__(self, size=15, epsilon=1e-2, **options):
        super().__init__(**{"dtype": "float32"} | options)
        if size < 1 or size % 2 == 0 or not epsilon > 0:
            raise ValueError(
                "LocalContrastNormalization: the window has an odd number of rows, and epsilon is above 0: got "
                f"size={size} and epsilon={epsilon}."
            )
        self.size = int(size)
        self.epsilon = epsilon

    def call(self, inputs):
        windows = [_windows(length, self.size) for length in inputs.shape[1:3]]
        mean = weigh_rows_and_columns(inputs, *windows)
        variance = weigh_rows_and_columns(ops.square(inputs), *windows) - ops.square(mean)
        return (inputs - mean) * ops.rsqrt(ops.maximum(variance, self.epsilon**2))

    def get_config(self):
        return super().get_config() | {"size": self.size, "epsilon": self.epsilon}


def _windows(length, size):
    """What each pixel gives to the mean around each, `[length, length]`."""
    inside = np.abs(np.arange(length)[:, None] - np.arange(length)) <= size // 2
    return (inside / inside.sum(axis=1, keepdims=True)).astype("float32")
