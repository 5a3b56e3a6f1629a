"""Scenes of cut-outs: exact masks, boxes around what is visible, clutter without a label, the same every time."""

import numpy as np
import pytest

from kvision.data import check_targets, scenes

DISC = 255 * (np.hypot(*(np.mgrid[:20, :20] - 9.5)) < 9)
BAR = np.pad(np.full((20, 8), 255), [(0, 0), (6, 6)])
CUTOUTS, LABELS = np.stack([DISC, BAR, np.roll(BAR, 4, axis=1)]), np.array([0, 1, 1])


def bright(images):
    """Where a pixel is not background: colours reach 153 at least, the background 130 at most but for its noise."""
    return images.max(axis=-1) > 152


@pytest.mark.parametrize(("image_size", "most", "clutter"), [((96, 96), 4, 0), ((48, 80), 6, 5), ((16, 16), 1, 2)])
def test_targets_follow_the_contract(image_size, most, clutter):
    images, targets = scenes(CUTOUTS, LABELS, 30, image_size, most, clutter=clutter, seed=1, masks=True)
    check_targets(images, targets, classes=2)
    assert images.dtype == "float32"
    assert images.min() >= 0
    assert images.max() <= 255
    assert set(np.unique(targets["labels"])) == {-1, 0, 1}
    assert targets["labels"].shape == (30, most)


def test_boxes_and_areas_are_those_of_the_masks():
    _, targets = scenes(CUTOUTS, LABELS, 30, (64, 64), max_objects=6, masks=True)
    for row, index in np.argwhere(targets["labels"] >= 0):
        pixels = np.argwhere(targets["masks"][row, index])
        (top, left), (bottom, right) = pixels.min(axis=0), pixels.max(axis=0) + 1
        assert targets["boxes"][row, index].tolist() == [left, top, right, bottom]
        assert targets["area"][row, index] == len(pixels) > 0
    assert targets["masks"].sum(axis=1).max() == 1  # a pixel shows one object


def test_a_mask_is_where_half_a_pixel_is_the_object():
    whole = np.full((1, 10, 10), 255)
    images, targets = scenes(whole, [0], 40, sides=(0.3, 0.5), masks=True)
    np.testing.assert_array_equal(bright(images), targets["masks"].any(axis=1))
    seen = targets["masks"].any(axis=(1, 2, 3)).mean()
    assert 0.8 < seen < 1  # one image in twenty is empty
    faint, same = scenes(np.where(whole, 140, 0), [0], 40, sides=(0.3, 0.5), masks=True)
    np.testing.assert_array_equal(same["masks"], targets["masks"])
    assert faint[targets["masks"].any(axis=1)].mean() < images[targets["masks"].any(axis=1)].mean()


def test_labels_are_those_of_the_cutouts():
    _, targets = scenes(np.stack([DISC, BAR]), [3, 7], 60, max_objects=1, sides=(0.4, 0.4), masks=True)
    found = targets["labels"][:, 0] >= 0
    left, top, right, bottom = targets["boxes"][found, 0].T
    square = np.abs((right - left) / (bottom - top) - 1) < 0.2
    np.testing.assert_array_equal(targets["labels"][found, 0], np.where(square, 3, 7))


def test_objects_have_the_sides_asked_for():
    _, targets = scenes(np.full((1, 10, 20), 255), [0], 200, (80, 100), max_objects=1, sides=(0.2, 0.4))
    boxes = targets["boxes"][targets["labels"] >= 0]
    heights, widths = boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0]
    assert (heights.min(), heights.max()) == (16, 32)
    np.testing.assert_array_equal(widths, 2 * heights)


def test_clutter_is_painted_and_has_no_label():
    plain, clean = scenes(CUTOUTS, LABELS, 30, max_objects=1, masks=True)
    strewn, targets = scenes(CUTOUTS, LABELS, 30, max_objects=1, clutter=8, masks=True)
    assert not bright(plain)[~clean["masks"].any(axis=1)].mean() > 0.01
    assert bright(strewn)[~targets["masks"].any(axis=1)].mean() > 0.02
    assert (targets["labels"] >= 0).sum(axis=1).max() == 1


def test_an_image_depends_on_seed_and_index_alone():
    images, targets = scenes(CUTOUTS, LABELS, 6, (32, 32), seed=4, clutter=3, masks=True)
    fewer, fewer_targets = scenes(CUTOUTS, LABELS, 3, (32, 32), seed=4, clutter=3, masks=True)
    np.testing.assert_array_equal(images[:3], fewer)
    for name, values in fewer_targets.items():
        np.testing.assert_array_equal(targets[name][:3], values)
    assert not np.array_equal(fewer, scenes(CUTOUTS, LABELS, 3, (32, 32), seed=5, clutter=3)[0])
    assert len({image.tobytes() for image in images}) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cutouts": DISC}, r"cutouts must be \[n, h, w\] with one label each, n at least 1; got cutouts \(20, 20\)"),
        ({"labels": [0]}, r"got cutouts \(3, 20, 20\) and labels \(1,\)"),
        ({"labels": [0, 1, -1]}, "integers from 0; got int64 from -1"),
        ({"labels": [0.0, 1.0, 1.0]}, "integers from 0; got float64"),
        ({"sides": (0.0, 0.5)}, "0 < smallest <= largest <= 1; got"),
        ({"sides": (0.5, 0.2)}, "0 < smallest <= largest <= 1; got"),
        ({"cutouts": CUTOUTS / 255}, r"3 cut-outs show nothing, no pixel of theirs reaches 128 \(first: 0\)"),
        ({"image_size": (8, 64)}, "scenes: image_size must be at least 16, got 8"),
        ({"max_objects": 0}, "the largest number of objects must be at least 1, got 0"),
        ({"num_images": -1}, "num_images must be at least 0"),
    ],
)
def test_impossible_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        scenes(**{"cutouts": CUTOUTS, "labels": LABELS, "num_images": 1} | changes)
