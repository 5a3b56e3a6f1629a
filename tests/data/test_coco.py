"""COCO's files: nothing is lost on the way there and back, and every bad row is named."""

import json

import numpy as np
import pytest

from kvision.data import check_targets, coco, shapes
from tests.data.files import NAMES, SEGMENTATIONS, objects, write_coco
from tests.data.test_detection import batches

pytestmark = pytest.mark.tensorflow_only

IMAGES, TARGETS = shapes(10, image_size=(48, 64), seed=5, masks=True)


def read(folder, **options):
    return coco(folder / "annotations.json", folder / "images", image_size=(48, 64), **options)


@pytest.mark.parametrize("segmentation", SEGMENTATIONS)
def test_nothing_is_lost(tmp_path, segmentation):
    content = write_coco(tmp_path, IMAGES, TARGETS, segmentation)
    found = read(tmp_path, masks=True, mask_size=None)
    images, targets = batches(found)
    check_targets(images, targets, classes=3)
    np.testing.assert_array_equal(images, np.round(IMAGES))
    assert targets["image_id"].tolist() == list(range(500, 510))
    for row in range(len(IMAGES)):
        kept = objects(TARGETS, row)
        n = len(kept)
        for name in ("boxes", "labels", "masks", "area"):
            np.testing.assert_array_equal(targets[name][row, :n], TARGETS[name][row, kept])
        assert (targets["labels"][row, n:] == -1).all()
        assert targets["crowd"][row].tolist() == [int(index == 2) for index in kept] + [0] * (100 - n)
    assert found.class_names == NAMES
    assert found.classes == 3
    assert found.counts == tuple((TARGETS["labels"] == label).sum() for label in range(3))
    assert sum(found.counts) == len(content["annotations"]) > 15
    assert found.files == {500 + row: str(tmp_path / "images" / f"{row:03}.png") for row in range(10)}
    assert found.problems == []


@pytest.mark.parametrize(
    ("change", "row", "reason"),
    [
        ({"image_id": 99}, "annotations[0]", "no image has the id 99"),
        ({"image_id": None}, "annotations[0]", "no image has the id None"),
        ({"image_id": [500]}, "annotations[0]", "no image has the id [500]"),
        ({"category_id": 4}, "annotations[0]", "000.png: no category has the id 4; known are 3, 7, 90"),
        ({"bbox": [1, 2, 3]}, "annotations[0]", "000.png: the bbox [1, 2, 3] is not four numbers"),
        ({"bbox": None}, "annotations[0]", "000.png: the bbox None is not four numbers"),
        ({"bbox": [1, 2, "wide", 4]}, "annotations[0]", "is not four numbers"),
        ({"bbox": [1, 2, float("nan"), 4]}, "annotations[0] (000.png)", "is not finite"),
        ({"bbox": [10, 10, 0, 4]}, "annotations[0] (000.png)", "has no area"),
        ({"bbox": [70, 10, 5, 4]}, "annotations[0] (000.png)", "lies outside the image of 48 x 64"),
        ({"segmentation": [[1, 2]]}, "annotations[0] (000.png)", "the object has a polygon [1, 2]"),
        ({"segmentation": None}, "annotations[0] (000.png)", "the object has no segmentation"),
    ],
)
def test_bad_rows_are_named_and_left_out(tmp_path, change, row, reason):
    content = write_coco(tmp_path, IMAGES, TARGETS)
    content["annotations"][0] |= change
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    found = read(tmp_path, masks=True)
    (problem,) = found.problems
    assert (problem.file, problem.row) == (str(tmp_path / "annotations.json"), row)
    assert reason in problem.reason
    assert sum(found.counts) == len(content["annotations"]) - 1
    assert len(batches(found)[0]) == 10


@pytest.mark.parametrize(
    ("change", "file", "row", "reason"),
    [
        ({"file_name": "gone.png"}, "images/gone.png", "", "cannot be read"),
        ({"file_name": None}, "annotations.json", "images[1]", "expected an id and a file_name"),
        (
            {"height": 64, "width": 48},
            "annotations.json",
            "images[1]",
            "has (48, 64) pixels (height, width), the entry",
        ),
        ({"id": 500}, "annotations.json", "images[1]", "the id 500 occurs twice"),
    ],
)
def test_bad_images_are_named_and_left_out(tmp_path, change, file, row, reason):
    content = write_coco(tmp_path, IMAGES, TARGETS)
    content["images"][1] |= change
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    found = read(tmp_path)
    problem = found.problems[0]
    assert (problem.file, problem.row) == (str(tmp_path / file), row)
    assert reason in problem.reason
    assert batches(found)[1]["image_id"].tolist() == [500, *range(502, 510)]


@pytest.mark.parametrize("scale", [(64, 48), (64 / 1.5, 48 / 1.5)])
def test_boxes_in_fractions_are_refused(tmp_path, scale):
    content = write_coco(tmp_path, IMAGES, TARGETS)
    for entry in content["annotations"]:
        entry["bbox"] = (np.array(entry["bbox"]) / np.tile(scale, 2)).tolist()
    for count in (9, 10):
        (tmp_path / "annotations.json").write_text(
            json.dumps(content | {"annotations": content["annotations"][:count]})
        )
        if count < 10:
            assert sum(read(tmp_path).counts) == 9
            continue
        with pytest.raises(ValueError, match=r"coco: all 10 boxes lie within 1.5 pixels: they seem to be fractions"):
            read(tmp_path)


def test_categories_of_one_name_are_one_class_and_named(tmp_path):
    content = write_coco(tmp_path, IMAGES, TARGETS)
    content["categories"] = [{"id": 3, "name": "a"}, {"id": 7, "name": "b"}, {"id": 90, "name": "a"}]
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    found = read(tmp_path)
    (problem,) = found.problems
    assert "several classes are called 'a'" in problem.reason
    first, second, third = ((TARGETS["labels"] == label).sum() for label in range(3))
    assert (found.class_names, found.counts) == (("a", "b"), (first + third, second))


def test_ids_that_are_no_numbers_are_counted(tmp_path):
    content = write_coco(tmp_path, IMAGES, TARGETS)
    for entry in content["images"]:
        entry["id"] = f"image {entry['id']}"
    for entry in content["annotations"]:
        entry["image_id"] = f"image {entry['image_id']}"
        del entry["area"]
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    found = read(tmp_path)
    _, targets = batches(found)
    assert targets["image_id"].tolist() == list(range(10))
    assert sum(found.counts) == len(content["annotations"])
    sides = targets["boxes"][..., 2:] - targets["boxes"][..., :2]
    np.testing.assert_allclose(targets["area"], sides[..., 0] * sides[..., 1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "has no list images, annotations, categories"),
        ('{"images": [], "categories": []}', "has no list annotations"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}, {"id": 1}]}', "two categories share an id"),
        ('{"images": [], "annotations": [], "categories": [{"name": "a"}]}', "need an id, a number"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', "no image that can be used"),
    ],
)
def test_a_file_that_is_none_says_what_is_missing(tmp_path, content, message):
    (tmp_path / "annotations.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


def test_a_category_of_a_file_without_any_says_so(tmp_path):
    content = write_coco(tmp_path, IMAGES, TARGETS) | {"categories": []}
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="no category has the id 3; the file lists no categories;"):
        read(tmp_path)
    with pytest.raises(ValueError, match="the data set lists no class, got classes="):
        read(tmp_path, classes=["a"])


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"annotations.json.*cannot be read"):
        read(tmp_path)
