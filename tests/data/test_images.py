"""Image files of every kind are decoded as pillow does, upright, or refused on their header in plain words."""

import io

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import tensorflow as tf

from kvision.data import read_image
from kvision.data.decoding import decoder
from kvision.data.images import is_image, load_stored, read_header, read_headers

pytestmark = pytest.mark.tensorflow_only

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), "uint8")
RGB = PIL.Image.fromarray(PIXELS)
GREY = RGB.convert("L")
OPACITY = PIL.Image.fromarray(np.linspace(0, 255, 54).reshape(6, 9).astype("uint8"))


def with_opacity(image):
    image.putalpha(OPACITY)
    return image


def on_white(image):
    return PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image.convert("RGBA"))


DEEP = np.asarray(GREY).astype("uint16")
KINDS = {  # name of the file: the image to save, what pillow makes of it, options
    "rgb.png": (RGB, RGB, {}),
    "rgb.jpg": (RGB, None, {}),
    "rgb.jfif": (RGB, None, {"format": "JPEG"}),
    "rgb.bmp": (RGB, RGB, {}),
    "rgb.webp": (RGB, RGB, {"lossless": True}),
    "rgb.tif": (RGB, RGB, {}),
    "png.jpg": (RGB, RGB, {"format": "PNG"}),
    "grey.png": (GREY, GREY, {}),
    "grey.jpg": (GREY, None, {}),
    "grey.bmp": (GREY, GREY, {}),
    "grey.gif": (GREY, GREY, {}),
    "grey.tiff": (GREY, GREY, {}),
    "one_bit.png": (GREY.convert("1"), GREY.convert("1"), {}),
    "palette.png": (RGB.quantize(16), RGB.quantize(16), {}),
    "palette.gif": (RGB.quantize(16), RGB.quantize(16), {}),
    "palette.bmp": (RGB.quantize(16), RGB.quantize(16), {}),
    "cmyk.jpg": (RGB.convert("CMYK"), None, {}),
    "cmyk.tif": (RGB.convert("CMYK"), RGB.convert("CMYK").convert("RGB"), {}),
    "opacity.png": (with_opacity(RGB.copy()), on_white(with_opacity(RGB.copy())), {}),
    "opacity_grey.png": (with_opacity(GREY.copy()), on_white(with_opacity(GREY.copy())), {}),
    "opacity.webp": (with_opacity(RGB.copy()), None, {"lossless": True, "exact": True}),
    "12_bits.png": (PIL.Image.fromarray(DEEP * 16), GREY, {}),
    "16_bits.png": (PIL.Image.fromarray(DEEP * 257), GREY, {}),
    "16_bits.tif": (PIL.Image.fromarray(DEEP * 257), GREY, {}),
    "float.tif": (PIL.Image.fromarray(np.asarray(GREY).astype("float32") / 255), GREY, {}),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file of each kind, and what it shows as RGB."""
    folder, shown = tmp_path_factory.mktemp("kinds"), {}
    for name, (image, want, options) in KINDS.items():
        image.save(folder / name, **options)
        want = PIL.Image.open(folder / name) if want is None else want
        want = on_white(want) if want.has_transparency_data else want
        shown[folder / name] = want.convert("RGB")
    return shown


@pytest.mark.parametrize("channels", [3, 1])
def test_every_kind_is_decoded_as_pillow_does(files, channels):
    paths = list(files)
    headers = [read_header(path) for path in paths]
    image = decoder(paths, headers, [True] * len(paths), channels)
    seen = tf.data.Dataset.range(len(paths)).map(image)
    for path, pixels in zip(paths, seen, strict=True):
        want = np.asarray(files[path].convert("L") if channels == 1 else files[path]).reshape(6, 9, channels)
        off = np.abs(pixels.numpy().astype(int) - want).max()
        assert off <= (12 if path.suffix in (".jpg", ".jfif") and path.name != "png.jpg" else 1), path.name
        np.testing.assert_array_equal(read_image(path, channels), pixels)


@pytest.mark.parametrize("check", ["full", "header"])
def test_sizes_and_what_cannot_be_read(files, check, tmp_path):
    cut, empty, page, photo = (tmp_path / name for name in ("cut.png", "empty.png", "page.jpg", "photo.jpg"))
    whole = next(path for path in files if path.name == "rgb.png").read_bytes()
    for path, content in ((cut, whole[:-30]), (empty, b""), (page, b"<html>"), (photo, b"\0\0\0\x18ftypheic\0\0\0\0")):
        path.write_bytes(content)
    bad = [cut, empty, page, photo, tmp_path / "none.png"]
    headers, unreadable = read_headers([*files, *files, *bad], check, 3, 10**6)
    assert {path: header.size for path, header in headers.items() if path != cut} == dict.fromkeys(files, (6, 9))
    assert unreadable.pop(cut, None) == ("its PNG data are damaged or end too early" if check == "full" else None)
    assert list(unreadable.values()) == [
        "the file is empty",
        "it is a file that begins with b'<html>'; expected JPEG, PNG, BMP, GIF, WebP or TIFF",
        "it is a HEIC file; expected JPEG, PNG, BMP, GIF, WebP or TIFF",
        "there is no such file",
    ]
    assert all(is_image(path) for path in files) and is_image(cut.with_suffix(".JPEG")) and not is_image(cut / "a.txt")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_exif_data_say(tmp_path, orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    for name, options in (("a.png", {}), ("a.tif", {}), ("a.webp", {"lossless": True}), ("a.jpg", {"quality": 95})):
        path = tmp_path / name
        RGB.save(path, exif=exif, **options)
        with PIL.Image.open(path) as stored:
            want = np.asarray(PIL.ImageOps.exif_transpose(stored))
        header = read_header(path)
        assert (header.upright_size, header.size) == (want.shape[:2], (6, 9))
        atol = 20 if name == "a.jpg" else 0
        np.testing.assert_allclose(read_image(path).astype(int), want, atol=atol)
        image = decoder([path, path], [header, header], [True, False], 3)
        turned, stored = image(tf.constant(0)), image(tf.constant(1))
        np.testing.assert_array_equal(turned, read_image(path))
        np.testing.assert_array_equal(stored, read_image(path, orientation="stored"))
        assert stored.shape == (6, 9, 3)


def test_an_orientation_that_is_none_is_not_followed(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 9
    RGB.save(tmp_path / "a.jpg", exif=exif)
    assert read_header(tmp_path / "a.jpg").orientation == 1


KINDS_OF_PILLOW = ("PNG", "BMP", "GIF", "TIFF", "JPEG", "WEBP")


@pytest.mark.parametrize("kind, options", [*((kind, {}) for kind in KINDS_OF_PILLOW), ("WEBP", {"lossless": True})])
def test_large_images_are_refused_on_their_header(tmp_path, kind, options, monkeypatch):
    path = tmp_path / "large"
    PIL.Image.new("L", (300, 200)).save(path, format=kind, **options)
    if kind != "WEBP":
        monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)  # pillow's own rule does not apply
    monkeypatch.setattr(PIL.Image.Image, "load", lambda *_: pytest.fail("decoded"))
    assert read_header(path, max_pixels=60_000).size == (200, 300)
    with pytest.raises(ValueError, match=r"200 x 300 pixels \(height x width\), more than max_pixels = 59,999; raise"):
        read_header(path, max_pixels=59_999)


def test_damaged_headers_are_refused_in_plain_words(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "a"
    for kind in KINDS_OF_PILLOW:
        file = io.BytesIO()
        GREY.save(file, format=kind)
        for _ in range(20):
            content = bytearray(file.getvalue())
            for at in rng.integers(4, min(len(content), 120), 4):
                content[at] = rng.integers(256)
            path.write_bytes(content)
            try:
                load_stored(path, read_header(path, 10**6), 3)
            except ValueError as error:
                assert str(error).startswith(("its ", "it is a", "it has"))
