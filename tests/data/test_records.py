"""Records give what was written, go on after a stop, and notice a flipped bit."""

import json
import pathlib

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

import kvision
from kvision.data.source import Order, Source
from tests.data import files

LENGTH = 7
IMAGES = np.random.default_rng(0).integers(0, 256, (LENGTH, 4, 5, 3)).astype("uint8")
BOXES = np.random.default_rng(1).uniform(0, 4, (LENGTH, 2, 4)).astype("float32")


def pairs(index):
    return tf.constant(IMAGES)[index], tf.cast(index % 3, tf.int32)


def detections(index):
    return tf.constant(IMAGES)[index], {
        "labels": tf.fill([2], tf.cast(index, tf.int32)),
        "boxes": tf.constant(BOXES)[index],
    }


def dataset(example=pairs, **facts):
    return Source(example, Order(LENGTH, batch_size=2, shuffle=True, seed=3), facts=facts).dataset()


def flat(data):
    return [[part.numpy() for part in keras.tree.flatten(sample)] for sample in data]


@pytest.mark.parametrize("example", [pairs, detections, lambda index: tf.constant(IMAGES)[index]])
@pytest.mark.parametrize("shard_size", [1, 3, 100])
def test_what_is_read_is_what_was_written(example, shard_size, tmp_path):
    data = dataset(example, class_names=("a", "b", "c"), counts=(3, 2, 2))
    assert kvision.data.write_records(data, tmp_path, shard_size=shard_size, verbose=0) == LENGTH
    read = kvision.data.records(tmp_path, batch_size=None)
    assert read.element_spec == kvision.data.records(tmp_path, batch_size=None).element_spec
    assert (read.class_names, read.counts, len(read)) == (("a", "b", "c"), (3, 2, 2), LENGTH)
    for index, parts in enumerate(flat(read)):
        for part, want in zip(parts, keras.tree.flatten(example(tf.constant(index, tf.int64))), strict=True):
            np.testing.assert_array_equal(part, want)
            assert part.dtype == want.numpy().dtype


def test_batches_have_the_structure_of_the_data_set_and_an_order_by_epoch(tmp_path):
    data = dataset(detections)
    kvision.data.write_records(data, tmp_path, verbose=0)
    read = kvision.data.records(tmp_path, batch_size=2, shuffle=True, seed=3)
    keras.tree.assert_same_structure(read.element_spec, data.element_spec)
    for _ in range(2):
        for got, want in zip(flat(read), flat(data), strict=True):
            for part, wanted in zip(got, want, strict=True):
                np.testing.assert_array_equal(part, wanted)


def test_it_goes_on_at_the_first_shard_that_is_missing(tmp_path, capsys):
    read = []

    def failing(index):
        if index == 4 and not mended:
            raise RuntimeError("the machine stops")
        read.append(int(index))
        return IMAGES[index]

    mended = []
    data = dataset(lambda index: tf.ensure_shape(tf.numpy_function(failing, [index], tf.uint8), (4, 5, 3)))
    with pytest.raises(tf.errors.OpError, match="the machine stops"):
        kvision.data.write_records(data, tmp_path, shard_size=2, verbose=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["records.json", "shard-00000", "shard-00001"]
    with pytest.raises(ValueError, match=r"2 of 4 shards are missing .* the first is shard-00002"):
        kvision.data.records(tmp_path)
    read.clear()
    mended.append(True)
    kvision.data.write_records(data, tmp_path, shard_size=2, verbose=1)
    assert set(read) == {0, 4, 5, 6}  # the first is compared with what is there
    assert f"{LENGTH}/{LENGTH}" in capsys.readouterr().out
    np.testing.assert_array_equal([parts[0] for parts in flat(kvision.data.records(tmp_path, batch_size=None))], IMAGES)


def test_a_flipped_bit_is_told_with_shard_and_row(tmp_path, capsys):
    kvision.data.write_records(dataset(), tmp_path, shard_size=3, verbose=0)
    path = tmp_path / "shard-00001" / "0.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # the last image of the shard
    path.write_bytes(content)
    read = kvision.data.records(tmp_path, batch_size=None)
    with pytest.raises(tf.errors.OpError, match=r"shard-00001, row 2: the record is damaged"):
        next(iter(read))
    with pytest.raises(tf.errors.OpError):
        list(read)
    told = capsys.readouterr().out
    assert told.count(f"kvision.data.records: {path.parent}, row 2: the record is damaged") == 1
    assert [(problem.file, problem.row) for problem in read.problems] == [(str(path.parent), "row 2")]
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"^records: '.*0.npy' is damaged or missing: .* call write_records again"):
        kvision.data.records(tmp_path)


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected what a reader of kvision gives"):
        kvision.data.write_records(tf.data.Dataset.range(3), tmp_path)
    with pytest.raises(ValueError, match="shard_size must be at least 1"):
        kvision.data.write_records(dataset(), tmp_path, shard_size=0)
    ragged = dataset(lambda index: tf.zeros([index, 3]))
    with pytest.raises(ValueError, match=r"samples of one shape .*image_size=\(height, width\)"):
        kvision.data.write_records(ragged, tmp_path)
    with pytest.raises(ValueError, match="there is no records.json"):
        kvision.data.records(tmp_path)
    kvision.data.write_records(dataset(), tmp_path, verbose=0)
    others = {
        "structure": detections,
        "parts, first_sample": lambda index: (tf.constant(IMAGES[:, :3].copy())[index], tf.cast(index % 3, tf.int32)),
        "first_sample": lambda index: (tf.constant(IMAGES[::-1].copy())[index], tf.cast(index % 3, tf.int32)),
    }
    for what, example in others.items():
        with pytest.raises(ValueError, match=f"holds records that differ in {what}"):
            kvision.data.write_records(dataset(example), tmp_path, verbose=0)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder of three classes and a data set of boxes, each with its records."""
    root = tmp_path_factory.mktemp("kept")
    for index, image in enumerate(np.random.default_rng(3).integers(0, 256, (24, 6, 8, 3)).astype("uint8")):
        (root / "folder" / "abc"[index % 3]).mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(image).save(root / "folder" / "abc"[index % 3] / f"{index}.png")
    images, targets = kvision.data.shapes(12, image_size=(24, 32), seed=5, masks=True)
    content = files.write_coco(root, images, targets)
    (root / "a.json").write_text(json.dumps(content))
    readers = {
        "folder": lambda **o: kvision.data.image_folder(root / "folder", image_size=(6, 8), **o),
        "boxes": lambda **o: kvision.data.coco(root / "a.json", root / "images", image_size=(24, 32), **o),
    }
    for kind, read in readers.items():
        kvision.data.write_records(read(), root / f"{kind}-records", shard_size=5, verbose=0)
    return {kind: (read, root / f"{kind}-records", root) for kind, read in readers.items()}


@pytest.mark.parametrize("kind", ["folder", "boxes"])
@pytest.mark.parametrize("split", [(0, 0.6), (0.6, 1), "list", None])
def test_a_split_and_an_order_of_classes_are_those_of_the_files(kept, kind, split):
    read, records, root = kept[kind]
    home = root / ("folder" if kind == "folder" else "images")
    names = [path.relative_to(home).as_posix() for path in sorted(home.rglob("*.png"))]
    split = names[3:8] if split == "list" else split
    options = {"split": split, "classes": read().class_names[::-1], "batch_size": None}
    want, got = read(**options), kvision.data.records(records, **options)
    for fact in ("class_names", "classes", "counts"):
        assert getattr(got, fact) == getattr(want, fact)
    assert len(got) == len(want)
    assert list(got.files.values()) == [pathlib.Path(path).relative_to(home).as_posix() for path in want.files.values()]
    for one, other in zip(flat(got), flat(want), strict=True):
        for part, wanted in zip(one, other, strict=True):
            np.testing.assert_array_equal(part, wanted)
    if kind == "boxes":
        assert {int(targets["image_id"]) for _, targets in got} == set(got.files)


def test_classes_are_left_out_and_names_that_are_not_there_are_told(kept, tmp_path):
    _, records, _ = kept["folder"]
    some = kvision.data.records(records, classes=("c", "a"), batch_size=None)
    assert (some.class_names, some.counts, [int(label) for _, label in some].count(0)) == (("c", "a"), (8, 8), 8)
    with pytest.raises(ValueError, match="Unknown class in classes= of records: got 'd'"):
        kvision.data.records(records, classes=("a", "d"))
    with pytest.raises(ValueError, match="Unknown file in the split of records: got 'a/1.png'"):
        kvision.data.records(records, split=["a/1.png"])
    with pytest.raises(ValueError, match="of records with boxes, classes= has to hold all of disc, square, triangle"):
        kvision.data.records(kept["boxes"][1], classes=("disc",))
    with pytest.raises(ValueError, match="^records: .*split=.low, high. takes"):
        kvision.data.records(records, split=(0.5, 2))
    hot = dataset(lambda index: (tf.constant(IMAGES)[index], tf.one_hot(index % 3, 3)), class_names=("a", "b", "c"))
    kvision.data.write_records(hot, tmp_path, verbose=0)
    some = kvision.data.records(tmp_path, classes=("c", "a"), batch_size=None)
    assert [label.numpy().tolist() for _, label in some][:3] == [[0, 1], [0, 0], [1, 0]]
    assert (some.counts, some.element_spec[1].shape) == ((2, 3), (2,))
    with pytest.raises(ValueError, match="these records do not know the files of their samples"):
        kvision.data.records(tmp_path, split=(0, 0.5))


@pytest.mark.parametrize("content", ["", "3", "[]", "{}", '{"samples": 3}', "{'samples': 3}"])
def test_a_manifest_that_is_none_is_told(content, tmp_path):
    (tmp_path / "records.json").write_text(content)
    for call in (kvision.data.records, lambda folder: kvision.data.write_records(dataset(), folder, verbose=0)):
        with pytest.raises(ValueError, match=r"^records: '.*records.json' cannot be read: "):
            call(tmp_path)
