"""The fast gradient against its closed form on linear models."""

import numpy as np
import pytest

from kvision.visualize.adversarial import fast_gradient
from tests.support import assert_close
from tests.visualize.adversarial.victims import BOUNDS, BUDGET, flat, linear, loss_gradient, pixels, softmax


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("target", [None, 2])
def test_the_fast_gradient_is_one_step_along_the_gradient_of_the_loss(norm, target):
    classifier, matrix, biases = linear()
    images = pixels()
    labels = np.array([0, 1, 3, 4, 0, 1])
    attack = fast_gradient(classifier, images, BUDGET, labels=labels, target=target, norm=norm, bounds=BOUNDS)
    gradient = loss_gradient(images, labels if target is None else np.full(6, target), matrix, biases)
    gradient = gradient if target is None else -gradient
    lengths = np.linalg.norm(flat(gradient), axis=1)[:, None, None, None]
    step = np.sign(gradient) if norm == "linf" else gradient / lengths
    assert_close(attack.images, np.clip(images + BUDGET * step, *BOUNDS), tolerance=(0, 1e-6))
    change = flat(attack.images) - flat(images)
    assert_close(attack.linf_distance, np.abs(change).max(axis=1))
    assert_close(attack.l2_distance, np.linalg.norm(change, axis=1))
    logits = flat(attack.images) @ matrix.T + biases
    assert attack.predicted.tolist() == logits.argmax(axis=1).tolist()
    assert_close(attack.confidence, softmax(logits).max(axis=1), tolerance=(1e-4, 1e-5))
    expected = attack.predicted != labels if target is None else attack.predicted == target
    assert attack.success.tolist() == expected.tolist()
    assert attack.complete


def test_a_network_that_is_sure_is_attacked_as_well():
    """The cross-entropy itself is 0 in float32 there, and so is its gradient."""
    classifier, matrix, _ = linear(scale=1000.0)
    images = pixels()
    attack = fast_gradient(classifier, images, BUDGET, bounds=BOUNDS)
    logits = flat(images) @ matrix.T
    order = logits.argsort(axis=1)
    assert (softmax(logits.astype("float32")).max(axis=1) == 1).all()
    direction = matrix[order[:, -2]] - matrix[order[:, -1]]
    assert_close(attack.images, images + BUDGET * np.sign(direction).reshape(images.shape), tolerance=(0, 1e-6))
