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
    ],
)
def test_the_rule_of_a_spike(losses, at):
    rule = LossSpike()
    assert next((index for index, loss in enumerate(losses) if rule.see(loss)), None) == at


def test_noise_is_no_spike():
    for seed in range(10):
        rule = LossSpike()
        losses = np.exp(0.3 * np.random.default_rng(seed).normal(size=10_000)) * np.linspace(3, 0.01, 10_000)
        assert not any(rule.see(loss) for loss in losses)
