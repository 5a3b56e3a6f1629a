"""Weight normalisation (Salimans & Kingma 2016, "Weight Normalization", sections 2 and 3)."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("kvision")
class WeightNormalization(keras.layers.Wrapper):
    """Reparametrise a layer's kernel as length times direction, w = g · v / ‖v‖, one length per output channel.

    The wrapped layer's outputs are unchanged at first: g starts at ‖v‖.

    Args:
        layer: A layer with a `kernel` whose last axis is the output: `Dense`, `Conv2D`, …

    Shapes: those of `layer`.

    Raises:
        ValueError: on build, if the layer has no kernel.

    >>> tuple(WeightNormalization(keras.layers.Dense(3))(keras.ops.ones((2, 4))).shape)
    (2, 3)
    """

    def build(self, input_shape=None):
        super().build(input_shape)
        if getattr(self.layer, "kernel", None) is None:
            raise ValueError(
                f"WeightNormalization needs a layer with a kernel, got {type(self.layer).__name__}. "
                "Wrap a Dense or a convolution."
            )
        kernel = self.layer.kernel
        self.g = self.add_weight(
            shape=kernel.shape[-1:], initializer=lambda shape, dtype: ops.cast(_lengths(kernel), dtype), name="g"
        )

    def call(self, inputs):
        values = {id(variable): (variable, ops.convert_to_tensor(variable)) for variable in self.layer.variables}
        kernel = self.layer.kernel
        values[id(kernel)] = (kernel, _direction(kernel) * ops.cast(self.g, "float32"))
        with keras.StatelessScope(state_mapping=list(values.values())):  # inside, the kernel's value is w
            return self.layer(inputs)

    def adapt(self, inputs):
        """Set g and the bias so that each output channel has mean 0 and variance 1 over `inputs` (section 3).

        Call it once before training, on one batch, with the layer's activation None or applied after it.
        """
        if not self.built:
            self.build(inputs.shape)
        outputs = ops.cast(self(inputs), "float32")
        axes = tuple(range(len(outputs.shape) - 1))
        mean, variance = ops.moments(outputs, axes)
        scale = ops.rsqrt(variance + 1e-10)
        self.g.assign(self.g * scale)
        if self.layer.bias is not None:
            self.layer.bias.assign((self.layer.bias - mean) * scale)

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)


def _lengths(kernel):
    """‖v‖ of each output channel, float32."""
    kernel = ops.cast(kernel, "float32")
    return ops.sqrt(ops.sum(ops.square(kernel), axis=tuple(range(len(kernel.shape) - 1))))


def _direction(kernel):
    return ops.cast(kernel, "float32") / _lengths(kernel)
