"""Convolution and max pooling with a margin given in pixels, as the papers and torch count it.

Keras's `padding="same"` puts the odd pixel behind when a stride is above one, so the window's centres lie elsewhere
than in networks trained with a symmetric margin. These layers take `padding` as a number as well. They keep Keras's
class names and weights, so weight files load into either.
"""

import keras
from keras import ops


def _pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


class _Margin:
    """Mixin over a Keras window layer: `padding=int` or `(rows, columns)` beside `"valid"` and `"same"`."""

    margin_value = 0.0

    def __init__(self, *args, padding="valid", **options):
        self.margin = None if isinstance(padding, str) else _pair(padding)
        if self.margin is not None and min(self.margin) < 0:
            raise ValueError(f"{type(self).__name__}: padding must not be negative, got {padding}.")
        super().__init__(*args, padding=padding if self.margin is None else "valid", **options)
        if self.margin is not None and self._is_same():
            self.padding, self.margin = "same", None

    def _window(self):
        """Rows and columns that one window spans."""
        dilation = _pair(getattr(self, "dilation_rate", 1))
        size = getattr(self, "kernel_size", None) or self.pool_size
        return tuple((k - 1) * d + 1 for k, d in zip(_pair(size), dilation, strict=True))

    def _is_same(self):
        """At stride one a margin of half the window is what "same" does, without a copy of the map."""
        centred = all(size == 2 * margin + 1 for size, margin in zip(self._window(), self.margin, strict=True))
        return centred and _pair(self.strides) == (1, 1)

    def _widen(self, shape):
        if self.margin is None:
            return shape
        rows, columns = (n and n + 2 * m for n, m in zip(shape[1:3], self.margin, strict=True))
        return (shape[0], rows, columns, shape[3])

    def build(self, input_shape):
        super().build(self._widen(input_shape))

    def call(self, inputs):
        if self.margin is not None:
            rows, columns = self.margin
            width = ((0, 0), (rows, rows), (columns, columns), (0, 0))
            inputs = ops.pad(inputs, width, constant_values=self.margin_value)
        return super().call(inputs)

    def compute_output_shape(self, input_shape):
        return super().compute_output_shape(self._widen(input_shape))

    def get_config(self):
        return super().get_config() | ({} if self.margin is None else {"padding": self.margin})


@keras.saving.register_keras_serializable("kvision")
class Conv2D(_Margin, keras.layers.Conv2D):
    """2-D convolution; `padding` may also be the number of zero rows and columns on every side.

    Args:
        filters: Output channels.
        kernel_size: Rows and columns of the window.
        padding: `"valid"`, `"same"`, an int ≥ 0, or a pair (rows, columns).
        **options: Those of `keras.layers.Conv2D`.

    Shapes: [b, h, w, c] → [b, (h + 2·padding − window) // stride + 1, …, filters].

    >>> Conv2D(8, 3, strides=2, padding=1)(keras.ops.zeros((1, 32, 32, 3))).shape
    TensorShape([1, 16, 16, 8])
    """

    def __init__(self, filters, kernel_size, **options):
        super().__init__(filters, kernel_size, **options)

    def convolution_op(self, inputs, kernel):
        """With groups, one convolution a group: ten times faster on a CPU than TensorFlow's grouped kernel."""
        if self.groups == 1:
            return super().convolution_op(inputs, kernel)
        parts = zip(ops.split(inputs, self.groups, axis=-1), ops.split(kernel, self.groups, axis=-1), strict=True)
        return ops.concatenate([super(Conv2D, self).convolution_op(*part) for part in parts], axis=-1)


@keras.saving.register_keras_serializable("kvision")
class DepthwiseConv2D(_Margin, keras.layers.DepthwiseConv2D):
    """Depthwise 2-D convolution; `padding` may also be a number, as in `Conv2D`."""

    def __init__(self, kernel_size, **options):
        super().__init__(kernel_size, **options)


@keras.saving.register_keras_serializable("kvision")
class MaxPooling2D(_Margin, keras.layers.MaxPooling2D):
    """Max pooling; `padding` may also be a number, as in `Conv2D`, or `"ceil"`. The margin never wins: it is -infinity.

    `"ceil"` has no margin, but the last window may reach over the edge, so that no pixel is lost (Caffe's rule, torch's
    `ceil_mode`): [b, h, w, c] → [b, ceil((h - pool_size) / strides) + 1, …, c]. It needs a static height and width.
    """

    margin_value = float("-inf")

    def __init__(self, pool_size=2, *, padding="valid", **options):
        self.ceil = padding == "ceil"
        super().__init__(pool_size, padding="valid" if self.ceil else padding, **options)

    def _overhang(self, shape):
        """Rows and columns by which the last windows reach over the edge."""
        sizes = zip(shape[1:3], self.pool_size, self.strides, strict=True)
        return tuple(-(n - size) % stride for n, size, stride in sizes)

    def _widen(self, shape):
        if not self.ceil:
            return super()._widen(shape)
        rows, columns = self._overhang(shape)
        return (shape[0], shape[1] + rows, shape[2] + columns, shape[3])

    def call(self, inputs):
        overhang = self._overhang(inputs.shape) if self.ceil else (0, 0)
        if overhang == (0, 0):
            return super().call(inputs)
        if overhang == (1, 1) and self.strides == (2, 2) and max(self.pool_size) <= 3:
            return ops.max_pool(inputs, self.pool_size, self.strides, "same")  # its one row lies behind: no copy
        width = ((0, 0), *((0, size) for size in overhang), (0, 0))
        return super().call(ops.pad(inputs, width, constant_values=self.margin_value))

    def get_config(self):
        return super().get_config() | ({"padding": "ceil"} if self.ceil else {})
