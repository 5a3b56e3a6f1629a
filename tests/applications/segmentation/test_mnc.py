"""MNC as its builder puts it together; its parts: tests/detection/test_network_cascade.py."""

import keras
import numpy as np
import pytest

from kvision.applications import MNC


@pytest.mark.parametrize("level", ["C2", "C3", "C4"])
def test_regions_are_read_from_the_map_that_is_named(level):
    """A map of the means of cells, of an image that rises by one from column to column."""
    images = keras.Input((64, 64, 3))
    means = keras.layers.AveragePooling2D(2 ** int(level[1:]))(images)
    backbone = keras.Model(images, {level: means})
    model = MNC(input_shape=(64, 64, 3), classes=2, backbone=backbone, level=level, preprocess=None, units=4)
    columns = np.broadcast_to(np.arange(64.0)[:, None] + 0.5, (1, 64, 64, 3)).astype("float32")
    maps = model.trunk(columns)[level]
    bins = model.head.pooling(maps, np.array([[[16.0, 16, 44, 40]]], "float32"))
    row = keras.ops.convert_to_numpy(bins)[0, 0, 0, :, 0]
    np.testing.assert_allclose(row, 16 + 28 * (np.arange(14) + 0.5) / 14, rtol=1e-5)


def test_an_unknown_level_is_refused():
    with pytest.raises(ValueError, match="level of MNC: got 'P3'"):
        MNC(level="P3")
