"""Sinusoidal encodings against the formula of the paper."""

import keras
import numpy as np
import pytest

from kvision.ops.positions import sinusoidal_encoding
from tests.support import assert_close


@pytest.mark.parametrize("temperature", [10_000.0, 20.0])
def test_equals_the_formula(temperature):
    got = sinusoidal_encoding(keras.ops.arange(50), 16, temperature)
    want = np.empty((50, 16))
    for position in range(50):
        for i in range(8):
            angle = position / temperature ** (2 * i / 16)
            want[position, 2 * i : 2 * i + 2] = np.sin(angle), np.cos(angle)
    assert_close(got, want)


def test_a_step_is_the_same_rotation_everywhere():
    """Section 3.5: the encoding of p + k is a linear function of that of p, so dot products know distances only."""
    encoding = keras.ops.convert_to_numpy(sinusoidal_encoding(np.arange(40), 32))
    products = encoding @ encoding.T
    for step in (1, 7):
        diagonal = np.diagonal(products, step)
        assert_close(diagonal, np.full_like(diagonal, diagonal[0]), tolerance=(1e-4, 1e-4))  # sums of 32 products


def test_coordinates_of_any_shape():
    got = sinusoidal_encoding(np.linspace(0, 1, 6).reshape(2, 3), 4)
    assert keras.backend.standardize_dtype(got.dtype) == "float32"
    assert got.shape == (2, 3, 4)


@pytest.mark.parametrize("channels", [0, 7])
def test_channels_come_in_pairs(channels):
    with pytest.raises(ValueError, match=f"pairs of sine and cosine, got {channels}"):
        sinusoidal_encoding(np.arange(3), channels)
