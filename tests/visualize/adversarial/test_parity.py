"""Attacks against foolbox's on the same network and budget."""

import functools

import keras
import numpy as np
import pytest

from kvision.visualize.adversarial import (
    Classifier,
    accuracy_under_attack,
    deep_fool,
    fast_gradient,
    iterative_gradient,
    projected_gradient,
)

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
layers = keras.layers
BOUNDS = (0, 1)
EXACT = 1e-6


@functools.cache
def network():
    """Logits of images of 0…1, and a `Classifier` of it."""
    keras.utils.set_random_seed(2)
    model = keras.Sequential(
        [
            keras.Input((10, 10, 3)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(32, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )
    return model, Classifier(model)


@functools.cache
def images():
    """Twelve images, of some of which values are at the bounds, and what they are taken for."""
    found = np.random.default_rng(0).uniform(-0.2, 1.2, (12, 10, 10, 3)).clip(0, 1).astype("float32")
    return found, network()[1].logits(found).argmax(axis=1)


def peer(attack, epsilon, target=None, **options):
    """Images and success of an attack of foolbox."""
    import foolbox
    import tensorflow as tf

    given, labels = images()
    criterion = foolbox.criteria.Misclassification(tf.constant(labels))
    if target is not None:
        criterion = foolbox.criteria.TargetedMisclassification(tf.constant(target))
    model = foolbox.TensorFlowModel(network()[0], bounds=BOUNDS, device="/CPU:0")
    _, clipped, success = getattr(foolbox.attacks, attack)(**options)(
        model, tf.constant(given), criterion, epsilons=epsilon
    )
    return clipped.numpy(), success.numpy()


@pytest.mark.parametrize(
    ("norm", "peers", "epsilons"),
    [
        ("linf", "LinfFastGradientAttack", (0.005, 0.02, 0.1)),
        ("l2", "L2FastGradientAttack", (0.1, 0.3, 1.5)),
    ],
)
def test_fast_gradient(norm, peers, epsilons):
    given, labels = images()
    fooled = []
    for epsilon in epsilons:
        found = fast_gradient(network()[1], given, epsilon, labels=labels, norm=norm, bounds=BOUNDS)
        expected, success = peer(peers, epsilon)
        np.testing.assert_allclose(found.images, expected, rtol=0, atol=EXACT)
        assert found.success.tolist() == success.tolist()
        fooled.append(success.mean())
    assert fooled[0] < fooled[-1]
    curve = accuracy_under_attack(network()[1], given, labels, epsilons, attack=fast_gradient, norm=norm, bounds=BOUNDS)
    np.testing.assert_allclose(curve.accuracy, 1 - np.array(fooled))


ITERATED = {
    "basic iterative": ("LinfBasicIterativeAttack", iterative_gradient, {}, 0.02, 0.004),
    "projected": ("LinfPGD", projected_gradient, {"random_start": False}, 0.02, 0.004),
    "projected, L2": ("L2PGD", projected_gradient, {"random_start": False, "norm": "l2"}, 0.3, 0.06),
}


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("name", ITERATED)
def test_repeated_steps(name, targeted):
    peers, attack, options, epsilon, size = ITERATED[name]
    given, labels = images()
    target = (labels + 1) % 10 if targeted else None
    found = attack(
        network()[1], given, epsilon, labels=labels, target=target, steps=12, step_size=size, bounds=BOUNDS, **options
    )
    expected, success = peer(peers, epsilon, target, abs_stepsize=size, steps=12, random_start=False)
    assert np.mean(np.abs(found.images - expected) < 1e-4) > 0.995  # a sign of a gradient of about 0 is by chance
    assert found.success.tolist() == success.tolist()
    distance = found.l2_distance if "norm" in options else found.linf_distance
    assert distance.max() <= epsilon + EXACT


def test_deep_fool():
    given, labels = images()
    found = deep_fool(network()[1], given, labels=labels, candidates=9, bounds=BOUNDS)
    expected, success = peer("L2DeepFoolAttack", None, steps=50, candidates=10, overshoot=0.02)
    assert success.all()
    assert found.success.all()
    distances = np.linalg.norm((expected - given).reshape(12, -1), axis=1)
    np.testing.assert_allclose(found.l2_distance, distances, rtol=0.03)
