"""Spatial pyramid pooling (He, Zhang, Ren, Sun 2014, "Spatial Pyramid Pooling in Deep Convolutional Networks")."""

import keras
from keras import ops

from kvision.errors import choose

_POOLINGS = {"max": ops.max, "average": ops.mean}


@keras.saving.register_keras_serializable("kvision")
class SpatialPyramidPooling(keras.layers.Layer):
    """Pool a map of any size into the same number of cells: n x n of them for every n of the pyramid.

    He et al. 2014, section 2. Cell i of n covers rows ⌊i·h/n⌋ to ⌈(i+1)·h/n⌉ (appendix A of the paper), so no pixel is
    left out; neighbours may share a row or column. The layer of this name in tensorflow-addons is `pooling="average"`
    on sides that n divides.

    Args:
        bins: The n of each level, >= 1.
        pooling: `"max"`, the paper's, or `"average"`.

    Shapes: [b, h, w, c] → [b, Σ n², c]: level by level, row by row; h and w are static.

    Raises:
        ValueError: on bins below 1 or an unknown pooling.

    >>> tuple(SpatialPyramidPooling((1, 2, 4))(keras.ops.ones((2, 13, 9, 5))).shape)
    (2, 21, 5)
    """

    def __init__(self, bins=(1, 2, 4), pooling="max", **options):
        super().__init__(**options)
        if not bins or min(bins) < 1:
            raise ValueError(f"SpatialPyramidPooling: bins must be integers of at least 1, got {bins!r}.")
        self._pool = choose("pooling", _POOLINGS, pooling)
        self.bins = tuple(bins)
        self.pooling = pooling

    def call(self, inputs):
        levels = [self._cells(self._cells(inputs, n, axis=1), n, axis=2) for n in self.bins]
        shapes = [(-1, n * n, inputs.shape[-1]) for n in self.bins]
        return ops.concatenate([ops.reshape(*level) for level in zip(levels, shapes, strict=True)], axis=1)

    def _cells(self, x, n, axis):
        """Pool one axis to n cells."""
        size = x.shape[axis]
        slices = [slice(i * size // n, -(-(i + 1) * size // n)) for i in range(n)]
        return ops.stack([self._pool(x[(slice(None),) * axis + (cell,)], axis=axis) for cell in slices], axis=axis)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], sum(n * n for n in self.bins), input_shape[-1])

    def get_config(self):
        return super().get_config() | {"bins": self.bins, "pooling": self.pooling}
