"""Tables of boxes and of labels: columns by their names, splits and classes as of all readers."""

import numpy as np
import PIL.Image
import pytest

from kvision.data import csv, csv_labels
from tests.data.test_detection import batches

pytestmark = pytest.mark.tensorflow_only

BOXES = """filename,width,xmin,ymin,xmax,ymax,class
a.png,40,2,3,12,13,dog
a.png,40,5,6,25,26,cat
b.png,40,0,0,40,30,cat
c.png,40,,,,,
"""


@pytest.fixture
def folder(tmp_path):
    for shade, name in enumerate("abcd"):
        PIL.Image.fromarray(np.full((30, 40, 3), 60 * shade, "uint8")).save(tmp_path / f"{name}.png")
    return tmp_path


def write(folder, text):
    (folder / "table.csv").write_text(text, encoding="utf-8-sig")
    return folder / "table.csv", folder


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (lambda text: text, {}),
        (lambda text: text.replace(",", ";"), {}),
        (lambda text: text.replace("xmin,ymin,xmax,ymax", "x1,y1,x2,y2").replace("class", "label"), {}),
        (
            lambda text: text.replace("filename", "picture").replace("xmin,ymin,xmax,ymax", "l,t,r,b"),
            {"file_column": "picture", "label_column": "class", "corner_columns": ("l", "t", "r", "b")},
        ),
    ],
)
def test_boxes(folder, change, options):
    found = csv(*write(folder, change(BOXES)), image_size=(30, 40), **options)
    _, targets = batches(found)
    assert (found.class_names, found.counts, found.problems) == (("cat", "dog"), (2, 1), [])
    assert targets["labels"][:, :2].tolist() == [[1, 0], [0, -1], [-1, -1]]
    assert targets["boxes"][0, :2].tolist() == [[2, 3, 12, 13], [5, 6, 25, 26]]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a.png,40,2,3,x,13,dog", "(2, 3, x, 13) are not four numbers"),
        ("a.png,40,2,3,12,13,", "there is no class ''"),
        ("a.png,40,2,3,2,13,dog", "has no area"),
        ("../a.png,40,2,3,12,13,dog", "leads out of the folder"),
        ("e.png,40,2,3,12,13,dog", "there is no such file"),
        ("a.png", "there is no class ''"),
    ],
)
def test_bad_rows_are_named_and_left_out(folder, row, reason):
    row = row if row != "a.png" else "a.png,40,1"
    found = csv(*write(folder, f"{BOXES}{row}\n"), image_size=(30, 40))
    (problem,) = found.problems
    assert reason in problem.reason and found.counts == (2, 1)
    assert "line 6" in problem.row or problem.file.endswith("e.png")


@pytest.mark.parametrize(
    ("text", "options", "names", "labels"),
    [
        ("file,label\na.png,10\nb.png,9\nc.png,9\n", {}, ("9", "10"), [1, 0, 0]),
        (
            "image,tags\na.png,sea|sky\nb.png,\nc.png, sky \n",
            {"separator": "|"},
            ("sea", "sky"),
            [[1, 1], [0, 0], [0, 1]],
        ),
        ("file,sky,sea\na.png,1,0\nb.png,1,1\nc.png,0,0\n", {}, ("sky", "sea"), [[1, 0], [1, 1], [0, 0]]),
        ("file,sky,sea\na.png,1,0\nb.png,1,1\n", {"classes": ("sea", "sky")}, ("sea", "sky"), [[0, 1], [1, 1]]),
        (
            "file,tag\na.png,sea|sky\na.png,sun\nb.png,\n",
            {"separator": "|", "label_column": "tag"},
            ("sea", "sky", "sun"),
            [[1, 1, 1], [0, 0, 0]],
        ),
        ("file,label\na.png,x\nb.png,y\na.png,x\n", {}, ("x", "y"), [0, 1]),
        ("file,label\na.png,x\nb.png,y\nc.png,x\n", {"split": ["a.png", "c.png"]}, ("x", "y"), [0, 0]),
    ],
)
def test_labels(folder, text, options, names, labels):
    found = csv_labels(*write(folder, text), image_size=(16, 16), **options)
    assert found.class_names == names and found.problems == []
    seen = np.concatenate([batch for _, batch in found])
    assert seen.tolist() == labels and seen.dtype.name == ("int32" if seen.ndim == 1 else "float32")
    hot = np.eye(len(names))[seen] if seen.ndim == 1 else seen
    assert found.counts == tuple(hot.sum(axis=0).astype(int))


@pytest.mark.parametrize(
    "text", ["file,label\na.png,x\nb.png,y\na.png,y\n", "file,x,y\na.png,1,0\nb.png,0,1\na.png,0,1\n"]
)
def test_an_image_with_contradictory_labels_is_left_out_and_named(folder, text):
    found = csv_labels(*write(folder, text), image_size=(16, 16))
    (problem,) = found.problems
    assert problem.row == "line 2" and found.counts == (0, 1)
    assert "a.png is listed more than once (line 2, line 4), with other labels each time ('x', 'y')" in problem.reason


@pytest.mark.parametrize(
    ("reader", "text", "message"),
    [
        (csv, "", "holds the names of its columns"),
        (csv, "file,xmin,ymin,xmax,ymax,class\n", "csv: .* holds the names of its columns, but no row below"),
        (csv_labels, "file,label\n\n", "csv_labels: .* holds the names of its columns, but no row below"),
        (csv, "a,b\n1,2\n", "has no column file, filename"),
        (csv, "file,label\na.png,x\n", "needs four columns with left"),
        (
            csv,
            "file,xmin,ymin,xmax,ymax,class\n" + 10 * "a.png,0.1,0.2,0.5,0.9,x\n",
            "csv: all 10 boxes lie within 1.5",
        ),
        (csv_labels, "file,when\na.png,today\n", "do not all hold 0 and 1. Name the one of the labels"),
        (csv_labels, "file,label\ne.png,x\n", "no image that can be used"),
        (
            csv_labels,
            "file,label\na.png,x\n" + "a" * 200_000 + ",x\n",
            "csv', line 3, cannot be read as CSV: field",
        ),
    ],
)
def test_tables_that_cannot_be_read_say_why(folder, reader, text, message):
    with pytest.raises(ValueError, match=message):
        reader(*write(folder, text))
    with pytest.raises(
        TypeError, match=rf"{reader.__name__}: got an unexpected keyword argument 'labels'; it takes file"
    ):
        reader(*write(folder, text), labels="x")
    with pytest.raises(ValueError, match="its file lists no splits, got split='train'"):
        reader(*write(folder, text), split="train")


def test_a_missing_table_says_so(tmp_path):
    with pytest.raises(ValueError, match="csv: .*none.csv' cannot be read"):
        csv(tmp_path / "none.csv", tmp_path)
