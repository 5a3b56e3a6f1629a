"""Gradient descent with momentum, in one pass over the weights."""

import keras

from kvision._keras import variable_index
from kvision.ops._backend import kernels
from kvision.optimizers.rate_factors import RateFactors


class _InPlaceSGD(keras.optimizers.SGD):
    """The rule, with weight and velocity changed in place."""

    def update_step(self, gradient, variable, learning_rate):
        if self.momentum:
            velocity = self.momentums[variable_index(self, variable)]
            if kernels.apply_momentum(variable, velocity, gradient, learning_rate, self.momentum, self.nesterov):
                return
        super().update_step(gradient, variable, learning_rate)


@keras.saving.register_keras_serializable("kvision")
class SGD(RateFactors, _InPlaceSGD):
    """Keras's `SGD` on a fused kernel, with a rate for each group of weights: the same rule, variables and saved state.

    velocity = momentum · velocity − rate · gradient; weight += velocity (Sutskever et al. 2013, "On the importance of
    initialization and momentum in deep learning", section 2). Keras writes this as five operations, of which the
    product momentum · velocity needs no gradient: TensorFlow computes it for all weights as the step begins and holds
    it until the end, a copy of the network in memory. Here weight and velocity change in place. A state that either
    optimizer saved loads into the other.

    Args:
        learning_rate, momentum, nesterov, **options: Those of `keras.optimizers.SGD`.
        rate_factors: As in `AdamW`: `{pattern: factor}` on the rate of weights in whose path the pattern is found.

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> model.compile(kvision.optimizers.SGD(0.1, momentum=0.9), "mse")
    """
