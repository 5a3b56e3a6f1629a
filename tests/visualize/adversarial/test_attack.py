"""Laws of all attacks: errors before work, budgets of none, 16 bits, and a model that stays as it was."""

import json
import zipfile

import keras
import numpy as np
import pytest

from kvision.visualize.adversarial import (
    accuracy_under_attack,
    deep_fool,
    fast_gradient,
    fool_from_noise,
    fool_linear_classifier,
    iterative_gradient,
    projected_gradient,
)
from tests.support import assert_close
from tests.visualize.adversarial.victims import BOUNDS, BUDGET, convolutional, linear, pixels

layers = keras.layers


@pytest.mark.parametrize("attack", [fast_gradient, projected_gradient])
def test_a_budget_of_none_changes_nothing(attack):
    images = pixels()
    assert_close(attack(linear()[0], images, 0, bounds=BOUNDS).images, images, tolerance=(0, 0))


@pytest.mark.parametrize(
    ("attack", "options", "message"),
    [
        (fast_gradient, {"epsilon": -1}, "epsilon.*from 0 to 1"),
        (fast_gradient, {"epsilon": 1.1}, "epsilon.*from 0 to 1"),
        (fast_gradient, {"epsilon": float("nan")}, "epsilon.*nan"),
        (fast_gradient, {"epsilon": 5, "norm": "l2"}, "epsilon.*from 0 to 4.89898"),
        (fast_gradient, {"norm": "l1"}, "Unknown norm: got 'l1'"),
        (fast_gradient, {"bounds": (1, 0)}, "bounds are the least and the largest"),
        (fast_gradient, {"bounds": (0, 0.5)}, "bounds of the images are 0 to 0.5: got values from 0.2"),
        (fast_gradient, {"bounds": (0, 255)}, r"Give bounds=\(0, 1\)"),
        (fast_gradient, {"labels": [0, 1, 2, 3, 4, 5]}, "the classes 0 to 4: got labels 5"),
        (fast_gradient, {"labels": [0, -1, 2, 3, 4, 0]}, "the classes 0 to 4: got labels -1"),
        (fast_gradient, {"labels": [0, 1]}, "labels is a class index, one for each of the 6 images"),
        (fast_gradient, {"labels": [0.0] * 6}, "labels is a class index"),
        (fast_gradient, {"target": 7}, "the classes 0 to 4: got target 7"),
        (fast_gradient, {"target": "least"}, "target is a class index"),
        (fast_gradient, {"labels": [0, 1, 2, 3, 4, 0], "target": 3}, "Image 3 has the label 3 and the same target"),
        (fast_gradient, {"preprocess": abs}, "A Classifier has its preprocess already"),
        (fast_gradient, {"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        (iterative_gradient, {"steps": 0}, "steps must be a whole number of at least 1"),
        (iterative_gradient, {"step_size": 0.0}, "step_size must be above 0"),
        (projected_gradient, {"restarts": 2, "random_start": False}, "restarts=2 begin at random places"),
        (deep_fool, {"overshoot": 0}, "overshoot must be above 0"),
        (deep_fool, {"candidates": 1.5}, "candidates must be a whole number"),
        (fool_linear_classifier, {"norm": "l1"}, "Unknown norm: got 'l1'"),
        (fool_from_noise, {"target": [0, 9]}, "the classes 0 to 4: got target 9"),
        (fool_from_noise, {"target": 0.5}, "target is a class index"),
        (fool_from_noise, {"confidence": 1}, "confidence is a probability"),
        (accuracy_under_attack, {"epsilons": [0.1, 2]}, "epsilon.*from 0 to 1"),
        (accuracy_under_attack, {"epsilons": [-0.1]}, "epsilons are the budgets"),
        (accuracy_under_attack, {"target": 1}, "images that lose their label"),
        (accuracy_under_attack, {"stepsize": 1}, "Unknown option of projected_gradient: got 'stepsize'.*'step_size'"),
        (accuracy_under_attack, {"labels": None}, "true class of each image"),
    ],
)
def test_errors_before_work(attack, options, message):
    given = {"bounds": BOUNDS} | options
    if attack is not fool_from_noise:
        given.setdefault("images", pixels())
    if attack in (fast_gradient, iterative_gradient, projected_gradient):
        given.setdefault("epsilon", BUDGET)
    if attack is accuracy_under_attack:
        given = {"labels": [0] * 6, "epsilons": [0.1]} | given
    with pytest.raises(ValueError, match=message):
        attack(linear()[0], **given)


def state(model, folder):
    """All that an attack must leave as it is."""
    everything = [model, *model._flatten_layers(include_self=False)]
    path = folder / "model.keras"
    model.save(path)
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
    return (
        [weight.tolist() for weight in model.get_weights()],
        [layer.trainable for layer in everything],
        [sorted(vars(layer)) for layer in everything],
        [vars(layer).get("activation") for layer in everything],
        config,
    )


@pytest.mark.parametrize(
    "attack",
    [
        lambda model, images: fast_gradient(model, images, 8),
        lambda model, images: deep_fool(model, images, steps=2),
        lambda model, images: fool_from_noise(model, steps=2),
        lambda model, images: fool_linear_classifier(model, images),
        lambda model, images: fast_gradient(model, images, 8, preprocess=lambda image: image[:, :1]),
    ],
)
def test_the_model_stays_as_it_was(attack, tmp_path):
    model = convolutional()
    before = state(model, tmp_path)
    try:
        attack(model, pixels(2, (8, 8, 3), 255.0))
    except Exception as error:  # the last two
        raised = error
    else:
        raised = None
    assert state(model, tmp_path) == before
    assert raised is None or isinstance(raised, ValueError)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_networks_of_16_bits(policy):
    keras.mixed_precision.set_dtype_policy(policy)
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(32, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(4, activation="softmax"),
        ]
    )
    images = pixels(4, (8, 8, 3), 255.0)
    attack = fast_gradient(model, images, 8)
    assert np.isfinite(attack.images).all()
    assert attack.images.dtype == np.float32
    assert np.mean(np.abs(attack.images - images) > 7.9) > 0.9
    assert deep_fool(model, images).success.all()
