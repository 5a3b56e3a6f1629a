"""The iterative gradient: its steps, and its least likely class."""

import numpy as np
import pytest

from kvision.visualize.adversarial import iterative_gradient
from tests.support import assert_close
from tests.visualize.adversarial.victims import BOUNDS, flat, linear, pixels


@pytest.mark.parametrize("high", [1.0, 255.0])
@pytest.mark.parametrize(("levels", "steps"), [(8, 10), (40, 44), (0.5, 1)])
def test_the_iterative_gradient_takes_the_papers_steps(levels, steps, high):
    classifier, *_ = linear(scale=1 / high)
    unit = high / 255
    images = pixels(high=high)
    attack = iterative_gradient(classifier, images, levels * unit, step_size=0.01 * unit, bounds=(0, high))
    assert_close(attack.linf_distance, np.full(6, steps * 0.01 * unit), tolerance=(0, 1e-3 * unit))
    assert iterative_gradient(classifier, images, levels * unit, bounds=(0, high)).linf_distance.max() < 1.001 * (
        levels * unit
    )


def test_the_least_likely_class_is_reached():
    classifier, matrix, biases = linear()
    images = pixels()
    attack = iterative_gradient(classifier, images, 1.0, target="least_likely", steps=40, step_size=0.05, bounds=BOUNDS)
    assert attack.predicted.tolist() == (flat(images) @ matrix.T + biases).argmin(axis=1).tolist()
    assert attack.success.all()
