"""Generated shapes: exact masks, boxes around what is visible, the same every time."""

import numpy as np
import pytest

from kvision.data import check_targets, shape_names, shapes


@pytest.mark.parametrize(
    ("image_size", "classes", "max_shapes"), [((128, 128), 3, 4), ((16, 40), 1, 3), ((64, 48), 40, 6)]
)
def test_targets_follow_the_contract(image_size, classes, max_shapes):
    images, targets = shapes(30, image_size, classes, max_shapes, seed=1, masks=True)
    check_targets(images, targets, classes=classes)
    assert images.dtype == "float32"
    assert images.min() >= 0
    assert images.max() <= 255
    assert targets["labels"].max() > 0 or classes == 1
    assert (targets["image_size"] == image_size).all()
    assert targets["image_id"].tolist() == list(range(30))


def test_boxes_and_areas_are_those_of_the_masks():
    _, targets = shapes(40, (64, 64), classes=12, max_shapes=6, masks=True)
    for row, index in np.argwhere(targets["labels"] >= 0):
        pixels = np.argwhere(targets["masks"][row, index])
        (top, left), (bottom, right) = pixels.min(axis=0), pixels.max(axis=0) + 1
        assert targets["boxes"][row, index].tolist() == [left, top, right, bottom]
        assert targets["area"][row, index] == len(pixels) > 0
    assert not targets["masks"][targets["labels"] < 0].any()
    assert targets["masks"].sum(axis=1).max() == 1  # a pixel shows one shape
    filled = targets["labels"] >= 0
    assert (filled[:, :-1] >= filled[:, 1:]).all()


def test_masks_are_exactly_what_is_bright():
    images, targets = shapes(40, classes=8, masks=True)  # of one texture: all of a shape is bright, no background is
    np.testing.assert_array_equal(images.max(axis=-1) > 152, targets["masks"].any(axis=1))


def test_shapes_cover_each_other_by_half_at_most():
    _, targets = shapes(200, classes=1, max_shapes=8, masks=True)
    found = targets["labels"] >= 0
    sides = (targets["boxes"][..., 2:] - targets["boxes"][..., :2])[found]
    fractions = targets["area"][found] / sides.prod(axis=-1)
    assert fractions.max() < 0.9  # a disc fills 79 % of its box, a small one of pixels a little more
    assert (fractions < 0.7).sum() > 20  # some are covered in part
    assert fractions.min() > 0.35


def test_some_images_are_empty_and_every_class_occurs():
    _, targets = shapes(300, (32, 32), classes=20)
    empty = (targets["labels"] == -1).all(axis=1).mean()
    assert 0.01 < empty < 0.12
    assert set(targets["labels"].ravel().tolist()) == set(range(-1, 20))


def test_an_image_depends_on_seed_and_index_alone():
    images, targets = shapes(6, (32, 32), seed=4, masks=True)
    fewer, fewer_targets = shapes(3, (32, 32), seed=4, masks=True)
    np.testing.assert_array_equal(images[:3], fewer)
    for name, values in fewer_targets.items():
        np.testing.assert_array_equal(targets[name][:3], values)
    assert not np.array_equal(images[:3], shapes(3, (32, 32), seed=5)[0])
    assert len({image.tobytes() for image in images}) == 6


def test_names_tell_all_classes_apart():
    assert shape_names(3) == ("disc", "square", "triangle")
    for classes in (8, 32, 33, 100):
        names = shape_names(classes)
        assert len(set(names)) == classes
    assert shape_names(9)[8] == "striped disc"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": (8, 64)}, "image_size must be at least 16, got 8"),
        ({"classes": 0}, "classes must be at least 1"),
        ({"max_shapes": 0}, "shapes: the largest number of objects must be at least 1"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        shapes(1, **options)
