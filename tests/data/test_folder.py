"""A folder of class sub-folders: every readable image is used once, the rest is named."""

import numpy as np
import PIL.Image
import pytest

from kvision.data import image_folder

pytestmark = pytest.mark.tensorflow_only


@pytest.fixture
def folder(tmp_path):
    """Two classes of ten images each; the shade tells images apart."""
    for label, name in enumerate(("ants", "bees")):
        (tmp_path / name).mkdir()
        for k in range(10):
            image = np.full((20, 40, 3), 10 * k + 100 * label, "uint8")
            PIL.Image.fromarray(image).save(tmp_path / name / f"{k}.png")
    return tmp_path


def shades(batches):
    """{(label, shade at the centre)} of all images."""
    seen = [(int(y), int(x[10, 10, 0])) for images, labels in batches for x, y in zip(images, labels, strict=True)]
    assert len(seen) == len(set(seen))
    return set(seen)


def test_every_image_is_used_once(folder):
    found = image_folder(folder, image_size=(20, 20), batch_size=4)
    train, validation = shades(found.train), shades(found.validation)
    assert train | validation == {(label, 10 * k + 100 * label) for label in (0, 1) for k in range(10)}
    assert not train & validation
    assert [sum(y == label for y, _ in validation) for label in (0, 1)] == [2, 2]
    assert found.class_names == ("ants", "bees")
    assert found.counts == (10, 10)


def test_images_keep_their_aspect_ratio(folder):
    found = image_folder(folder, image_size=(20, 20))
    images, _ = next(iter(found.validation))
    image = images.numpy()[0]
    assert (image[:5] == 0).all()
    assert (image[15:] == 0).all()
    assert (image[5:15] == image[10, 10]).all()  # of one shade
    assert images.numpy()[:, 5:15].any(axis=(1, 2, 3)).sum() >= len(images) - 1  # one of the files is black


@pytest.mark.parametrize("validation_split", [0.01, 0.2, 0.99])
def test_every_class_is_in_both_parts_of_every_split(folder, validation_split):
    for k in range(2, 10):
        (folder / "ants" / f"{k}.png").unlink()  # two of ants, ten of bees
    found = image_folder(folder, image_size=(20, 20), validation_split=validation_split)
    train, validation = ([label for label, _ in shades(part)] for part in (found.train, found.validation))
    held_out = {0.01: 1, 0.2: 2, 0.99: 9}[validation_split]
    assert (train.count(0), validation.count(0)) == (1, 1)
    assert (train.count(1), validation.count(1)) == (10 - held_out, held_out)


def test_the_split_depends_on_the_seed_alone(folder):
    first, again, other = (shades(image_folder(folder, image_size=(20, 20), seed=s).validation) for s in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("content", [b"", b"text", b"\xff\xd8\xff\xe0 cut", b"\x89PNG\r\n\x1a\n cut"])
def test_broken_files_are_named_not_fatal(folder, content):
    (folder / "ants" / "broken.png").write_bytes(content)
    whole = (folder / "bees" / "0.png").read_bytes()
    (folder / "bees" / "half.png").write_bytes(whole[: len(whole) // 2])
    found = image_folder(folder, image_size=(20, 20))
    assert {path.split("/")[-1] for path in found.skipped} == {"broken.png", "half.png"}
    assert all(found.skipped.values())
    assert found.counts == (10, 10)


def test_too_few_readable_images_say_why(folder):
    for k in range(9):
        (folder / "ants" / f"{k}.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"class 'ants'.*has 1 readable.*9 files could not be read"):
        image_folder(folder)


def test_a_split_outside_0_to_1_is_refused(folder):
    with pytest.raises(ValueError, match="between 0 and 1"):
        image_folder(folder, validation_split=1.0)
