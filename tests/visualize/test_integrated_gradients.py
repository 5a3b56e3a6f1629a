"""Integrated gradients: completeness, closed forms, baselines."""

import logging

import keras
import numpy as np
import pytest

from kvision.network import Network, Preprocessing
from kvision.visualize import integrated_gradients
from tests.support import SLOW, assert_close
from tests.visualize import nets


def test_of_a_linear_classifier_it_is_weight_times_distance():
    model, images = nets.linear(), nets.images()
    got, gap = integrated_gradients(model, images, 1, steps=3, return_gap=True)
    assert_close(got, nets.kernel(model)[1] * images)
    assert_close(gap, np.zeros(3))


@SLOW
def test_baselines_are_numbers_and_images():
    model, images = nets.linear(), nets.images()
    for baseline in (0.5, images[0], images[::-1]):
        got = integrated_gradients(model, images, 1, steps=3, baseline=baseline, batch_size=4)
        assert_close(got, nets.kernel(model)[1] * (images - baseline))


def test_of_cubes_it_is_the_sum_over_the_middles_of_the_steps():
    pixels = keras.Input(nets.SIZE)
    cubes = keras.Model(pixels, pixels**3)
    images = nets.images()
    got, gap = integrated_gradients(cubes, images, lambda x: keras.ops.sum(x, axis=(1, 2, 3)), steps=4, return_gap=True)
    middles = (np.arange(4) + 0.5) / 4
    assert_close(got, images.astype("float64") ** 3 * 3 * (middles**2).mean())
    assert_close(
        gap, (images.astype("float64") ** 3).sum(axis=(1, 2, 3)) * (3 * (middles**2).mean() - 1), tolerance=(1e-3, 1e-3)
    )


@SLOW
def test_attributions_add_up_and_a_gap_is_told(caplog):
    model, _ = nets.with_relus("activation")
    images = 5 * nets.images()
    scores = keras.ops.convert_to_numpy(model(images) - model(np.zeros_like(images)))[:, 2]
    with caplog.at_level(logging.WARNING, "kvision"):
        got, gap = integrated_gradients(model, images, 2, steps=200, return_gap=True)
        assert not caplog.records
        _, rough = integrated_gradients(model, images, 2, steps=1, return_gap=True)
    assert_close(got.sum(axis=(1, 2, 3)) - scores, gap, tolerance=(0, 1e-3))
    assert np.abs(gap).max() < 0.01 * np.abs(scores).max() < np.abs(rough).max()
    assert "Raise steps above 1" in caplog.text


@SLOW
def test_black_is_the_baseline():
    prepare = Preprocessing((0.0, 1.0), 0.5, 0.25)
    plain = nets.linear()
    model = Network(plain.inputs, plain.outputs)
    model.preprocessing = prepare
    raw = 255 * np.random.default_rng(0).random((2, *nets.SIZE)).astype("float32")
    inside = integrated_gradients(model, raw, 1, steps=2, preprocess=prepare)
    outside = integrated_gradients(model, prepare(raw), 1, steps=2)
    assert_close(inside, outside, tolerance=(1e-4, 1e-4))
    assert_close(outside, nets.kernel(plain)[1] * (prepare(raw) + 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "at least 1 step, got 0"),
        ({"baseline": np.zeros((2, 2))}, r"an image \[8, 9, 3\] or one for each image \[3, 8, 9, 3\]: got \[2, 2\]"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        integrated_gradients(nets.linear(), nets.images(), 0, **options)
