"""What the curve of the loss says (CS231n, "Babysitting the learning process", the figures of loss curves)."""

import itertools
import math

FEWEST = 5  # epochs before anything is said
FLAT = 0.01  # a loss that has stayed within this fraction of its first value has not moved
RISEN = 1.5  # times the loss of the first epoch
SLOW = 0.2  # fraction of its first value that the loss of a rate too low has lost at most
STRAIGHT = 0.7  # fall in the second half of the epochs beside that in the first
SMALL = 1e-4  # the update ratio that a rate too low never reached
GAP = 1.1  # times its smallest value that the validation loss has risen to
WORSE = 2.0  # times the validation loss that was told of, from which on it is told of again
RISING = 3  # epochs since then, in each of which it lay halfway at least


class LossCurve:
    """Judges the losses of the epochs of one fit.

    Args:
        is_new: Function that tells whether the run began with this fit: only then has a flat loss never moved.
    """

    def __init__(self, is_new):
        self._is_new = is_new
        self._losses, self._validation = [], []
        self._told = 0.0  # the validation loss when overfitting was told

    @property
    def losses(self):
        """The loss of each epoch so far."""
        return self._losses

    def see(self, logs):
        """Take in the logs of one epoch."""
        self._losses.append(float(logs["loss"]))
        if "val_loss" in logs:
            self._validation.append(float(logs["val_loss"]))
        elif self._validation:
            self._validation.append(self._validation[-1])  # validated every so many epochs

    def verdict(self, largest_ratio):
        """`(kind, sentence)`; the kind is one of `"too early"`, `"good"`, `"high"`, `"low"`, `"plateau"`.

        Args:
            largest_ratio: The largest median update ratio of the fit after warm-up; None where none is known.

        Returns:
            The kind, and the sentence or None where all is well.
        """
        losses = self._losses
        if len(losses) < 2:
            return "too early", None
        first, last = losses[0], losses[-1]
        if not all(map(math.isfinite, losses[-2:])):
            return "high", "the loss is not finite: lower the learning rate about ten times"
        if first > 0 and min(losses[-2:]) > RISEN * first:
            says = f"the loss rose from {_short(first)} to {_short(last)}"
            return "high", f"{says}: lower the learning rate about ten times"
        if len(losses) < FEWEST:
            return "too early", None
        is_small = largest_ratio is not None and largest_ratio < SMALL
        if is_small and self._is_straight():
            says = f"the loss falls slowly and straight, from {_short(first)} to {_short(last)} in {len(losses)} epochs"
            return "low", f"{says}: raise the learning rate about ten times"
        if self._is_new() and first > 0 and max(abs(loss - first) for loss in losses) <= FLAT * first and not is_small:
            says = f"the loss has stayed at {_short(first)} for {len(losses)} epochs"
            return "plateau", (
                f"{says}: look at the initial weights (He initialization; all zeros learn nothing), and at the labels"
            )
        return "good", None

    def overfits(self):
        """The sentence on a validation loss that rises while the loss falls, or None."""
        values = self._validation
        if len(values) <= RISING or len(values) != len(self._losses):
            return None
        best = min(range(len(values)), key=values.__getitem__)
        least, since = values[best], values[best + 1 :][-RISING:]
        if len(since) < RISING or not (least > 0 and values[-1] > GAP * least):
            return None
        if min(since) <= (1 + GAP) / 2 * least or not self._losses[-1] < self._losses[best]:
            return None
        return (
            f"the validation loss rose from {_short(least)} in epoch {best + 1} to {_short(values[-1])} while the loss "
            f"fell to {_short(self._losses[-1])}, overfitting: stop there, add data or augmentation, or regularize more"
        )

    def overfits_anew(self):
        """What `overfits` says, where that was not told or is clearly worse: a dip in between makes nothing right."""
        sentence = self.overfits()
        if sentence is None or self._validation[-1] < WORSE * self._told:
            return None
        self._told = self._validation[-1]
        return sentence

    def _is_straight(self):
        losses = self._losses
        middle = len(losses) // 2
        falls = losses[0] - losses[middle], losses[middle] - losses[-1]
        steps = middle, len(losses) - 1 - middle
        early, late = (fall / step for fall, step in zip(falls, steps, strict=True))
        down = sum(after < before for before, after in itertools.pairwise(losses))
        return 0 < losses[0] - losses[-1] < SLOW * losses[0] and late >= STRAIGHT * early and down >= 0.8 * sum(steps)


def _short(number):
    return f"{number:.3g}"
