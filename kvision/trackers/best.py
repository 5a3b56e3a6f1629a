"""The best value of a metric so far."""

import math
import re

_LOWER = re.compile(r"loss|error|(^|_)r?m(a|s)[pl]?e($|_)")
_HIGHER = re.compile(r"acc|auc|precision|recall|io_?u|dice|f1|f_?beta|r2|psnr|ssim|(^|_)m?A[PR](_|\d|$)", re.IGNORECASE)


def is_lower_better(name):
    """Whether lower is better for a metric of that name; None where the name does not tell."""
    name = name.removeprefix("val_")
    if _LOWER.search(name.lower()):
        return True
    return False if _HIGHER.search(name) else None


class Best:
    """The best value of each metric whose name tells what is better, and its epoch.

    >>> best = Best()
    >>> best.add(0, {"val_AP": 0.25, "loss": 3.0, "images_seen": 10})
    {'val_AP': 0.25, 'loss': 3.0}
    >>> best.add(1, {"val_AP": 0.2, "loss": 2.0})
    {'loss': 2.0}
    >>> best.epochs
    {'val_AP': 0, 'loss': 1}
    """

    def __init__(self):
        self.values, self.epochs = {}, {}

    def add(self, epoch, logs):
        """Take in the logs of an epoch; returns those that are the best so far."""
        better = {}
        for name, value in logs.items():
            lower = is_lower_better(name)
            if lower is None or not isinstance(value, int | float) or not math.isfinite(value):
                continue
            before = self.values.get(name)
            if before is None or (value < before if lower else value > before):
                better[name] = self.values[name] = value
                self.epochs[name] = epoch
        return better
