"""Priors of images against loops and SciPy's own blur."""

import numpy as np
import pytest
import scipy.ndimage
from keras import ops

from kvision.visualize.image_priors import alpha_norm, blurred, total_variation
from tests.support import assert_close

PIXELS = np.random.default_rng(0).uniform(0, 255, (2, 5, 7, 3)).astype("float32")


def test_total_variation_is_that_of_the_paper():
    values = PIXELS.astype("float64") / 127.5 - 1
    want = np.zeros(2)
    for b, i, j, k in np.ndindex(values.shape):
        if i + 1 < values.shape[1]:
            want[b] += (values[b, i + 1, j, k] - values[b, i, j, k]) ** 2
        if j + 1 < values.shape[2]:
            want[b] += (values[b, i, j + 1, k] - values[b, i, j, k]) ** 2
    assert_close(total_variation(ops.convert_to_tensor(PIXELS)), want / values[0].size)


@pytest.mark.parametrize("alpha", [2, 6])
def test_alpha_norm_is_a_mean_of_powers(alpha):
    values = PIXELS.astype("float64") / 127.5 - 1
    assert_close(alpha_norm(ops.convert_to_tensor(PIXELS), alpha), [np.mean(np.abs(each) ** alpha) for each in values])


@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_blur_is_scipys_divided_by_what_is_inside(sigma):
    def blur(values):
        return scipy.ndimage.gaussian_filter(values.astype("float64"), (0, sigma, sigma, 0), mode="constant", radius=9)

    assert_close(blurred(PIXELS, sigma), blur(PIXELS) / blur(np.ones_like(PIXELS)), tolerance=(1e-5, 1e-3))
