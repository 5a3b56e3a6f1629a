"""Pooling of cells that lie apart, against a loop over the windows."""

import numpy as np
import pytest

from kvision.layers import DilatedPooling2D
from tests.support import assert_close


@pytest.mark.parametrize("kind", ["max", "average"])
def test_pools_cells_that_lie_apart(kind):
    x = np.random.default_rng(0).normal(size=(1, 9, 8, 2)).astype("float32")
    layer = DilatedPooling2D((3, 2), (2, 3), kind)
    pool = {"max": np.max, "average": np.mean}[kind]
    windows = [[x[0, row : row + 5 : 2, column : column + 4 : 3] for column in range(5)] for row in range(5)]
    assert_close(layer(x)[0], [[pool(window, axis=(0, 1)) for window in row] for row in windows])
    assert layer.compute_output_shape(x.shape) == (1, 5, 5, 2)
    assert DilatedPooling2D.from_config(layer.get_config()).get_config() == layer.get_config()


def test_at_the_end_of_a_map_nothing_is_larger():
    x = np.random.default_rng(0).normal(size=(1, 5, 4, 2)).astype("float32") - 9  # zeros would be larger
    layer = DilatedPooling2D(2, (2, 3), "max", padding="end")
    want = [[x[0, row : row + 3 : 2, column : column + 4 : 3].max((0, 1)) for column in range(4)] for row in range(5)]
    assert_close(layer(x)[0], want)
    assert layer.compute_output_shape(x.shape) == x.shape
    assert DilatedPooling2D.from_config(layer.get_config()).padding == "end"
    with pytest.raises(ValueError, match='padding="end" is for the maximum'):
        DilatedPooling2D(2, 2, "average", padding="end")


def test_an_unknown_kind_lists_the_known():
    with pytest.raises(ValueError, match="Unknown kind of pooling: got 'min'.*'max', 'average'"):
        DilatedPooling2D(2, 2, "min")
