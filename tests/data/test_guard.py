"""Every fault that is planted in a data set is reported, with its sample, and nothing else."""

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

import kvision
from kvision.data import check
from kvision.data.duplicates import difference_hash, near_pairs

RNG = np.random.default_rng(0)


def photos(count, seed=0):
    """Images that no perceptual hash takes for one another."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3)).astype("uint8")
    return np.repeat(np.repeat(coarse, 4, axis=1), 4, axis=2)


def classes_of(images, labels, **facts):
    data = kvision.data.arrays(images, labels, batch_size=4)
    for name, fact in facts.items():
        setattr(data, name, fact)
    return data


def boxes(*rows):
    """Targets of an image: rows of x1, y1, x2, y2, label, padded to 4."""
    rows = np.array([*rows, *[(0, 0, 0, 0, -1)] * (4 - len(rows))], "float32")
    return {"boxes": rows[:, :4], "labels": rows[:, 4].astype("int32")}


def objects_of(images, targets):
    return kvision.data.arrays(
        images.astype("float32"), {key: np.stack([t[key] for t in targets]) for key in targets[0]}
    )


HEALTHY = (4, 4, 20, 24, 0)


def healthy(count=6):
    return [boxes(HEALTHY, (8, 2, 30, 30, 1)) for _ in range(count)]


def planted(change):
    images, labels = photos(12).astype("float32"), np.arange(12) % 3
    change(images, labels)
    return images, labels


def assign(name, index, value):
    def change(images, labels):
        (images if name == "image" else labels)[index] = value

    return change


def test_a_healthy_data_set_has_no_finding():
    report = check(classes_of(photos(12), np.arange(12) % 3), verbose=0)
    assert report.ok
    assert report.findings == ()
    assert report.counts == {"training": {"0": 4, "1": 4, "2": 4}}
    assert report.numbers == {"training": {"samples": 12, "unreadable": 0, "height": "32", "width": "32"}}
    assert "Nothing was found that looks wrong" in str(report)
    assert check(objects_of(photos(6), healthy()), verbose=0).findings == ()


@pytest.mark.parametrize(
    "change, level, words, samples",
    [
        (assign("label", 5, 3), "error", "1 sample has a label that is not from 0 to 2", {5}),
        (assign("label", 5, -1), "error", "1 sample has a label", {5}),
        (assign("image", (5, 0, 0, 0), np.nan), "error", "1 image has pixels that are not finite", {5}),
        (assign("image", 5, np.inf), "error", "1 image has pixels that are not finite", {5}),
        (assign("image", 5, 128), "warning", "1 image is of one colour", {5}),
        (assign("image", 5, (90, 120, 40)), "warning", "1 image is of one colour", {5}),
        (assign("image", 5, photos(1, seed=1)[0] / 255), "error", "1 image lies within 0 to 1", {5}),
        (assign("image", 5, photos(12)[2]), "warning", "1 pair of equal images: 2 and 5", {2, 5}),
        (assign("image", 4, photos(12)[2]), "error", "has different labels: 2 and 4", {2, 4}),
        (assign("image", 5, photos(12)[2] * 0.9 + 5), "note", "1 pair of nearly equal images: 2 and 5", {2, 5}),
    ],
)
def test_each_fault_of_a_classifiers_data_is_found_alone(change, level, words, samples):
    report = check(classes_of(*planted(change), class_names=("a", "b", "c")), verbose=0)
    (finding,) = report.findings
    assert (finding.level, report.ok) == (level, level != "error")
    assert words in finding.text
    assert {index for _, index in finding.samples} == samples


@pytest.mark.parametrize(
    "rows, level, words",
    [
        ([(np.nan, 0, 5, 5, 0)], "error", "boxes that are not finite"),
        ([(5, 5, 5, 9, 0)], "error", "boxes without area"),
        ([(5, 5, 34, 9, 0)], "error", "boxes outside the image"),
        ([HEALTHY, HEALTHY], "warning", "the same object twice"),
        ([HEALTHY, (1, 1, 9, 9, 7)], "error", "a label that is not from 0 to 1"),
        ([], "note", "1 image has no object"),
    ],
)
def test_each_fault_of_boxes_is_found_alone(rows, level, words):
    targets = healthy()
    targets[3] = boxes(*rows)
    data = objects_of(photos(6), targets)
    data.class_names = ("a", "b")
    (finding,) = check(data, verbose=0).findings
    assert finding.level == level
    assert words in finding.text
    assert finding.samples == (("training", 3),)


def test_tiny_boxes_and_classes_that_are_rare_or_missing():
    rows = [boxes(HEALTHY, (1, 1, 3, 20, 1), (1, 1, 3, 3, 1))] + [boxes(HEALTHY, (20, 20, 30, 23, 0))] * 11
    data = objects_of(photos(12), rows)
    data.class_names = ("a", "b", "c")
    report = check(data, verbose=0)
    texts = [str(finding) for finding in report.findings]
    assert any("52% of the boxes are less than 4 pixels" in text for text in texts)
    assert any("1 class has no sample: c" in text for text in texts)
    labels = np.array([0] * 63 + [1] * 3)
    (finding,) = check(classes_of(photos(66), labels), verbose=0).findings
    assert "Class 0 occurs 63 times, class 1 3 times" in finding.text


def test_one_box_that_is_not_finite_leaves_the_numbers_of_the_others():
    targets = healthy()
    targets[3] = boxes((np.nan, 0, np.nan, 5, 0))
    numbers = check(objects_of(photos(6), targets), verbose=0).numbers["training"]
    assert (numbers["box width"], numbers["box height"]) == ("16 / 19 / 22", "5 / 20 / 28")
    lost = check(objects_of(photos(2), [boxes((np.nan, 0, np.nan, 5, 0))] * 2), verbose=0).numbers["training"]
    assert (lost["box width"], lost["box height"]) == ("not finite", "5")


def test_findings_of_two_data_sets_read_as_sentences():
    train = classes_of(photos(8), np.arange(8) % 2, problems=("a.png is broken",), class_names=("a", "b"))
    validation = classes_of(photos(4, seed=1), np.zeros(4, int), class_names=("a", "b"))
    texts = [finding.text for finding in check(train, validation, verbose=0).findings]
    assert any(text.startswith("training data, the reader left out 1,") for text in texts)
    assert any(text.startswith("validation data, 1 class has no sample: b") for text in texts)


@pytest.mark.parametrize("names", [("cat", "dog"), None])
def test_labels_that_are_texts_are_errors(names):
    def of(labels):
        data = tf.data.Dataset.from_tensor_slices((photos(4), labels)).batch(2)
        if names:
            data.class_names = names
        return check(data, verbose=0)

    for labels in (["cat", "dog", "cat", "dog"], ["0", "1", "0", "1"], [["cat"], ["dog"], ["cat"], ["dog"]]):
        report = of(labels)
        assert not report.ok
        assert "4 samples have labels that are not" in report.findings[0].text
        assert f"(such as '{np.ravel(labels)[0]}'): sample 0, sample 1" in report.findings[0].text
    rows = {"boxes": np.float32([[HEALTHY[:4]]] * 4), "labels": [["cat"], ["dog"]] * 2}
    assert "4 samples have labels that are not" in of(rows).findings[0].text


def test_leakage_between_training_and_validation():
    images = photos(12)
    train, validation = classes_of(images[:8], np.arange(8) % 2), classes_of(images[6:], np.arange(6) % 2)
    report = check(train, validation, verbose=0)
    (finding,) = report.findings
    assert not report.ok
    assert "2 pairs of equal images in both training and validation data: 6 and 0; 7 and 1" in finding.text
    brighter = classes_of(np.clip(images[:4] * 0.8 + 10, 0, 255), np.arange(4) % 2)
    (finding,) = check(train, brighter, verbose=0).findings
    assert (finding.level, len(finding.samples)) == ("warning", 8)


@pytest.mark.parametrize(
    "names, words",
    [
        (("a", "b"), None),
        (None, None),
        (("b", "a"), "2 labels mean another class in the validation data: label 0 is 'a' in the training data, there"),
        (("a", "c"), "1 label means another class in the validation data: label 1 is 'b' in the training data, there"),
        (("a", "b", "c"), "label 2 is no class in the training data, there 'c'. Read the validation data with classes"),
        (("a",), "label 1 is 'b' in the training data, there no class"),
    ],
)
def test_both_splits_number_their_classes_alike(names, words):
    images = photos(12)
    train = classes_of(images[:8], np.arange(8) % 2, class_names=("a", "b"))
    validation = classes_of(images[8:], np.arange(4) % 2, **({} if names is None else {"class_names": names}))
    errors = [f.text for f in check(train, validation, verbose=0).findings if "another class" in f.text]
    assert (errors == []) if words is None else words in errors[0]
    assert words is None or not check(train, validation, verbose=0).ok


@pytest.mark.parametrize("batched", [True, False])
def test_any_data_set_is_taken(batched):
    images, labels = planted(assign("label", 5, 7))
    data = tf.data.Dataset.from_tensor_slices((images, labels))
    data.class_names = ("a", "b", "c")
    if batched:
        data = data.batch(5)
        data.class_names = ("a", "b", "c")
    (finding,) = check(data, verbose=0).findings
    assert finding.samples == (("training", 5),)
    with pytest.raises(ValueError, match=r"check: .* an image \[h, w, c\]"):
        check(tf.data.Dataset.from_tensor_slices((labels, labels)), verbose=0)
    with pytest.raises(ValueError, match="last axis of one channel"):
        check(kvision.data.arrays(images[..., 0], labels), verbose=0)
    with pytest.raises(ValueError, match=r"got tuple. `kvision.data.arrays\(x, y\)` makes a data set"):
        check((images, labels), verbose=0)


def test_files_that_break_are_named_and_what_the_reader_left_out(tmp_path, capsys):
    for index, pixels in enumerate(photos(12)):
        folder = tmp_path / "photos" / ("cat", "dog")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(pixels).save(folder / f"{index}.png")
    (tmp_path / "photos" / "cat" / "broken.png").write_bytes(b"no image")
    data = kvision.data.image_folder(tmp_path / "photos", image_size=(32, 32))
    gone = tmp_path / "photos" / "dog" / "3.png"
    gone.write_bytes(gone.read_bytes()[:60])
    report = check(data, page=tmp_path / "pages" / "check.html", verbose=1)
    (error,) = [finding for finding in report.findings if finding.level == "error"]
    assert "1 sample cannot be read" in error.text
    assert str(gone) in error.text
    (warning,) = [finding for finding in report.findings if finding.level == "warning"]
    assert "broken.png" in warning.text
    assert report.numbers["training"]["unreadable"] == 1
    assert str(gone) in capsys.readouterr().out
    page = (tmp_path / "pages" / "check.html").read_text()
    assert "1 sample cannot be read" in page


@pytest.mark.parametrize("size", [(40, 80), (80, 40), (31, 40), (40, 40)])
def test_blank_images_are_found_within_their_padding(tmp_path, size):
    for index, pixels in enumerate(photos(8)):
        folder = tmp_path / ("cat", "dog")[index % 2]
        folder.mkdir(exist_ok=True)
        PIL.Image.fromarray(pixels).save(folder / f"{index}.png")
    PIL.Image.new("RGB", size, (90, 120, 40)).save(tmp_path / "cat" / "blank.png")
    data = kvision.data.image_folder(tmp_path, image_size=(32, 32))
    (finding,) = check(data, verbose=0).findings
    assert "1 image is of one colour" in finding.text
    assert "blank.png" in finding.text


def test_pictures_on_black_are_not_blank():
    images = photos(6).astype("float32")
    images[1], images[2], images[3] = 0, 0, 0
    images[1, 8:24, 8:24] = 255  # a square
    images[2, :, :16] = 255  # half of the image
    images[3, 8:24] = photos(1, seed=3)[0, :16]
    assert check(classes_of(images, np.arange(6) % 2), verbose=0).findings == ()


@pytest.mark.parametrize(
    "options, message", [({"near": 9}, "check: near lies in 0 to 3 bits, got 9"), ({"page": True}, "got the folder")]
)
def test_arguments_are_refused_before_anything_is_read(tmp_path, options, message):
    def read():
        raise AssertionError("read")
        yield

    data = tf.data.Dataset.from_generator(read, output_signature=tf.TensorSpec((4, 4, 3)))
    with pytest.raises(ValueError, match=message):
        check(data, verbose=0, **(options if "near" in options else {"page": tmp_path}))


def test_the_page_draws_the_worst(tmp_path):
    targets = healthy()
    targets[3] = boxes((5, 5, 34, 9, 0))
    data = objects_of(photos(6), targets)
    path = check(data, verbose=0).save(tmp_path / "check.html")
    assert path.read_text().count("data:image/") == 1


@pytest.mark.parametrize("scale", [0.5, 3])
def test_the_perceptual_hash_survives_another_size(scale):
    image = PIL.Image.fromarray(np.repeat(np.repeat(photos(1)[0], 4, axis=0), 4, axis=1))
    other = image.resize((int(128 * scale), int(128 * scale)), PIL.Image.Resampling.BOX)
    one, two = (difference_hash(np.asarray(each)) for each in (image, other))
    assert int(np.bitwise_count(one ^ two)) <= 3
    assert difference_hash(np.full((5, 3, 3), 7)) is None


def test_near_pairs_are_those_of_all_pairs():
    hashes = RNG.integers(0, 2**63, 200).astype("uint64")
    for index in range(0, 60, 3):
        flipped = RNG.choice(64, index % 5, replace=False)
        hashes[index + 1] = hashes[index] ^ np.bitwise_or.reduce(
            np.uint64(1) << flipped.astype("uint64"), initial=np.uint64(0)
        )
    distance = np.bitwise_count(hashes[:, None] ^ hashes)
    for allowed in range(4):
        want = [(a, b) for a in range(200) for b in range(a + 1, 200) if distance[a, b] <= allowed]
        assert near_pairs(hashes, allowed) == want
    with pytest.raises(ValueError, match="lies in 0 to 3"):
        near_pairs(hashes, 4)
