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


def written(kind, found, folder, classes=NAMES, **options):
    options = OPTIONS | options
    if kind == "coco":
        write_coco(found, folder.with_suffix(".json"), folder.parent)
        return coco(folder.with_suffix(".json"), folder.parent, **options)
    {"yolo": write_yolo, "voc": write_voc}[kind](found, folder)
    return {"yolo": yolo, "voc": voc}[kind](folder, classes=classes, **options)


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


@pytest.mark.parametrize("image_size", [(512, 512), (64, 48)])
@pytest.mark.parametrize("kind", ["coco", "voc", "yolo"])
def test_boxes_are_written_as_the_files_have_them(tmp_path, kind, image_size):
    """Whatever the size of the images in training, in which a side of 170.5 pixels ends at 170."""
    size, boxes = (333, 1000), [[900, 300, 1000, 333], [10.3, 20.7, 40.4, 333]]
    (tmp_path / "in").mkdir()
    PIL.Image.new("RGB", size[::-1]).save(tmp_path / "in" / "1.png")
    content = {
        "images": [{"id": 1, "file_name": "1.png"}],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [
            {"image_id": 1, "category_id": row + 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": 5.5}
            for row, (x1, y1, x2, y2) in enumerate(boxes)
        ],
    }
    (tmp_path / "in.json").write_text(json.dumps(content))
    found = coco(tmp_path / "in.json", tmp_path / "in", image_size=image_size)
    again = written(kind, found, tmp_path / "out", classes=found.class_names, image_size=size)
    _, targets = batches(again)
    np.testing.assert_allclose(targets["boxes"][0, :2], boxes, atol=1e-3)
    assert targets["labels"][0, :3].tolist() == [0, 1, -1]
    if kind == "coco":
        assert targets["area"][0, :2].tolist() == [5.5, 5.5]


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
