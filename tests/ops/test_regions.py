"""Means over regions, against scipy."""

import numpy as np
import pytest
import scipy.ndimage

from kvision.ops import pool_regions
from tests.ops.differentiation import value_and_gradients
from tests.ops.execution import MODES, execute
from tests.support import assert_close


@pytest.mark.parametrize("mode", MODES)
def test_scipy_has_the_same_means(mode):
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(2, 5, 7, 3)).astype("float32")
    regions = rng.integers(0, 6, (2, 5, 7)).astype("int32")
    got = execute(lambda maps, regions: pool_regions(maps, regions, 6), maps, regions, mode=mode)
    want = [
        [scipy.ndimage.mean(image[..., channel], one, np.arange(6)) for channel in range(3)]
        for image, one in zip(maps, regions, strict=True)
    ]
    assert_close(got, np.swapaxes(want, 1, 2))


def test_regions_without_a_cell_are_zero_and_other_numbers_count_nowhere():
    maps = np.reshape([1.0, 2.0, 3.0, 4.0], (1, 2, 2, 1))
    got = pool_regions(maps, [[[2, -1], [2, 3]]], num_regions=3)
    assert_close(got, [[[0.0], [0.0], [2.0]]])


def test_each_cell_has_its_fraction_of_the_gradient():
    regions = np.array([[[0, 0, 0, 1, -1]]])
    upstream = np.array([[[6.0], [5.0]]], "float32")
    function = lambda maps: pool_regions(maps, regions, 2)  # noqa: E731
    _, (gradient,) = value_and_gradients(function, [np.ones((1, 1, 5, 1), "float32")], upstream)
    assert_close(gradient[0, 0, :, 0], [2.0, 2.0, 2.0, 5.0, 0.0])


@pytest.mark.parametrize(
    ("shape", "num_regions"), [((1, 2, 3), 2), ((1, 3, 2), 0), ((2, 2), 2)], ids=lambda value: str(value)
)
def test_what_cannot_be_pooled_is_refused(shape, num_regions):
    with pytest.raises(ValueError, match="pool_regions needs maps"):
        pool_regions(np.ones((1, 3, 2, 1)), np.zeros(shape, "int32"), num_regions)
