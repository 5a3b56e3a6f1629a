"""COCO's numbers of masks: by their own overlap, of any type and size, and a few at a time in memory."""

import pickle

import numpy as np
import pytest

from kvision.contract import paste_mask_scores
from kvision.metrics import COCOAveragePrecision
from tests.metrics.coco_numbers import LARGE, TWELVE, assert_numbers, block, many, numbers, with_masks
from tests.metrics.scenes import detections, random_scene, targets


def test_masks_are_compared_by_their_own_overlap():
    box = [0, 0, 100, 60]
    truth = with_masks(targets([(0, box)]), block(0, 0, 60, 50))
    found = with_masks(detections([(0, 0.9, box)]), block(0, 0, 60, 31))
    got = numbers((truth, found), masks=True)
    assert list(got) == [*TWELVE, *(f"mask_{name}" for name in TWELVE)]
    assert_numbers(got, AP=1.0, mask_AP=0.3, mask_AP50=1.0, mask_AP75=0.0, mask_AR100=0.3)
    # 6,000 pixels in the box, 3,000 in the mask; 750 in the original image.
    assert_numbers(got, AP_medium=1.0, mask_AP_medium=0.3, mask_AP_small=-1.0)
    got = numbers((truth | {"scale": np.array([2.0])}, found), masks=True)
    assert_numbers(got, AP_medium=1.0, mask_AP_medium=-1.0, mask_AP_small=0.3)
    got = numbers((truth | {"scale": np.array([2.0]), "area": np.array([[2e4, 0]])}, found), masks=True)
    assert_numbers(got, AP_large=1.0, mask_AP_large=0.3, mask_AP_small=-1.0)


def test_a_crowd_mask_takes_in_what_lies_within():
    rows = [(0, [0, 0, 100, 60]), (0, [100, 0, 120, 80])]
    truth = with_masks(targets(rows, crowd=np.array([[1, 0, 0]])), block(0, 0, 60, 100), block(0, 100, 80, 120))
    found = detections([(0, 0.9, [0, 0, 10, 10]), (0, 0.8, [20, 20, 40, 40]), (0, 0.7, rows[1][1])])
    found = with_masks(found, block(0, 0, 10, 10), block(20, 20, 40, 40), block(0, 100, 80, 120))
    assert_numbers(numbers((truth, found), masks=True), mask_AP=1.0)


@pytest.mark.parametrize("kind", ["bool", "int32", "float32"])
def test_masks_of_any_type(kind):
    truth, found = random_scene(0)
    want = numbers((truth, found), masks=True)
    masks = found["masks"] * np.float32(0.5) if kind == "float32" else found["masks"]
    assert numbers((truth, found | {"masks": masks.astype(kind)}), masks=True) == want


def test_masks_relative_to_their_box_are_laid_into_it():
    rng = np.random.default_rng(0)
    boxes = [[8, 16, 24, 48], [64, 0, 120, 80]]  # whole multiples of the masks' 4x8 pixels
    small = rng.integers(0, 2, (1, 3, 8, 8)).astype("uint8")
    whole = np.zeros((1, 3, 80, 120), "uint8")
    for row, (left, top, right, bottom) in enumerate(boxes):
        pixels = np.kron(small[0, row], np.ones(((bottom - top) // 8, (right - left) // 8)))
        whole[0, row, top:bottom, left:right] = pixels
    truth = targets([(0, box) for box in boxes], box_masks=small)
    found = detections([(0, 0.5, box) for box in boxes]) | {"masks": whole}
    assert_numbers(numbers((truth, found), masks=True), mask_AP=1.0)
    found["masks"] = 1 - whole
    assert_numbers(numbers((truth, found), masks=True), mask_AP=0.0, AP=1.0)


def test_masks_of_detections_relative_to_their_box_are_pasted():
    """Without a mask of the whole image on either side the canvas ends where boxes or images end."""
    boxes = [[8, 16, 36, 44], [64, 2, 120, 80]]
    small = np.zeros((1, 3, 28, 28), "float32")
    small[..., 7:21] = 0.9
    found = detections([(0, 0.5, box) for box in boxes]) | {"box_masks": small}
    whole = np.stack([paste_mask_scores(small[0], [*boxes, [0, 0, 0, 0]], (80, 120))])
    truth = targets([(0, box) for box in boxes])
    assert_numbers(numbers((truth | {"masks": whole}, found), masks=True), mask_AP=1.0)
    relative = truth | {"box_masks": (small > 0.5).astype("uint8")}
    for sizes in ({}, {"image_size": np.array([[80, 120]])}):
        assert numbers((relative | sizes, found), masks=True)["mask_AP"] > 0.6
    found["box_masks"] = 1 - small
    assert numbers((relative, found), masks=True)["mask_AP"] < 0.1


def test_masks_are_held_at_full_size_a_few_at_a_time(monkeypatch):
    held = []

    def watched(*arguments):
        held.append(paste_mask_scores(*arguments))
        return held[-1]

    monkeypatch.setattr("kvision.metrics.mask_codes.paste_mask_scores", watched)
    batch = many(100)
    metric = COCOAveragePrecision(masks=True)
    metric.update_state(
        batch[0] | {"box_masks": np.ones((1, 101, 28, 28), "uint8")},
        batch[1] | {"box_masks": np.ones((1, 101, 28, 28), "float32")},
    )
    assert sum(map(len, held)) == 100
    assert max(map(len, held)) <= 16
    assert metric.result()["mask_AP"] > 0.5


def test_masks_are_kept_small():
    masks = np.ones((1, 2, 1000, 1000), "uint8")
    metric = COCOAveragePrecision(masks=True)
    metric.update_state(targets([(0, LARGE)], masks=masks), detections([(0, 0.5, LARGE)]) | {"masks": masks})
    assert len(pickle.dumps(vars(metric))) < 5000


@pytest.mark.parametrize("side", ["targets", "detections"])
def test_missing_masks_are_an_error(side):
    truth, found = random_scene(0)
    (truth if side == "targets" else found).pop("masks")
    with pytest.raises(ValueError, match=f"masks=True .* got none in the {side}.*box_masks"):
        COCOAveragePrecision(masks=True).update_state(truth, found)
    assert COCOAveragePrecision().update_state(truth, found) is None


def test_masks_of_another_size_are_an_error():
    truth, found = random_scene(0)
    with pytest.raises(ValueError, match="differ in size"):
        COCOAveragePrecision(masks=True).update_state(truth, found | {"masks": found["masks"][:, :, ::2]})
