"""Label maps go where their images go, and hold the numbers of the file."""

import re

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from kvision import data
from kvision.data import masks
from kvision.data.label_maps import Coding

pytestmark = pytest.mark.tensorflow_only

NAMES = ("ground", "left", "right")
MAP = np.zeros((20, 30), "uint8")
MAP[5:15, 4:12], MAP[5:15, 20:28], MAP[:2] = 1, 2, 255


@pytest.fixture
def folders(tmp_path):
    """Images whose red is the class, and their maps, one of them with a palette."""
    for name in ("a", "b", "train/c"):
        for kind in ("images", "maps"):
            (tmp_path / kind / name).parent.mkdir(parents=True, exist_ok=True)
        red = np.stack([np.where(MAP == 255, 0, MAP) * 100, 0 * MAP, 0 * MAP], axis=-1)
        PIL.Image.fromarray(red).save(tmp_path / "images" / f"{name}.png")
        labels = PIL.Image.fromarray(MAP)
        if name == "b":
            labels.putpalette(list(range(255, -1, -1)) * 3)
        labels.save(tmp_path / "maps" / f"{name}.png")
    return tmp_path / "images", tmp_path / "maps"


@pytest.mark.parametrize("scale", [1, 2])
def test_maps_go_where_their_images_go(folders, scale):
    found = masks(*folders, NAMES, image_size=(24 * scale, 30 * scale))
    images, labels = next(iter(found))
    want = np.full((24, 30), 255)
    want[:20] = MAP
    np.testing.assert_array_equal(labels, [want.repeat(scale, 0).repeat(scale, 1)] * 3)
    assert labels.dtype == "int32" and (found.class_names, found.classes, found.problems) == (NAMES, 3, [])
    if scale == 1:
        np.testing.assert_allclose(images[0, :20, :, 0], np.where(MAP == 255, 0, MAP) * 100, atol=1e-3)
    assert len(masks(*folders, NAMES, split="train").files) == 1


def test_maps_that_cannot_be_are_named_and_left_out(folders):
    PIL.Image.fromarray(MAP[:10]).save(folders[1] / "a.png")
    PIL.Image.fromarray(np.where(MAP == 2, 3, MAP).astype("uint8")).save(folders[1] / "b.png")
    PIL.Image.fromarray(MAP).save(folders[0] / "d.png")
    found = masks(*folders, NAMES)
    reasons = " ".join(problem.reason for problem in found.problems)
    assert len(found.files) == 1 and len(found.problems) == 3
    assert "it has (10, 30) pixels (height, width), its image (20, 30)" in reasons
    assert "it holds the class 3 at row 5, column 20; there are 3, counted from 0, and 255 is ignored" in reasons
    assert "there is no map" in reasons
    with pytest.raises(ValueError, match="classes= cannot order"):
        masks(*folders, NAMES, classes=NAMES)


# Colours, and numbers that are not the labels

COLOURS = ((0, 0, 0), (128, 0, 0), (0, 128, 0))
BORDER = (224, 224, 192)


def coloured(labels):
    table = np.zeros((256, 3), "uint8")
    table[[0, 1, 2, 255]] = [*COLOURS, BORDER]
    return PIL.Image.fromarray(table[labels])


def indexed(labels):
    """The same colours as a palette in another order."""
    numbers = np.full(256, 9, "uint8")
    numbers[:3] = 3, 1, 0
    image = PIL.Image.fromarray(numbers[labels])
    colours = np.zeros((256, 3), "uint8")
    colours[[3, 1, 0, 9]] = [*COLOURS, BORDER]
    image.putpalette(colours.ravel().tolist())
    return image


PALETTE = dict(zip(COLOURS, (0, "left", 2), strict=True)) | {BORDER: None}


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (coloured(MAP), {"palette": PALETTE}),
        (indexed(MAP), {"palette": PALETTE}),
        (coloured(np.where(MAP == 255, 0, MAP)), {"palette": list(COLOURS)}),
        (
            PIL.Image.fromarray(np.where(MAP == 255, 0, MAP * 7 + 7).astype("uint8")),
            {"palette": {7: 0, 14: 1, 21: 2, 0: None}},
        ),
        (PIL.Image.fromarray(np.where(MAP == 255, 9, MAP).astype("uint8")), {"ignored_label": 9}),
        (PIL.Image.fromarray(np.where(MAP == 255, 999, MAP.astype("uint16"))), {"ignored_label": 999}),
        (PIL.Image.fromarray(np.where(MAP == 255, 0, MAP).astype("uint8")), {"ignored_label": None}),
        (PIL.Image.fromarray(MAP.astype("float32")), {}),
    ],
)
def test_maps_of_every_coding_hold_the_same(tmp_path, image, options):
    path = tmp_path / ("a.tif" if image.mode == "F" else "a.png")
    image.save(path)
    labels = Coding("masks", NAMES, **options).read(path, MAP.shape)
    whole = isinstance(options.get("palette"), list) or options.get("ignored_label", 0) is None
    np.testing.assert_array_equal(labels, np.where(MAP == 255, 0, MAP) if whole else MAP)


@pytest.mark.parametrize(
    ("image", "options", "reason"),
    [
        (coloured(MAP), {}, "it has 3 channels; a map has one number for each pixel: pass palette= for colours"),
        (
            coloured(MAP),
            {"palette": COLOURS},
            r"colour (224, 224, 192) at row 0, column 0, which is not in the palette",
        ),
        (coloured(MAP), {"palette": {(0, 0, 0): 0}}, "palette, nor are 2 more"),
        (PIL.Image.fromarray(MAP), {"palette": {0: 0, 255: None, 1: 1}}, "the number 2 at row 5, column 20"),
        (PIL.Image.fromarray(np.full_like(MAP, 255)), {}, "all of its pixels are ignored"),
        (PIL.Image.fromarray(MAP.astype("uint16") + 1), {"palette": PALETTE}, "numbers have 16 bits"),
        (PIL.Image.fromarray(MAP), {"ignored_label": None}, "the class 255 at row 0, column 0; there are 3"),
        (PIL.Image.fromarray((MAP == 1) * np.float32(0.5)), {}, "it holds 0.5 at row 5, column 4, no whole number"),
    ],
)
def test_a_bad_map_is_told_by_its_pixel(tmp_path, image, options, reason):
    path = tmp_path / ("a.tif" if image.mode == "F" else "a.png")
    image.save(path)
    with pytest.raises(ValueError, match=re.escape(reason)):
        Coding("masks", NAMES, **options).read(path, MAP.shape)


# Maps whose names end otherwise than those of their images

CITY = "aachen/aachen_00000{}_000019"
TRAIN_IDS = ("_leftImg8bit", "_gtFine_labelTrainIds")


@pytest.fixture
def city(tmp_path):
    """As Cityscapes lies on a disk: two images, each with maps of three kinds."""
    for part, kinds in (("leftImg8bit", ("leftImg8bit",)), ("gtFine", ("color", "labelIds", "labelTrainIds"))):
        (tmp_path / part / "train" / "aachen").mkdir(parents=True)
        for number in range(2):
            for value, kind in enumerate(kinds):
                pixels = np.full((20, 30, 3)[: 3 if kind in ("color", "leftImg8bit") else 2], value, "uint8")
                prefix = "" if part == kind else f"{part}_"
                PIL.Image.fromarray(pixels).save(
                    tmp_path / part / "train" / f"{CITY.format(number)}_{prefix}{kind}.png"
                )
    return tmp_path / "leftImg8bit", tmp_path / "gtFine"


@pytest.mark.parametrize(("suffix", "label"), [("_gtFine_labelIds", 1), ("_gtFine_labelTrainIds", 2)])
def test_suffixes_choose_among_the_maps_of_an_image(city, suffix, label):
    found = masks(*city, NAMES, suffixes=("_leftImg8bit", suffix), split="train", image_size=(20, 30))
    ((_, labels),) = found
    assert found.problems == [] and labels.shape == (2, 20, 30) and (labels.numpy() == label).all()


def test_maps_beside_their_images_are_no_images(city):
    found = masks(city[1], city[1], NAMES, suffixes=("_color", "_labelIds"), split="train", image_size=(20, 30))
    assert {problem.file.rpartition("_")[2] for problem in found.problems} == {"labelTrainIds.png"}
    ((_, labels),) = found
    assert labels.shape[0] == 2 and (labels.numpy()[:, 0, 0] == 1).all()


def test_the_suffixes_that_would_find_maps_are_told(city):
    ends = "'_gtFine_color', '_gtFine_labelIds', '_gtFine_labelTrainIds'"
    message = f"there are maps whose names end in {ends}: pass suffixes=('_leftImg8bit', '_gtFine_color')"
    with pytest.raises(ValueError, match=re.escape(message)):
        masks(*city, NAMES)
    (city[1] / "train" / f"{CITY.format(1)}_gtFine_labelTrainIds.png").unlink()
    (city[0] / "train" / "note.png").write_bytes((city[0] / "train" / f"{CITY.format(0)}_leftImg8bit.png").read_bytes())
    found = masks(*city, NAMES, suffixes=TRAIN_IDS)
    reasons = [problem.reason for problem in found.problems]
    assert len(found.files) == 1 and len(reasons) == 2
    assert reasons[0].endswith("_gtFine_labelTrainIds.png' for it")
    assert reasons[1] == "its name does not end in '_leftImg8bit', the first of suffixes="


@pytest.mark.parametrize("suffixes", ["_L", ("_L",), ("", 1), ("", "_L.png"), ("", "../L")])
def test_other_suffixes_are_refused(city, suffixes):
    with pytest.raises(ValueError, match="masks: suffixes are the ends of the names of images and maps, two texts"):
        masks(*city, NAMES, suffixes=suffixes)


def test_one_bad_map_is_left_out_with_its_file(folders):
    coloured(np.where(MAP == 255, 0, MAP)).save(folders[1] / "a.png")
    indexed(MAP).save(folders[1] / "b.png")
    options = {"palette": list(COLOURS), "split": ["a.png", "b.png"], "image_size": (20, 30)}
    found = masks(*folders, NAMES, **options)
    (problem,) = found.problems
    assert problem.file == str(folders[1] / "b.png") and "colour (224, 224, 192) at row 0, column 0" in problem.reason
    ((_, labels),) = found
    np.testing.assert_array_equal(labels, [np.where(MAP == 255, 0, MAP)])
    with pytest.raises(ValueError, match=f"{problem.file}: the map cannot be read"):
        masks(*folders, NAMES, **options, on_error="raise")


def test_what_fails_in_training_is_told_with_the_map_to_blame(folders):
    found = masks(*folders, NAMES, check="header", image_size=(20, 30))
    assert len(found.files) == 3
    (folders[1] / "b.png").write_bytes(b"no map")
    with pytest.raises(
        tf.errors.InvalidArgumentError,
        match=r"1 of 3 images failed .*maps/b.png: the map cannot be read: it is a file th",
    ):
        list(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"palette": COLOURS[:2]}, "one colour for each of the 3 classes: got 2"),
        ({"palette": COLOURS[:2] + COLOURS[:1]}, r"got \(0, 0, 0\) twice"),
        ({"palette": {(0, 0, 0): 3}}, "the palette has the class 3, expected 0 to 2, a name of class_names, or None"),
        ({"palette": {(0, 0, 0): "lef"}}, "Unknown class in the palette of masks: got 'lef'"),
        ({"palette": {(0, 0): 1}}, "whose keys are such colours or numbers from 0"),
        ({"palette": {(0, 0, 256): 1}}, "whose keys are such colours or numbers from 0"),
        ({"palette": PALETTE, "ignored_label": 0}, "leave out ignored_label=0"),
        ({"ignored_label": "void"}, "ignored_label is a number of the maps, or None: got 'void'"),
        ({"image_size": (0, 8)}, "image_size must be at least 1"),
    ],
)
def test_arguments_that_cannot_be_are_refused(folders, options, message):
    with pytest.raises(ValueError, match=message):
        masks(*folders, NAMES, **options)
    with pytest.raises(ValueError, match="got 256 class_names, expected 1 to 255"):
        masks(*folders, map(str, range(256)))


def test_a_mask_of_0_and_255_is_remarked(folders, capsys):
    for name in ("a", "b", "train/c"):
        PIL.Image.fromarray(np.where(MAP == 1, 255, 0).astype("uint8")).save(folders[1] / f"{name}.png")
    masks(*folders, ("ground", "cell"))
    assert "if it is an object, pass palette={0: 'ground', 255: 'cell'}" in capsys.readouterr().out
    found = masks(*folders, ("ground", "cell"), palette={0: "ground", 255: "cell"}, image_size=(20, 30))
    np.testing.assert_array_equal(next(iter(found))[1][0], MAP == 1)


def test_the_lists_of_voc_are_splits(folders):
    lists = folders[0].parent / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("a\nz\n")
    found = masks(*folders, NAMES, split="val")
    assert [*found.files.values()] == [str(folders[0] / "a.png")]
    assert [problem.row for problem in found.problems] == ["line 2"]


def test_check_tells_what_the_maps_hold(folders, tmp_path):
    report = data.check(masks(*folders, NAMES, image_size=(20, 30)), page=tmp_path / "page.html", verbose=0)
    assert report.counts == {"training": {"ground": 3, "left": 3, "right": 3}}
    images, labels = next(iter(masks(*folders, NAMES, image_size=(20, 30))))
    wrong = tf.data.Dataset.from_tensors((images, tf.where(labels == 2, 7, labels)))
    wrong.class_names = NAMES
    report = data.check(wrong, verbose=0)
    texts = " ".join(finding.text for finding in report.findings)
    assert "3 samples have labels that are not from 0 to 2 (such as 7)" in texts and "1 class has no sample" in texts


# Augmented


@pytest.mark.parametrize(
    "transform",
    [
        data.HorizontalFlip(rate=1.0),
        pytest.param(data.Crop((44, 64), padding=4), marks=pytest.mark.slow),
        data.Affine(rotation=20, scale=(0.7, 1.3)),
        pytest.param(data.RandomResizedCrop((40, 48), area=(0.5, 1.0)), marks=pytest.mark.slow),
        data.ScaleJitter((48, 60), scale=(0.7, 1.5)),
        pytest.param(data.Perspective(distortion=0.3), marks=pytest.mark.slow),
        pytest.param(data.Elastic(), marks=pytest.mark.slow),
        pytest.param(data.CutMix(), marks=pytest.mark.slow),
        pytest.param(data.Mosaic(), marks=pytest.mark.slow),
    ],
    ids=lambda transform: type(transform).__name__,
)
@pytest.mark.parametrize("batched", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_maps_follow_their_images_under_augmentation(folders, transform, batched):
    """The red of a pixel is 100 times its class, so map and image must agree away from where classes meet."""
    found = masks(*folders, NAMES, image_size=(40, 60), batch_size=3)
    if batched:  # as any data set of batches, without its source
        found = tf.data.Dataset.from_tensors(next(iter(found)))
    images, labels = next(iter(data.augment(found, [transform], seed=3)))
    assert labels.dtype == "int32" and labels.shape == images.shape[:3]
    images, labels = images.numpy(), labels.numpy()
    assert set(np.unique(labels)) <= {0, 1, 2, 255} and {0, 1} <= set(np.unique(labels))
    reach = 4 if isinstance(transform, data.Mosaic) else 3  # its seams leave slivers, too narrow for a label
    windows = np.lib.stride_tricks.sliding_window_view(labels, (2 * reach + 1,) * 2, axis=(1, 2))
    inner = slice(reach, -reach)
    images, labels = images[:, inner, inner, 0], labels[:, inner, inner]
    inside = (windows == labels[..., None, None]).all(axis=(-1, -2)) & (labels != 255)
    assert inside.sum() > 100
    np.testing.assert_allclose(images[inside], 100 * labels[inside], atol=0.1)
