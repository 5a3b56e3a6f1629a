"""Data sets as tools and people make them: layouts, orientations, encodings, rows of every kind."""

import json

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from kvision.data import coco, voc, yolo
from tests.data.test_detection import batches

pytestmark = pytest.mark.tensorflow_only

WHITE = np.zeros((60, 40, 3), "uint8")  # what a viewer shows: a white object at x 5…25, y 10…40
WHITE[10:40, 5:25] = 255
UNDO = {
    1: None, 2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90",
    7: "TRANSVERSE", 8: "ROTATE_270",
}  # fmt: skip
LINE = "0 0.375 0.4166667 0.5 0.5\n"


def photos(folder):
    """One image of each orientation, `1.jpg` … `8.jpg`, which a viewer shows alike."""
    folder.mkdir(parents=True, exist_ok=True)
    for orientation, undo in UNDO.items():
        image = PIL.Image.fromarray(WHITE)
        image = image if undo is None else image.transpose(PIL.Image.Transpose[undo])
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        image.save(folder / f"{orientation}.jpg", exif=exif, quality=95)
        with PIL.Image.open(folder / f"{orientation}.jpg") as stored:
            assert np.abs(np.asarray(PIL.ImageOps.exif_transpose(stored)).astype(int) - WHITE).mean() < 3


def plain(folder, *names):
    """Grey images of 100 x 100 pixels."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(np.full((100, 100, 3), 90, "uint8")).save(folder / name)


def boxes_of(found):
    _, targets = batches(found)
    return [
        boxes[labels >= 0].round(1).tolist() for boxes, labels in zip(targets["boxes"], targets["labels"], strict=True)
    ]


def light_in_boxes(found, count=8):
    images, targets = batches(found)
    assert len(images) == count
    for image, ((left, top, right, bottom), *_) in zip(images, targets["boxes"].round().astype(int), strict=True):
        yield image[top:bottom, left:right].mean() > 235 and image.sum() < 1.1 * image[top:bottom, left:right].sum()


def test_yolo_boxes_lie_on_their_objects_in_every_orientation(tmp_path):
    photos(tmp_path)
    for k in range(1, 9):
        (tmp_path / f"{k}.txt").write_text(LINE)
    assert all(light_in_boxes(yolo(tmp_path, image_size=(60, 60))))
    assert list(light_in_boxes(yolo(tmp_path, image_size=(60, 60), orientation="stored"))) == [True] + [False] * 7


def test_coco_and_voc_boxes_lie_where_the_stated_size_says(tmp_path, capsys):
    photos(tmp_path)
    images, objects = [], []
    for k in range(1, 17):  # 9 … 16: the same files, boxes and sizes as stored
        orientation = (k - 1) % 8 + 1
        mask = np.zeros((60, 40), "uint8")
        mask[10:40, 5:25] = 1
        undo = UNDO[orientation]
        if k > 8 and undo:
            mask = np.asarray(PIL.Image.fromarray(mask).transpose(PIL.Image.Transpose[undo]))
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = [int(n) for n in (columns[0], rows[0], len(columns), len(rows))]
        if k > 8 and mask.shape == (60, 40):
            continue  # of the same size either way: the size does not tell
        images.append({"id": k, "file_name": f"{orientation}.jpg", "height": mask.shape[0], "width": mask.shape[1]})
        objects.append({"image_id": k, "category_id": 1, "bbox": box})
    content = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "x"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    found = coco(tmp_path / "a.json", tmp_path, image_size=(60, 60))
    assert all(light_in_boxes(found, 12)) and found.problems == []
    assert "4 images are taken as stored" in capsys.readouterr().out
    images[5]["width"] = 41
    (tmp_path / "a.json").write_text(json.dumps(content))
    (problem,) = coco(tmp_path / "a.json", tmp_path, image_size=(60, 60)).problems
    assert "6.jpg has (40, 60), or (60, 40) turned by its EXIF orientation 6, pixels" in problem.reason
    for k in range(1, 9):
        box = "<xmin>6</xmin><ymin>11</ymin><xmax>25</xmax><ymax>40</ymax>"
        (tmp_path / f"{k}.xml").write_text(
            f"<annotation><filename>{k}.jpg</filename><size><width>40</width><height>60</height></size>"
            f"<object><name>x</name><bndbox>{box}</bndbox></object></annotation>"
        )
    assert all(light_in_boxes(voc(tmp_path, image_size=(60, 60))))


YAML = "train: ../train/images\nval: ../valid/images\nnc: 3\nnames: {}\n"


@pytest.mark.parametrize("names", ["[cat, no, bird]", "\n  0: cat\n  1: no\n  2: bird", "\n- cat\n- 'no'\n- bird"])
def test_data_yaml_and_roboflow_folders(tmp_path, names):
    for part in ("train", "valid"):
        for k in range(3):
            plain(tmp_path, f"{part}/images/{k}.jpg")
            (tmp_path / part / "labels").mkdir(exist_ok=True)
            (tmp_path / part / "labels" / f"{k}.txt").write_text(f"{k % 2} 0.5 0.5 0.25 0.25\n")
    (tmp_path / "data.yaml").write_text(YAML.format(names))
    options = {"image_size": (32, 32)}
    for folder, split, count in ((tmp_path, "train", 3), (tmp_path, "val", 3), (tmp_path, None, 6)):
        found = yolo(folder, split=split, **options)
        assert (found.class_names, sum(found.counts), len(found.files)) == (("cat", "no", "bird"), count, count)
    assert yolo(tmp_path / "train", **options).counts == (2, 1, 0)
    assert yolo(tmp_path, split="valid", classes=["bird", "no", "cat"], **options).counts == (0, 1, 2)
    (tmp_path / "data.yaml").write_text(YAML.format("[cat]"))
    with pytest.raises(ValueError, match="has 1 names, but says nc: 3"):
        yolo(tmp_path)
    (tmp_path / "data.yaml").write_text("names: [cat")
    with pytest.raises(ValueError, match="cannot be read as YAML: while parsing"):
        yolo(tmp_path)


def test_a_split_of_data_yaml_may_be_a_list_of_files(tmp_path):
    plain(tmp_path, "images/train2017/10.jpg", "images/train2017/9.jpg", "images/val2017/1.jpg")
    (tmp_path / "labels" / "train2017").mkdir(parents=True)
    for k in (9, 10):
        (tmp_path / "labels" / "train2017" / f"{k}.txt").write_text(LINE)
    assert list(yolo(tmp_path, split="train").files.values()) == [
        str(tmp_path / "images" / "train2017" / f"{k}.jpg") for k in (9, 10)
    ]
    (tmp_path / "data.yaml").write_text("path: /elsewhere/coco\ntrain: train.txt\nnames: [x]\n")
    (tmp_path / "train.txt").write_text("./images/train2017/9.jpg\n/elsewhere/coco/images/train2017/8.jpg\n")
    found = yolo(tmp_path, split="train")
    assert len(found.files) == 1 and "there is no such image" in found.problems[0].reason


def test_images_without_any_text_file_are_an_error(tmp_path):
    plain(tmp_path, "images/a.jpg", "images/b.jpg")
    with pytest.raises(ValueError, match="none of the 2 images has a text file"):
        yolo(tmp_path)


GOOD = [[40.0, 40.0, 60.0, 60.0]]


@pytest.mark.parametrize(
    ("text", "encoding", "boxes"),
    [
        ("0 0.5 0.5 0.2 0.2\n", "utf-8-sig", GOOD),
        ("0 0.5 0.5 0.2 0.2\n", "utf-16", GOOD),
        ("0 0.5 0.5 0.2 0.2\n", "utf-16-le", GOOD),
        ("0.0 5e-1 5E-01 2e-1 2e-1  \r\n\r\n  \r\n", "utf-8", GOOD),
        ("0,0.5,0.5,0.2,0.2\n", "utf-8", GOOD),
        ("0 0.5 0.5 0.2 0.2 0.45 0.45 0.5 0.5 0.55 0.55\n", "utf-8", GOOD),  # keypoints
        ("0 0.5 0.5 0.2 0.2 0.45 0.45 2 0.5 0.5 2 0.55 0.55 2 0.5 0.45 1\n", "utf-8", GOOD),
        ("0 0.5 0.5 0.2 0.2 " + "0.5 0.5 2 " * 17, "utf-8", GOOD),
        ("0 0.4 0.4 0.6 0.4 0.6 0.6 0.4 0.6\n", "utf-8", GOOD),  # a polygon
        ("0 0.4 0.5 0.5 0.4 0.6 0.5 0.5 0.6 0.45 0.55\n", "utf-8", GOOD),
        ("0 0.5 0.5 1.2 0.2\n", "utf-8", [[0.0, 40.0, 100.0, 60.0]]),
    ],
)
def test_yolo_lines_of_every_kind(tmp_path, text, encoding, boxes):
    plain(tmp_path, "a.jpg")
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    assert boxes_of(yolo(tmp_path, image_size=(100, 100))) == [boxes]


def coco_of(folder, image=(), entry=(), category=()):
    plain(folder, "a.jpg")
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", **dict(image)}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [40, 40, 20, 20], **dict(entry)}],
        "categories": [{"id": 1, "name": "café", **dict(category)}],
    }
    return json.dumps(content, ensure_ascii=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"image": {"id": "1"}},
        {"image": {"id": 1.0}, "entry": {"category_id": "1"}},
        {"image": {"width": 0, "height": "unknown"}},
        {"image": {"width": "100", "height": 100.0}},
        {"entry": {"bbox": ["40", "40", "20", "20"]}},
        {"entry": {"bbox": "[40, 40, 20, 20]"}},
        {"entry": {"iscrowd": "0", "area": "?"}},
        {"entry": {"segmentation": [[40, 40, 60, 40, 60, 60, 40, 60], [1, 2]]}},
        {"image": {"file_name": ".\\a.jpg"}},
    ],
)
def test_coco_entries_of_every_kind(tmp_path, changes):
    encoding = "latin-1" if "image" in changes else "utf-8-sig"
    (tmp_path / "a.json").write_bytes(coco_of(tmp_path, **changes).encode(encoding))
    found = coco(tmp_path / "a.json", tmp_path, image_size=(100, 100), masks="segmentation" in str(changes))
    _, targets = batches(found)
    assert targets["boxes"][0, 0].tolist() == GOOD[0] and not targets["crowd"].any()
    assert (found.class_names, found.problems) == (("café",), [])


def test_a_file_name_may_not_leave_its_folder_unless_asked(tmp_path):
    for name in ("../b.jpg", str(tmp_path / "b.jpg"), "x/../../b.jpg", "C:\\b.jpg"):
        (tmp_path / "a.json").write_text(coco_of(tmp_path / "in", image={"file_name": name}))
        plain(tmp_path, "b.jpg")
        with pytest.raises(ValueError, match="leads out of the folder .*pass outside=True"):
            coco(tmp_path / "a.json", tmp_path / "in")
    (tmp_path / "a.json").write_text(coco_of(tmp_path / "in", image={"file_name": "../b.jpg"}))
    assert coco(tmp_path / "a.json", tmp_path / "in", outside=True).counts == (1,)


def test_objects_of_which_none_can_be_used_are_an_error(tmp_path):
    (tmp_path / "a.json").write_text(coco_of(tmp_path, entry={"category_id": 7}))
    with pytest.raises(ValueError, match=r"coco: objects are listed, but none of them .*no category has the id 7"):
        coco(tmp_path / "a.json", tmp_path)


def side(*numbers):
    names = ("xmin", "ymin", "xmax", "ymax")
    return f"<bndbox>{''.join(f'<{n}>{v}</{n}>' for n, v in zip(names, numbers, strict=True))}</bndbox>"


@pytest.mark.parametrize("folders", [("", ""), ("Annotations", "JPEGImages"), ("annotations", "images")])
def test_voc_objects_of_every_kind_in_every_layout(tmp_path, folders):
    xml, images = (tmp_path / name for name in folders)
    plain(images, "a.jpg", "b.jpg")
    xml.mkdir(exist_ok=True)
    (xml / "a.xml").write_bytes(
        (
            "<annotation><filename>C:\\x\\a.jpg</filename><size><width>0</width><height>?</height></size>"
            f"<object><part><name>head</name>{side(1, 1, 9, 9)}</part><name>café </name>{side(41, 41, 60, 60)}</object>"
            f"<object><name>car</name>{side(1, 1, 20, 20)}{side(31, 31, 50, 50)}{side(61, 61, 80, 80)}</object>"
            f"<object><name>car</name><difficult>true</difficult>{side('10.5', '1e1', ' 50.5', 60)}</object>"
            "</annotation>"
        ).encode("latin-1")
    )
    (xml / "b.xml").write_text(f"<annotation><object><name>bird</name>{side(1, 1, 9, 9)}</object></annotation>")
    found = voc(tmp_path, split=["a.jpg"] if folders[1] == "" else [f"{folders[1]}/a.jpg"], image_size=(100, 100))
    assert boxes_of(found) == [[*GOOD, [0, 0, 20, 20], [30, 30, 50, 50], [60, 60, 80, 80], [9.5, 9, 50.5, 60]]]
    assert found.class_names == ("bird", "café", "car")  # of all files, whatever the split
    assert batches(found)[1]["difficult"][0, :6].tolist() == [0, 0, 0, 0, 1, 0]
