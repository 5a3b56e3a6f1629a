"""Stochastic depth: whole images, the mean over draws, nothing at inference."""

import keras
import numpy as np
import pytest

from kvision.layers import StochasticDepth
from tests.support import assert_close

MAPS = np.random.default_rng(0).uniform(1, 2, size=(2000, 2, 2, 3)).astype("float32")


def test_whole_images_are_dropped_or_kept_and_scaled():
    ratio = keras.ops.convert_to_numpy(StochasticDepth(0.25, seed=1)(MAPS, training=True)) / MAPS
    assert_close(ratio, np.broadcast_to(ratio[:, :1, :1, :1], ratio.shape))  # one draw an image
    kept = ratio[:, 0, 0, 0] > 0
    assert_close(ratio[kept], np.full_like(ratio[kept], 4 / 3))
    assert abs(kept.mean() - 0.75) < 4 * np.sqrt(0.25 * 0.75 / 2000)


def test_the_mean_over_draws_is_the_input():
    layer = StochasticDepth(0.5, seed=2)
    mean = np.mean([keras.ops.convert_to_numpy(layer(np.ones((500, 1), "float32"), training=True)) for _ in range(8)])
    assert abs(mean - 1) < 4 / np.sqrt(4000)


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_inference_returns_the_input(rate):
    assert_close(StochasticDepth(rate)(MAPS), MAPS)


@pytest.mark.parametrize(("rate", "factor"), [(0.0, 1.0), (1.0, 0.0)])
def test_the_ends_of_the_rate(rate, factor):
    assert_close(StochasticDepth(rate)(MAPS, training=True), factor * MAPS)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_16_bit_stays_16_bit(policy):
    got = StochasticDepth(0.5, dtype=policy)(MAPS, training=True)
    assert keras.backend.standardize_dtype(got.dtype) == policy.removeprefix("mixed_")


def test_config_round_trip():
    layer = StochasticDepth(0.3, seed=5)
    copy = StochasticDepth.from_config(layer.get_config())
    assert_close(copy(MAPS, training=True), layer(MAPS, training=True))


def test_a_rate_that_is_no_probability_is_refused():
    with pytest.raises(ValueError, match=r"in \[0, 1\], got 1.5"):
        StochasticDepth(1.5)
