"""Spatial pyramid pooling: a slow twin at any size, and tensorflow-addons' numbers."""

import json
import pathlib

import keras
import numpy as np
import pytest

from kvision.layers import SpatialPyramidPooling
from tests.support import assert_close

GOLDEN = json.loads((pathlib.Path(__file__).parent.parent / "golden" / "addons.json").read_text())


def test_equals_tensorflow_addons():
    golden = GOLDEN["spatial_pyramid_pooling"]
    layer = SpatialPyramidPooling(golden["bins"], pooling="average")
    assert_close(layer(np.array(golden["inputs"], "float32")), golden["outputs"])


@pytest.mark.parametrize("size", [(13, 13), (8, 6), (3, 2)], ids=str)
@pytest.mark.parametrize(("pooling", "pool"), [("max", np.max), ("average", np.mean)])
def test_equals_the_twin(size, pooling, pool):
    maps = np.random.default_rng(0).normal(size=(2, *size, 3)).astype("float32")
    height, width = size
    want = []
    for n in (1, 3, 4):
        for i in range(n):
            for j in range(n):
                rows = [r for r in range(height) if (r + 1) * n > i * height and r * n < (i + 1) * height]
                columns = [r for r in range(width) if (r + 1) * n > j * width and r * n < (j + 1) * width]
                want.append(pool(maps[:, rows][:, :, columns], axis=(1, 2)))
    layer = SpatialPyramidPooling((1, 3, 4), pooling)
    assert_close(layer(maps), np.stack(want, axis=1))
    assert layer.compute_output_shape(maps.shape) == (2, 26, 3)


def test_one_network_takes_two_sizes():
    layer = SpatialPyramidPooling((1, 2))
    assert [layer(np.ones((1, n, n, 3))).shape[1] for n in (7, 12)] == [5, 5]


def test_save_and_load(tmp_path):
    image = keras.Input((9, 7, 3))
    model = keras.Model(image, SpatialPyramidPooling((1, 2), "average")(image))
    model.save(tmp_path / "model.keras")
    maps = np.random.default_rng(0).normal(size=(2, 9, 7, 3)).astype("float32")
    assert_close(keras.saving.load_model(tmp_path / "model.keras")(maps), model(maps))


@pytest.mark.parametrize(
    ("arguments", "message"), [(((0, 2),), "at least 1"), (((1, 2), "mean"), "Unknown pooling: got 'mean'")]
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        SpatialPyramidPooling(*arguments)
