"""Learning-rate schedules that Keras lacks.

Each is a `keras.optimizers.schedules.LearningRateSchedule`: pass it as an optimizer's `learning_rate`, or call it with
a step. Arguments bear the names of the reference each schedule equals. Rates are float32 under any policy.

Keras has the others: a drop every n steps, or a continuous exponential one, is `ExponentialDecay` (`staircase=True` or
False); a table of rates is `PiecewiseConstantDecay`; the cosine, with a linear warm-up if asked, is `CosineDecay`, with
restarts `CosineDecayRestarts`. A rate that drops on a plateau needs memory: `kvision.callbacks.ReduceOnPlateau`.
"""

import itertools
import math

import keras
from keras import ops

from kvision import errors

Schedule = keras.optimizers.schedules.LearningRateSchedule


def _positive(**arguments):
    for name, value in arguments.items():
        if not value > 0:
            raise ValueError(f"`{name}` must be greater than 0; got {value!r}.")


def _split(step, period):
    """Completed periods before `step`, and the position of `step` in the current one."""
    position = ops.mod(step, float(period))
    return ops.round((step - position) / period), position  # under XLA step / period may fall below an integer


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
        _positive(max_lr=max_lr, div_factor=div_factor, final_div_factor=final_div_factor)
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
        _positive(maximal_learning_rate=maximal_learning_rate, step_size=step_size)
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
        cycles, position = _split(step, 2 * self.step_size)
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


@keras.saving.register_keras_serializable("kvision")
class MultiStep(Schedule):
    """A rate that is multiplied by `factor` at each of the `boundaries`, after a linear warm-up.

    The new rate takes effect at the boundary itself, as in Detectron and in torch's `MultiStepLR` (Keras's
    `PiecewiseConstantDecay` drops one step later). `MultiStep.times` gives the schedules that detection papers name 1x,
    2x, … 9x.

    Args:
        initial_learning_rate: The rate after the warm-up and before the first boundary.
        boundaries: Steps at which the rate drops, ascending.
        factor: What the rate is multiplied by at each boundary.
        warmup_steps: Length of the warm-up; 0 for none.
        warmup_factor: The warm-up begins at `warmup_factor * initial_learning_rate`. Detectron's linear warm-up is 500
            steps from 1/3.

    Example:

    >>> schedule = MultiStep(0.1, boundaries=(60, 80), warmup_steps=10, warmup_factor=0.1)
    >>> [round(float(schedule(step)), 4) for step in (0, 5, 10, 59, 60, 80)]
    [0.01, 0.055, 0.1, 0.1, 0.01, 0.001]
    """

    def __init__(self, initial_learning_rate, boundaries, factor=0.1, warmup_steps=0, warmup_factor=1 / 3):
        _positive(initial_learning_rate=initial_learning_rate, factor=factor)
        boundaries = list(boundaries)
        if any(later <= earlier for earlier, later in itertools.pairwise(boundaries)):
            raise ValueError(f"`boundaries` must ascend; got {boundaries}.")
        if warmup_steps < 0:
            raise ValueError(f"`warmup_steps` must be 0 or more; got {warmup_steps!r}.")
        self.initial_learning_rate = initial_learning_rate
        self.boundaries = boundaries
        self.factor = factor
        self.warmup_steps = warmup_steps
        self.warmup_factor = warmup_factor

    @classmethod
    def times(cls, times, initial_learning_rate=0.02, stretch=1.0):
        """The `times`x schedule of detectors on COCO: 90,000 · `times` steps of 16 images, drops near the end.

        From 2x on the rate is divided by 10 for the last 60,000 and again for the last 20,000 steps, however long the
        run (He, Girshick, Dollár, *Rethinking ImageNet Pre-training*, arXiv 1811.08883, section 3). The 1x schedule
        drops 30,000 and 10,000 steps before its end, as Detectron's baselines do; so do the rate of 0.02 and the linear
        warm-up over 500 steps from a third of it.

        Args:
            times: 1 … 9 in the paper.
            initial_learning_rate: The rate before the first drop; in proportion to the batch if it is not 16.
            stretch: Factor on every number of steps: `16 / batch` keeps the number of images, 0.01 makes a trial run.

        Example:

        >>> MultiStep.times(6).boundaries
        [480000, 520000]
        """
        if times < 1 or times != int(times):
            raise ValueError(f"`times` counts runs of 90,000 steps: 1, 2, … 9; got {times!r}. Scale with `stretch`.")
        _positive(stretch=stretch)
        drops = (30_000, 10_000) if times == 1 else (60_000, 20_000)
        boundaries = [round((90_000 * int(times) - drop) * stretch) for drop in drops]
        return cls(initial_learning_rate, boundaries, warmup_steps=round(500 * stretch))

    def __call__(self, step):
        step = ops.cast(step, "float32")
        rates = [self.initial_learning_rate * self.factor**drops for drops in range(len(self.boundaries) + 1)]
        rate = ops.convert_to_tensor(rates[0], "float32")
        for boundary, lower in zip(self.boundaries, rates[1:], strict=True):
            rate = ops.where(step >= boundary, lower, rate)
        if self.warmup_steps == 0:
            return rate
        warmed = ops.minimum(step / self.warmup_steps, 1.0)
        return rate * (self.warmup_factor * (1.0 - warmed) + warmed)

    def get_config(self):
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "boundaries": self.boundaries,
            "factor": self.factor,
            "warmup_steps": self.warmup_steps,
            "warmup_factor": self.warmup_factor,
        }


@keras.saving.register_keras_serializable("kvision")
class EveryEpochs(Schedule):
    """A rate that is multiplied by `factor` every few epochs: 4 % less every 8 epochs.

    Szegedy et al., *Going Deeper with Convolutions* (arXiv 1409.4842), section 6.

    Args:
        initial_learning_rate: The rate of the first epochs.
        steps_per_epoch: Optimizer steps per epoch.
        epochs: Epochs between two drops.
        factor: What the rate is multiplied by at each drop.

    Example:

    >>> schedule = EveryEpochs(0.01, steps_per_epoch=100)
    >>> [round(float(schedule(step)), 6) for step in (799, 800, 1600)]
    [0.01, 0.0096, 0.009216]
    """

    def __init__(self, initial_learning_rate, steps_per_epoch, epochs=8, factor=0.96):
        _positive(
            initial_learning_rate=initial_learning_rate, steps_per_epoch=steps_per_epoch, epochs=epochs, factor=factor
        )
        self.initial_learning_rate = initial_learning_rate
        self.steps_per_epoch = steps_per_epoch
        self.epochs = epochs
        self.factor = factor

    def __call__(self, step):
        drops, _ = _split(ops.cast(step, "float32"), self.epochs * self.steps_per_epoch)
        return self.initial_learning_rate * ops.exp(drops * math.log(self.factor))

    def get_config(self):
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "steps_per_epoch": self.steps_per_epoch,
            "epochs": self.epochs,
            "factor": self.factor,
        }
