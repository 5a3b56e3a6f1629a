"""Dicts of keras-cv's form become batches of the data contract."""

import numpy as np
import pytest
import tensorflow as tf

from kvision import data
from kvision.contract import check_targets

BOX = {  # the box 8, 4, 24, 12 of an image 32 high and 64 wide
    "xyxy": (8, 4, 24, 12),
    "yxyx": (4, 8, 12, 24),
    "xywh": (8, 4, 16, 8),
    "center_xywh": (16, 8, 16, 8),
    "center_yxhw": (8, 16, 8, 16),
}
RELATIVE = {
    "rel_xyxy": (8 / 64, 4 / 32, 24 / 64, 12 / 32),
    "rel_yxyx": (4 / 32, 8 / 64, 12 / 32, 24 / 64),
    "rel_xywh": (8 / 64, 4 / 32, 16 / 64, 8 / 32),
    "rel_center_xywh": (16 / 64, 8 / 32, 16 / 64, 8 / 32),
    "rel_center_yxhw": (8 / 32, 16 / 64, 8 / 32, 16 / 64),
}


def elements(box, name="classes", ragged=False, masks=False):
    boxes, labels = [[box, box], [box], []], [[1.0, 0.0], [2.0], []]
    if ragged:
        boxes, labels = tf.ragged.constant(boxes, ragged_rank=1, inner_shape=(4,)), tf.ragged.constant(labels)
    else:
        boxes = np.array([rows + [(0,) * 4] * (2 - len(rows)) for rows in boxes], "float32")
        labels = np.array([rows + [-1.0] * (2 - len(rows)) for rows in labels], "float32")
    made = {"images": np.zeros((3, 32, 64, 3), "float32"), "bounding_boxes": {"boxes": boxes, name: labels}}
    if masks:
        made["segmentation_masks"] = np.ones((3, 2, 32, 64), "int32")
    return tf.data.Dataset.from_tensor_slices(made)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("name, ragged", [("classes", True), ("labels", False)])
@pytest.mark.parametrize("box_format, box", (BOX | RELATIVE).items(), ids=BOX | RELATIVE)
def test_every_format_gives_the_same_batch(box_format, box, name, ragged, batched):
    made = elements(box, name, ragged)
    made = data.from_keras_cv(made.batch(3) if batched else made, box_format, max_boxes=3)
    images, targets = next(iter(made if batched else made.batch(3)))
    assert targets["labels"].numpy().tolist() == [[1, 0, -1], [2, -1, -1], [-1, -1, -1]]
    np.testing.assert_allclose(targets["boxes"][0], [[8, 4, 24, 12]] * 2 + [[0] * 4], atol=1e-5)
    assert not targets["boxes"][2].numpy().any()
    assert made.element_spec[1]["boxes"].shape[-2:] == (3, 4)
    check_targets(images, targets, classes=3)


def test_masks_come_along_and_augmentation_follows():
    made = data.from_keras_cv(elements(BOX["xyxy"], masks=True).batch(3), "xyxy", max_boxes=2)
    flipped = data.augment(made, [data.HorizontalFlip(rate=1.0)])
    _, targets = next(iter(flipped))
    assert targets["masks"].shape == (3, 2, 32, 64)
    np.testing.assert_allclose(targets["boxes"][0, 0], [40, 4, 56, 12])


@pytest.mark.parametrize(
    "made, box_format, message",
    [
        (elements(BOX["xyxy"]), "xyxx", "Unknown bounding_box_format: got 'xyxx'. .*'xyxy'"),
        (elements(BOX["xyxy"], "class"), "xyxy", 'needs "boxes" and either "classes" or "labels"'),
        (tf.data.Dataset.from_tensors({"images": np.zeros((4, 4, 3))}), "xyxy", "expected dicts with"),
        (elements(BOX["xyxy"]).map(lambda x: {**x, "labels": 1}), "xyxy", r"no place .* for \['labels'\]"),
    ],
)
def test_other_elements_are_refused(made, box_format, message):
    with pytest.raises(ValueError, match=message):
        data.from_keras_cv(made, box_format)
