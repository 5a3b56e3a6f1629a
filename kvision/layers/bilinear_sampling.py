"""Maps resized, or read at evenly spaced points, as a layer."""

import keras
from keras import ops

from kvision.layers.convolution import pair
from kvision.ops.resize import resize_bilinear, sample_bilinear


@keras.saving.register_keras_serializable("kvision")
class BilinearSampling(keras.layers.Layer):
    """Read a map at evenly spaced points, bilinear and in float32; no weights.

    Without a step it resizes, as `kvision.ops.resize_bilinear`: pixel centres at half pixels, enlarged as by torch's
    `interpolate(mode="bilinear", align_corners=False)`, antialiased where it shrinks. With one it is
    `kvision.ops.sample_bilinear`, for maps whose place the ratio of two sizes does not tell.

    Args:
        size: Points along height and width, a whole number or a pair.
        step: Cells from one point to the next, > 0; None: as many as let the points fill the map.
        first, width: Of a step, as those of `kvision.ops.sample_bilinear`, in cells.

    Shapes: [b, h, w, c] → [b, *size, c]; h and w are static.

    Raises:
        ValueError: on sizes below 1, a step or width out of range, and a first point or width without a step.

    >>> BilinearSampling((1, 4))(keras.ops.reshape(keras.ops.arange(2.0), (1, 1, 2, 1)))[0, 0, :, 0]
    <tf.Tensor: shape=(4,), dtype=float32, numpy=array([0.  , 0.25, 0.75, 1.  ], dtype=float32)>
    >>> tuple(BilinearSampling((43, 37), step=1 / 4)(keras.ops.ones((1, 11, 10, 3))).shape)
    (1, 43, 37, 3)
    """

    def __init__(self, size, step=None, first=None, width=None, **options):
        super().__init__(**options)
        if step is None and (first, width) != (None, None):
            raise ValueError(
                f"{self.name}: without a step the points fill the map: got first={first!r} and width={width!r}. Give "
                "step= as well, or leave them out."
            )
        self.size = pair(size)
        self.step = step
        self.first = first
        self.width = width

    def call(self, inputs):
        if self.step is None:
            return ops.cast(resize_bilinear(inputs, self.size), self.compute_dtype)
        return ops.cast(sample_bilinear(inputs, self.size, self.step, self.first, self.width), self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], *self.size, input_shape[-1])

    def get_config(self):
        own = {"size": self.size, "step": self.step, "first": self.first, "width": self.width}
        return super().get_config() | own
