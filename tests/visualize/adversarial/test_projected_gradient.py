"""Projected gradients: in ball and bounds, in the units of the images; restarts, and Ctrl-C."""

import itertools

import keras
import numpy as np
import pytest

from kvision.network import Preprocessing
from kvision.visualize import adversarial
from kvision.visualize.adversarial import Classifier, accuracy_under_attack, projected_gradient
from kvision.visualize.adversarial.gradient_steps import NORMS
from tests.support import assert_close
from tests.visualize.adversarial.victims import BOUNDS, convolutional, linear, pixels, victim


def test_budgets_are_in_the_units_of_the_images():
    """The same attack on images of 0…255 with a rescaling inside, with a preprocessing, and on those of −1…1."""
    images = pixels(4, (8, 8, 3), 255.0)
    inside = projected_gradient(victim(), images, 8, steps=3)
    image = keras.Input((8, 8, 3))
    _, _, trunk, pooling, dense = convolutional().layers
    bare = keras.Model(image, dense(pooling(trunk(image))))
    before = projected_gradient(bare, images, 8, steps=3, preprocess=Preprocessing(value_range=(-1.0, 1.0)))
    after = projected_gradient(bare, images / 127.5 - 1, 8 / 127.5, steps=3, bounds=(-1, 1))
    for other in (before.images, (after.images + 1) * 127.5):
        assert np.mean(np.abs(other - inside.images) < 1e-2) > 0.99  # where a gradient is about 0 its sign is by chance
    assert inside.linf_distance.max() <= 8 + 1e-4
    assert inside.linf_distance.min() > 7


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projected_gradients_stay_in_ball_and_bounds_wherever_they_start(norm):
    images = pixels(5, (8, 8, 3), 255.0)
    images[0] = 0
    images[1] = 255
    epsilon = {"linf": 6.0, "l2": 40.0}[norm]
    found = [
        projected_gradient(victim(), images, epsilon, norm=norm, steps=3, seed=seed, batch_size=size)
        for seed, size in ((0, 5), (0, 2), (1, 5))
    ]
    for attack in found:
        sizes = getattr(attack, f"{norm}_distance")
        assert sizes.max() <= epsilon * (1 + 1e-5)
        assert sizes.min() > 0.2 * epsilon
        assert attack.images.min() >= 0
        assert attack.images.max() <= 255
    same, other = (np.abs(found[0].images - each.images) for each in found[1:])
    assert np.mean(same < 0.1) > 0.95  # the places don't depend on the size of the batch
    assert np.mean(other < 0.1) < 0.9


def test_places_are_drawn_evenly_from_the_ball():
    rng = np.random.default_rng(0)
    for norm, size in (("l2", np.linalg.norm), ("linf", lambda change: np.abs(change).max())):
        radii = np.array([size(NORMS[norm].draw(rng, (1, 3, 1), 2.0)) for _ in range(3000)]) / 2
        assert radii.max() <= 1
        assert abs(np.mean(radii**3) - 0.5) < 0.02


def test_restarts_keep_what_is_best():
    images = pixels(6, (8, 8, 3), 255.0)
    options = {"steps": 2, "step_size": 0.5}
    once, thrice = (projected_gradient(victim(), images, 30, restarts=count, **options) for count in (1, 4))
    margins = [np.asarray(victim().margins(attack.images, attack.labels)[0]) for attack in (once, thrice)]
    assert (margins[1] >= margins[0] - 1e-6).all()
    assert (margins[1] > margins[0] + 1e-6).any()
    assert (thrice.success >= once.success).all()


def stopped_after(steps, monkeypatch):
    """Ctrl-C after a number of steps."""
    monkeypatch.setattr(
        adversarial.blocks, "progress", lambda schedule, total, verbose: itertools.islice(schedule, steps)
    )


def test_ctrl_c_gives_what_there_is(monkeypatch):
    classifier, *_ = linear()
    images = pixels(6)
    options = {"step_size": 0.01, "random_start": False, "batch_size": 2, "bounds": BOUNDS}
    stopped_after(7, monkeypatch)
    attack = projected_gradient(classifier, images, 0.2, steps=5, **options)
    assert not attack.complete
    assert_close(attack.linf_distance, [0.05, 0.05, 0.02, 0.02, 0, 0], tolerance=(0, 1e-6))
    assert attack.success.tolist() == (attack.predicted != attack.labels).tolist()
    labels = classifier.logits(images).argmax(axis=1)
    found = accuracy_under_attack(classifier, images, labels, [0, 0.2], steps=5, **options)
    assert found.epsilons.tolist() == [0]


@pytest.mark.slow
def test_a_network_of_real_depth_is_fooled():
    """Of random weights: the gradient through 20 layers is worth more than noise of the same size."""
    from kvision.applications import ResNet20

    model = ResNet20(input_shape=(32, 32, 3), classes=10, norm="group")
    images = pixels(4, (32, 32, 3), 255.0)
    classifier = Classifier(model, preprocess=model.preprocessing)
    labels = classifier.logits(images).argmax(axis=1)
    attack = projected_gradient(classifier, images, 8, steps=3, random_start=False)
    signs = np.random.default_rng(0).choice([-8.0, 8.0], images.shape)
    noise = np.clip(images + signs, 0, 255).astype("float32")
    margins = [np.asarray(classifier.margins(each, labels)[0]) for each in (images, noise, attack.images)]
    assert (margins[2] > np.maximum(margins[0], margins[1])).all()
