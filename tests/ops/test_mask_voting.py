"""Mask voting: equal to a slow twin that paints, and laws."""

import keras
import numpy as np
import pytest

from kvision.ops.masks import vote_masks
from tests.ops.execution import execute, iou_twin
from tests.support import assert_close

SIZE, CLASSES = 6, 3


def example():
    """Three objects, each with some regions around it, and one region far from all."""
    rng = np.random.default_rng(0)
    centres = rng.uniform(20, 80, (2, 3, 1, 4)) * [1, 1, 0, 0]
    centres[..., 2:] = centres[..., :2]
    boxes = centres + rng.uniform(8, 14, (2, 3, 4, 4)) * [-1, -1, 1, 1]
    regions = np.concatenate([boxes.reshape(2, 12, 4), np.full((2, 1, 4), [90, 2, 99, 9])], axis=1).astype("float32")
    masks = rng.uniform(size=(2, 13, SIZE, SIZE)).astype("float32")
    scores = rng.dirichlet(np.ones(CLASSES + 1), (2, 13))[..., 1:].astype("float32")
    detections = regions[:, [1, 4, 8, 12, 0]]
    labels = np.array([[0, 2, 1, 1, -1], [2, 2, 0, 1, -1]], "int32")
    detections[:, 4] = 0
    return detections, labels, regions, masks, scores


def read(mask, box, x, y):
    """The value of a region's mask at a point of the image: between its cells, zero outside its box."""
    left, top, right, bottom = box
    if not (left <= x <= right and top <= y <= bottom):
        return 0.0
    across = min(max((x - left) / (right - left) * SIZE - 0.5, 0), SIZE - 1)
    down = min(max((y - top) / (bottom - top) * SIZE - 0.5, 0), SIZE - 1)
    column, row = min(int(across), SIZE - 2), min(int(down), SIZE - 2)
    across, down = across - column, down - row
    upper = mask[row, column] * (1 - across) + mask[row, column + 1] * across
    lower = mask[row + 1, column] * (1 - across) + mask[row + 1, column + 1] * across
    return upper * (1 - down) + lower * down


def twin(detections, labels, regions, masks, scores, threshold):
    voted = np.zeros((*labels.shape, SIZE, SIZE))
    for image, index in zip(*np.nonzero(labels >= 0), strict=True):
        left, top, right, bottom = box = detections[image, index].astype("float64")
        voters = [row for row in range(regions.shape[1]) if iou_twin(box, regions[image, row]) >= threshold]
        weights = [scores[image, row, labels[image, index]] for row in voters]
        for i, j in np.ndindex(SIZE, SIZE):
            x, y = left + (j + 0.5) / SIZE * (right - left), top + (i + 0.5) / SIZE * (bottom - top)
            values = [read(masks[image, row], regions[image, row].astype("float64"), x, y) for row in voters]
            voted[image, index, i, j] = np.average(values, weights=weights)
    return voted


@pytest.mark.parametrize("mode", ["graph", "jit"])
@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_equals_its_twin(threshold, mode):
    given = example()
    voted = execute(lambda *given: vote_masks(*given, iou_threshold=threshold), *given, mode=mode)
    want = twin(*given, threshold)
    assert_close(voted, want, tolerance=(1e-4, 1e-5))  # where in a cell a point lies is known to 1e-5
    own = np.stack([given[3][image, [1, 4, 8, 12]] for image in range(2)])
    alone = [np.allclose(want[image, row], own[image, row], atol=1e-5) for image, row in np.ndindex(2, 4)]
    assert alone[3] and alone[7] and not all(alone)  # far from all others a mask is its own


def test_at_the_overlap_of_one_every_mask_is_its_own():
    detections, labels, regions, masks, scores = example()
    voted = keras.ops.convert_to_numpy(vote_masks(detections, labels, regions, masks, scores, iou_threshold=1.0))
    assert_close(voted[:, :4], masks[:, [1, 4, 8, 12]], tolerance=(1e-4, 1e-5))
    assert not voted[:, 4].any()


def test_equal_masks_stay_what_they_are_and_the_scores_scale_does_not_count():
    detections, labels, regions, masks, scores = example()
    ones = vote_masks(regions, np.zeros((2, 13), "int32"), regions, np.ones_like(masks), scores)
    middle = keras.ops.convert_to_numpy(ones)[:, :, 2:4, 2:4]
    assert_close(middle, np.ones_like(middle))
    again = vote_masks(detections, labels, regions, masks, scores / 4)
    assert_close(again, vote_masks(detections, labels, regions, masks, scores))


@pytest.mark.parametrize("threshold", [0, 1.5])
def test_a_threshold_that_cannot_be_is_refused(threshold):
    with pytest.raises(ValueError, match=f"0 < iou_threshold <= 1: got {threshold}"):
        vote_masks(*example(), iou_threshold=threshold)
