"""What all readers of detection data share: the contract, the geometry of resizing, and what is left out."""

import hashlib
import inspect
import json
import re

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from kvision.contract import paste_masks
from kvision.data import HorizontalFlip, Mosaic, ScaleJitter, augment, check_targets, coco, shapes, voc, yolo
from kvision.data.detection import detection_data
from kvision.data.reader import Options
from tests.data.files import compressed, run_lengths, write_coco, write_yolo

pytestmark = pytest.mark.tensorflow_only

IMAGES, TARGETS = shapes(12, image_size=(48, 64), seed=3, masks=True)


def batches(data):
    """Images and targets of all batches, one after the other."""
    parts = [(images.numpy(), {name: value.numpy() for name, value in targets.items()}) for images, targets in data]
    images = np.concatenate([images for images, _ in parts])
    return images, {name: np.concatenate([targets[name] for _, targets in parts]) for name in parts[0][1]}


def save_image(path, size, box=None):
    """A black image file with a white box in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.zeros((*size, 3), "uint8")
    if box is not None:
        image[box[1] : box[3], box[0] : box[2]] = 255
    PIL.Image.fromarray(image).save(path)


def one_box(folder, size, box):
    """A YOLO folder of one image with one white box, which is its object."""
    height, width = size
    save_image(folder / "a.png", size, box)
    left, top, right, bottom = box
    numbers = (left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width, (bottom - top) / height
    (folder / "a.txt").write_text("0 " + " ".join(map(repr, numbers)))
    return folder


def test_shapes_are_static_and_types_those_of_the_contract(tmp_path):
    write_coco(tmp_path, IMAGES, TARGETS)
    found = coco(
        tmp_path / "annotations.json", tmp_path / "images", image_size=(40, 56), batch_size=5, masks=True, mask_size=28,
        max_boxes=7, drop_remainder=True,
    )  # fmt: skip
    images, targets = found.element_spec
    assert images == tf.TensorSpec((5, 40, 56, 3), tf.float32)
    assert {name: (tuple(spec.shape), spec.dtype.name) for name, spec in targets.items()} == {
        "boxes": ((5, 7, 4), "float32"),
        "labels": ((5, 7), "int32"),
        "crowd": ((5, 7), "int32"),
        "difficult": ((5, 7), "int32"),
        "area": ((5, 7), "float32"),
        "image_size": ((5, 2), "int32"),
        "scale": ((5,), "float32"),
        "image_id": ((5,), "int64"),
        "box_masks": ((5, 7, 28, 28), "uint8"),
    }
    assert found.cardinality() == 2
    whole = coco(tmp_path / "annotations.json", tmp_path / "images", image_size=(40, 56), masks=True, mask_size=None)
    assert whole.element_spec[1]["masks"].shape == (None, 100, 40, 56)
    assert whole.cardinality() == 2
    for images, targets in found:
        check_targets(images, targets, classes=found.classes)


@pytest.mark.parametrize(
    ("size", "image_size", "box"),
    [
        ((60, 100), (96, 128), (20, 10, 70, 40)),
        ((60, 100), (24, 128), (20, 10, 70, 40)),
        ((301, 203), (64, 64), (50, 60, 151, 241)),
        ((64, 64), (64, 64), (3, 5, 50, 60)),
        ((37, 90), (50, 50), (0, 0, 90, 37)),  # the whole image
    ],
)
def test_a_box_goes_where_its_image_goes(tmp_path, size, image_size, box):
    found = yolo(one_box(tmp_path, size, box), image_size=image_size)
    images, targets = batches(found)
    scale = min(image_size[0] / size[0], image_size[1] / size[1])
    want = np.minimum(scale * np.array(box), np.tile(np.floor(scale * np.array(size) + 0.5), 2)[[1, 0, 1, 0]])
    np.testing.assert_allclose(targets["boxes"][0, 0], want, rtol=1e-5)
    assert targets["scale"] == pytest.approx([scale])
    assert targets["area"][0, 0] == pytest.approx((box[2] - box[0]) * (box[3] - box[1]))
    bright = images[0, :, :, 0] > 127.5
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    drawn = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    np.testing.assert_allclose(targets["boxes"][0, 0], drawn, atol=0.51)  # half a pixel: the drawn box is of whole ones
    height, width = targets["image_size"][0]
    assert (height, width) == tuple(np.floor(scale * np.array(size) + 0.5))
    assert not images[0, height:].any()
    assert not images[0, :, width:].any()
    assert height == image_size[0] or width == image_size[1]


@pytest.mark.parametrize("scale", [0.25, 0.5, 1, 2])
def test_images_are_scaled_as_pillow_scales_them(tmp_path, scale):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 10, 3), "uint8")
    original = PIL.Image.fromarray(pixels).resize((40, 24), PIL.Image.Resampling.BICUBIC)
    original.save(tmp_path / "a.png")
    (tmp_path / "a.txt").touch()
    size = round(24 * scale), round(40 * scale)
    images, _ = batches(yolo(tmp_path, image_size=size))
    want = np.asarray(original.resize(size[::-1], PIL.Image.Resampling.BILINEAR), "float32")
    np.testing.assert_allclose(images[0], want, atol=1.01)  # pillow rounds after each of the two directions


def test_a_mask_goes_where_its_image_goes(tmp_path):
    """A mask as large as the image equals the resized mask wherever that is not grey."""
    write_coco(tmp_path, 255.0 * TARGETS["masks"][:, 0, :, :, None].repeat(3, axis=-1), TARGETS)
    found = coco(tmp_path / "annotations.json", tmp_path / "images", image_size=(96, 110), masks=True, mask_size=None)
    images, targets = batches(found)
    seen = images[..., 0]
    for row in range(len(images)):
        clear = (seen[row] < 10) | (seen[row] > 245)
        assert clear.mean() > 0.9
        np.testing.assert_array_equal(targets["masks"][row, 0][clear], seen[row][clear] > 127)


@pytest.mark.parametrize("mask_size", [112, 56])
def test_box_masks_pasted_back_are_the_masks(tmp_path, mask_size):
    write_coco(tmp_path, IMAGES, TARGETS, "compressed run lengths")
    options = {"image_size": (48, 64), "masks": True}
    read = (coco(tmp_path / "annotations.json", tmp_path / "images", mask_size=m, **options) for m in (mask_size, None))
    (_, small), (_, whole) = (batches(found) for found in read)
    assert whole["masks"].any()
    for row in range(len(IMAGES)):
        pasted = paste_masks(small["box_masks"][row], small["boxes"][row], (48, 64))
        np.testing.assert_array_equal(pasted, whole["masks"][row])


def test_the_largest_boxes_are_kept_and_the_rest_is_reported(tmp_path):
    save_image(tmp_path / "many.png", (100, 100))
    save_image(tmp_path / "one.png", (100, 100))
    sides = [0.1, 0.4, 0.2, 0.5, 0.3]
    (tmp_path / "many.txt").write_text("\n".join(f"0 0.5 0.5 {side} {side}" for side in sides))
    (tmp_path / "one.txt").write_text("0 0.5 0.5 0.1 0.1")
    found = yolo(tmp_path, image_size=(100, 100), max_boxes=3)
    _, targets = batches(found)
    widths = targets["boxes"][..., 2] - targets["boxes"][..., 0]
    np.testing.assert_allclose(widths, [[40, 50, 30], [10, 0, 0]], rtol=1e-5)
    assert targets["labels"].tolist() == [[0, 0, 0], [0, -1, -1]]
    (problem,) = found.problems
    assert problem.file.endswith("many.txt")
    assert "many.png: 5 objects, of which the 3 largest are used and 2 are left out" in str(problem)
    assert found.counts == (4,)
    (problem,) = yolo(tmp_path, image_size=(100, 100), max_boxes=4).problems
    assert "of which the 4 largest are used and 1 is left out" in str(problem)


def test_one_box_beyond_the_border_is_told_of_as_one(tmp_path):
    save_image(tmp_path / "a.png", (100, 100))
    (tmp_path / "a.txt").write_text("0 0.9 0.5 0.4 0.2\n0 0.5 0.5 0.4 0.2\n")
    (problem,) = yolo(tmp_path, image_size=(100, 100)).problems
    assert "1 of 2 boxes reaches beyond its image by more than a pixel and is clipped" in problem.reason


def test_an_empty_image_is_a_normal_one(tmp_path):
    save_image(tmp_path / "a.png", (20, 30))
    save_image(tmp_path / "b.png", (20, 30))
    (tmp_path / "b.txt").write_text("\n")
    found = yolo(tmp_path, classes=["x"], image_size=(20, 30), masks=True)
    images, targets = batches(found)
    assert found.problems == []
    assert (targets["labels"] == -1).all()
    assert not targets["boxes"].any()
    assert targets["image_size"].tolist() == [[20, 30]] * 2
    check_targets(images, targets, classes=1)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("0 nan 0.5 0.2 0.2", "is not finite"),
        ("0 0.5 0.5 0 0.2", "has no area"),
        ("0 0.5 0.5 0.2 -0.2", "has no area"),
        ("0 1.5 0.5 0.2 0.2", r"\(70, 40, 80, 60\) lies outside the image of 100 x 50 \(height x width\)"),
        ("0 1.1 0.5 0.2 0.2", "lies outside the image of 100 x 50"),
        ("0 0.5 0.5 1e300 inf", "is not finite"),
        ("0 30 40 20 20", "expected fractions of the image.s width and height, from 0 to 1: these look like pixels"),
    ],
)
def test_boxes_that_cannot_be_are_left_out_and_named(tmp_path, row, reason, capsys):
    save_image(tmp_path / "a.png", (100, 50))
    (tmp_path / "a.txt").write_text(f"0 0.5 0.5 0.5 0.5\n{row}\n0 0.2 0.2 0.2 0.2\n")
    found = yolo(tmp_path, image_size=(100, 50))
    _, targets = batches(found)
    assert (targets["labels"] == 0).sum() == 2
    (problem,) = found.problems
    assert (problem.file, problem.row) == (str(tmp_path / "a.txt"), "line 2")
    assert re.search(reason, problem.reason)
    assert f"kvision.data.yolo: 1 problem, see `problems`. First: {problem}" in capsys.readouterr().out


def test_less_than_a_pixel_beyond_the_border_is_rounding(tmp_path):
    save_image(tmp_path / "a.png", (100, 50))
    (tmp_path / "a.txt").write_text("0 0.495 0.5 1.01 0.5\n")
    found = yolo(tmp_path, image_size=(100, 50))
    _, targets = batches(found)
    np.testing.assert_allclose(targets["boxes"][0, 0], [0, 25, 50, 75])
    assert found.problems == []


@pytest.mark.parametrize("check", ["full", "header"])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_image_is_never_fatal(tmp_path, check, suffix):
    write_yolo(tmp_path, IMAGES, TARGETS)
    for file in (tmp_path / "images").rglob("*.png"):
        PIL.Image.open(file).save(file.with_suffix(f".{suffix}"))
        if suffix != "png":
            file.unlink()
    cut = tmp_path / "images" / "train" / f"004.{suffix}"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 7 // 8])
    (tmp_path / "images" / "train" / f"005.{suffix}").write_bytes(b"no image")
    found = yolo(tmp_path, image_size=(48, 64), check=check)
    _, targets = batches(found)
    assert len(targets["labels"]) == 10
    named = [problem.file[-7:-4] for problem in found.problems]
    assert named == (["004", "005"] if check == "full" else ["005", "004"])  # told beforehand, or in training
    assert all(
        "JPEG data are damaged" in problem.reason for problem in found.problems if problem.file.endswith("4.jpg")
    )


def test_no_image_at_all_is_an_error_that_says_why(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    (tmp_path / "a.txt").touch()
    with pytest.raises(ValueError, match=r"yolo: there is no image that can be used.*a.png: the image cannot be read"):
        yolo(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": (0, 64)}, "image_size must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size is a whole number from 1"),
        ({"max_boxes": 0}, "max_boxes must be at least 1"),
        ({"check": "fully"}, "Unknown check of the images: got 'fully'"),
    ],
)
def test_impossible_options_are_refused(tmp_path, options, message):
    one_box(tmp_path, (20, 20), (2, 2, 9, 9))
    with pytest.raises(ValueError, match=message):
        yolo(tmp_path, **options)


def test_shuffling_uses_every_image_once_in_an_order_of_its_seed(tmp_path):
    write_yolo(tmp_path, IMAGES, TARGETS)
    read = {seed: yolo(tmp_path, image_size=(48, 64), shuffle=True, seed=seed) for seed in (1, 2)}
    first, again, other = (batches(read[seed])[1]["image_id"].tolist() for seed in (1, 1, 2))
    assert sorted(first) == sorted(again) == sorted(other) == list(range(12))
    assert first != again
    assert first != other
    same = yolo(tmp_path, image_size=(48, 64), shuffle=True, seed=1)
    assert batches(same)[1]["image_id"].tolist() == first
    still = batches(yolo(tmp_path, image_size=(48, 64)))[1]["image_id"]
    assert still.tolist() == list(range(12))


def test_files_are_never_changed(tmp_path):
    write_coco(tmp_path, IMAGES, TARGETS)
    (tmp_path / "images" / "000.png").write_bytes(b"no image")

    def state():
        files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
        return [(path, hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in files]

    before = state()
    batches(coco(tmp_path / "annotations.json", tmp_path / "images", image_size=(32, 32), masks=True))
    assert state() == before


def test_run_lengths_of_another_size_are_left_out_with_their_object(tmp_path):
    content = write_coco(tmp_path, IMAGES, TARGETS)
    content["annotations"][1]["segmentation"] = compressed(run_lengths(np.ones((3, 3), "uint8")))
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    found = coco(tmp_path / "annotations.json", tmp_path / "images", image_size=(48, 64), masks=True)
    (problem,) = found.problems
    assert "annotations[1]" in problem.row
    assert "size of [3, 3]" in problem.reason
    assert sum(found.counts) == len(content["annotations"]) - 1
    boxes_alone = coco(tmp_path / "annotations.json", tmp_path / "images", image_size=(48, 64))
    assert boxes_alone.problems == []


@pytest.mark.parametrize("reader", [coco, voc, yolo])
def test_readers_show_all_their_arguments(reader):
    """What `help` and editors show: the options of all readers, and those of `detection_data`."""
    parameters = inspect.signature(reader).parameters
    shared = {**inspect.signature(detection_data).parameters, **inspect.signature(Options).parameters}
    names = {name for name, parameter in shared.items() if parameter.kind is parameter.KEYWORD_ONLY}
    assert {"image_size", "masks", "max_boxes", "split", "classes", "batch_size", "on_error", "shard"} <= names
    assert names <= set(parameters)
    assert all(parameters[name].default == shared[name].default for name in names)
    assert not [p for p in parameters.values() if p.kind is p.VAR_KEYWORD]
    text = inspect.getdoc(reader)
    assert "**" not in text
    assert all(f"\n    {name}: " in text for name in names)
    with pytest.raises(TypeError, match="imagesize"):
        reader("a", "b", imagesize=3) if reader is coco else reader("a", imagesize=3)


def test_a_size_of_one_number_is_refused(tmp_path):
    write_coco(tmp_path, IMAGES, TARGETS)
    with pytest.raises(ValueError, match=r"coco: image_size is \(height, width\) in pixels: got 96\. Pass \(96, 96\)"):
        coco(tmp_path / "annotations.json", tmp_path / "images", image_size=96)


@pytest.mark.parametrize("mask_size", [None, pytest.param(112, marks=pytest.mark.slow)])
def test_masks_go_where_their_image_goes_in_augmentation_too(tmp_path, mask_size):
    """All objects are white: jittered, mirrored and four in one, their masks cover what is white."""
    write_coco(tmp_path, 255.0 * TARGETS["masks"].max(axis=1)[..., None].repeat(3, axis=-1), TARGETS)
    options = {"image_size": (96, 110), "masks": True, "mask_size": mask_size, "max_boxes": 40}
    found = coco(tmp_path / "annotations.json", tmp_path / "images", **options)
    chain = [ScaleJitter((90, 100), scale=(0.7, 1.4), min_visibility=0.0), HorizontalFlip(), Mosaic(min_visibility=0.0)]
    images, targets = batches(augment(found, chain, seed=1))
    for row, pixels in enumerate(images[..., 0]):
        if mask_size is None:
            masks = targets["masks"][row]
        else:
            masks = paste_masks(targets["box_masks"][row], targets["boxes"][row], pixels.shape)
        clear = (pixels < 10) | (pixels > 245)
        assert clear.mean() > 0.8
        assert (masks.any(axis=0)[clear] != (pixels[clear] > 127)).mean() < (0.005 if mask_size is None else 0.02)
