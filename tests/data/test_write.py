"""From each format to each other no box is lost, and names stay."""

import numpy as np
import pytest

from kvision.data import coco, shapes, voc, write_coco, write_voc, write_yolo, yolo
from tests.data import files
from tests.data.test_detection import batches

pytestmark = pytest.mark.tensorflow_only

IMAGES, TARGETS = shapes(6, image_size=(48, 64), seed=5, masks=True)
NAMES = ("a: b", "no", 'c & "d" <é>')
OPTIONS = {"image_size": (100, 150), "batch_size": 4}


def written(kind, found, folder):
    if kind == "coco":
        write_coco(found, folder.with_suffix(".json"), folder.parent)
        return coco(folder.with_suffix(".json"), folder.parent, **OPTIONS)
    {"yolo": write_yolo, "voc": write_voc}[kind](found, folder)
    return {"yolo": yolo, "voc": voc}[kind](folder, classes=NAMES, **OPTIONS)


def test_no_box_is_lost_from_format_to_format(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "NAMES", NAMES)
    files.write_coco(tmp_path, IMAGES, TARGETS)
    found = coco(tmp_path / "annotations.json", tmp_path / "images", **OPTIONS)
    images, want = batches(found)
    for step, kind in enumerate(("yolo", "voc", "coco", "voc", "yolo", "coco")):
        found = written(kind, found, tmp_path / f"{step}")
        seen, targets = batches(found)
        assert (found.class_names, found.problems) == (NAMES, [])
        np.testing.assert_array_equal(seen, images)
        np.testing.assert_array_equal(targets["labels"], want["labels"])
        np.testing.assert_allclose(targets["boxes"], want["boxes"], atol=1e-3)


def test_nothing_is_written_over(tmp_path):
    for write in (lambda: write_coco(None, tmp_path, "."), lambda: write_yolo(None, tmp_path)):
        with pytest.raises(ValueError, match="exists; what is there is not written over"):
            write()
