"""Dropout as first published (Hinton 2012; Srivastava 2014) and DropConnect (Wan 2013)."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("kvision")
class DropoutScaledAtTest(keras.layers.Layer):
    """Dropout in its first form: training drops units and scales nothing, inference multiplies everything by 1 - rate.

    Krizhevsky, Sutskever, Hinton 2012, section 4.2; Srivastava et al. 2014, section 4. `keras.layers.Dropout` is the
    inverted form, which divides by 1 - rate in training instead. Either way inference gives the mean of the training
    outputs; here every output is 1 - rate times the inverted form's.

    Args:
        rate: Probability that a unit is dropped, in [0, 1).
        seed: Of the draws; None takes a random one.

    Shapes: [...] → the same.

    >>> float(DropoutScaledAtTest(0.25)(keras.ops.ones(()), training=False))
    0.75
    """

    def __init__(self, rate, seed=None, **options):
        super().__init__(**options)
        self.rate = _checked(type(self).__name__, rate)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, inputs, training=False):
        if not training:
            return inputs * (1 - self.rate)
        return inputs * _mask(ops.shape(inputs), self.rate, self.seed_generator, inputs.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return super().get_config() | {"rate": self.rate, "seed": self.seed}


@keras.saving.register_keras_serializable("kvision")
class DropConnect(keras.layers.Dense):
    """A dense layer whose weights are dropped in training, independently per example (Wan et al. 2013, section 3).

    Training computes activation(((M ∘ W) x + m ∘ b) / (1 - rate)), where the masks M and m are 0 with probability
    `rate`. Inference takes M = m = 1 - rate, the mean over all masks before the activation, where the paper draws
    Gaussian samples of that sum. Scaled as in inverted dropout, so inference costs as much as a dense layer.

    Memory: a mask of batch x inputs x units in training.

    Args:
        units: Output features.
        rate: Probability that a weight is dropped, in [0, 1).
        seed: Of the draws; None takes a random one.
        **options: Those of `keras.layers.Dense`: `activation`, `use_bias`, …

    Shapes: [b, c] → [b, units].

    >>> tuple(DropConnect(3, rate=0.5)(keras.ops.ones((2, 4)), training=True).shape)
    (2, 3)
    """

    def __init__(self, units, rate=0.5, seed=None, **options):
        super().__init__(units, **options)
        self.rate = _checked(type(self).__name__, rate)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, inputs, training=False):
        if not training:
            return super().call(inputs)
        batch = ops.shape(inputs)[0]
        kernel = ops.convert_to_tensor(self.kernel)
        kernels = kernel * _mask((batch, *kernel.shape), self.rate, self.seed_generator, kernel.dtype)
        outputs = ops.einsum("bi,bio->bo", inputs, kernels)
        if self.use_bias:
            bias = ops.convert_to_tensor(self.bias)
            outputs += bias * _mask((batch, self.units), self.rate, self.seed_generator, bias.dtype)
        outputs = outputs / (1 - self.rate)
        return self.activation(outputs) if self.activation is not None else outputs

    def get_config(self):
        return super().get_config() | {"rate": self.rate, "seed": self.seed}


def _checked(layer, rate):
    if not 0 <= rate < 1:
        raise ValueError(f"{layer}: rate is a probability in [0, 1), got {rate}.")
    return rate


def _mask(shape, rate, seed, dtype):
    """Ones, and with probability `rate` zeros."""
    return ops.cast(keras.random.uniform(shape, dtype="float32", seed=seed) >= rate, dtype)
