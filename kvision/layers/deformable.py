"""Deformable convolution as a layer that finds its own offsets (Dai et al. 2017; Zhu et al. 2018)."""

import operator

import keras
from keras import ops

from kvision.layers.convolution import Conv2D, pair, require_channels_last
from kvision.ops.deform import deform_conv2d


@keras.saving.register_keras_serializable("kvision")
class DeformableConv2D(keras.layers.Layer):
    """Convolution whose taps are offset, and in v2 weighted, by a second convolution of the same input.

    v1: "Deformable Convolutional Networks" (Dai et al. 2017), section 2.1. v2: "Deformable ConvNets v2" (Zhu et al.
    2018), section 3.2. The second convolution, `conv_offset`, starts at zero, so the layer starts as the plain
    convolution of its kernel. For that the factor of a tap is 2·sigmoid, initially one, where the paper's sigmoid is
    initially one half: halve a published v2 kernel when loading it. The paper trains `conv_offset` at a tenth of the
    learning rate.

    Args:
        filters: Output channels.
        kernel_size: Rows and columns of the window, an int or a pair.
        strides: An int or (rows, columns).
        padding: `"valid"`, `"same"`, or the zero rows and columns on every side, an int or (rows, columns).
        dilation_rate: Distance of neighbouring taps; with strides above one it must be 1, as in `keras.layers.Conv2D`.
        offset_groups: Groups of channels with offsets of their own; divides the input channels.
        modulated: True is v2, False is v1.
        activation: Name of an activation, or a function.
        use_bias: Whether the convolution has a bias; `conv_offset` always has one.
        kernel_initializer, bias_initializer: Of the convolution.

    Shapes: [b, h, w, c] → [b, oh, ow, filters] as `Conv2D`. `conv_offset` has 2 (v1) or 3 (v2) channels per tap and
    group: 18 or 27 for a 3x3 window, first all offsets as (y, x) pairs, then the logits of the factors.

    Raises:
        ValueError: if `offset_groups` does not divide the channels, or channels come first in Keras's configuration.

    >>> layer = DeformableConv2D(8, 3, padding=1)
    >>> tuple(layer(keras.ops.ones((1, 10, 10, 4))).shape)
    (1, 10, 10, 8)
    """

    def __init__(
        self,
        filters,
        kernel_size,
        strides=1,
        padding="same",
        dilation_rate=1,
        offset_groups=1,
        modulated=True,
        activation=None,
        use_bias=True,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        **options,
    ):
        super().__init__(**options)
        require_channels_last(type(self).__name__)
        self.filters = operator.index(filters)
        self.padding = padding if isinstance(padding, str) else pair(padding)
        self.offset_groups = operator.index(offset_groups)
        self.modulated = modulated
        self.activation = keras.activations.get(activation)
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        rows, columns = pair(kernel_size)
        self._taps = self.offset_groups * rows * columns
        self.conv_offset = Conv2D(
            (3 if modulated else 2) * self._taps,
            (rows, columns),
            strides=strides,
            padding=self.padding,
            dilation_rate=dilation_rate,
            kernel_initializer="zeros",
            dtype=self.dtype_policy,
            name="conv_offset",
        )

    def build(self, input_shape):
        channels = input_shape[-1]
        if channels % self.offset_groups:
            raise ValueError(f"offset_groups must divide the {channels} input channels, got {self.offset_groups}.")
        shape = (*self.conv_offset.kernel_size, channels, self.filters)
        self.kernel = self.add_weight(shape=shape, initializer=self.kernel_initializer, name="kernel")
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(shape=(self.filters,), initializer=self.bias_initializer, name="bias")
        self.conv_offset.build(input_shape)

    def call(self, inputs):
        offsets, mask = self.conv_offset(inputs), None
        if self.modulated:
            offsets, logits = ops.split(offsets, [2 * self._taps], axis=-1)
            mask = 2.0 * ops.sigmoid(ops.cast(logits, "float32"))
        return self.activation(
            deform_conv2d(
                inputs,
                offsets,
                self.kernel,
                bias=self.bias,
                mask=mask,
                strides=self.conv_offset.strides,
                padding=self.padding,
                dilation=self.conv_offset.dilation_rate,
                offset_groups=self.offset_groups,
            )
        )

    def compute_output_shape(self, input_shape):
        return (*self.conv_offset.compute_output_shape(input_shape)[:-1], self.filters)

    def get_config(self):
        return super().get_config() | {
            "filters": self.filters,
            "kernel_size": self.conv_offset.kernel_size,
            "strides": self.conv_offset.strides,
            "padding": self.padding,
            "dilation_rate": self.conv_offset.dilation_rate,
            "offset_groups": self.offset_groups,
            "modulated": self.modulated,
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
        }
