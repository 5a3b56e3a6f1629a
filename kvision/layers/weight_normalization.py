"""Weight normalisation (Salimans & Kingma 2016, "Weight Normalization", sections 2 and 3)."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("kvision")
class WeightNormalization(keras.layers.Wrapper):
    """Reparametrise a layer's kernel as length times direction, w = g · v / ‖v‖, one length per output channel.

    Salimans & Kingma 2016, section 2. The wrapped layer's outputs are unchanged at first: g starts at ‖v‖.

    Args:
        layer: A layer with a `kernel` whose last axis is the output: `Dense`, `Conv2D`, … A channel whose kernel is all
            zeros has no direction and stays zero.

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
        kernel, variables = self.layer.kernel, self.layer.variables
        values = {id(variable): ops.convert_to_tensor(variable) for variable in variables}
        values[id(kernel)] = _direction(kernel) * ops.cast(self.g, "float32")
        scope = keras.StatelessScope([(variable, values[id(variable)]) for variable in variables], collect_losses=True)
        before = [scope.get_current_value(variable) for variable in variables]
        with scope:  # inside, the kernel's value is w
            outputs = self.layer(inputs)
        for variable, value in zip(variables, before, strict=True):
            after = scope.get_current_value(variable)
            if after is not value:  # seeds and moving statistics
                variable.assign(after)
        for loss in scope.losses:
            self.add_loss(loss)
        return outputs

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


def _square_sums(kernel):
    """‖v‖² of each output channel, float32."""
    return ops.sum(ops.square(ops.cast(kernel, "float32")), axis=tuple(range(len(kernel.shape) - 1)))


def _lengths(kernel):
    return ops.sqrt(_square_sums(kernel))


def _direction(kernel):
    """v / ‖v‖, and 0 with a gradient of 0 for a channel of zeros."""
    squares = _square_sums(kernel)
    inverse = ops.where(squares > 0, ops.rsqrt(ops.where(squares > 0, squares, 1.0)), 0.0)
    return ops.cast(kernel, "float32") * inverse
