"""A learning rate for each group of weights, by factors on that of the optimizer."""

import math
import numbers
import re

from kvision._keras import ScaledDecay, variable_index


class RateFactors(ScaledDecay):
    """Mixin over a Keras optimizer: `rate_factors={pattern: factor}` on the rate of the weights a pattern is found in.

    The optimizer stays one: gradients are clipped to the norm over all weights, steps are counted once, a schedule or
    `kvision.callbacks.LearningRate` sets the rate that the factors multiply. Two optimizers by hand, with rates of this
    ratio, give the same weights. A pattern is searched in the path of a weight (`re.search`); of several that are found
    the first counts; other weights have the factor 1. A factor of 0 leaves weights where they are.
    """

    def __init__(self, *arguments, rate_factors=None, **options):
        super().__init__(*arguments, **options)
        self.rate_factors = _checked(type(self).__name__, rate_factors)

    def build(self, variables):
        """Make the variables of the optimizer, and look up the factor of every weight.

        Raises:
            ValueError: on a pattern that is found in no weight's path.
        """
        if self.built:
            return
        found = set()
        self._factors = []
        for variable in variables:
            path = getattr(variable, "path", variable.name)
            pattern = next((pattern for pattern in self.rate_factors or () if re.search(pattern, path)), None)
            found.add(pattern)
            self._factors.append(1.0 if pattern is None else self.rate_factors[pattern])
        for pattern in set(self.rate_factors or ()) - found:
            paths = ", ".join(repr(getattr(variable, "path", variable.name)) for variable in list(variables)[:3])
            raise ValueError(
                f"{type(self).__name__}: rate_factors has the pattern {pattern!r}, which is the first to be found in "
                f"none of the {len(variables)} trainable weights ({paths}, …). Mend it, or leave it out."
            )
        super().build(variables)

    def rate_factor(self, variable):
        """The factor on the rate of one weight."""
        return self._factors[variable_index(self, variable)] if self.rate_factors else 1.0

    def update_step(self, gradient, variable, learning_rate):
        factor = self.rate_factor(variable)
        super().update_step(gradient, variable, learning_rate if factor == 1.0 else learning_rate * factor)

    def get_config(self):
        config = super().get_config()
        return config | {"rate_factors": dict(self.rate_factors)} if self.rate_factors else config


def _checked(name, factors):
    if factors is None:
        return None
    if not hasattr(factors, "items") or not factors:
        raise ValueError(f"{name}: rate_factors is a dict of patterns and factors, or None: got {factors!r}.")
    for pattern, factor in factors.items():
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ValueError(f"{name}: rate_factors needs regular expressions: got {pattern!r}, {error}.") from None
        if isinstance(factor, bool) or not isinstance(factor, numbers.Real) or not 0 <= factor < math.inf:
            raise ValueError(
                f"{name}: a factor on the rate is a finite number of at least 0: got {factor!r} for {pattern!r}."
            )
    return {pattern: float(factor) for pattern, factor in factors.items()}
