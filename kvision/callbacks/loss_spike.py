"""When the loss of single batches has jumped."""

import collections
import math

WINDOW = 100  # losses of which the mean is taken
FACTOR = 2.0
STEPS = 4

# While fewer than WINDOW are known, against the largest before: batches still differ, and rates may still rise.
FIRST_FACTOR = 10.0
FEW, FEW_FACTOR = 4, 1000.0  # so few do not show how far batches differ: the first may hold no object at all


class LossSpike:
    """Finds the `STEPS`-th loss in a row that is at least `FACTOR` times the mean of the `WINDOW` before the first.

    As long as it has seen fewer, that is at least `FIRST_FACTOR` times the largest before the first, `FEW_FACTOR` times
    the largest of fewer than `FEW`; each counts as so many steps as it lies powers of ten above it, as a network that
    blows up early is dead after a step or two, its loss back at chance. It says nothing where that mean or that largest
    loss is not above 0.
    """

    def __init__(self):
        self._losses = collections.deque(maxlen=WINDOW)
        self._suspects = []

    @property
    def is_suspicious(self):
        """Whether the last loss lay that high."""
        return bool(self._suspects)

    @property
    def sentence(self):
        """What was found, in words."""
        level, _, what = self._level()
        least = min(self._suspects)
        steps = "1 step" if len(self._suspects) == 1 else f"{len(self._suspects)} steps"
        return (
            f"the loss was at least {least:.3g} for {steps}, {least / level:.2g} times {what} of "
            f"the {len(self._losses)} before"
        )

    def see(self, loss):
        """Take in the loss of one batch; returns whether the loss has jumped."""
        if math.isnan(loss):
            return False
        level, factor, _ = self._level()
        if level > 0 and loss >= factor * level:
            self._suspects.append(loss)
        else:
            self._losses.extend([*self._suspects, loss])
            self._suspects = []
        is_first = len(self._losses) < WINDOW and level > 0
        weight = sum(max(1.0, math.log10(each / level)) if is_first else 1 for each in self._suspects)
        return weight >= STEPS

    def _level(self):
        """What a loss is compared with, the factor that counts, and its name."""
        count = len(self._losses)
        if count == WINDOW:
            return sum(self._losses) / count, FACTOR, "the mean"
        return max(self._losses, default=0.0), FEW_FACTOR if count < FEW else FIRST_FACTOR, "the largest"

    def forget_suspects(self):
        """The batches that lay high were taken back."""
        self._suspects = []

    def get_state(self):
        """The losses, as plain numbers."""
        return list(self._losses)

    def set_state(self, losses):
        """Take over what `get_state` gave."""
        self._losses.extend(losses)
