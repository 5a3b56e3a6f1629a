"""When the loss of single batches has jumped."""

import collections
import math

WINDOW = 100  # losses of which the mean is taken
FACTOR = 2.0
STEPS = 4


class LossSpike:
    """Finds the `STEPS`-th loss in a row that is at least `FACTOR` times the mean of the `WINDOW` before the first.

    It says nothing before it has seen `WINDOW` losses, nor where their mean is not above 0.
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
        mean = sum(self._losses) / len(self._losses)
        least = min(self._suspects)
        return (
            f"the loss was at least {least:.3g} for {len(self._suspects)} steps, {least / mean:.2g} times the mean of "
            f"the {len(self._losses)} before"
        )

    def see(self, loss):
        """Take in the loss of one batch; returns whether the loss has jumped."""
        if math.isnan(loss):
            return False
        mean = sum(self._losses) / len(self._losses) if len(self._losses) == WINDOW else 0.0
        if mean > 0 and loss >= FACTOR * mean:
            self._suspects.append(loss)
        else:
            self._losses.extend([*self._suspects, loss])
            self._suspects = []
        return len(self._suspects) >= STEPS

    def forget_suspects(self):
        """The batches that lay high were taken back."""
        self._suspects = []

    def get_state(self):
        """The losses, as plain numbers."""
        return list(self._losses)

    def set_state(self, losses):
        """Take over what `get_state` gave."""
        self._losses.extend(losses)
