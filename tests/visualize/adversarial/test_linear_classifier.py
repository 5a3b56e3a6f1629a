"""Linear classifiers are fooled in closed form, and within bounds as SciPy finds it."""

import numpy as np
import pytest
import scipy.optimize

from kvision.visualize.adversarial import fool_linear_classifier
from tests.support import assert_close
from tests.visualize.adversarial.victims import (
    BOUNDS,
    CLASSES,
    PIXELS,
    closed_form,
    flat,
    linear,
    margins_of,
    pixels,
    victim,
)


@pytest.mark.parametrize(("norm", "order"), [("l2", 2), ("linf", 1)])
def test_a_linear_classifier_is_fooled_in_closed_form(norm, order):
    classifier, matrix, biases = linear()
    images = pixels()
    attack = fool_linear_classifier(classifier, images, norm=norm, overshoot=1e-3, bounds=(-5, 5))
    assert attack.success.all()
    found = getattr(attack, f"{norm}_distance")
    assert_close(found, np.multiply(closed_form(images, matrix, biases, order), 1.001), tolerance=(1e-4, 0))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_within_bounds_it_is_the_smallest_change_that_scipy_finds(norm):
    classifier, matrix, biases = linear()
    images = np.round(pixels(2, seed=3))  # most pixels are on a bound
    attack = fool_linear_classifier(classifier, images, norm=norm, overshoot=1e-3, bounds=BOUNDS)
    best = {}
    for (row, _), (margin, w) in margins_of(images, matrix, biases).items():
        image = flat(images)[row]
        if norm == "linf":  # least t, of changes that are between −t and t
            eye, one = np.eye(PIXELS), np.ones((PIXELS, 1))
            found = scipy.optimize.linprog(
                [*np.zeros(PIXELS), 1],
                np.block([[-w[None], np.zeros((1, 1))], [eye, -one], [-eye, -one]]),
                [-1.001 * margin, *np.zeros(2 * PIXELS)],
                bounds=[*zip(-image, 1 - image, strict=True), (0, None)],
            )
            size = found.fun if found.success else np.inf
        else:
            found = scipy.optimize.minimize(
                lambda change: change @ change,
                np.clip(w, -image, 1 - image),
                jac=lambda change: 2 * change,
                bounds=list(zip(-image, 1 - image, strict=True)),
                constraints={"type": "ineq", "fun": lambda change, w=w, m=margin: w @ change - 1.001 * m},
                method="SLSQP",
            )
            size = np.sqrt(found.fun) if found.success else np.inf
        best[row] = min(best.get(row, np.inf), size)
    free = closed_form(images, matrix, biases, {"l2": 2, "linf": 1}[norm])
    found = getattr(attack, f"{norm}_distance")
    assert attack.success.all()
    assert (found > 1.01 * np.array(free)).any()
    assert_close(found, list(best.values()), tolerance=(2e-3, 0))


def test_a_linear_classifier_takes_it_for_the_target():
    classifier, *_ = linear()
    for target in range(CLASSES):
        rows = classifier.logits(pixels()).argmax(axis=1) != target
        attack = fool_linear_classifier(classifier, pixels()[rows], target=target, bounds=(-5, 5))
        assert attack.success.all()
        assert (attack.predicted == target).all()
    two, matrix, biases = linear(2)
    targets = 1 - two.logits(pixels()).argmax(axis=1)
    attack = fool_linear_classifier(two, pixels(), target=targets, bounds=(-5, 5))
    assert_close(attack.l2_distance, np.multiply(closed_form(pixels(), matrix, biases, 2), 1.001), tolerance=(1e-4, 0))


def test_a_network_that_is_not_linear_is_told():
    with pytest.raises(ValueError, match="convolutional is not linear.*deep_fool"):
        fool_linear_classifier(victim(), pixels(2, (8, 8, 3), 255.0))
