"""Images, instances and pixels are counted as a loop over the images counts them, however many they are."""

import keras
import numpy as np
import pytest
from keras import ops

from kvision.metrics import ExposureCount

IMAGES = np.zeros((3, 8, 12, 3), "float32")
LABELS = [[0, 2, -1, -1], [-1, -1, -1, -1], [1, 1, 1, -1]]
CROWD = [[0, 1, 0, 0], [0, 0, 1, 0], [0, 1, 0, 1]]  # padding may carry any
SIZES = [[8, 12], [5, 12], [7, 11]]


def counted(steps=1, images=IMAGES, **targets):
    count = ExposureCount()
    targets = {name: ops.convert_to_tensor(np.array(values, "int32")) for name, values in targets.items()}
    for _ in range(steps):
        count.update_state(images, targets)
    return count.totals()


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ({}, (3, 5, 3 * 8 * 12)),
        ({"crowd": CROWD}, (3, 3, 3 * 8 * 12)),
        ({"image_size": SIZES}, (3, 5, 96 + 60 + 77)),
        ({"crowd": CROWD, "image_size": SIZES}, (3, 3, 96 + 60 + 77)),
    ],
)
def test_equals_a_count_by_hand(targets, expected):
    assert counted(labels=LABELS, **targets) == expected
    assert counted(steps=2, labels=LABELS, **targets) == tuple(2 * number for number in expected)


def test_pictures_may_come_with_proposals():
    assert counted(images={"proposals": np.zeros((3, 9, 4)), "images": IMAGES}, labels=LABELS) == (3, 5, 288)


def test_a_box_without_area_is_no_instance():
    boxes = np.tile(np.array([1, 2, 5, 6]), (3, 4, 1))
    boxes[0, 1] = boxes[2, 0] = 0
    assert counted(labels=LABELS, boxes=boxes) == (3, 3, 288)


@pytest.mark.parametrize("height", [4095, 4096, 4097, 30_001])  # 2^24 pixels are 4096 x 4096; float32 ends there
def test_pixels_beyond_what_a_float_holds(height):
    size = [[height, 4096]] * 3 + [[1, 1]]
    labels = [[0]] * 4
    images = np.zeros((4, 1, 1, 3), "float32")
    assert counted(50, images, labels=labels, image_size=size) == (200, 200, 50 * (3 * height * 4096 + 1))


def test_it_goes_on_beyond_epochs_and_adds_nothing_to_logs():
    count = ExposureCount()
    count.update_state(IMAGES, {"labels": ops.convert_to_tensor(LABELS)})
    count.reset_state()
    assert count.totals() == (3, 5, 288)
    assert count.result() == {}


def test_config_round_trip():
    config = keras.saving.serialize_keras_object(ExposureCount(name="shown"))
    assert keras.saving.deserialize_keras_object(config).name == "shown"
