"""VOC's files: nothing is lost on the way there and back, and every bad row is named."""

import sys

import numpy as np
import pytest

from kvision.data import check_targets, shapes, voc
from tests.data.files import NAMES, objects, write_voc
from tests.data.test_detection import batches

pytestmark = pytest.mark.tensorflow_only

IMAGES, TARGETS = shapes(8, image_size=(48, 64), seed=6)
FIRST = "<object><name>"


def write(folder, devkit=True):
    write_voc(folder, IMAGES, TARGETS, devkit)
    return folder / "Annotations" if devkit else folder


@pytest.mark.parametrize("devkit", [True, False])
def test_nothing_is_lost(tmp_path, devkit):
    write(tmp_path, devkit)
    found = voc(tmp_path, image_size=(48, 64))
    images, targets = batches(found)
    check_targets(images, targets, classes=3)
    np.testing.assert_array_equal(images, np.round(IMAGES))
    for row in range(len(IMAGES)):
        kept = objects(TARGETS, row)
        n = len(kept)
        for name in ("boxes", "labels"):
            np.testing.assert_array_equal(targets[name][row, :n], TARGETS[name][row, kept])
        assert (targets["labels"][row, n:] == -1).all()
        assert targets["difficult"][row].tolist() == [int(index == 1) for index in kept] + [0] * (100 - n)
    sides = targets["boxes"][..., 2:] - targets["boxes"][..., :2]
    np.testing.assert_array_equal(targets["area"], sides[..., 0] * sides[..., 1])
    assert found.class_names == NAMES
    assert sum(found.counts) == (TARGETS["labels"] >= 0).sum() > 10
    assert found.problems == []


def test_a_split_is_a_list_of_names(tmp_path):
    write(tmp_path)
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("005\n002\n\nabsent  1\n")
    found = voc(tmp_path, split="val", classes=NAMES, image_size=(48, 64))
    images, _ = batches(found)
    np.testing.assert_array_equal(images, np.round(IMAGES[[5, 2]]))
    (problem,) = found.problems
    assert (problem.file, problem.row) == (str(lists / "val.txt"), "line 4")
    with pytest.raises(ValueError, match="Unknown split .*: got 'train'.*'val'"):
        voc(tmp_path, split="train")


def test_classes_set_the_order_of_the_labels(tmp_path):
    write(tmp_path)
    found = voc(tmp_path, classes=["triangle", "square"], image_size=(48, 64))
    labels = batches(found)[1]["labels"]
    assert (labels == 0).sum() == (TARGETS["labels"] == 2).sum() > 0
    assert (labels == 1).sum() == (TARGETS["labels"] == 1).sum() > 0
    (problem,) = found.problems
    assert problem.reason == f"{(TARGETS['labels'] == 0).sum()} of class 'disc', which is not in classes, are left out"


OBJECT = (
    "<object><name>disc</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


@pytest.mark.parametrize(
    ("added", "reason"),
    [
        ("<object><name>disc</name></object>", "it has no bndbox"),
        ("<object><bndbox/></object>", "it has no name"),
        (OBJECT.format(1, 2, "wide", 4), "it has no xmax, or none that is a number"),
        (OBJECT.format(1, 2, "nan", 4), "it has no xmax, or none that is a number"),
        (OBJECT.format(10, 2, 9, 4), "has no area"),
        (OBJECT.format(66, 2, 70, 4), "lies outside the image of 48 x 64 (height x width)"),
    ],
)
def test_bad_rows_are_named_and_left_out(tmp_path, added, reason):
    file = write(tmp_path) / "003.xml"
    file.write_text(file.read_text().replace("</annotation>", added + "</annotation>"))
    found = voc(tmp_path, image_size=(48, 64))
    (problem,) = found.problems
    number = len(objects(TARGETS, 3)) + 1
    assert (problem.file, problem.row) == (str(file), f"object {number}")
    assert reason in problem.reason
    assert sum(found.counts) == (TARGETS["labels"] >= 0).sum()


ENTITY = '<!DOCTYPE a [<!ENTITY x "y">]><annotation><filename>&x;</filename></annotation>'


@pytest.mark.parametrize(
    ("content", "row", "reason"),
    [
        ("<annotation>", "", "cannot be read as XML"),
        ("", "", "cannot be read as XML"),
        (ENTITY, "", "cannot be read as XML: EntitiesForbidden"),
        ("<annotation><size><width>48</width><height>64</height></size></annotation>", "size", "has (48, 64) pixels"),
    ],
)
def test_bad_files_are_named_and_left_out(tmp_path, content, row, reason):
    file = write(tmp_path) / "003.xml"
    file.write_text(content)
    found = voc(tmp_path, image_size=(48, 64))
    (problem,) = found.problems
    assert (problem.file, problem.row) == (str(file), row)
    assert reason in problem.reason
    assert len(found.files) == 7


def test_a_missing_image_is_named(tmp_path):
    write(tmp_path)
    (tmp_path / "JPEGImages" / "003.png").unlink()
    (problem,) = voc(tmp_path, image_size=(48, 64)).problems
    assert (problem.file, problem.row) == (str(tmp_path / "Annotations" / "003.xml"), "filename")


def test_an_image_may_carry_the_name_of_its_xml(tmp_path):
    write(tmp_path, devkit=False)
    for file in tmp_path.glob("*.xml"):
        file.write_text(file.read_text().replace(".png</filename>", ".heic</filename>"))
        file.with_suffix(".heic").write_bytes(b"of a kind that is not read")
    assert len(voc(tmp_path, image_size=(48, 64)).files) == 8


def test_boxes_of_tools_that_count_from_0_stay_within_the_image(tmp_path):
    file = write(tmp_path) / "003.xml"
    file.write_text(f"<annotation>{OBJECT.format(0, 0, 63, 47)}</annotation>")
    _, targets = batches(voc(tmp_path, image_size=(48, 64)))
    assert targets["boxes"][3, 0].tolist() == [0, 0, 63, 47]


def test_without_defusedxml_the_error_names_the_line_that_mends_it(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.setitem(sys.modules, "defusedxml", None)
    with pytest.raises(ImportError, match=r'pip install "kvision\[voc\]"'):
        voc(tmp_path)


def test_a_folder_without_xml_says_what_was_expected(tmp_path):
    with pytest.raises(ValueError, match=r"no XML files in .*Annotations and JPEGImages"):
        voc(tmp_path)
