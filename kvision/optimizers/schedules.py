"""Learning-rate schedules that Keras lacks.

Each is a `keras.optimizers.schedules.LearningRateSchedule`: pass it as an optimizer's `learning_rate`, or call it with
a step, or an array of steps. Arguments bear the names of the reference each schedule equals. Rates are float32 under
any policy.

Keras has the others: a drop every n steps, or a continuous exponential one, is `ExponentialDecay` (`staircase=True` or
False); a table of rates is `PiecewiseConstantDecay`; the cosine, with a linear warm-up if asked, is `CosineDecay`, with
restarts `CosineDecayRestarts`. A rate that drops on a plateau needs memory: `kvision.callbacks.ReduceOnPlateau`.
"""

import itertools
import math

import keras
from keras import ops

Schedule = keras.optimizers.schedules.LearningRateSchedule


def check_positive(**arguments):
    for name, value in arguments.items():
        if not value > 0:
            raise ValueError(f"`{name}` must be greater than 0; got {value!r}.")


def split_periods(step, period):
    """Completed periods before `step`, and the position of `step` in the current one."""
    position = ops.mod(step, float(period))
    return ops.round((step - position) / period), position  # under XLA step / period may fall below an integer


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
        check_positive(initial_learning_rate=initial_learning_rate, factor=factor)
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
        check_positive(stretch=stretch)
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
        check_positive(
            initial_learning_rate=initial_learning_rate, steps_per_epoch=steps_per_epoch, epochs=epochs, factor=factor
        )
        self.initial_learning_rate = initial_learning_rate
        self.steps_per_epoch = steps_per_epoch
        self.epochs = epochs
        self.factor = factor

    def __call__(self, step):
        drops, _ = split_periods(ops.cast(step, "float32"), self.epochs * self.steps_per_epoch)
        return self.initial_learning_rate * ops.exp(drops * math.log(self.factor))

    def get_config(self):
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "steps_per_epoch": self.steps_per_epoch,
            "epochs": self.epochs,
            "factor": self.factor,
        }
