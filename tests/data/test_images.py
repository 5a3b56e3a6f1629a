"""Image files: sizes by decoding and by header, and decoding with the channels of the training."""

import numpy as np
import PIL.Image
import pytest

from kvision.data import image_folder
from kvision.data.images import decode, image_sizes, is_image, scale_and_pad

pytestmark = pytest.mark.tensorflow_only

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), "uint8")


@pytest.fixture
def files(tmp_path):
    """One file of each kind that is read, and one that is not."""
    paths = [tmp_path / f"a.{suffix}" for suffix in ("png", "jpg", "bmp", "gif", "tiff")]
    for path in paths:
        PIL.Image.fromarray(PIXELS).save(path)
    return paths


@pytest.mark.parametrize("check", ["full", "header"])
def test_sizes_and_what_cannot_be_read(files, check):
    empty = files[0].with_name("empty.png")
    empty.write_bytes(b"")
    sizes, unreadable = image_sizes([*files, files[0], empty], check)
    assert sizes == dict.fromkeys(files[:4], (6, 9))
    assert set(unreadable) == {files[4], empty}
    assert all(unreadable.values())
    assert [is_image(path) for path in files] == [True] * 4 + [False]
    assert is_image(files[0].with_suffix(".JPEG"))


def test_decoding_gives_the_channels_asked_for(files):
    np.testing.assert_array_equal(decode(str(files[0]), 3), PIXELS)
    assert decode(str(files[1]), 1).shape == (6, 9, 1)
    assert decode(str(files[3]), 3).shape == (6, 9, 3)  # the first frame


def test_files_that_do_not_decode_in_grey_are_left_out_before_training(files):
    for name in ("one", "two"):
        (files[0].parent / name).mkdir()
        for k in range(2):
            PIL.Image.fromarray(PIXELS).save(files[0].parent / name / f"{k}.png")
    files[3].rename(files[0].parent / "one" / "a.gif")
    found = image_folder(files[0].parent, image_size=(6, 9), channels=1)
    assert [path.rsplit("/", 1)[-1] for path in found.skipped] == ["a.gif"]
    assert sum(len(images) for images, _ in found.train) == 2
    assert sum(len(images) for images, _ in found.validation) == 2


def test_a_letterbox_keeps_the_channels_and_pads_at_the_right_and_bottom():
    padded = scale_and_pad(PIXELS[..., :1], np.float32(2.0), (16, 20)).numpy()
    assert padded.shape == (16, 20, 1)
    assert padded[:12, :18].any(axis=(1, 2)).all()
    assert not padded[12:].any()
    assert not padded[:, 18:].any()
