"""Noise that is taken for every class."""

import keras
import numpy as np
import pytest

from kvision.visualize.adversarial import fool_from_noise
from tests.support import assert_close
from tests.visualize.adversarial.victims import victim

layers = keras.layers


def test_noise_is_taken_for_every_class_with_confidence():
    attack = fool_from_noise(victim(), confidence=0.6, steps=60)
    assert attack.images.shape == (4, 8, 8, 3)
    assert attack.predicted.tolist() == [0, 1, 2, 3]
    assert attack.success.all()
    assert (attack.confidence >= 0.6).all()
    assert (attack.confidence < 0.9).all()  # an image ends when it is done
    assert attack.images.min() >= 0
    assert attack.images.max() <= 255
    start = np.random.default_rng(0).uniform(0, 255, (4, 8, 8, 3))
    assert_close(attack.linf_distance, np.abs(attack.images - start).max(axis=(1, 2, 3)), tolerance=(1e-3, 1e-3))
    short = fool_from_noise(victim(), [2, 2], confidence=0.999, steps=1)
    assert not short.success.any()
    assert short.linf_distance.max() <= 2.55 + 1e-4


def test_noise_of_any_size():
    image = keras.Input((None, None, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(32, 3, activation="relu")(image))
    model = keras.Model(image, layers.Dense(3)(x), name="any")
    attack = fool_from_noise(model, 1, image_size=(6, 7), bounds=(-1, 1), confidence=0.5, steps=3)
    assert attack.images.shape == (1, 6, 7, 3)
    with pytest.raises(ValueError, match=r"\[b, any, any, 3\].*image_size=\(height, width\)"):
        fool_from_noise(model, 1)
    with pytest.raises(ValueError, match="8x8.*Leave it out"):
        fool_from_noise(victim(), 1, image_size=(6, 7))
