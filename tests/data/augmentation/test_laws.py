"""Laws that hold for every transform: each row of the table is tried on each."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from kvision import data
from kvision.contract import check_targets, paste_masks
from kvision.data.augmentation.samples import LABEL_MAP_FILL
from kvision.data.geometry import boxes_of_masks
from tests.data.augmentation.samples import BOXES, GEOMETRIC, STILL, compiled, detection, image, name_of

SEEDS = [(1, seed) for seed in range(8)]
each_geometric = pytest.mark.parametrize("transform", GEOMETRIC, ids=name_of)
either_padding = pytest.mark.parametrize("padded", [False, True])
FILLS = {"boxes": 0, "labels": -1, "keypoints": 0, "area": 0, "crowd": 0, "masks": 0, "box_masks": 0}


@functools.cache
def moved(transform, padded):
    """The sample under each seed."""
    run = compiled(transform)
    return [run(detection(padded=padded), seed) for seed in SEEDS]


def objects(targets):
    rows = targets["labels"] >= 0
    return {name: targets[name][rows] for name in FILLS if name in targets}


@either_padding
@each_geometric
def test_the_box_of_a_moved_mask_is_the_moved_box(transform, padded):
    kept = 0
    for _, targets in moved(transform, padded):
        rows = objects(targets)
        kept += len(rows["labels"])
        np.testing.assert_allclose(boxes_of_masks(rows["masks"]), rows["boxes"], atol=1.01)
    assert kept >= len(SEEDS)


@either_padding
@each_geometric
def test_box_masks_move_as_masks_do(transform, padded):
    for pixels, targets in moved(transform, padded):
        rows = objects(targets)
        pasted = paste_masks(rows["box_masks"], rows["boxes"], pixels.shape[:2])
        differing = (pasted != rows["masks"]).sum(axis=(1, 2)) / rows["masks"].sum(axis=(1, 2))
        assert (differing < 0.15).all(), differing


@either_padding
@each_geometric
def test_what_comes_out_keeps_the_contract(transform, padded):
    for pixels, targets in moved(transform, padded):
        real = targets["labels"] >= 0
        count = real.sum()
        assert real[:count].all()
        for name, fill in FILLS.items():
            assert (targets[name][count:] == fill).all(), name
        boxes, (height, width) = targets["boxes"][:count], targets["image_size"]
        assert np.isfinite(boxes).all()
        assert np.isfinite(pixels).all()
        assert (boxes >= 0).all()
        assert (boxes <= [width, height, width, height]).all()
        assert (boxes[:, 2:] - boxes[:, :2] >= 0.99).all()
        assert not pixels[height:].any()
        assert not pixels[:, width:].any()
        assert not targets["masks"][:, height:].any()
        assert not targets["masks"][:, :, width:].any()
        batch = {name: value[None] for name, value in targets.items() if name != "keypoints"}
        check_targets((1, *pixels.shape), batch)


@either_padding
@each_geometric
def test_rows_stay_together(transform, padded):
    """The label tells which object a row was, and so which crowd flag it has; its keypoints are in its box."""
    labels = detection()[1]["labels"].numpy().tolist()
    for _, targets in moved(transform, padded):
        rows = objects(targets)
        for label, crowd, box, keypoints, area in zip(
            *(rows[name] for name in ("labels", "crowd", "boxes", "keypoints", "area")), strict=True
        ):
            x1, y1, x2, y2 = BOXES[labels.index(label)]
            assert crowd == labels.index(label) % 2
            assert 0 < area <= (x2 - x1) * (y2 - y1) + 0.01
            seen = keypoints[keypoints[:, 2] > 0, :2]
            assert (seen >= box[:2] - 0.01).all()
            assert (seen <= box[2:] + 0.01).all()
            assert not keypoints[keypoints[:, 2] == 0].any()


@each_geometric
def test_one_seed_gives_one_sample_and_another_another(transform):
    run = compiled(transform)
    sample = detection()
    first, again = run(sample, SEEDS[0]), moved(transform, False)[0]
    tf.nest.map_structure(np.testing.assert_array_equal, first, again)
    if not isinstance(transform, data.HorizontalFlip | data.VerticalFlip):
        assert any(np.abs(first[0] - other[0]).max() > 1 for other in moved(transform, False)[1:])


@each_geometric
def test_an_image_without_objects_stays_one(transform):
    pixels, targets = compiled(transform)(detection(boxes=[], labels=[]), SEEDS[0])
    assert (targets["labels"] == -1).all()
    assert not targets["boxes"].any()
    assert np.isfinite(pixels).all()


@each_geometric
def test_label_maps_move_as_masks_do_and_classes_stay(transform):
    if isinstance(transform, data.IoUCrop):
        with pytest.raises(ValueError, match="IoUCrop needs boxes"):
            transform(image(), SEEDS[0])
        return
    mask = tf.cast(detection()[1]["masks"][0], tf.int32)
    pixels, targets = moved(transform, False)[0]
    alone, label_map = compiled(transform)((image(), mask), SEEDS[0])
    np.testing.assert_allclose(alone, pixels, atol=2e-3)
    assert set(np.unique(label_map)) <= {0, 1, LABEL_MAP_FILL}
    row = np.flatnonzero(targets["labels"] == 2)
    assert (label_map == 1).sum() == pytest.approx((targets["masks"][row] > 0).sum(), abs=2)


@pytest.mark.parametrize("label", [3, [0.25, 0.75]])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_class_labels_stay_and_images_are_float32(label, dtype):
    pixels = tf.cast(image(), dtype)
    changed, same = data.HorizontalFlip()((pixels, tf.constant(label)), (0, 1))
    assert changed.dtype == tf.float32
    assert same.numpy().tolist() == label


@pytest.mark.parametrize("transform", STILL, ids=name_of)
def test_without_strength_nothing_changes(transform):
    padded = not isinstance(transform, data.Crop | data.RandomResizedCrop | data.ScaleJitter)  # these fill the image
    before = tf.nest.map_structure(lambda tensor: tensor.numpy(), detection(padded=padded))
    pixels, targets = compiled(transform)(detection(padded=padded), (3, 4))
    np.testing.assert_allclose(pixels, before[0], atol=2e-3)
    for name, value in before[1].items():
        np.testing.assert_allclose(targets[name], value, atol=1e-4, err_msg=name)


@either_padding
@pytest.mark.parametrize("flip", [data.HorizontalFlip(rate=1.0), data.VerticalFlip(rate=1.0)], ids=name_of)
def test_flipped_twice_is_as_before(flip, padded):
    before = detection(padded=padded)
    once = flip(before, (1, 2))
    twice = flip(once, (3, 4))
    assert np.abs(once[0] - before[0]).max() > 1
    tf.nest.map_structure(np.testing.assert_array_equal, twice, before)
