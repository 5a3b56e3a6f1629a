"""Convolution and max pooling whose padding may be a number of pixels, as the papers and torch count it.

Keras's `padding="same"` puts the odd pixel behind when a stride is above one, so the centres of the windows lie
elsewhere than in networks trained with symmetric padding. These layers keep Keras's class names and weights, so weight
files load into either.
"""

import numbers
import operator

import keras
from keras import ops

from kvision.ops.convolution import convolve_groups


def pair(value):
    """`(rows, columns)` of a whole number or of a pair of them, NumPy's integers included.

    >>> pair(3), pair((1, 7))
    ((3, 3), (1, 7))
    """
    rows, columns = (value, value) if isinstance(value, numbers.Integral) else value
    return operator.index(rows), operator.index(columns)


def centered_padding(kernel_size, dilation_rate=1):
    """Rows and columns of padding on every side with which a window of odd size keeps a map's size at stride one.

    Args:
        kernel_size, dilation_rate: A whole number or a pair (rows, columns).

    >>> centered_padding((1, 7)), centered_padding(3, dilation_rate=2)
    ((0, 3), (2, 2))
    """
    sizes = zip(pair(kernel_size), pair(dilation_rate), strict=True)
    return tuple(dilation * (size - 1) // 2 for size, dilation in sizes)


def require_channels_last(name, data_format=None):
    """Raise a ValueError where channels would come first: kvision's maps are [b, h, w, c] on every device.

    Args:
        name: Of the layer or builder, for the message.
        data_format: The argument of that name; None is Keras's configuration.
    """
    if (data_format or keras.config.image_data_format()) != "channels_last":
        raise ValueError(
            f'{name}: kvision\'s images and maps are [b, h, w, c]: got data_format="channels_first", by argument or by '
            'Keras\'s configuration. Call keras.config.set_image_data_format("channels_last") first.'
        )


class _PixelPadding:
    """Mixin over a Keras window layer: `padding=int` or `(rows, columns)` beside `"valid"` and `"same"`."""

    padding_value = 0.0

    def __init__(self, *args, padding="valid", **options):
        require_channels_last(type(self).__name__, options.get("data_format"))
        self.pixels = None if isinstance(padding, str) else pair(padding)
        if self.pixels is not None and min(self.pixels) < 0:
            raise ValueError(f"{type(self).__name__}: padding must not be negative, got {padding}.")
        super().__init__(*args, padding=padding if self.pixels is None else "valid", **options)
        if self.pixels is not None and self._is_same():
            self.padding, self.pixels = "same", None

    def _is_same(self):
        """At stride one, padding of half the window is what "same" does, without a copy of the map."""
        size = getattr(self, "kernel_size", None) or self.pool_size
        odd = all(n % 2 for n in size)
        centered = self.pixels == centered_padding(size, getattr(self, "dilation_rate", 1))
        return odd and centered and tuple(self.strides) == (1, 1)

    def _padded(self, shape):
        if self.pixels is None:
            return shape
        rows, columns = (n and n + 2 * pixels for n, pixels in zip(shape[1:3], self.pixels, strict=True))
        return (shape[0], rows, columns, shape[3])

    def build(self, input_shape):
        super().build(self._padded(input_shape))

    def call(self, inputs):
        if self.pixels is not None:
            rows, columns = self.pixels
            width = ((0, 0), (rows, rows), (columns, columns), (0, 0))
            inputs = ops.pad(inputs, width, constant_values=self.padding_value)
        return super().call(inputs)

    def compute_output_shape(self, input_shape):
        return super().compute_output_shape(self._padded(input_shape))

    def get_config(self):
        return super().get_config() | ({} if self.pixels is None else {"padding": self.pixels})


@keras.saving.register_keras_serializable("kvision")
class Conv2D(_PixelPadding, keras.layers.Conv2D):
    """2-D convolution; `padding` may also be the number of zero rows and columns on every side.

    Args:
        filters: Output channels.
        kernel_size: Rows and columns of the window, an int or a pair.
        strides, dilation_rate: An int or a pair (rows, columns).
        padding: `"valid"`, `"same"`, an int ≥ 0, or a pair (rows, columns).
        groups: Groups of channels that see only each other.
        **options: The others of `keras.layers.Conv2D`; `data_format` must be `"channels_last"`.

    Shapes: [b, h, w, c] → [b, (h + 2·padding − window) // stride + 1, …, filters].

    >>> tuple(Conv2D(8, 3, strides=2, padding=1)(keras.ops.zeros((1, 32, 32, 3))).shape)
    (1, 16, 16, 8)
    """

    def __init__(self, filters, kernel_size, strides=1, *, dilation_rate=1, groups=1, **options):
        super().__init__(
            operator.index(filters),
            pair(kernel_size),
            strides=pair(strides),
            dilation_rate=pair(dilation_rate),
            groups=operator.index(groups),
            **options,
        )

    def convolution_op(self, inputs, kernel):
        return convolve_groups(super().convolution_op, inputs, kernel, self.groups)


@keras.saving.register_keras_serializable("kvision")
class DepthwiseConv2D(_PixelPadding, keras.layers.DepthwiseConv2D):
    """Depthwise 2-D convolution; `padding` may also be a number, as in `Conv2D`."""

    def __init__(self, kernel_size, strides=1, *, depth_multiplier=1, dilation_rate=1, **options):
        super().__init__(
            pair(kernel_size),
            strides=pair(strides),
            depth_multiplier=operator.index(depth_multiplier),
            dilation_rate=pair(dilation_rate),
            **options,
        )


@keras.saving.register_keras_serializable("kvision")
class MaxPooling2D(_PixelPadding, keras.layers.MaxPooling2D):
    """Max pooling; `padding` may also be a number, as in `Conv2D`, or `"ceil"`. It never wins: it is -infinity.

    `"ceil"` pads nothing, but the last window may reach over the edge, so that no pixel is lost (Caffe's rule, torch's
    `ceil_mode`): [b, h, w, c] → [b, ceil((h - pool_size) / strides) + 1, …, c]. It needs a static height and width.
    """

    padding_value = float("-inf")

    def __init__(self, pool_size=2, strides=None, *, padding="valid", **options):
        self.ceil = isinstance(padding, str) and padding == "ceil"
        strides = pair(pool_size if strides is None else strides)
        super().__init__(pair(pool_size), strides=strides, padding="valid" if self.ceil else padding, **options)

    def _overhang(self, shape):
        """Rows and columns by which the last windows reach over the edge."""
        sizes = zip(shape[1:3], self.pool_size, self.strides, strict=True)
        return tuple(-(n - size) % stride for n, size, stride in sizes)

    def _padded(self, shape):
        if not self.ceil:
            return super()._padded(shape)
        rows, columns = self._overhang(shape)
        return (shape[0], shape[1] + rows, shape[2] + columns, shape[3])

    def call(self, inputs):
        overhang = self._overhang(inputs.shape) if self.ceil else (0, 0)
        if overhang == (0, 0):
            return super().call(inputs)
        if overhang == (1, 1) and self.strides == (2, 2) and max(self.pool_size) <= 3:
            return ops.max_pool(inputs, self.pool_size, self.strides, "same")  # its one row lies behind: no copy
        width = ((0, 0), *((0, size) for size in overhang), (0, 0))
        return super().call(ops.pad(inputs, width, constant_values=self.padding_value))

    def get_config(self):
        return super().get_config() | ({"padding": "ceil"} if self.ceil else {})
