"""Accuracy under attack against closed-form margins of linear models."""

import keras
import numpy as np
import pytest

from kvision.visualize.adversarial import (
    accuracy_under_attack,
    deep_fool,
    fast_gradient,
    iterative_gradient,
    projected_gradient,
)
from tests.support import assert_close
from tests.visualize.adversarial.victims import BOUNDS, closed_form, linear, pixels


@pytest.mark.parametrize("attack", [fast_gradient, iterative_gradient, projected_gradient])
def test_accuracy_under_attack_is_that_of_the_margins(attack):
    classifier, matrix, biases = linear(2)
    images = pixels(20, seed=4)
    labels = classifier.logits(images).argmax(axis=1)
    labels[:3] = 1 - labels[:3]
    sizes = np.array(closed_form(images, matrix, biases, 1))
    epsilons = [0, *np.quantile(sizes, [0.25, 0.5, 0.75]).tolist()]
    options = {"steps": 20} if attack is not fast_gradient else {}
    if attack is iterative_gradient:
        options["step_size"] = 0.05
    found = accuracy_under_attack(
        classifier, images, labels, epsilons, attack=attack, bounds=(-2, 3), batch_size=8, **options
    )
    expected = [(sizes[3:] > epsilon).sum() / 20 for epsilon in epsilons]
    assert_close(found.accuracy, expected)
    assert found.fooled.shape == (4, 20)
    assert found.fooled[:, :3].all()
    assert found.epsilons.tolist() == epsilons


def test_accuracy_of_an_attack_without_a_budget_is_by_its_distances():
    classifier, matrix, biases = linear()
    images = pixels(12, seed=5)
    labels = classifier.logits(images).argmax(axis=1)
    sizes = 1.02 * np.array(closed_form(images, matrix, biases, 2))
    epsilons = np.quantile(sizes, [0.1, 0.6])
    found = accuracy_under_attack(classifier, images, labels, epsilons, attack=deep_fool, bounds=(-5, 5))
    assert_close(found.accuracy, [(sizes > epsilon).mean() for epsilon in epsilons])


def test_an_attack_of_ones_own():
    def darker(model, images, epsilon, *, labels, bounds, preprocess, batch_size, verbose):
        assert isinstance(model, keras.Model)
        return fast_gradient(model, images, epsilon, labels=labels, bounds=bounds, batch_size=batch_size)

    images = pixels()
    model = linear()[0].model
    labels = model.predict(images, verbose=0).argmax(axis=1)
    found = accuracy_under_attack(model, images, labels, [0, 0.2], attack=darker, bounds=BOUNDS)
    plain = accuracy_under_attack(model, images, labels, [0, 0.2], attack=fast_gradient, bounds=BOUNDS)
    assert found.accuracy.tolist() == plain.accuracy.tolist()
    (line,) = found.curve().axes[0].lines
    assert line.get_ydata().tolist() == found.accuracy.tolist()
