"""Maps of instances become the boxes, labels and masks of the data contract."""

import numpy as np
import PIL.Image
import pytest

from kvision.contract import check_targets
from kvision.data import instance_masks
from kvision.data.geometry import boxes_of_masks
from kvision.data.instance_masks import _Runs
from tests.data.test_detection import batches

pytestmark = pytest.mark.tensorflow_only

NAMES = ("disc", "square")
IDS = np.zeros((20, 30), "uint16")
IDS[2:8, 3:9], IDS[10:18, 12:20], IDS[0:20, 24:26], IDS[15:18, 2:6] = 1, 300, 2, 1  # the first one is in two parts
CLASSES = np.select([IDS == 1, IDS == 300, IDS == 2], [1, 2, 255], 0).astype("uint8")


@pytest.fixture
def folders(tmp_path):
    for kind in ("images", "ids", "classes"):
        (tmp_path / kind).mkdir()
    for name in "ab":
        PIL.Image.fromarray(np.full((20, 30, 3), 90, "uint8")).save(tmp_path / "images" / f"{name}.jpg")
        PIL.Image.fromarray(IDS).save(tmp_path / "ids" / f"{name}.png")
        PIL.Image.fromarray(CLASSES).save(tmp_path / "classes" / f"{name}.png")
    return tmp_path


def read(folders, names=NAMES, class_of=None, **options):
    options = {"image_size": (20, 30), "mask_size": None, "max_boxes": 5} | options
    return instance_masks(folders / "images", folders / "ids", names, class_of, **options)


def test_runs_are_the_masks():
    rng = np.random.default_rng(0)
    for _ in range(20):
        numbers = rng.integers(0, 4, (rng.integers(1, 6), rng.integers(1, 6)))
        for number, box, area, lengths in _Runs(numbers).objects():
            mask = numbers == number
            assert list(box) == boxes_of_masks(mask[None])[0].tolist() and area == mask.sum()
            filled = np.repeat(np.arange(len(lengths)) % 2, lengths).reshape(mask.shape[::-1]).T
            np.testing.assert_array_equal(filled, mask)


def test_objects_without_a_class_are_all_of_the_one(folders):
    found = read(folders, ("thing",))
    images, targets = batches(found)
    check_targets(images, targets, classes=1)
    assert targets["labels"].tolist() == [[0, 0, 0, -1, -1]] * 2
    np.testing.assert_array_equal(targets["masks"][0, :3], [IDS == 1, IDS == 2, IDS == 300])
    assert targets["boxes"][0, :3].tolist() == [[2, 2, 9, 18], [24, 0, 26, 20], [12, 10, 20, 18]]
    assert targets["area"][0, :3].tolist() == [48, 40, 64]
    assert (found.class_names, found.problems, found.counts) == (("thing",), [], (6,))
    assert "box_masks" in read(folders, ("thing",), mask_size=28).element_spec[1]
    assert not {"masks", "box_masks"} & set(read(folders, ("thing",), masks=False).element_spec[1])


def test_the_class_is_that_of_most_pixels_in_a_label_map(folders):
    mixed = CLASSES.copy()
    mixed[10:12, 12:20] = 1  # a quarter of the square
    PIL.Image.fromarray(mixed).save(folders / "classes" / "b.png")
    found = read(folders, class_of=folders / "classes")
    _, targets = batches(found)
    assert targets["labels"].tolist() == [[0, 1, -1, -1, -1]] * 2  # that of 255 is ignored
    assert found.problems == []


@pytest.mark.parametrize("kind", ["dict", "csv"])
def test_the_class_by_file_and_number(folders, kind):
    rows = [(f"{name}.jpg", number, label) for name in "ab" for number, label in ((1, "square"), (300, 0), (2, "x"))]
    if kind == "csv":
        class_of = folders / "classes.csv"
        class_of.write_text("file,id,class\n" + "".join(",".join(map(str, row)) + "\n" for row in rows[:5]))
    else:
        class_of = {}
        for file, number, label in rows[:5]:
            class_of.setdefault(file, {})[number] = label
    found = read(folders, class_of=class_of)
    assert batches(found)[1]["labels"].tolist() == [[1, 0, -1, -1, -1]] * 2
    assert [problem.row for problem in found.problems] == ["instance 2", "instance 2"]
    assert "Unknown class: got 'x'" in found.problems[0].reason
    assert found.problems[1].reason == "its class is not told by class_of"
    assert found.problems[0].file == str(folders / "ids" / "a.png")


def test_rows_of_the_table_without_all_three_are_named_and_left_out(folders):
    rows = "id,class,file\n1,square,a.jpg\n2\n1,,a.jpg\n300,disc,a.jpg\n1,disc,b.jpg\n2,disc,b.jpg\n300,disc,b.jpg\n"
    (folders / "classes.csv").write_text(rows)
    found = read(folders, class_of=folders / "classes.csv")
    told = [(problem.row, problem.reason) for problem in found.problems if problem.file.endswith(".csv")]
    expected = "expected a file, an id and a class, got"
    assert told == [("line 3", f"{expected} '', '2' and ''"), ("line 4", f"{expected} 'a.jpg', '1' and ''")]
    assert found.counts == (4, 1)
    (folders / "classes.csv").write_text(rows + "9" * 200_000 + ",x,a.jpg\n")
    with pytest.raises(
        ValueError, match=r"instance_masks: .*classes.csv', line 9, cannot be read as CSV: field larger"
    ):
        read(folders, class_of=folders / "classes.csv")


def test_the_number_of_an_object_tells_its_class(folders):
    """Cityscapes' instanceIds: the class times 1000 and a counter, and the classes of what has no instances."""
    for name in "ab":
        (folders / "ids" / f"{name}.png").unlink()
        (folders / "images" / f"{name}.jpg").rename(folders / "images" / f"{name}_leftImg8bit.jpg")
        ids = np.select([IDS == 1, IDS == 2, IDS == 300], [26001, 24000, 7], 0).astype("uint16")
        PIL.Image.fromarray(ids).save(folders / "ids" / f"{name}_gtFine_instanceIds.png")
    things = {26: "disc", 24: 1}
    suffixes = ("_leftImg8bit", "_gtFine_instanceIds")
    found = read(folders, class_of=lambda number: things.get(number // 1000), suffixes=suffixes)
    _, targets = batches(found)
    assert targets["labels"].tolist() == [[1, 0, -1, -1, -1]] * 2 and found.problems == []
    np.testing.assert_array_equal(targets["masks"][0, 1], IDS == 1)
    with pytest.raises(ValueError, match="instance 26001: Unknown class: got 'disk'"):
        read(folders, class_of=lambda number: "disk", suffixes=suffixes)


def test_label_maps_of_classes_have_the_suffix_or_the_plain_name(folders):
    for name in "ab":
        (folders / "ids" / f"{name}.png").rename(folders / "ids" / f"{name}_i.png")
    (folders / "classes" / "a.png").rename(folders / "classes" / "a_i.png")
    _, targets = batches(read(folders, class_of=folders / "classes", suffixes=("", "_i")))
    assert targets["labels"].tolist() == [[0, 1, -1, -1, -1]] * 2


def test_colours_are_numbers_and_some_are_no_object(folders):
    colours = np.stack([IDS % 256, IDS // 256, 0 * IDS], axis=-1).astype("uint8")
    PIL.Image.fromarray(colours).save(folders / "ids" / "a.png")
    _, targets = batches(read(folders, ("thing",), ignored_id=300))
    assert targets["labels"].tolist() == [[0, 0, -1, -1, -1]] * 2
    np.testing.assert_array_equal(targets["masks"][0], targets["masks"][1])


def test_maps_that_cannot_be_are_named_and_left_out(folders):
    PIL.Image.fromarray(IDS[:10]).save(folders / "ids" / "a.png")
    found = read(folders, ("thing",))
    (problem,) = found.problems
    assert problem.file == str(folders / "ids" / "a.png") and "it has (10, 30) pixels" in problem.reason
    (folders / "classes" / "b.png").unlink()
    PIL.Image.fromarray(IDS).save(folders / "ids" / "a.png")
    (problem,) = read(folders, class_of=folders / "classes").problems
    assert problem.file == str(folders / "ids" / "b.png") and "there is no label map of b.jpg" in problem.reason
    (folders / "ids" / "a.png").unlink()
    PIL.Image.fromarray(np.zeros((20, 30), "uint8")).save(folders / "ids" / "b.png")
    _, targets = batches(read(folders, ("thing",)))
    assert (targets["labels"] == -1).all()  # an image without an object is a normal one


@pytest.mark.parametrize(
    ("names", "class_of", "message"),
    [
        (NAMES, None, "of 2 classes, class_of must tell that of each object"),
        (NAMES, "nowhere", "'nowhere' is neither a folder of label maps nor a CSV file"),
        ((), None, "class_names is empty"),
    ],
)
def test_arguments_that_cannot_be_are_refused(folders, names, class_of, message):
    with pytest.raises(ValueError, match=message):
        read(folders, names, class_of)
    (folders / "x.csv").write_text("name,id\na,1\n")
    with pytest.raises(ValueError, match="needs the columns file, id, class: got name, id"):
        read(folders, NAMES, folders / "x.csv")
