"""The formulas of the readers are those of `kvision.ops`."""

import keras
import numpy as np
import pytest

from kvision import ops
from kvision.data import geometry
from tests.support import assert_close

pytestmark = pytest.mark.tensorflow_only

BOXES = np.random.default_rng(0).uniform(-5, 60, (50, 4))  # some inverted, some beyond the border


@pytest.mark.parametrize("name", ["xywh_to_xyxy", "cxcywh_to_xyxy", "area_xyxy"])
def test_formulas_equal_those_of_ops(name):
    assert_close(getattr(geometry, name)(BOXES), getattr(ops, name)(BOXES))


@pytest.mark.parametrize("image_size", [(40, 30), np.random.default_rng(1).integers(20, 60, (50, 2))])
def test_clipping_equals_that_of_ops(image_size):
    boxes, sizes = (BOXES, image_size) if isinstance(image_size, tuple) else (BOXES[:, None], image_size)
    want = keras.ops.convert_to_numpy(ops.clip_xyxy(boxes, sizes)).reshape(-1, 4)
    assert_close(geometry.clip_xyxy(BOXES, image_size), want)


def test_boxes_of_masks():
    masks = np.zeros((3, 10, 12), "uint8")
    masks[0, 2:5, 3:9] = 1
    masks[1, 9, 11] = masks[1, 4, 0] = 1
    assert geometry.boxes_of_masks(masks).tolist() == [[3, 2, 9, 5], [0, 4, 12, 10], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("size", "image_size", "scale", "taken"),
    [
        ((50, 100), (100, 100), 1.0, (50, 100)),
        ((50, 100), (100, 400), 2.0, (100, 200)),
        ((480, 640), (512, 512), 0.8, (384, 512)),
        ((99, 200), (50, 100), 0.5, (50, 100)),  # half a row is a row: its centre is covered
        ((97, 200), (50, 100), 0.5, (49, 100)),
        ((1, 1000), (10, 10), 0.01, (1, 10)),  # never less than a row
    ],
)
def test_images_fill_one_side(size, image_size, scale, taken):
    assert geometry.fit(size, image_size) == (pytest.approx(scale), taken)
