"""When a loss has jumped, and when it has not."""

import numpy as np
import pytest

from kvision.callbacks.loss_spike import LossSpike

# The rule alone: mean of the last 100, twice, four times in a row.


@pytest.mark.parametrize(
    ("losses", "at"),
    [
        ([1.0] * 100 + [2.0] * 4, 103),
        ([1.0] * 99 + [2.0] * 4, None),  # too few to compare with
        ([1.0] * 100 + [1.99] * 10, None),
        ([1.0] * 100 + [2.0] * 3 + [1.0] + [2.0] * 3, None),
        ([5.0] * 50 + [1.0] * 100 + [2.0] * 4, 153),  # of the last 100 alone
        ([1.0] * 100 + [float("nan")] * 5 + [2.0] * 4, 108),
        ([-1.0] * 100 + [9.0] * 4, None),
        ([0.0] * 100 + [9.0] * 4, None),
        ([1.0] * 100 + [float("inf")] * 4, 103),
        ([2.3, 4.7e4, 2.5e4, 12.2, 4.8], 1),  # networks that blow up with their first updates, and are dead thereafter
        ([2.3, 1.7e3, 1.3e2, 3.2, 1.8, 3e3, 8.6e8, 2.6], 6),
        ([2.3] * 4 + [240.0] * 2, 5),
        ([2.3] * 3 + [50.0] * 4, None),  # ten times what few batches show may be their luck
        ([2.3] * 4 + [23.0] * 4, 7),
        ([2.3] * 4 + [22.9] * 8, None),
        ([1.0, 9.0, 1.0, 1.0] + [20.0] * 8, None),  # the largest counts, not the mean
        ([0.01] + [1.5] * 8 + [0.1] * 8, None),  # no time to learn, a first batch without objects
        ([0.01] * 99 + [0.2] * 4, 102),
        ([0.0] * 4 + [9.0] * 8, None),
        ([-1.0] * 4 + [9.0] * 3 + [89.0] * 8, None),
    ],
)
def test_the_rule_of_a_spike(losses, at):
    rule = LossSpike()
    assert next((index for index, loss in enumerate(losses) if rule.see(loss)), None) == at


def test_it_says_what_it_compared_with():
    rule = LossSpike()
    for loss in [2.0] * 5 + [40.0] * 4:
        rule.see(loss)
    assert rule.sentence == "the loss was at least 40 for 4 steps, 20 times the largest of the 5 before"


def test_noise_of_the_first_steps_is_no_spike():
    """10,000 steps that are all first ones, of losses that a few batches barely show: a factor e to 1.0 each."""
    numbers = np.random.default_rng(0)
    for _ in range(100):
        rule = LossSpike()
        losses = np.exp(numbers.normal(size=100)) * np.linspace(3, 1, 100)
        assert not any(rule.see(loss) for loss in losses)


def test_noise_is_no_spike():
    for seed in range(10):
        rule = LossSpike()
        losses = np.exp(0.3 * np.random.default_rng(seed).normal(size=10_000)) * np.linspace(3, 0.01, 10_000)
        assert not any(rule.see(loss) for loss in losses)
