"""From each format to each other no box is lost, and names stay."""

import json

import numpy as np
import PIL.Image
import pytest

from kvision.data import arrays, augment, coco, shapes, voc, write_coco, write_voc, write_yolo, yolo
from kvision.data.augmentation import HorizontalFlip
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


def test_images_whose_names_differ_by_their_ending_or_folder_keep_their_boxes(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "NAMES", NAMES)
    places = ("images/a/1.png", "images/a/1.bmp", "images/a/1_2.png", "a/1.PNG", "b/images/1.jpg", "b/1", "1.png")
    content = files.coco_content(TARGETS, places[:6], (48, 64))
    for place, image in zip(places, IMAGES.astype("uint8"), strict=False):
        (tmp_path / "set" / place).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(image).save(tmp_path / "set" / place, "png")
    (tmp_path / "set.json").write_text(json.dumps(content))
    found = coco(tmp_path / "set.json", tmp_path / "set", batch_size=3, drop_remainder=True, shuffle=True)
    assert len(found.files) == len(IMAGES) == 6
    for kind in ("yolo", "voc"):
        again = written(kind, found, tmp_path / kind)
        assert len(again.files) == 6 and again.problems == []
        boxes = lambda data: {  # noqa: E731
            (
                round(float(images[row].numpy().sum()), -2),
                tuple(np.round(targets["boxes"][row] / targets["scale"][row]).ravel().tolist()),
            )
            for images, targets in data
            for row in range(len(images))
        }
        whole = coco(tmp_path / "set.json", tmp_path / "set", **OPTIONS)
        assert boxes(again) == boxes(whole)


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda found: augment(found, [HorizontalFlip()]), "an augmented one: the images are those of the files"),
        (lambda found: found.map(lambda *sample: sample), "_MapDataset: what `map`, `take`"),
        (lambda found: arrays(IMAGES, np.zeros(6)), "one whose targets are no dict"),
        (lambda found: arrays(IMAGES, {"boxes": TARGETS["boxes"]}), "one whose targets are boxes"),
        (
            lambda found: arrays(IMAGES, TARGETS | {"difficult": TARGETS["crowd"]}),
            "one that names no files",
        ),
        (lambda found: 3, "int: what"),
    ],
)
def test_other_data_sets_are_refused_before_anything_is_written(whole, tmp_path, change, got):
    data = change(whole)
    for write in (
        lambda: write_coco(data, tmp_path / "new", "/"),
        lambda: write_yolo(data, tmp_path / "new"),
        lambda: write_voc(data, tmp_path / "new"),
    ):
        with pytest.raises(ValueError, match=r"write_\w+: expected the data set of a reader of boxes .*got " + got):
            write()
        assert not (tmp_path / "new").exists()


def test_single_samples_are_written_as_batches_are(whole, tmp_path):
    single = coco(*whole.place, image_size=(48, 64), batch_size=None)
    for name, data in (("one", single), ("all", whole)):
        write_coco(data, tmp_path / name, whole.place[1])
    assert (tmp_path / "one").read_text() == (tmp_path / "all").read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    files.write_coco(folder, IMAGES, TARGETS)
    place = (folder / "annotations.json", folder / "images")
    found = coco(*place, image_size=(48, 64))
    found.place = place
    return found
