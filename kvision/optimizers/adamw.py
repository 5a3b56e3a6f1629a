"""Adam with decoupled weight decay, in one pass over the weights."""

import keras

from kvision._keras import adam_moments
from kvision.ops._backend import kernels
from kvision.optimizers.rate_factors import RateFactors


class _InPlaceAdamW(keras.optimizers.AdamW):
    """The rule, with weight and moments changed in place."""

    def update_step(self, gradient, variable, learning_rate):
        if not self.amsgrad:
            moments, step = adam_moments(self, variable), self.iterations + 1
            betas = self.beta_1, self.beta_2
            if kernels.apply_adam(variable, *moments, gradient, learning_rate, step, betas, self.epsilon):
                return
        super().update_step(gradient, variable, learning_rate)


@keras.saving.register_keras_serializable("kvision")
class AdamW(RateFactors, _InPlaceAdamW):
    """Keras's `AdamW` on a fused kernel, with a rate for each group of weights: the same rule, variables, saved state.

    Loshchilov and Hutter 2019, "Decoupled weight decay regularization". Keras writes the update as a dozen operations,
    each a pass over all weights; here weight and moments change in place, in one.

    DETR trains its backbone at a tenth of the rate (Carion et al. 2020, section 4); transformers are fine-tuned with
    rates that fall from layer to layer.

    Args:
        learning_rate, weight_decay, **options: Those of `keras.optimizers.AdamW`. The decay of a weight is in
            proportion to its rate.
        rate_factors: `{pattern: factor}`: of weights in whose path the regular expression is found, the factor on the
            rate, at least 0; the first that is found counts. None: one rate for all.

    Raises:
        ValueError: on what is no factor or pattern; on build, on a pattern that no weight's path has.

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="stem"), keras.layers.Dense(2)])
    >>> model.compile(kvision.optimizers.AdamW(1e-3, rate_factors={"stem/": 0.1}), "mse")
    """
