"""Learning-rate schedules that rise and fall: one cycle, and triangular cycles."""

import itertools
import math

import keras
from keras import ops

from kvision import errors
from kvision.optimizers.schedules import Schedule, check_positive, split_periods


@keras.saving.register_keras_serializable("kvision")
class OneCycle(Schedule):
    """One cycle: from a low rate up to `max_lr`, and down to nearly 0.

    Smith and Topin, *Super-Convergence* (arXiv 1708.07120), section 3; in two phases and with cosines as in fast.ai.
    Equals torch's `OneCycleLR` with the same options, but momentum is not cycled.

    Args:
        max_lr: The highest rate, reached after `pct_start * total_steps` steps.
        total_steps: Length of the run in optimizer steps; the last rate is kept afterwards.
        pct_start: Fraction of the run, in [0, 1], during which the rate rises (in [0, 0.5] with `three_phase`).
        anneal_strategy: `"cos"` or `"linear"`.
        div_factor: The first rate is `max_lr / div_factor`.
        final_div_factor: The last rate is the first one divided by this.
        three_phase: Fall back to the first rate as slowly as it rose, then to the last rate, as in the paper.

    Raises:
        ValueError: If an argument lies outside its range.

    Example:

    >>> schedule = OneCycle(max_lr=0.1, total_steps=100)
    >>> [round(float(schedule(step)), 4) for step in (0, 29, 99)]
    [0.004, 0.1, 0.0]
    """

    def __init__(
        self,
        max_lr,
        total_steps,
        pct_start=0.3,
        anneal_strategy="cos",
        div_factor=25.0,
        final_div_factor=1e4,
        three_phase=False,
    ):
        check_positive(max_lr=max_lr, div_factor=div_factor, final_div_factor=final_div_factor)
        if total_steps < 2:
            raise ValueError(f"`total_steps` must be 2 or more; got {total_steps!r}.")
        longest = 0.5 if three_phase else 1.0
        if not 0 <= pct_start <= longest:
            raise ValueError(
                f"`pct_start` is the fraction of the run in which the rate rises, in [0, {longest}] with "
                f"three_phase={three_phase}; got {pct_start!r}."
            )
        if anneal_strategy not in ("cos", "linear"):
            raise errors.unknown("anneal_strategy", anneal_strategy, ("cos", "linear"))
        self.max_lr = max_lr
        self.total_steps = total_steps
        self.pct_start = pct_start
        self.anneal_strategy = anneal_strategy
        self.div_factor = div_factor
        self.final_div_factor = final_div_factor
        self.three_phase = three_phase

    def _phases(self):
        """Rows of (first step, last step, rate at the first, rate at the last); phases of no length are left out."""
        first, last = self.max_lr / self.div_factor, self.max_lr / self.div_factor / self.final_div_factor
        top = self.pct_start * self.total_steps - 1
        corners = [(0, first), (top, self.max_lr)]
        if self.three_phase:
            corners.append((2 * top, first))
        corners.append((self.total_steps - 1, last))
        return [
            (start, end, rate, next_rate)
            for (start, rate), (end, next_rate) in itertools.pairwise(corners)
            if end > start
        ]

    def __call__(self, step):
        step = ops.cast(step, "float32")
        result = None
        for start, end, rate, next_rate in reversed(self._phases()):
            done = ops.clip((step - start) / (end - start), 0.0, 1.0)
            left = ops.clip((end - step) / (end - start), 0.0, 1.0)
            if self.anneal_strategy == "cos":  # sin² instead of (1 ± cos)/2, which in float32 loses the small rates
                done, left = (ops.square(ops.sin(math.pi / 2 * fraction)) for fraction in (done, left))
            phase = rate * left + next_rate * done
            result = phase if result is None else ops.where(step <= end, phase, result)
        return result

    def get_config(self):
        return {
            "max_lr": self.max_lr,
            "total_steps": self.total_steps,
            "pct_start": self.pct_start,
            "anneal_strategy": self.anneal_strategy,
            "div_factor": self.div_factor,
            "final_div_factor": self.final_div_factor,
            "three_phase": self.three_phase,
        }


@keras.saving.register_keras_serializable("kvision")
class Triangular(Schedule):
    """A rate that rises and falls linearly between two bounds, again and again.

    Smith, *Cyclical Learning Rates for Training Neural Networks* (arXiv 1506.01186), section 3.1; section 3.2 takes 2
    to 10 epochs for `step_size`. Equals tensorflow-addons 0.23's `TriangularCyclicalLearningRate`.

    Args:
        initial_learning_rate: The lower bound, with which the run begins.
        maximal_learning_rate: The upper bound.
        step_size: Steps from one bound to the other: half a cycle.

    Example:

    >>> schedule = Triangular(0.1, 0.5, step_size=4)
    >>> [round(float(schedule(step)), 2) for step in range(9)]
    [0.1, 0.2, 0.3, 0.4, 0.5, 0.4, 0.3, 0.2, 0.1]
    """

    def __init__(self, initial_learning_rate, maximal_learning_rate, step_size):
        check_positive(maximal_learning_rate=maximal_learning_rate, step_size=step_size)
        if not 0 <= initial_learning_rate <= maximal_learning_rate:
            raise ValueError(
                "`initial_learning_rate` must lie between 0 and `maximal_learning_rate`; got "
                f"{initial_learning_rate!r} and {maximal_learning_rate!r}."
            )
        self.initial_learning_rate = initial_learning_rate
        self.maximal_learning_rate = maximal_learning_rate
        self.step_size = step_size

    def _height(self, step, cycles):
        """Height of the current triangle, 1 at first; `cycles` counts the completed ones."""
        return 1.0

    def __call__(self, step):
        step = ops.cast(step, "float32")
        cycles, position = split_periods(step, 2 * self.step_size)
        climbed = 1.0 - ops.abs(position / self.step_size - 1.0)
        span = self.maximal_learning_rate - self.initial_learning_rate
        return self.initial_learning_rate + span * climbed * self._height(step, cycles)

    def get_config(self):
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "maximal_learning_rate": self.maximal_learning_rate,
            "step_size": self.step_size,
        }


@keras.saving.register_keras_serializable("kvision")
class Triangular2(Triangular):
    """`Triangular`, each triangle half as high as the one before.

    Smith (arXiv 1506.01186), section 3.1, *triangular2*. Equals tensorflow-addons 0.23's
    `Triangular2CyclicalLearningRate`.

    Args:
        initial_learning_rate: The lower bound, with which the run begins.
        maximal_learning_rate: The upper bound of the first cycle.
        step_size: Steps from one bound to the other: half a cycle.

    Example:

    >>> schedule = Triangular2(0.1, 0.5, step_size=2)
    >>> [round(float(schedule(step)), 2) for step in (0, 2, 4, 6, 8)]
    [0.1, 0.5, 0.1, 0.3, 0.1]
    """

    def _height(self, step, cycles):
        return ops.power(0.5, cycles)


@keras.saving.register_keras_serializable("kvision")
class ExponentialCyclical(Triangular):
    """`Triangular` whose height decays by the factor `gamma` at each step.

    Smith (arXiv 1506.01186), section 3.1, *exp_range*. Equals tensorflow-addons 0.23's
    `ExponentialCyclicalLearningRate` in its own mode, `"iterations"`.

    Args:
        initial_learning_rate: The lower bound, with which the run begins.
        maximal_learning_rate: The upper bound, before it decays.
        step_size: Steps from one bound to the other: half a cycle.
        gamma: Factor per step, in (0, 1]; the paper's runs take 0.99994.

    Example:

    >>> schedule = ExponentialCyclical(0.0, 1.0, step_size=2, gamma=0.5)
    >>> [float(schedule(step)) for step in (1, 2, 3)]
    [0.25, 0.25, 0.0625]
    """

    def __init__(self, initial_learning_rate, maximal_learning_rate, step_size, gamma=0.99994):
        super().__init__(initial_learning_rate, maximal_learning_rate, step_size)
        if not 0 < gamma <= 1:
            raise ValueError(f"`gamma` is the factor per step, in (0, 1]; got {gamma!r}.")
        self.gamma = gamma

    def _height(self, step, cycles):
        return ops.exp(step * math.log(self.gamma))  # gamma as a float32 would be wrong by 0.3 % after 100,000 steps

    def get_config(self):
        return {**super().get_config(), "gamma": self.gamma}
