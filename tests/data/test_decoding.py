"""A window is decoded to the pixels that the whole image has there; images of their own sizes get one by a crop."""

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from kvision import data
from kvision.data.decoding import decoder, scale_and_pad
from kvision.data.images import read_header

pytestmark = pytest.mark.tensorflow_only

COARSE = np.random.default_rng(0).integers(0, 256, (9, 12, 3), "uint8")
PHOTO = PIL.Image.fromarray(COARSE).resize((61, 45), PIL.Image.Resampling.BICUBIC)  # sides that no block divides
WINDOWS = [(0, 0, 45, 45), (3, 17, 20, 21), (40, 44, 5, 1), (1, 0, 1, 45), (7, 8, 33, 16)]
SAVED = {
    "full.jpg": {"subsampling": "4:4:4"},
    "half.jpg": {"subsampling": "4:2:2"},
    "quarter.jpg": {"subsampling": "4:2:0", "progressive": True},
    "grey.jpg": {"mode": "L"},
    "photo.png": {},
    "photo.webp": {"lossless": True},
}


def save(path, orientation=1, mode="RGB", **options):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    PHOTO.convert(mode).save(path, exif=exif, **options)
    return path


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize(
    "names, turns",
    [(["half.jpg", "quarter.jpg"], (1,)), (["photo.png"], (1,)), (list(SAVED), (1,)), (["quarter.jpg"], range(2, 9))],
)
def test_a_window_has_the_pixels_of_the_whole_image(names, turns, channels, tmp_path):
    paths = [save(tmp_path / f"{turn}-{name}", turn, **SAVED[name]) for name in names for turn in turns]
    image = tf.function(decoder(paths, [read_header(path) for path in paths], [True] * len(paths), channels))
    for index in range(len(paths)):
        whole = image(tf.constant(index)).numpy()
        for window in WINDOWS:
            top, left, height, width = window
            seen = image(tf.constant(index), tf.unstack(tf.constant(window)))
            np.testing.assert_array_equal(seen, whole[top : top + height, left : left + width], f"{paths[index].name}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of photos of different sizes, one of them turned."""
    root = tmp_path_factory.mktemp("photos")
    for label, name in enumerate(("ants", "bees")):
        (root / name).mkdir()
        for turn in (1, 6):
            save(root / name / f"{turn}.{'jpg' if label else 'png'}", turn)
    return root


def test_the_crop_of_a_file_is_the_crop_of_its_image(folder):
    whole = data.image_folder(folder, image_size=None, batch_size=2, shuffle=True)
    crop = data.RandomResizedCrop((24, 32), interpolation="random")
    by_window = data.augment(whole, [crop, data.HorizontalFlip()], seed=3)
    images, labels = next(iter(by_window))
    assert (images.shape, images.dtype, labels.shape) == ((2, 24, 32, 3), tf.float32, (2,))
    of_whole = data.augment(whole, [lambda sample, seed: crop(sample, seed)], seed=3)  # no crop by its looks
    by_window = data.augment(whole, [crop], seed=3)
    for index in range(4):
        seen, label = by_window.source.sample(index, epoch=5)
        want, label_of_whole = of_whole.source.sample(index, epoch=5)
        np.testing.assert_allclose(seen, want, atol=1e-3)
        assert label == label_of_whole


def test_images_of_their_own_sizes_are_single_until_a_transform_gives_them_one(folder):
    whole = data.image_folder(folder, image_size=None, batch_size=None)
    assert {image.shape[:2] for image, _ in whole} == {(45, 61), (61, 45)}
    assert {image.dtype for image, _ in whole} == {tf.float32}
    with pytest.raises(tf.errors.OpError, match=r"differ in size and cannot be batched: give image_size"):
        next(iter(data.image_folder(folder, image_size=None)))
    flipped = data.augment(data.image_folder(folder, image_size=None), [data.HorizontalFlip()])
    with pytest.raises(tf.errors.OpError, match=r"such as RandomResizedCrop"):
        next(iter(flipped))


def test_images_that_share_a_size_are_batched_as_they_are(tmp_path):
    for name in ("ants", "bees"):
        (tmp_path / name).mkdir()
        save(tmp_path / name / "a.png")
    images, _ = next(iter(data.image_folder(tmp_path, image_size=None)))
    np.testing.assert_array_equal(images, np.stack([np.asarray(PHOTO)] * 2))


def test_a_letterbox_keeps_the_channels_and_pads_at_the_right_and_bottom():
    padded = scale_and_pad(COARSE[:6, :9, :1], np.float32(2.0), (16, 20)).numpy()
    assert padded.shape == (16, 20, 1)
    assert padded[:12, :18].any(axis=(1, 2)).all()
    assert not padded[12:].any()
    assert not padded[:, 18:].any()
    moved = scale_and_pad(COARSE[:6, :9, :1], np.float32(2.0), (16, 20), offset=(3, 1)).numpy()
    np.testing.assert_array_equal(moved[3:15, 1:19], padded[:12, :18])
