"""Average pooling to a given size, also to a larger one."""

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable("kvision")
class AdaptiveAveragePooling2D(keras.layers.Layer):
    """Average each of `output_size` windows that cover the map; adjacent windows may share a row or column.

    Output i averages the input rows from ⌊i·n/m⌋ to ⌈(i+1)·n/m⌉, as in torch; Keras's layer of this name fails on
    maps smaller than the output. Computed as two products with constant matrices.

    Args:
        output_size: (rows, columns) of the output.

    Shapes: [b, h, w, c] → [b, rows, columns, c]; h and w are static.

    >>> AdaptiveAveragePooling2D((7, 7))(keras.ops.ones((1, 3, 9, 2))).shape
    TensorShape([1, 7, 7, 2])
    """

    def __init__(self, output_size, **options):
        super().__init__(**options)
        self.output_size = tuple(output_size)

    def call(self, inputs):
        rows, columns = (
            ops.cast(_averaging(n, m), self.compute_dtype)
            for n, m in zip(inputs.shape[1:3], self.output_size, strict=True)
        )
        return ops.einsum("ih,jw,bhwc->bijc", rows, columns, inputs)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], *self.output_size, input_shape[3])

    def get_config(self):
        return super().get_config() | {"output_size": self.output_size}


def _averaging(size, windows):
    """The matrix [windows, size] whose rows average one window each."""
    matrix = np.zeros((windows, size), "float32")
    for i in range(windows):
        first, last = i * size // windows, -(-(i + 1) * size // windows)
        matrix[i, first:last] = 1.0 / (last - first)
    return matrix
