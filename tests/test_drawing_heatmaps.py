"""Maps over images: signs are colours, magnitudes opacity."""

import numpy as np
import pytest

from kvision.drawing import heatmap
from kvision.drawing.heatmaps import NEGATIVE, POSITIVE

COLOUR = np.stack([np.full((4, 6), value) for value in (200, 100, 50)], axis=-1)
GREY = 200 * 0.299 + 100 * 0.587 + 50 * 0.114


def mixed(colour, strength):
    return np.round(GREY * (1 - 0.9 * strength) + np.array(colour) * 0.9 * strength)


def test_signs_are_colours_and_magnitudes_opacity():
    values = np.zeros((4, 6))
    values[0, 0], values[1, 1], values[2, 2], values[3, 3] = 2.0, -2.0, 1.0, np.nan
    drawn = heatmap(COLOUR, values, percentile=100)
    assert drawn.shape == (4, 6, 3) and drawn.dtype == "uint8"
    for place, want in (
        ((0, 0), mixed(POSITIVE, 1)),
        ((1, 1), mixed(NEGATIVE, 1)),
        ((2, 2), mixed(POSITIVE, 0.5)),
        ((3, 3), [np.round(GREY)] * 3),
        ((0, 5), [np.round(GREY)] * 3),
    ):
        np.testing.assert_allclose(drawn[place], want, atol=1)
    np.testing.assert_array_equal(heatmap(COLOUR, values, opacity=0), heatmap(COLOUR, np.zeros((4, 6))))


def test_colours_are_full_from_the_percentile_on():
    values = np.ones((4, 6))
    values[0, 0] = 1000
    drawn = heatmap(COLOUR, values, percentile=90)
    np.testing.assert_allclose(drawn[3, 3], mixed(POSITIVE, 1), atol=1)
    np.testing.assert_array_equal(drawn[0, 0], drawn[3, 3])
    assert np.abs(heatmap(COLOUR, values, percentile=100)[3, 3] - GREY).max() < 2
    single = np.zeros((4, 6))
    single[2, 2] = 3
    np.testing.assert_allclose(heatmap(COLOUR, single, percentile=50)[2, 2], mixed(POSITIVE, 1), atol=1)


def test_a_small_map_is_enlarged_and_the_side_scales():
    drawn = heatmap(np.zeros((40, 60)), [[1.0, -1.0]])
    assert drawn.shape == (40, 60, 3)
    np.testing.assert_allclose(drawn[20, 2], np.multiply(POSITIVE, 0.9), atol=1)
    np.testing.assert_allclose(drawn[20, 57], np.multiply(NEGATIVE, 0.9), atol=1)
    assert heatmap(COLOUR, np.ones((4, 6)), side=60).shape == (40, 60, 3)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.ones((4, 6, 3)), {}, r"values are \[h, w\]: got \[4, 6, 3\]. Of gradients take"),
        (np.ones((4, 6)), {"percentile": 0}, r"percentile lies in \(0, 100\]"),
        (np.ones((4, 6)), {"opacity": 1.5}, "got 99.0 and 1.5"),
    ],
)
def test_what_cannot_be_drawn_is_refused(values, options, message):
    with pytest.raises(ValueError, match=message):
        heatmap(COLOUR, values, **options)
