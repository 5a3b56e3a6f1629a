"""A folder of class sub-folders: every readable image is used once, the rest is named."""

import os
import shutil

import numpy as np
import PIL.Image
import pytest

from kvision.data import image_folder

pytestmark = pytest.mark.tensorflow_only

SIZE = {"image_size": (20, 20), "batch_size": 4}


def fill(folder, classes=("ants", "bees"), count=10):
    """Images of each class, whose shade tells them apart."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for k in range(count):
            image = np.full((20, 40, 3), 10 * k + 100 * label, "uint8")
            PIL.Image.fromarray(image).save(folder / name / f"{k}.png")
    return folder


@pytest.fixture
def folder(tmp_path):
    """Two classes of ten images each."""
    return fill(tmp_path / "set")


def shades(batches):
    """{(label, shade at the centre)} of all images."""
    seen = [(int(y), int(x[10, 10, 0])) for images, labels in batches for x, y in zip(images, labels, strict=True)]
    assert len(seen) == len(set(seen))
    return set(seen)


def test_every_image_is_used_once_and_two_ranges_are_disjoint(folder):
    train, validation = (image_folder(folder, split=split, **SIZE) for split in ((0, 0.7), (0.7, 1)))
    seen = [shades(train), shades(validation)]
    assert seen[0] | seen[1] == {(label, 10 * k + 100 * label) for label in (0, 1) for k in range(10)}
    assert not seen[0] & seen[1] and len(seen[0]) > len(seen[1]) > 0
    for found, pairs in zip((train, validation), seen, strict=True):
        assert found.class_names == ("ants", "bees") and found.classes == 2
        assert found.counts == tuple(sum(y == label for y, _ in pairs) for label in (0, 1))
        assert len(found) == -(-len(pairs) // 4) and len(found.files) == len(pairs)
        assert found.problems == []
    moved = shutil.copytree(folder, folder.parent / "moved")
    (moved / "bees" / "0.png").unlink()
    assert shades(image_folder(moved, split=(0.7, 1), **SIZE)) == seen[1] - {(1, 100)}


def test_the_order_is_fixed_and_mixed_or_new_in_each_epoch(folder):
    labels = lambda found: [label for _, batch in found for label in batch.numpy().tolist()]  # noqa: E731
    found = image_folder(folder, **SIZE)
    first = labels(found)
    assert first == labels(found) == labels(image_folder(folder, **SIZE))
    assert len(set(first[:10])) == len(set(first[10:])) == 2
    shuffled = image_folder(folder, shuffle=True, seed=3, **SIZE)
    one, two = labels(shuffled), labels(shuffled)
    assert one != two and one == labels(image_folder(folder, shuffle=True, seed=3, **SIZE))
    shards = [image_folder(folder, shard=(index, 2), image_size=(20, 20), batch_size=None) for index in (0, 1)]
    assert [len(shard) for shard in shards] == [10, 10]
    assert len({(int(y), int(x[10, 10, 0])) for shard in shards for x, y in shard}) == 20


def test_images_keep_their_aspect_ratio_and_lie_in_the_middle(folder):
    images = np.concatenate([batch for batch, _ in image_folder(folder, **SIZE)])
    assert not images[:, :5].any() and not images[:, 15:].any()
    np.testing.assert_allclose(images[:, 5:15], images[:, 10:11, 10:11] + 0 * images[:, 5:15], atol=1e-3)  # one shade


def test_images_are_shrunk_as_pillow_shrinks_them(tmp_path):
    noise = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 2, (256, 256), "uint8") * 255)
    fill(tmp_path, count=1)
    noise.save(tmp_path / "ants" / "0.png")
    found = image_folder(tmp_path, image_size=(16, 16), channels=1)
    images = {found.files[row]: image for row, image in enumerate(np.concatenate([batch for batch, _ in found]))}
    want = np.asarray(noise.resize((16, 16), PIL.Image.Resampling.BILINEAR), "float32")
    np.testing.assert_allclose(images[str(tmp_path / "ants" / "0.png")][..., 0], want, atol=1.01)


@pytest.mark.parametrize("content", [b"", b"text", b"\xff\xd8\xff\xe0 cut", b"\x89PNG\r\n\x1a\n cut"])
def test_broken_files_are_named_not_fatal(folder, content):
    (folder / "ants" / "broken.png").write_bytes(content)
    whole = (folder / "bees" / "0.png").read_bytes()
    (folder / "bees" / "half.png").write_bytes(whole[: len(whole) // 2])
    found = image_folder(folder, **SIZE)
    assert {problem.file.split("/")[-1] for problem in found.problems} == {"broken.png", "half.png"}
    assert found.counts == (10, 10)
    with pytest.raises(ValueError, match=r"image_folder: .*\.png: the image cannot be read"):
        image_folder(folder, on_error="raise", **SIZE)


@pytest.mark.parametrize("train, validation", [("train", "val"), ("training", "test"), ("train2017", "val2017")])
def test_train_and_val_are_splits_not_classes(tmp_path, train, validation, capsys):
    fill(tmp_path / train)
    fill(tmp_path / validation, ("ants", "bees", "crickets"), 4)
    both, one, other = (image_folder(tmp_path, split=split, **SIZE) for split in (None, "train", validation))
    assert both.class_names == one.class_names == other.class_names == ("ants", "bees", "crickets")
    assert (both.counts, one.counts, other.counts) == ((14, 14, 4), (10, 10, 0), (4, 4, 4))
    printed = capsys.readouterr().out
    assert " together; split=" in printed and "there is no image of 'crickets' here" in printed
    with pytest.raises(ValueError, match="Unknown split of .*: got 'nowhere'"):
        image_folder(tmp_path, split="nowhere")


def test_the_order_of_classes_is_natural_or_as_it_is_given(tmp_path):
    fill(tmp_path, ("10", "9", "кот мопс"), 2)
    assert image_folder(tmp_path, **SIZE).class_names == ("9", "10", "кот мопс")
    found = image_folder(tmp_path, classes=["кот мопс", "9"], **SIZE)
    assert {label for label, _ in shades(found)} == {0, 1} and found.counts == (2, 2)
    assert {str(problem).rpartition("10: ")[2] for problem in found.problems} == {
        "2 of class '10', which is not in classes, are left out"
    }
    with pytest.raises(ValueError, match=r"Unknown class in classes= of image_folder: got '8'.*'10'"):
        image_folder(tmp_path, classes=["8", "9", "кот мопс"])
    with pytest.raises(ValueError, match="got 'ten'. The known names are: '9', '10', 'кот мопс'."):
        image_folder(tmp_path, classes=["9", "ten"])
    (tmp_path / "10" / "1.png").unlink()
    (problem,) = image_folder(tmp_path, classes=["кот мопс", "9"], **SIZE).problems
    assert problem.reason == "1 of class '10', which is not in classes, is left out"
    shutil.rmtree(tmp_path / "10")
    assert image_folder(tmp_path, classes=["9", "10", "кот мопс"], **SIZE).counts == (2, 0, 2)


def test_what_systems_add_is_no_class_and_links_are_followed(folder):
    hidden = folder / "ants" / ".ipynb_checkpoints"
    hidden.mkdir()
    shutil.copy(folder / "ants" / "0.png", hidden / "0-checkpoint.png")
    (folder / "__MACOSX" / "ants").mkdir(parents=True)
    (folder / "__MACOSX" / "ants" / "._0.png").write_bytes(b"\0\5\x16\7")
    other = fill(folder.parent / "other", ("more",), 5)
    os.symlink(other / "more", folder / "ants" / "more")
    os.symlink(folder, folder / "bees" / "loop")
    os.rename(folder / "ants" / "0.png", os.fsencode(folder / "ants") + b"/caf\xe9.png")
    found = image_folder(folder, **SIZE)
    assert (found.class_names, found.counts, found.problems) == (("ants", "bees"), (15, 10), [])
    assert sum(len(labels) for _, labels in found) == 25


def test_what_is_no_image_that_is_read_is_named(folder, capsys):
    for name in ("ants/a.heic", "bees/b.NEF", "wasps/c.avif", "wasps/notes.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"any")
    (folder / "empty").mkdir()
    shutil.copy(folder / "ants" / "0.png", folder / "stray.png")
    found = image_folder(folder, **SIZE)
    assert (found.class_names, found.counts) == (("ants", "bees"), (10, 10))
    assert {
        (os.path.relpath(problem.file, folder), problem.reason.partition(";")[0]) for problem in found.problems
    } == {
        ("ants/a.heic", "the image cannot be read: .heic is not read"),
        ("bees/b.NEF", "the image cannot be read: .NEF is not read"),
        ("wasps/c.avif", "the image cannot be read: .avif is not read"),
        ("wasps", "there is no image in it that is read: it is no class"),
        ("empty", "there is no image in it that is read: it is no class"),
        ("stray.png", "the image lies in no sub-folder of a class, and is left out"),
    }
    assert "image_folder: 6 problems, see `problems`" in capsys.readouterr().out
    halves = [image_folder(folder, split=split, **SIZE).problems for split in ((0, 0.5), (0.5, 1))]
    assert sum("cannot be read" in problem.reason for half in halves for problem in half) == 3
    with pytest.raises(ValueError, match="a.heic: the image cannot be read: .heic is not read; expected .jpg, .jpeg"):
        image_folder(folder, on_error="raise", **SIZE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": (0.5, 0.5)}, r"image_folder: split=\(low, high\) takes 0 <= low < high <= 1"),
        ({"split": "train"}, "has no splits such as train and val above its classes: got split='train'"),
        ({"split": ["ants/1.png", "ants/99.png"]}, "Unknown file in the split of image_folder: got 'ants/99.png'"),
        ({"classes": "ants"}, "classes are different names"),
        ({"classes": 2}, r"classes are different names in the order of the labels, such as .*got 2"),
        ({"classes": {"ants", "bees"}}, "classes are different names in the order of the labels"),
        ({"classes": [1, "1"]}, "classes are different names in the order of the labels"),
        ({"split": 0.2}, r"image_folder: split is None, the name of a split, a range such as \(0, 0.8\).*got 0.2"),
        ({"split": [0, 0.8, 1]}, "split is None, the name of a split"),
        ({"split": [0, 0.8]}, "split is None, the name of a split"),
        ({"batch_size": 2.5}, "image_folder: batch_size is a whole number from 1, or None for single images, got 2.5"),
        ({"batch_size": 0}, "batch_size is a whole number from 1"),
        ({"batch_size": True}, "batch_size is a whole number from 1"),
        ({"channels": 4}, "channels is 3 for RGB or 1 for grey, got 4"),
        ({"image_size": 16}, r"image_folder: image_size is \(height, width\)"),
        ({"seed": -1}, "seed is a whole number from 0"),
        ({"batch_size": None, "drop_remainder": True}, "drop_remainder is for batches"),
        ({"on_error": "drop"}, "Unknown on_error: got 'drop'"),
        ({"orientation": "left"}, "Unknown orientation: got 'left'"),
    ],
)
def test_impossible_options_are_refused(folder, options, message):
    with pytest.raises(ValueError, match=message):
        image_folder(folder, **options)


def test_a_split_may_be_a_list(folder):
    assert shades(image_folder(folder, split=["bees/3.png", str(folder / "ants" / "4.png")], **SIZE)) == {
        (1, 130),
        (0, 40),
    }


def test_folders_that_cannot_be_learned_from_say_why(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        image_folder(tmp_path / "none")
    with pytest.raises(ValueError, match="no images"):
        image_folder(tmp_path)
    with pytest.raises(ValueError, match="of one class only"):
        image_folder(fill(tmp_path, ("ants",)))
    fill(tmp_path, ("bees",), 0)
    (tmp_path / "bees" / "0.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"class 'bees' of .* has images, but none that can be read. 1 problem, see"):
        image_folder(tmp_path)


def test_training_stops_where_more_than_a_tenth_fails(folder):
    found = image_folder(folder, check="header", **SIZE)
    for k in range(3):
        (folder / "ants" / f"{k}.png").unlink()
    with pytest.raises(Exception, match="3 of 20 images failed in training, more than a tenth"):
        list(found)
    assert [problem.reason for problem in found.problems] == ["the image cannot be read: there is no such file"] * 3
