"""Upsampling by a transposed convolution that initially is bilinear interpolation."""

import numbers

import keras
import numpy as np
from keras import ops

from kvision.errors import choose
from kvision.layers.convolution import require_channels_last


@keras.saving.register_keras_serializable("kvision")
class BilinearUpsampling(keras.layers.Layer):
    """Enlarge maps by a whole factor; initially exact bilinear interpolation of each channel by itself.

    Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic Segmentation" (2015), sections 3.3 and 4.3. A
    learned one is a transposed convolution without bias, whose kernel [k, k, c, c], k = 2·factor - factor % 2, is
    bilinear on the diagonal of the channels and zero elsewhere. A fixed one has no weights and is two small products.

    Args:
        factor: Whole number of at least 2.
        learned: Whether the kernel is a weight.
        padding: `"same"`: h → h·factor; the edge cells count as repeated beyond the edge, so initially the output is
            that of `keras.ops.image.resize(interpolation="bilinear")`. `"valid"`: h → (h - 1)·factor + k, the whole
            transposed convolution, where the map counts as zero beyond the edge: Caffe's and torch's.

    Shapes: [b, h, w, c] → [b, h·factor, w·factor, c]; a fixed one needs a static height and width.

    Raises:
        ValueError: on another factor or padding, or a fixed one on maps of unknown size.

    >>> BilinearUpsampling(2)(keras.ops.reshape(keras.ops.arange(3.0), (1, 1, 3, 1)))[0, 0, :, 0]
    <tf.Tensor: shape=(6,), dtype=float32, numpy=array([0.  , 0.25, 0.75, 1.25, 1.75, 2.  ], dtype=float32)>
    """

    def __init__(self, factor, *, learned=True, padding="same", **options):
        require_channels_last(type(self).__name__)
        super().__init__(**options)
        if not isinstance(factor, numbers.Integral) or isinstance(factor, bool) or factor < 2:
            raise ValueError(f"BilinearUpsampling: factor must be a whole number of at least 2, got {factor!r}.")
        self.factor = int(factor)
        self.learned = bool(learned)
        self.padding = choose("padding of BilinearUpsampling", {"same": "same", "valid": "valid"}, padding)

    @property
    def kernel_size(self):
        return 2 * self.factor - self.factor % 2

    def build(self, input_shape):
        if self.learned:
            size, channels = self.kernel_size, input_shape[-1]
            self.kernel = self.add_weight(
                shape=(size, size, channels, channels), initializer=_on_the_diagonal, name="kernel"
            )
        elif None in tuple(input_shape)[1:3]:
            raise ValueError(
                f"BilinearUpsampling(learned=False) needs a static height and width, got maps of shape {input_shape}: "
                "give the model's input the size you train at, or take learned=True."
            )

    def call(self, inputs):
        if not self.learned:
            rows, columns = (
                ops.convert_to_tensor(interpolation_matrix(size, self.factor, self.padding), dtype=self.compute_dtype)
                for size in inputs.shape[1:3]
            )
            return ops.einsum("pw,bowc->bopc", columns, ops.einsum("oh,bhwc->bowc", rows, inputs))
        if self.padding == "valid":
            return ops.conv_transpose(inputs, self.kernel, self.factor, "valid")
        around = ops.pad(inputs, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="symmetric")
        whole = ops.conv_transpose(around, self.kernel, self.factor, "valid")
        begin = self.factor + (self.kernel_size - self.factor) // 2
        height, width = (size * self.factor for size in ops.shape(inputs)[1:3])
        return whole[:, begin : begin + height, begin : begin + width]

    def compute_output_shape(self, input_shape):
        beyond = self.kernel_size - self.factor if self.padding == "valid" else 0
        sizes = (None if size is None else size * self.factor + beyond for size in input_shape[1:3])
        return (input_shape[0], *sizes, input_shape[3])

    def multiply_adds(self, input_shape):
        _, height, width, channels = input_shape
        if self.learned:
            edge = 2 if self.padding == "same" else 0
            return (height + edge) * (width + edge) * (self.kernel_size * channels) ** 2
        _, rows, columns, _ = self.compute_output_shape(input_shape)
        return channels * rows * width * (height + columns)

    def get_config(self):
        return super().get_config() | {"factor": self.factor, "learned": self.learned, "padding": self.padding}


def bilinear_weights(size):
    """The `size` weights of a cell along one axis: a tent around the middle of the kernel."""
    radius = (size + 1) // 2
    center = radius - 1 if size % 2 else radius - 0.5
    return 1.0 - np.abs(np.arange(size) - center) / radius


def interpolation_matrix(size, factor, padding):
    """The float32 matrix [rows of the output, `size`] that a fixed `BilinearUpsampling` applies along one axis."""
    kernel = 2 * factor - factor % 2
    beyond = int(padding == "same")  # cells repeated beyond each edge
    whole = np.zeros(((size + 2 * beyond - 1) * factor + kernel, size), "float32")
    for cell in range(-beyond, size + beyond):
        begin = (cell + beyond) * factor
        whole[begin : begin + kernel, min(max(cell, 0), size - 1)] += bilinear_weights(kernel)
    begin = beyond * (factor + (kernel - factor) // 2)
    return whole[begin : begin + size * factor] if beyond else whole


def _on_the_diagonal(shape, dtype=None):
    """Bilinear for each channel by itself."""
    size, _, channels, _ = shape
    weights = bilinear_weights(size)
    kernel = np.outer(weights, weights)[:, :, None, None] * np.eye(channels)
    return ops.convert_to_tensor(kernel.astype("float32"), dtype=dtype)
