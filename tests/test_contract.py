"""Every way a batch can break the data contract is refused by name of image and row."""

import warnings

import numpy as np
import pytest

from kvision.contract import (
    check_label_maps,
    check_labels,
    check_pixels,
    check_targets,
    paste_mask_scores,
    paste_masks,
)

SHAPE = (2, 32, 48, 3)


def targets(**changes):
    boxes = np.array([[[2, 3, 10, 12], [5, 5, 40, 30], [0, 0, 0, 0]], [[1, 1, 9, 9], [0, 0, 0, 0], [0, 0, 0, 0]]])
    return {"boxes": boxes.astype("float32"), "labels": np.array([[0, 2, -1], [1, -1, -1]], "int32")} | changes


def with_box(image, row, box):
    changed = targets()
    changed["boxes"][image, row] = box
    return changed


def with_label(image, row, label):
    changed = targets()
    changed["labels"] = changed["labels"].astype("float64")
    changed["labels"][image, row] = label
    return changed


RELATIVE = {
    "boxes": np.tile(np.array([0.1, 0.2, 0.6, 0.7], "float32"), (2, 5, 1)),
    "labels": np.zeros((2, 5), "int32"),
}


@pytest.mark.parametrize(
    "good",
    [
        targets(),
        targets(crowd=np.zeros((2, 3)), area=np.ones((2, 3)), image_size=[[32, 48]] * 2, scale=[1.0, 0.5]),
        targets(masks=np.zeros((2, 3, 32, 48), "uint8"), image_id=[4, 7]),
        targets(box_masks=np.zeros((2, 3, 28, 28), "uint8")),
        with_box(0, 1, [10, 4, 40, 30]) | {"image_size": [[6, 48], [2, 48]]},  # what reaches into the padding is cut
        with_box(0, 2, [np.nan] * 4),  # a padding row may hold anything
        {"boxes": np.zeros((2, 0, 4)), "labels": np.zeros((2, 0))},
        {name: value[:, :4] for name, value in RELATIVE.items()},  # eight boxes are too few to judge
    ],
)
def test_good_targets_pass(good):
    check_targets(SHAPE, good, classes=3)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (with_box(0, 1, [5, np.nan, 9, 9]), r"1 box is not finite: image 0, row 1: \[5, nan, 9, 9\]"),
        (with_box(1, 0, [5, 5, np.inf, 9]), r"not finite: image 1, row 0"),
        (with_box(0, 0, [9, 2, 3, 8]), r"inverted.*image 0, row 0: \[9, 2, 3, 8\].*width, height"),
        (with_box(0, 1, [1, 8, 3, 2]), r"inverted.*image 0, row 1"),
        (
            with_box(0, 0, [4, 4, 4, 9]),
            r"1 box is without area: image 0, row 0: \[4, 4, 4, 9\].*padding by the label -1",
        ),
        (with_box(0, 1, [48, 4, 60, 9]), r"1 box is wholly outside the images of 32x48 pixels: image 0, row 1"),
        (with_box(1, 0, [5, -9, 9, 0]), r"wholly outside.*image 1, row 0.*cut boxes with their images"),
        (
            targets(image_size=[[32, 48], [1, 20]]),
            r"1 box is wholly in the padding beyond image_size, of the first \[1, 20\]: image 1, row 0: \[1, 1, 9, 9\]",
        ),
        (
            with_box(0, 1, [10, 4, 40, 30]) | {"image_size": [[32, 9], [32, 48]]},
            r"in the padding .*\[32, 9\]: image 0, row 1: \[10, 4, 40, 30\].*cut boxes with their images",
        ),
        (
            targets(image_size=[[32, 48], [33, 48]]),
            r"lies within the images of 32x48 pixels: got \[33, 48\] for image 1\..*letterbox",
        ),
        (targets(image_size=[[0, 48], [32, 48]]), r"got \[0, 48\] for image 0"),
        (targets(crowds=np.zeros((2, 3))), r"have 'crowds', which nothing reads: did you mean 'crowd'\?"),
        (with_label(0, 2, 0), r"without area: image 0, row 2: \[0, 0, 0, 0\].*not 0, which is the first class"),
        (with_label(0, 1, 3), r"beyond the last of 3 classes, 2: image 0, row 1: 3"),
        (with_label(1, 0, -2), r"neither an integer.*image 1, row 0: -2"),
        (with_label(1, 0, 0.5), r"neither an integer.*image 1, row 0: 0.5"),
        (RELATIVE, r"All 10 boxes.*fractions.*image 0, row 0: \[0.1, 0.2, 0.6, 0.7\].*relative_to_absolute"),
        ({"boxes": targets()["boxes"]}, r'"labels".*got \[\'boxes\'\]'),
        (np.zeros((2, 3, 4)), r"a dict.*got ndarray"),
        (targets(labels=np.zeros(2)), r"labels \(2,\)"),
        (targets(labels=np.zeros((2, 4))), r"'labels' have the shape \(2, 4\).*must be \(2, 3\)"),
        (targets(boxes=np.zeros((2, 3, 5))), r"boxes \(2, 3, 5\)"),
        (targets(masks=np.zeros((2, 3, 16, 24))), r"'masks'.*\(2, 3, 16, 24\).*must be \(2, 3, 32, 48\)"),
        (targets(box_masks=np.zeros((2, 3, 28, 14))), r"'box_masks'.*\(2, 3, 28, 14\)"),
        (targets(crowd=np.zeros((2, 1))), r"'crowd'.*\(2, 1\).*must be \(2, 3\)"),
        (targets(scale=np.zeros((2, 1))), r"'scale'.*must be \(2,\)"),
    ],
)
def test_bad_targets_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        check_targets(SHAPE, bad, classes=3)


@pytest.mark.tensorflow_only
def test_ragged_targets_are_told_how_to_become_dense():
    ragged = {"boxes": tf_ragged(np.ones((2, 4)), np.ones((1, 4))), "labels": tf_ragged([0, 1], [2])}
    with pytest.raises(ValueError, match=r"^Ragged targets: boxes, labels\. .*padded_batch.*labels\.to_tensor\(-1\)"):
        check_targets(SHAPE, ragged)
    check_targets(
        SHAPE, {"boxes": 9 * ragged["boxes"].to_tensor() * [0, 0, 1, 1], "labels": ragged["labels"].to_tensor(-1)}
    )


def tf_ragged(*rows):
    import tensorflow as tf

    return tf.ragged.stack([np.asarray(row, "float32") for row in rows])


def test_images_without_a_batch_are_refused():
    with pytest.raises(ValueError, match=r"images \(32, 48, 3\)"):
        check_targets(np.zeros((32, 48, 3)), targets())


def test_names_of_the_images_stand_in_the_message():
    with pytest.raises(ValueError, match=r"image b.png, row 0"):
        check_targets(SHAPE, with_box(1, 0, [3, 3, 1, 1]), names=["a.png", "b.png"])


def test_pasted_masks_take_the_value_at_the_centre_of_each_pixel():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 2, (4, 9, 9), "uint8")
    boxes = np.array([[3.2, 4.1, 20.7, 30.3], [-5, -6, 10, 12], [30, 30, 45.5, 50], [4, 4, 4, 9]])
    pasted = paste_masks(small, boxes, (40, 36))
    want = np.zeros((4, 40, 36), "uint8")
    for row, (left, top, right, bottom) in enumerate(boxes[:3]):
        for y in range(40):
            for x in range(36):
                if left <= x + 0.5 < right and top <= y + 0.5 < bottom:
                    cell = int((y + 0.5 - top) / (bottom - top) * 9), int((x + 0.5 - left) / (right - left) * 9)
                    want[row, y, x] = small[row][cell]
    assert want[:3].any(axis=(1, 2)).all()
    np.testing.assert_array_equal(pasted, want)


def pasted_twin(scores, box, size):
    """Pixel by pixel: the mask with a rim of zeros, stretched over the box that grew with it, in whole pixels."""
    cells = len(scores)
    padded = np.pad(scores, 1)
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2 * (cells + 2) / cells
    (left, top), (right, bottom) = np.trunc(centre - half), np.trunc(centre + half)
    want = np.zeros(size)
    for y, x in np.ndindex(*size):
        if left <= x <= right and top <= y <= bottom:
            at = []
            for pixel, low, high in ((y, top, bottom), (x, left, right)):
                point = (pixel - low + 0.5) * (cells + 2) / (high - low + 1) - 0.5
                at.append(min(max(point, 0), cells + 1))
            (i, down), (j, across) = ((int(point), point - int(point)) for point in at)
            rows, columns = (i, min(i + 1, cells + 1)), (j, min(j + 1, cells + 1))
            a, b = padded[np.ix_(rows, columns)] @ (1 - across, across)
            want[y, x] = a * (1 - down) + b * down
    return want


@pytest.mark.parametrize("box", [(5, 3, 20, 30), (-4.5, -3.2, 12, 18), (20.4, 30.1, 60, 70), (3.3, 4.4, 5.1, 5.2)])
def test_scores_of_masks_are_pasted_as_a_twin_does(box):
    scores = np.random.default_rng(0).uniform(0, 1, (1, 7, 7))
    want = pasted_twin(scores[0], np.array(box), (40, 36))
    certain = np.abs(want - 0.5) > 1e-4
    got = paste_mask_scores(scores, [box], (40, 36))[0]
    assert got.dtype == "uint8"
    assert want.max() > 0.5
    np.testing.assert_array_equal(got[certain], (want >= 0.5)[certain])


def test_a_score_of_one_half_belongs_to_the_mask():
    whole = np.ones((1, 28, 28))
    inside = paste_mask_scores(0.5 * whole, [[4, 4, 32, 32]], (40, 40))[0, 6:30, 6:30]
    assert inside.all()
    assert not paste_mask_scores(np.nextafter(np.float32(0.5), 0) * whole, [[4, 4, 32, 32]], (40, 40)).any()


def test_masks_without_a_box_are_empty():
    boxes = [[0, 0, 0, 0], [5, 5, 5, 9], [np.nan, 0, 4, 4], [50, 50, 60, 60]]
    assert not paste_mask_scores(np.ones((4, 28, 28)), boxes, (40, 40)).any()


@pytest.mark.parametrize(
    ("images", "warned"),
    [
        (np.full((2, 4, 4, 3), 0.7, "float32"), True),
        (np.full((2, 4, 4, 3), 1.0, "float32"), True),
        (np.full((2, 4, 4, 3), 1.1, "float32"), False),
        (np.linspace(-1, 1, 96).reshape(2, 4, 4, 3), True),
        (np.linspace(-2, 1, 96).reshape(2, 4, 4, 3), False),
        (np.ones((2, 4, 4, 3), "uint8"), False),
        (np.zeros((2, 4, 4, 3), "float32"), False),  # black
    ],
)
def test_images_prepared_for_another_network_are_told(images, warned):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        check_pixels(images, "net")
    assert len(told) == warned
    assert all("net: the images lie within" in str(warning.message) for warning in told)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_images_that_are_not_finite_are_refused_by_index(value, dtype):
    images = np.full((3, 4, 4, 3), 9, dtype)
    images[1, 2, 2] = value
    with pytest.raises(ValueError, match="net: image 1 has 3 pixel values of 48 that are NaN or infinite"):
        check_pixels(images, "net")


# Labels of images


@pytest.mark.parametrize(
    "labels",
    [[0, 2, 1], [[0], [2]], [0.0, 2.0], [255, 1], [], np.eye(3)[:2], [[0, 1, 2]], ["a", "b"], 7],
    ids=["numbers", "column", "floats", "ignored", "none", "one-hot", "one row", "texts", "scalar"],
)
def test_good_labels_pass_and_other_shapes_are_left_to_the_loss(labels):
    check_labels(np.array(labels), classes=3, ignored=255, who="net")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 3, 1], "row 1 of the data has the label 3; the model has 3 classes, counted from 0. Mend the labels"),
        ([[1], [2], [3]], r"row 2 of the data has the label 3; .* All labels lie in 1…3: subtract 1\.$"),
        ([1, 4], "row 1 of the data has the label 4; .* Mend the labels"),
        ([2, -1], "row 1 of the data has the label -1"),
        ([1.0, np.nan], "row 1 of the data has the label nan"),
        ([0.5, 1.0], "row 0 of the data has the label 0.5"),
        ([254, 255], "row 0 of the data has the label 254"),
    ],
)
def test_labels_that_are_no_class_are_told_by_row(labels, message):
    with pytest.raises(ValueError, match=f"^net: {message}"):
        check_labels(np.array(labels), classes=3, ignored=255, who="net", what="data")
    with pytest.raises(ValueError, match="row 0 of the batch has the label 255"):
        check_labels(np.array([255]), classes=3, ignored=None, who="net")


# Label maps


def maps_with(label, dtype="int32"):
    maps = np.full((2, 4, 6), 255, dtype)
    maps[:, 1:] = 2
    maps[1, 2, 3] = label
    return maps


@pytest.mark.parametrize("maps", [maps_with(0), maps_with(2.0, "float32")[..., None], maps_with(255, "uint8") == 2])
def test_good_label_maps_pass(maps):
    check_label_maps(maps, (4, 6), classes=3, ignored=255, who="net")
    check_label_maps(maps, (None, 6), classes=3, ignored=255, who="net")


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (
            maps_with(3),
            r"image 1 of the data has the label 3 at row 2, column 3; the model has 3 classes, .* 255 is ig",
        ),
        (maps_with(-1)[..., None], "image 1 of the data has the label -1 at row 2, column 3"),
        (maps_with(np.nan, "float32"), "image 1 of the data has the label nan at row 2, column 3"),
        (maps_with(0)[:, :3], r"the label maps of the data are \(2, 3, 6\), expected \[b, 4, 6\], as large as the ima"),
        (maps_with(0)[:, :, :5, None], r"are \(2, 4, 5, 1\), expected \[b, 4, 6\]"),
        (maps_with(0)[0, :, :4], r"are \(4, 4\), expected \[b, 4, 6\]"),
        (np.zeros((2, 4, 6, 3)), r"are \(2, 4, 6, 3\), expected \[b, h, w\], one number .*maps.argmax\(-1\)"),
    ],
)
def test_bad_label_maps_are_told_by_image_and_pixel(maps, message):
    with pytest.raises(ValueError, match=f"net: .*{message}"):
        check_label_maps(maps, (4, 6), classes=3, ignored=255, who="net", what="data")
    with pytest.raises(ValueError, match="the label 255 at row 0, column 0; .* and none is ignored"):
        check_label_maps(maps_with(0), (4, 6), classes=3, ignored=None, who="net")
