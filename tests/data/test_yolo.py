"""YOLO's files: nothing is lost on the way there and back, and every bad row is named."""

import numpy as np
import pytest

from kvision.data import check_targets, shapes, yolo
from tests.data.files import NAMES, objects, staircase, write_yolo
from tests.data.test_detection import batches

pytestmark = pytest.mark.tensorflow_only

IMAGES, TARGETS = shapes(8, image_size=(48, 64), seed=7, masks=True, max_shapes=1)


@pytest.mark.parametrize("polygons", [False, True])
def test_nothing_is_lost(tmp_path, polygons):
    write_yolo(tmp_path, IMAGES, TARGETS, polygons)
    found = yolo(tmp_path, image_size=(48, 64), masks=polygons, mask_size=None)
    images, targets = batches(found)
    check_targets(images, targets, classes=3)
    np.testing.assert_array_equal(images, np.round(IMAGES))
    for row in range(len(IMAGES)):
        kept = objects(TARGETS, row)
        n = len(kept)
        np.testing.assert_array_equal(targets["labels"][row, :n], TARGETS["labels"][row, kept])
        np.testing.assert_allclose(targets["boxes"][row, :n], TARGETS["boxes"][row, kept], atol=1e-4)
        assert (targets["labels"][row, n:] == -1).all()
        if polygons:
            np.testing.assert_array_equal(targets["masks"][row, :n], TARGETS["masks"][row, kept])
    assert found.class_names == NAMES
    assert sum(found.counts) == (TARGETS["labels"] >= 0).sum() > 5
    assert found.problems == []


def test_the_polygons_of_this_test_are_exact():
    mask = np.zeros((5, 6), "uint8")
    mask[1, 2:4] = mask[2, 1:5] = 1
    assert staircase(mask) == [4, 1, 4, 2, 5, 2, 5, 3, 1, 3, 1, 2, 2, 2, 2, 1]


def test_a_split_is_a_sub_folder(tmp_path):
    write_yolo(tmp_path, IMAGES, TARGETS)
    for part in ("images", "labels"):
        (tmp_path / part / "val").mkdir()
        for file in (tmp_path / part / "train").glob("00[01].*"):
            file.rename(tmp_path / part / "val" / file.name)
    sizes = {split: len(yolo(tmp_path, split=split, image_size=(48, 64)).files) for split in ("train", "val", None)}
    assert sizes == {"train": 6, "val": 2, None: 8}
    with pytest.raises(ValueError, match="Unknown split of .*: got 'test'.*'train', 'val'"):
        yolo(tmp_path, split="test")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("3 0.5 0.5 0.1 0.1", "the class 3 is unknown; there are 3, counted from 0"),
        ("-1 0.5 0.5 0.1 0.1", "is neither"),
        ("0.5 0.5 0.5 0.1 0.1", "is neither"),
        ("inf 0.5 0.5 0.1 0.1", "is neither"),
        ("nan 0.5 0.5 0.1 0.1", "is neither"),
        ("disc 0.5 0.5 0.1 0.1", "'disc 0.5 0.5 0.1 0.1' is neither"),
        ("0 0.5 0.5 0.1", "is neither"),
        ("0 0.5 0.5 0.1 0.1 0.9", "is neither"),
        ("0 0.5 0.5 0.1 0.1 0.9 0.9 0.9", "is neither"),
        ("0", "is neither"),
        ("0 0.1 0.1 0.2 0.2 nan 0.3", "is not finite"),
        ("0 1.1 0.1 1.2 0.2 1.3 0.3", "lies outside"),
        ("0 20 30 10 12", "'0 20 30 10 12' holds 30; expected fractions of the image's width and height"),
        ("0 3 4 20 4 20 30", "these look like pixels"),
        ("20000000 0.5 0.5 0.1 0.1", "is neither"),
    ],
)
def test_bad_rows_are_named_and_left_out(tmp_path, line, reason):
    write_yolo(tmp_path, IMAGES, TARGETS)
    file = tmp_path / "labels" / "train" / "002.txt"
    file.write_text(f"{line}\n{file.read_text()}")
    found = yolo(tmp_path, image_size=(48, 64))
    (problem,) = found.problems
    assert (problem.file, problem.row) == (str(file), "line 1")
    assert reason in problem.reason
    assert sum(found.counts) == (TARGETS["labels"] >= 0).sum()


def test_labels_without_an_image_are_named(tmp_path):
    write_yolo(tmp_path, IMAGES, TARGETS)
    (tmp_path / "images" / "train" / "002.png").unlink()
    (problem,) = yolo(tmp_path, image_size=(48, 64)).problems
    assert str(problem) == f"{tmp_path / 'labels' / 'train' / '002.txt'}: there is no image for it"


def test_names_are_given_or_read_or_counted(tmp_path):
    write_yolo(tmp_path, IMAGES, TARGETS)
    with pytest.raises(ValueError, match=r"Unknown class in classes= of yolo: got 'disk'.*'disc'"):
        yolo(tmp_path, classes=["disk", *NAMES[1:]])
    (tmp_path / "classes.txt").rename(tmp_path / "labels" / "classes.txt")
    assert yolo(tmp_path).class_names == NAMES
    (tmp_path / "labels" / "classes.txt").unlink()
    assert yolo(tmp_path).class_names == ("0", "1", "2")
    assert yolo(tmp_path, classes=["a", "b", "c", "d"]).class_names == ("a", "b", "c", "d")


def test_classes_of_one_name_are_one_and_named(tmp_path):
    write_yolo(tmp_path, IMAGES, TARGETS)
    (tmp_path / "classes.txt").write_text("a\nb\na\n")
    found = yolo(tmp_path, image_size=(48, 64))
    (problem,) = found.problems
    assert "several classes are called 'a'" in problem.reason
    first, second, third = ((TARGETS["labels"] == label).sum() for label in range(3))
    assert (found.class_names, found.counts) == (("a", "b"), (first + third, second))


def test_classes_that_count_from_1_are_named_first(tmp_path):
    write_yolo(tmp_path, IMAGES, TARGETS)
    for file in (tmp_path / "labels" / "train").glob("*.txt"):
        lines = file.read_text().splitlines()
        file.write_text("".join(f"{int(line[0]) + 1}{line[1:]}\n" for line in lines))
    problem = yolo(tmp_path, image_size=(48, 64)).problems[0]
    assert problem.file == str(tmp_path)
    assert "no object is of class 0, and there are some of class 3 beside 3 names" in problem.reason
    (tmp_path / "classes.txt").write_text("background\ndisc\nsquare\ntriangle\n")
    assert yolo(tmp_path, image_size=(48, 64)).problems == []
