"""Adaptive pooling against a loop over the windows."""

import numpy as np
import pytest

from kvision import layers
from tests.support import assert_close


def twin(x, rows, columns):
    b, h, w, c = x.shape
    out = np.empty((b, rows, columns, c))
    for i in range(rows):
        for j in range(columns):
            top, bottom = int(np.floor(i * h / rows)), int(np.ceil((i + 1) * h / rows))
            left, right = int(np.floor(j * w / columns)), int(np.ceil((j + 1) * w / columns))
            out[:, i, j] = x[:, top:bottom, left:right].mean(axis=(1, 2))
    return out


@pytest.mark.parametrize("size", [(7, 7), (14, 14), (3, 9), (1, 1), (10, 8)])
def test_equals_the_twin(size):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype("float32")
    layer = layers.AdaptiveAveragePooling2D((7, 7))
    assert_close(layer(x), twin(x, 7, 7))
    assert layer.compute_output_shape(x.shape) == (2, 7, 7, 3)


def test_config_round_trip():
    config = layers.AdaptiveAveragePooling2D((7, 5)).get_config()
    assert layers.AdaptiveAveragePooling2D.from_config(config).output_size == (7, 5)
