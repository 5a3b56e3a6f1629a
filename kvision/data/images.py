"""Image files: which kinds are read, what their headers say, and their pixels, upright or as stored."""

import concurrent.futures
import dataclasses
import io
import os

import numpy as np
import PIL.Image
import tensorflow as tf
from PIL import BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from kvision.errors import choose

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
UNREAD = (  # images too, of kinds that are not read
    ".heic", ".heif", ".avif", ".svg", ".jxl", ".jp2", ".j2k", ".psd", ".tga", ".exr", ".dcm", ".ico", ".ppm", ".pgm",
    ".pbm", ".pnm", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2",
)  # fmt: skip
MAX_PIXELS = 89_000_000
ORIENTATIONS = ("upright", "stored")

# How a file of each kind begins, and who reads its header. Pillow's `open` also tries kinds that run other
# programs, and refuses large images by a fixed rule.
KINDS = (
    (b"\xff\xd8\xff", "JPEG", JpegImagePlugin.JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", "PNG", PngImagePlugin.PngImageFile),
    (b"GIF8", "GIF", GifImagePlugin.GifImageFile),
    (b"BM", "BMP", BmpImagePlugin.BmpImageFile),
    (b"RIFF", "WebP", WebPImagePlugin.WebPImageFile),
    *((start, "TIFF", TiffImagePlugin.TiffImageFile) for start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
)
OTHERS = ((b"ftyphei", "HEIC"), (b"ftypmif1", "HEIC"), (b"ftypavif", "AVIF"), (b"<svg", "SVG"), (b"<?xml", "XML"))
DEPTHS = (8, 10, 12, 14, 16, 24, 32)  # bits that the values of a deep image may fill

# EXIF's orientation of the stored pixels: whether they are transposed first, then turned upside down and left to right.
TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Header:
    """What a file says of its image before any pixel is decoded.

    Args:
        kind: `"JPEG"`, `"PNG"` and so on.
        size: Height and width as stored.
        mode: Pillow's name of the pixels' form; `"16"` for a PNG of 16 bits.
        orientation: EXIF's, from 1 to 8.
    """

    kind: str
    size: tuple
    mode: str
    orientation: int

    @property
    def upright_size(self):
        """Height and width as a viewer shows the image."""
        return self.size[::-1] if self.orientation >= 5 else self.size

    @property
    def shown(self):
        """The size for a message."""
        if self.upright_size == self.size:
            return str(self.size)
        return f"{self.size}, or {self.upright_size} turned by its EXIF orientation {self.orientation},"

    def is_fast(self, channels):
        """Whether TensorFlow decodes it right, which is quicker."""
        return self.mode == "L" or (self.mode == "RGB" and (channels == 3 or self.kind == "JPEG"))


def is_image(path):
    """Whether the name of a file (a `pathlib` path) ends as that of an image we read."""
    return path.suffix.lower() in SUFFIXES


def read_header(path, max_pixels=MAX_PIXELS):
    """The `Header` of an image file; a ValueError says in plain words why it is none."""
    try:
        with open(path, "rb") as file:
            return _header(file, max_pixels)
    except FileNotFoundError:
        raise ValueError("there is no such file") from None
    except OSError as error:
        raise ValueError(f"the file cannot be opened: {error.strerror or error}") from None


def _header(file, max_pixels):
    start = file.read(30)
    kind, plugin = _kind(start)
    if kind == "WebP":
        _check_size(_webp_size(start), max_pixels)  # pillow's decoder takes its memory at once
    file.seek(0)
    try:
        image = plugin(file)
        size, mode = (image.height, image.width), image.mode
        if kind == "TIFF":
            size = image.tag_v2[TiffImagePlugin.IMAGELENGTH], image.tag_v2[TiffImagePlugin.IMAGEWIDTH]
    except PIL.Image.DecompressionBombError:
        raise ValueError("it has more pixels than pillow decodes of a WebP file") from None
    except Exception:  # a decoder that meets foreign bytes may raise anything
        raise ValueError(f"its beginning is that of a {kind} file, but the rest of its header is damaged") from None
    _check_size(size, max_pixels)
    if kind == "PNG":
        file.seek(24)
        deep = file.read(1) == b"\x10"
        mode = "16" if deep else f"{mode} with a colour that is clear" if "transparency" in image.info else mode
    if kind not in ("JPEG", "PNG") and mode in ("L", "RGB"):
        mode = f"{mode} of {kind}"
    return Header(kind, size, mode, _orientation(image))


def _check_size(size, max_pixels):
    if min(size) < 1:
        raise ValueError("its header states no size")
    if size[0] * size[1] > max_pixels:
        raise ValueError(
            f"it has {size[0]} x {size[1]} pixels (height x width), more than max_pixels = {max_pixels:,}; raise that "
            "if the file is to be trusted"
        )


def _webp_size(start):
    """Height and width out of the first 30 bytes of a WebP file, in each of its three forms."""
    if start[12:16] == b"VP8X":
        width, height = (int.from_bytes(start[at : at + 3], "little") + 1 for at in (24, 27))
    elif start[12:16] == b"VP8L":
        bits = int.from_bytes(start[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (int.from_bytes(start[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    return height, width


def _kind(start):
    for begins, kind, plugin in KINDS:
        if start.startswith(begins) and (kind != "WebP" or start[8:12] == b"WEBP"):
            return kind, plugin
    if not start:
        raise ValueError("the file is empty")
    other = next((name for part, name in OTHERS if part in start), None)
    got = f"a {other} file" if other else f"a file that begins with {start[:12]!r}"
    raise ValueError(f"it is {got}; expected JPEG, PNG, BMP, GIF, WebP or TIFF")


def _orientation(image):
    try:
        stated = PIL.Image.Image.getexif(image).get(0x0112, 1)  # a PNG's own method would decode the pixels
    except Exception:  # damaged EXIF data are no reason to lose an image
        return 1
    return stated if stated in TURNS else 1


def read_headers(paths, check, channels, max_pixels):
    """`{path: Header}` of the files that can be read, and `{path: reason}` of the others.

    Args:
        paths: Of the files.
        check: `"full"` decodes every file, as training does. `"header"` reads the first bytes only.
        channels: With which training decodes: 3 for RGB, 1 for grey.
        max_pixels: Above this number an image is refused on its header.
    """
    decoded = choose("check of the images", {"full": True, "header": False}, check)

    def read(path):
        try:
            header = read_header(path, max_pixels)
            if decoded:
                load_stored(path, header, channels)
            return header
        except ValueError as error:
            return str(error)

    paths = list(dict.fromkeys(paths))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        found = dict(zip(paths, pool.map(read, paths), strict=True))
    return (
        {path: header for path, header in found.items() if not isinstance(header, str)},
        {path: reason for path, reason in found.items() if isinstance(reason, str)},
    )


def load_stored(path, header, channels):
    """The stored pixels of a file, `[h, w, channels]` uint8; a ValueError says in plain words why there are none."""
    try:
        with open(path, "rb") as file:
            content = file.read()
        if header.is_fast(channels):
            return tf.io.decode_image(content, channels, expand_animations=False).numpy()
        if header.mode == "16":
            return _with_channels(_deep(tf.io.decode_png(content, dtype=tf.uint16).numpy()), channels)
        plugin = next(plugin for _, kind, plugin in KINDS if kind == header.kind)
        with plugin(io.BytesIO(content)) as image:
            image.load()
            pixels = _with_channels(_eight_bits(image), channels)
        if header.kind == "TIFF":  # pillow has turned it while loading
            pixels = _turned(pixels, {6: 8, 8: 6}.get(header.orientation, header.orientation))
        return pixels
    except FileNotFoundError:
        raise ValueError("there is no such file") from None
    except Exception:  # decoders that meet damaged bytes may raise anything
        raise ValueError(f"its {header.kind} data are damaged or end too early") from None


def _eight_bits(image):
    """The pixels of one of pillow's images as uint8 [h, w, 1 or 3]."""
    if image.mode.startswith(("I", "F")):
        return _deep(np.asarray(image)[..., None])
    if image.has_transparency_data:
        return _on_white(np.asarray(image.convert("RGBA")))
    pixels = np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _deep(pixels):
    """Pixels of more than 8 bits as uint8: white is the highest value of the bits that the image's values fill."""
    highest = float(np.nan_to_num(pixels, nan=0.0, posinf=0.0, neginf=0.0).max(initial=0))
    if pixels.dtype.kind == "f" and highest <= 1:
        white = 1.0
    else:
        white = next((2.0**bits - 1 for bits in DEPTHS if highest <= 2**bits - 1), max(highest, 1.0))
    alpha = pixels.shape[-1] in (2, 4)
    whites = np.full(pixels.shape[-1], white)
    if alpha:
        whites[-1] = np.iinfo(pixels.dtype).max
    scaled = np.clip(np.nan_to_num(pixels.astype("float64")) * (255 / whites) + 0.5, 0, 255).astype("uint8")
    return _on_white(scaled) if alpha else scaled


def _on_white(pixels):
    """Colours with opacity `[h, w, 2 or 4]` as a page shows them, on white."""
    colours, opacity = pixels[..., :-1].astype("uint16"), pixels[..., -1:].astype("uint16")
    return ((colours * opacity + 255 * (255 - opacity) + 127) // 255).astype("uint8")


def _with_channels(pixels, channels):
    if pixels.shape[-1] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=-1)
    return np.asarray(PIL.Image.fromarray(pixels).convert("L"))[..., None]


def read_image(path, channels=3, *, orientation="upright", max_pixels=MAX_PIXELS):
    """The pixels of a file as the readers take them.

    Args:
        path: Of a JPEG, PNG, BMP, GIF (the first image), WebP or TIFF file. Transparent pixels lie on white; more than
            8 bits are scaled by the range that they fill, 10, 12, 14 or 16 bits.
        channels: 3 for RGB, 1 for grey.
        orientation: `"upright"` turns the image as its EXIF data say and viewers show it; `"stored"` does not.
        max_pixels: An image of more pixels is refused before it is decoded.

    Returns:
        An array [h, w, channels], uint8.

    Raises:
        ValueError: If it cannot be read; says why.

    ```python
    photo = kvision.data.read_image("photo.jpg")
    ```
    """
    upright = choose("orientation", {name: name == "upright" for name in ORIENTATIONS}, orientation)
    path = os.fspath(path)
    try:
        header = read_header(path, max_pixels)
        pixels = load_stored(path, header, channels)
    except ValueError as error:
        raise ValueError(f"{path!r} cannot be read as an image: {error}.") from None
    return _turned(pixels, header.orientation) if upright else pixels


def _turned(pixels, orientation):
    transposed, *reversed_axes = TURNS[orientation]
    pixels = pixels.transpose(1, 0, 2) if transposed else pixels
    return np.ascontiguousarray(np.flip(pixels, [axis for axis, turned in enumerate(reversed_axes) if turned]))
