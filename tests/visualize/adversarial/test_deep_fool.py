"""DeepFool against its closed form on linear models, and laws that hold for every network."""

import keras
import numpy as np

from kvision.visualize.adversarial import deep_fool
from tests.support import assert_close
from tests.visualize.adversarial.victims import BOUNDS, closed_form, linear, pixels, victim

layers = keras.layers


def test_deep_fool_needs_one_step_for_a_linear_classifier():
    classifier, matrix, biases = linear()
    images = pixels()
    attack = deep_fool(classifier, images, steps=1, overshoot=0.02, bounds=(-5, 5))
    assert attack.success.all()
    assert_close(attack.l2_distance, np.multiply(closed_form(images, matrix, biases, 2), 1.02), tolerance=(1e-4, 0))
    few = deep_fool(classifier, images, candidates=1, bounds=(-5, 5))
    assert few.success.all()
    assert (few.l2_distance >= attack.l2_distance * 0.999).all()


def test_deep_fool_ends_with_success_and_passes_over_what_is_wrong_already():
    images = pixels(5, (8, 8, 3), 255.0)
    labels = victim().logits(images).argmax(axis=1)
    labels[1] = (labels[1] + 1) % 4
    attack = deep_fool(victim(), images, labels=labels, batch_size=5)
    assert attack.success.all()
    assert attack.l2_distance[1] == 0
    others = np.arange(5) != 1
    back = images + (attack.images - images) * 0.9
    still = victim().logits(back).argmax(axis=1)
    assert (attack.predicted[others] != labels[others]).all()
    assert (still[others] == labels[others]).mean() >= 0.75  # nine tenths of the change don't suffice: it is small


def test_deep_fool_leaves_a_boundary():
    model = keras.Sequential([keras.Input((1, 2, 1)), layers.Flatten(), layers.Dense(2)])
    model.set_weights([np.array([[1.0, 0.0], [0.0, 1.0]]), np.zeros(2)])
    attack = deep_fool(model, np.full((1, 1, 2, 1), 0.5), bounds=BOUNDS)
    assert attack.success.all()
    assert attack.l2_distance[0] < 0.01
