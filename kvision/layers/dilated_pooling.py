"""Max and average pooling of cells that lie apart, which Keras has none of."""

import functools

import keras
from keras import ops

from kvision.errors import choose
from kvision.layers.convolution import pair


@keras.saving.register_keras_serializable("kvision")
class DilatedPooling2D(keras.layers.Layer):
    """Pool windows whose cells lie apart, at stride one and without padding.

    Args:
        pool_size: Rows and columns of a window.
        dilation_rate: Distance of its cells, a pair.
        kind: `"max"` or `"average"`.

    Shapes: [b, h, w, c] → [b, h - (rows - 1)·dilation, …, c].

    >>> DilatedPooling2D((2, 1), (2, 1), "max")(keras.ops.reshape(keras.ops.arange(4.0), (1, 4, 1, 1)))[0, :, 0, 0]
    <tf.Tensor: shape=(2,), dtype=float32, numpy=array([2., 3.], dtype=float32)>
    """

    def __init__(self, pool_size, dilation_rate, kind, **options):
        super().__init__(**options)
        self.pool_size, self.dilation_rate = pair(pool_size), pair(dilation_rate)
        self.kind = choose("kind of pooling", {"max": "max", "average": "average"}, kind)

    def call(self, inputs):
        x = inputs
        for axis, (size, dilation) in enumerate(zip(self.pool_size, self.dilation_rate, strict=True), start=1):
            x = self._along(x, axis, size, dilation)
        return x / (self.pool_size[0] * self.pool_size[1]) if self.kind == "average" else x

    def _along(self, x, axis, size, dilation):
        left = x.shape[axis] - (size - 1) * dilation
        taps = [slice(tap * dilation, tap * dilation + left) for tap in range(size)]
        shifted = [x[:, cells] if axis == 1 else x[:, :, cells] for cells in taps]
        return functools.reduce(ops.maximum if self.kind == "max" else ops.add, shifted)

    def compute_output_shape(self, input_shape):
        rows, columns = (
            cells - (size - 1) * dilation
            for cells, size, dilation in zip(input_shape[1:3], self.pool_size, self.dilation_rate, strict=True)
        )
        return (input_shape[0], rows, columns, input_shape[3])

    def get_config(self):
        sizes = {"pool_size": self.pool_size, "dilation_rate": self.dilation_rate}
        return super().get_config() | sizes | {"kind": self.kind}
