"""Maxout against its closed forms."""

import numpy as np
import pytest

from kvision import layers
from tests.support import assert_close

X = np.random.default_rng(0).normal(size=(5, 3, 4)).astype("float32")


def test_equals_the_maximum_of_affine_maps():
    layer = layers.Maxout(6, pieces=3, bias_initializer="ones")
    got = layer(X)
    kernel, bias = layer.get_weights()
    want = np.max([X @ kernel[:, j::3] + bias[j::3] for j in range(3)], axis=0)
    assert_close(got, want)


@pytest.mark.parametrize(
    ("name", "slopes", "function"),
    [("relu", (1.0, 0.0), lambda x: np.maximum(x, 0)), ("absolute value", (1.0, -1.0), np.abs)],
)
def test_special_cases(name, slopes, function):
    layer = layers.Maxout(pieces=2)
    layer.build(X.shape)
    kernel = np.zeros((4, 8), "float32")
    for channel in range(4):
        kernel[channel, 2 * channel : 2 * channel + 2] = slopes
    layer.set_weights([kernel, np.zeros(8)])
    assert_close(layer(X), function(X))


def test_config_round_trip():
    layer = layers.Maxout(3, pieces=4, kernel_initializer="ones")
    assert layers.Maxout.from_config(layer.get_config()).get_config() == layer.get_config()


def test_one_piece_is_refused():
    with pytest.raises(ValueError, match="at least 2 pieces"):
        layers.Maxout(pieces=1)
