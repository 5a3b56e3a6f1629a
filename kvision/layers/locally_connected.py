"""A convolution whose kernel is another one at every position: Keras 3 dropped the layer of this name."""

import keras
from keras import ops

from kvision.layers.convolution import centered_padding, pair, require_channels_last


@keras.saving.register_keras_serializable("kvision")
class LocallyConnected2D(keras.layers.Layer):
    """A window slides over the map as in a convolution, with weights and biases of its own at every position.

    Gregor and LeCun 2010, "Emergence of Complex-Like Cells in a Temporal Product Network with Local Receptive Fields";
    `[local]` of Redmon's networks. It keeps the size of the map: stride one, zeros around it.

    Args:
        filters: Channels of the output, at least 1.
        kernel_size: Of the window, an odd number or a pair (rows, columns) of them.
        kernel_initializer: Of the kernels: a name of Keras or an Initializer. Its fan-in is that of one window.
        bias_initializer: Of the biases, likewise.

    Shapes: [b, h, w, c] → [b, h, w, filters]; h and w are static. Weights: `kernel`
    [h·w, rows·columns·c, filters], the window's channels last, and `bias` [h, w, filters].

    Raises:
        ValueError: on fewer than one filter, an even window, or a map of unknown size.

    >>> layer = LocallyConnected2D(256, 3)
    >>> layer(keras.ops.ones((1, 7, 7, 4))).shape, layer.count_params()
    (TensorShape([1, 7, 7, 256]), 464128)
    """

    def __init__(self, filters, kernel_size, kernel_initializer="glorot_uniform", bias_initializer="zeros", **options):
        require_channels_last(type(self).__name__)
        super().__init__(**options)
        self.filters = filters
        self.kernel_size = pair(kernel_size)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.input_spec = keras.layers.InputSpec(ndim=4)
        if filters < 1 or min(self.kernel_size) < 1 or not all(size % 2 for size in self.kernel_size):
            raise ValueError(
                "LocallyConnected2D needs at least 1 filter and a window of odd sizes, which keeps the map's size: got "
                f"filters={filters!r} and kernel_size={kernel_size!r}."
            )

    def build(self, input_shape):
        height, width, channels = input_shape[1:]
        if None in (height, width, channels):
            raise ValueError(
                f"LocallyConnected2D has weights for every position of the map: got the shape {tuple(input_shape)}. "
                "Give the network's input a fixed size."
            )
        positions, window = height * width, self.kernel_size[0] * self.kernel_size[1] * channels

        def initialize(shape, dtype=None):  # the shape of one window tells an initializer the fan-in
            kernels = self.kernel_initializer((window, positions * self.filters), dtype=dtype)
            return ops.transpose(ops.reshape(kernels, (window, positions, self.filters)), (1, 0, 2))

        self.kernel = self.add_weight(shape=(positions, window, self.filters), initializer=initialize, name="kernel")
        bias_shape = (height, width, self.filters)
        self.bias = self.add_weight(shape=bias_shape, initializer=self.bias_initializer, name="bias")
        self.input_spec = keras.layers.InputSpec(shape=(None, height, width, channels))
        self.built = True

    def call(self, inputs):
        height, width = inputs.shape[1:3]
        rows, columns = centered_padding(self.kernel_size)
        padded = ops.pad(inputs, ((0, 0), (rows, rows), (columns, columns), (0, 0)))
        windows = [
            padded[:, row : row + height, column : column + width]
            for row in range(self.kernel_size[0])
            for column in range(self.kernel_size[1])
        ]
        windows = ops.concatenate(windows, axis=-1)
        windows = ops.transpose(ops.reshape(windows, (-1, height * width, windows.shape[-1])), (1, 0, 2))
        outputs = ops.transpose(ops.matmul(windows, self.kernel), (1, 0, 2))
        return ops.reshape(outputs, (-1, height, width, self.filters)) + self.bias

    def compute_output_shape(self, input_shape):
        return (*input_shape[:3], self.filters)

    def get_config(self):
        return super().get_config() | {
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
        }
