"""Stochastic depth (Huang, Sun, Liu, Sedra, Weinberger 2016, "Deep Networks with Stochastic Depth")."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("kvision")
class StochasticDepth(keras.layers.Layer):
    """Drop a residual branch for whole images in training: x · b / (1 - rate), where b is 0 with probability `rate`.

    Stands at the end of the branch, before the addition. One draw per image, scaled in training (torchvision's "row"
    mode); the paper draws once per batch and scales at test time. Inference returns the input.

    Args:
        rate: Probability that the branch of an image is dropped, in [0, 1].
        seed: Of the draws; None takes a random one.

    Shapes: [b, ...] → the same.

    Raises:
        ValueError: on a rate outside [0, 1].

    >>> tuple(StochasticDepth(0.2)(keras.ops.ones((4, 8, 8, 3)), training=False).shape)
    (4, 8, 8, 3)
    """

    def __init__(self, rate, seed=None, **options):
        super().__init__(**options)
        if not 0 <= rate <= 1:
            raise ValueError(f"StochasticDepth: rate is a probability in [0, 1], got {rate}.")
        self.rate = rate
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = True  # no weight depends on the shape; inside a block `quantize` meets it before its first call

    def call(self, inputs, training=False):
        if not training or self.rate == 0:
            return inputs
        if self.rate == 1:
            return ops.zeros_like(inputs)
        shape = (ops.shape(inputs)[0],) + (1,) * (len(inputs.shape) - 1)
        kept = keras.random.uniform(shape, dtype="float32", seed=self.seed_generator) >= self.rate
        return inputs * (ops.cast(kept, inputs.dtype) / (1 - self.rate))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return super().get_config() | {"rate": self.rate, "seed": self.seed}
