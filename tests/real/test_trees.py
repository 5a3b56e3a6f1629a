"""Aerial photos of trees with VOC files, as their makers wrote them."""

import pathlib

import numpy as np
import pytest

from kvision.data import check_targets, voc
from tests.real.wheels import members

pytestmark = [pytest.mark.real, pytest.mark.tensorflow_only]

TREES = {"OSBS_029": (61, (400, 400)), "2019_YELL_2_541000_4977000_image_crop": (279, (1035, 1249))}


@pytest.fixture
def folder(tmp_path):
    """Every XML of the wheel, and the PNG files of two of them."""
    for path, content in members("deepforest", (".xml", ".png")).items():
        name = pathlib.PurePath(path)
        if name.suffix == ".xml" or name.stem in TREES:
            (tmp_path / name.name).write_bytes(content)
    return tmp_path


def test_every_tree_is_read(folder):
    found = voc(folder, image_size=(1250, 1250), max_boxes=300)
    ((images, targets),) = found
    targets = {name: values.numpy() for name, values in targets.items()}
    check_targets(images, targets, classes=found.classes)
    names = [pathlib.PurePath(found.files[int(row)]).stem for row in targets["image_id"]]
    for row, name in enumerate(names):
        count, size = TREES[name]
        real = targets["labels"][row] >= 0
        assert real.sum() == count
        np.testing.assert_allclose(targets["image_size"][row] / targets["scale"][row], size, atol=0.6)
    assert set(names) == set(TREES)
    assert found.class_names == ("Tree",)
    assert [pathlib.PurePath(problem.file).stem for problem in found.problems] == [
        "2019_YELL_2_528000_4978000_image_crop2",
        "SOAP_061",
    ]
    assert all("there is no image" in problem.reason for problem in found.problems)
