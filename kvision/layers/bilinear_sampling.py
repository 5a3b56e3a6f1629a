"""Maps read at evenly spaced points, as a layer."""

import keras
from keras import ops

from kvision.ops.resize import sample_bilinear


@keras.saving.register_keras_serializable("kvision")
class BilinearSampling(keras.layers.Layer):
    """Read a map at evenly spaced points, in float32: `kvision.ops.sample_bilinear` as a layer.

    Args:
        size: (height, width) of the points.
        step, first, width: As those of `kvision.ops.sample_bilinear`, in cells.

    Shapes: [b, h, w, c] → [b, *size, c].

    Raises:
        ValueError: on sizes below 1, and a step or width out of range.

    >>> tuple(BilinearSampling((43, 37), step=1 / 4)(keras.ops.ones((1, 11, 10, 3))).shape)
    (1, 43, 37, 3)
    """

    def __init__(self, size, step, first=None, width=None, **options):
        super().__init__(**options)
        self.size = tuple(int(points) for points in size)
        self.step = step
        self.first = first
        self.width = width

    def call(self, inputs):
        return ops.cast(sample_bilinear(inputs, self.size, self.step, self.first, self.width), self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], *self.size, input_shape[-1])

    def get_config(self):
        own = {"size": self.size, "step": self.step, "first": self.first, "width": self.width}
        return super().get_config() | own
