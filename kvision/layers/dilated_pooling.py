"""Max and average pooling of cells that lie apart, which Keras has none of."""

import functools

import keras
from keras import ops

from kvision.errors import choose
from kvision.layers.convolution import pair


@keras.saving.register_keras_serializable("kvision")
class DilatedPooling2D(keras.layers.Layer):
    """Pool windows whose cells lie apart, at stride one.

    Args:
        pool_size: Rows and columns of a window.
        dilation_rate: Distance of its cells, a pair.
        kind: `"max"` or `"average"`.
        padding: `"valid"`: windows lie within the map. `"end"`, of the maximum alone: a window begins at every cell,
            and beyond the end of the map nothing is larger.

    Shapes: [b, h, w, c] → [b, h - (rows - 1)·dilation, …, c]; with `"end"` the same as the inputs.

    Raises:
        ValueError: on an unknown kind or padding, and averages padded at the end.

    >>> DilatedPooling2D((2, 1), (2, 1), "max")(keras.ops.reshape(keras.ops.arange(4.0), (1, 4, 1, 1)))[0, :, 0, 0]
    <tf.Tensor: shape=(2,), dtype=float32, numpy=array([2., 3.], dtype=float32)>
    """

    def __init__(self, pool_size, dilation_rate, kind, padding="valid", **options):
        super().__init__(**options)
        self.pool_size, self.dilation_rate = pair(pool_size), pair(dilation_rate)
        self.kind = choose("kind of pooling", {"max": "max", "average": "average"}, kind)
        self.padding = choose("padding of pooling", {"valid": "valid", "end": "end"}, padding)
        if (self.kind, self.padding) == ("average", "end"):
            raise ValueError(f'{self.name}: padding="end" is for the maximum; an average takes padding="valid".')

    def call(self, inputs):
        x = inputs
        for axis, (size, dilation) in enumerate(zip(self.pool_size, self.dilation_rate, strict=True), start=1):
            x = self._along(x, axis, size, dilation)
        return x / (self.pool_size[0] * self.pool_size[1]) if self.kind == "average" else x

    def _along(self, x, axis, size, dilation):
        reach = (size - 1) * dilation
        if self.padding == "end":
            beyond = [(0, reach if each == axis else 0) for each in range(4)]
            x = ops.pad(x, beyond, constant_values=float("-inf"))
        left = x.shape[axis] - reach
        taps = [slice(tap * dilation, tap * dilation + left) for tap in range(size)]
        shifted = [x[:, cells] if axis == 1 else x[:, :, cells] for cells in taps]
        return functools.reduce(ops.maximum if self.kind == "max" else ops.add, shifted)

    def compute_output_shape(self, input_shape):
        if self.padding == "end":
            return input_shape
        rows, columns = (
            cells - (size - 1) * dilation
            for cells, size, dilation in zip(input_shape[1:3], self.pool_size, self.dilation_rate, strict=True)
        )
        return (input_shape[0], rows, columns, input_shape[3])

    def get_config(self):
        sizes = {"pool_size": self.pool_size, "dilation_rate": self.dilation_rate}
        return super().get_config() | sizes | {"kind": self.kind, "padding": self.padding}
