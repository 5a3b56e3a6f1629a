"""Photos of any size and kind become what the readers make of them."""

import json

import numpy as np
import pytest
from PIL import Image

from kvision.data import coco, letterbox
from kvision.data.letterbox import read_photo

pytestmark = pytest.mark.tensorflow_only

SIZES = [(30, 20), (90, 130), (48, 64), (7, 300)]


def photos():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), "uint8") for size in SIZES]


@pytest.fixture
def files(tmp_path):
    for number, pixels in enumerate(photos()):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return [tmp_path / f"{number}.png" for number in range(len(SIZES))]


def test_it_equals_what_a_reader_makes_of_the_files(files, tmp_path):
    content = {"images": [{"id": number, "file_name": path.name} for number, path in enumerate(files)]}
    content |= {"annotations": [], "categories": [{"id": 1, "name": "x"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    read = coco(tmp_path / "a.json", tmp_path, image_size=(48, 64), batch_size=4)
    want, targets = next(iter(read))
    for source in (files, [str(path) for path in files], photos(), [Image.fromarray(pixels) for pixels in photos()]):
        images, where = letterbox(source, (48, 64))
        np.testing.assert_array_equal(images, want)
        assert set(where) == {"image_size", "scale"}
        for name, value in where.items():
            np.testing.assert_array_equal(value, targets[name])
            assert value.dtype == targets[name].dtype.name


def test_pixels_keep_their_range():
    images, _ = letterbox([255 * np.ones((10, 30, 3)), np.full((10, 30, 3), 255, "uint8")], (40, 60))
    assert images[:, :20].min() > 254.9 and images.max() <= 255.1
    assert (images[:, 20:] == 0).all()


def test_grey_photos():
    grey = photos()[0][..., 0]
    (one, two), _ = letterbox([grey, grey[..., None]], (32, 32))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one[..., 0], one[..., 2])
    assert letterbox([grey], (32, 32), channels=1)[0].shape == (1, 32, 32, 1)


def test_no_photos():
    images, where = letterbox([], (32, 48))
    assert images.shape == (0, 32, 48, 3) and where["image_size"].shape == (0, 2) and where["scale"].shape == (0,)


@pytest.mark.parametrize(
    ("photo", "message"),
    [
        (np.zeros((8, 9, 4)), r"got ndarray of shape \(8, 9, 4\)\. Of RGBA, leave out the last"),
        (np.zeros((2, 8, 9, 3)), r"got ndarray of shape \(2, 8, 9, 3\).*give a batch as a list"),
        (np.zeros((0, 9, 3)), r"shape \(0, 9, 3\)"),
        ("nowhere.png", "'nowhere.png' cannot be read as an image"),
    ],
)
def test_what_is_no_photo_is_refused(photo, message):
    with pytest.raises(ValueError, match=message):
        letterbox([photo], (32, 32))


def test_a_file_that_is_no_image_is_refused(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(ValueError, match="a.png' cannot be read as an image"):
        read_photo(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("size", "message"), [(96, r"got 96\. Pass \(96, 96\)"), ((96, 96, 3), "Pass two whole"), ((0.5, 96), "two whole")]
)
def test_a_size_is_a_pair(size, message):
    with pytest.raises(ValueError, match=rf"letterbox: image_size is \(height, width\) in pixels: .*{message}"):
        letterbox(photos(), size)
