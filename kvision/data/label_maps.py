"""Label maps in files: which map belongs to which image, and the classes of its pixels out of numbers or colours."""

import collections
import glob
import numbers
from collections.abc import Mapping

import numpy as np
import PIL.Image

from kvision.data.images import TURNS, read_header
from kvision.errors import unknown

IGNORED = 255  # the label of pixels that belong to no class, and of padding
ENDINGS = (".png", ".tif", ".tiff", ".bmp", ".gif")  # of files that keep every number as it is


class Naming:
    """Which map belongs to which image, by their names.

    Args:
        who: Name of the reader, for messages.
        suffixes: What ends the name of an image, before the dot, and what a map's has in its place; both may be empty.

    Raises:
        ValueError: On anything but two such texts.
    """

    def __init__(self, who, suffixes=("", "")):
        is_pair = isinstance(suffixes, tuple | list) and len(suffixes) == 2
        if not is_pair or not all(isinstance(text, str) and not set(text) & set("./\\") for text in suffixes):
            raise ValueError(
                f"{who}: suffixes are the ends of the names of images and maps, two texts without dots and slashes, "
                f'such as ("_leftImg8bit", "_gtFine_labelIds"): got {suffixes!r}.'
            )
        self.of_image, self.of_map = suffixes

    def map_of(self, image, images, maps):
        """The map of an image: in the folder `maps` as the image in `images`, with an ending of its own; or None."""
        stem = self._stem(image, images, maps)
        if stem is None:
            return None
        whole = stem.with_name(image.name + self.of_map)  # such as photo.jpg.png
        names = [name.with_name(name.name + ending) for ending in ENDINGS for name in (stem, whole)]
        return next((name for name in names if name.is_file()), None)

    def missing(self, image, images, maps):
        """Why an image has no map."""
        stem = self._stem(image, images, maps)
        if stem is None:
            return f"its name does not end in {self.of_image!r}, the first of suffixes="
        return f"there is no map {str(stem.with_name(stem.name + ENDINGS[0]))!r} for it"

    def is_map(self, image, images, maps):
        """Whether an image is itself a map, of those that lie beside their images."""
        return bool(self.of_map) and maps.samefile(images) and image.stem.endswith(self.of_map)

    def _stem(self, image, images, maps):
        if not image.stem.endswith(self.of_image):
            return None
        name = image.stem.removesuffix(self.of_image) + self.of_map
        return (maps / image.relative_to(images)).with_name(name)


def suggested_suffixes(paths, images, maps):
    """A sentence about the suffixes by which the first of images without any map would have one, or an empty text."""
    stem = paths[0].stem
    for cut in (len(stem), stem.rfind("_")):
        if cut < 1 or not all(path.stem.endswith(stem[cut:]) for path in paths):
            continue
        folder = (maps / paths[0].relative_to(images)).parent
        beside = (name for name in sorted(folder.glob(f"{glob.escape(stem[:cut])}_*")) if name.suffix in ENDINGS)
        if found := [name for name in beside if name != paths[0]]:
            kinds = ", ".join(repr(name.stem[cut:]) for name in found)
            return f"; there are maps whose names end in {kinds}: pass suffixes={(stem[cut:], found[0].stem[cut:])}"
    return ""


def read_pixels(path, size, colours=False):
    """The numbers of a map, [h, w], or its colours [h, w, 3]; a ValueError says why it cannot be one of its image.

    Args:
        path: Of the map.
        size: Height and width of the image; the map may be turned as its EXIF data say.
        colours: Whether the colours are wanted, also of a file with a palette.
    """
    header = read_header(path)
    try:
        with PIL.Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB") if colours and image.mode != "I;16" else image)
    except Exception:  # a decoder that meets damaged bytes may raise anything
        raise ValueError("its data are damaged or end too early") from None
    if pixels.shape[:2] != tuple(size) and header.upright_size == tuple(size):
        transposed, *flips = TURNS[header.orientation]
        pixels = pixels.swapaxes(0, 1) if transposed else pixels
        pixels = np.flip(pixels, [axis for axis, turned in enumerate(flips) if turned])
    if pixels.shape[:2] != tuple(size):
        raise ValueError(f"it has {pixels.shape[:2]} pixels (height, width), its image {tuple(size)}")
    if pixels.dtype.kind == "f" and (broken := pixels != np.floor(pixels)).any():
        row, column = _first(broken)
        raise ValueError(f"it holds {pixels[row, column]:.3g} at row {row}, column {column}, no whole number")
    return pixels


class Coding:
    """How the pixels of label maps stand for classes.

    Args:
        who: Name of the reader, for messages.
        class_names: Names of the classes, in the order of the labels.
        palette: None: the numbers of the file are the labels. A list of colours (r, g, b) in the order of the classes,
            or a dict from colour, or from number, to a class: its number, its name, or None for ignored pixels.
        ignored_label: The number of ignored pixels where there is no palette; None ignores none.

    Raises:
        ValueError: On arguments that cannot be.
    """

    def __init__(self, who, class_names, palette=None, ignored_label=IGNORED):
        self.who, self.class_names = who, class_names
        if not 1 <= len(class_names) <= IGNORED:
            raise ValueError(
                f"{who}: got {len(class_names)} class_names, expected 1 to {IGNORED}: {IGNORED} is ignored."
            )
        is_whole = isinstance(ignored_label, numbers.Integral) and not isinstance(ignored_label, bool)
        if ignored_label is not None and not is_whole:
            raise ValueError(f"{who}: ignored_label is a number of the maps, or None: got {ignored_label!r}.")
        if palette is not None and ignored_label != IGNORED:
            raise ValueError(
                f"{who}: a palette says itself which pixels are ignored, those of the class None: leave out "
                f"ignored_label={ignored_label!r}."
            )
        self.ignored_label = ignored_label
        self.by_colour, self.table = None, None
        if palette is not None:
            self.by_colour, self.table = self._parsed(palette)

    def _parsed(self, palette):
        """Whether the palette is of colours, and `{code: label}`."""
        if not isinstance(palette, Mapping):
            colours = [tuple(colour) if np.shape(colour) else colour for colour in palette]
            twice = [colour for colour, count in collections.Counter(colours).items() if count > 1]
            if twice or len(colours) != len(self.class_names):
                got = f"{twice[0]} twice" if twice else f"{len(colours)}"
                raise ValueError(
                    f"{self.who}: a list as palette has one colour for each of the {len(self.class_names)} classes: "
                    f"got {got}. Give a dict where several colours are of one class, or pixels ignored."
                )
            palette = dict(zip(colours, range(len(colours)), strict=True))
        kinds = {np.shape(key) for key in palette}
        whole = all(isinstance(n, numbers.Integral) and n >= 0 for key in palette for n in np.ravel(key).tolist())
        if kinds not in ({(3,)}, {()}) or not whole or (kinds == {(3,)} and np.max([*palette]) > 255):
            raise ValueError(
                f"{self.who}: a palette is a list of colours such as (128, 0, 0), or a dict whose keys are such "
                f"colours or numbers from 0: got {palette!r}."
            )
        by_colour = kinds == {(3,)}
        return by_colour, {_code(key) if by_colour else int(key): self._label(c) for key, c in palette.items()}

    def _label(self, value):
        if value is None:
            return IGNORED
        if isinstance(value, str):
            if value not in self.class_names:
                raise unknown(f"class in the palette of {self.who}", value, self.class_names)
            return self.class_names.index(value)
        if not isinstance(value, numbers.Integral) or not 0 <= value < len(self.class_names):
            raise ValueError(
                f"{self.who}: the palette has the class {value!r}, expected 0 to {len(self.class_names) - 1}, a name "
                "of class_names, or None for ignored pixels."
            )
        return int(value)

    def read(self, path, size):
        """The labels of a map, [h, w] int32, ignored ones as 255; a ValueError says why it cannot be used."""
        pixels = read_pixels(path, size, colours=bool(self.by_colour))
        if self.by_colour and pixels.ndim != 3:
            raise ValueError("its numbers have 16 bits, where the palette has colours of 8")
        if not self.by_colour and pixels.ndim != 2:
            raise ValueError(
                f"it has {pixels.shape[-1]} channels; a map has one number for each pixel: pass palette= for colours"
            )
        if self.table is None:
            labels = self._of_numbers(pixels)
        else:
            labels = self._of_table(_codes(pixels) if self.by_colour else pixels.astype("int64"))
        if (labels == IGNORED).all():
            raise ValueError("all of its pixels are ignored")
        return labels

    def _of_numbers(self, pixels):
        labels = pixels.astype("int32")
        ignored = np.zeros(labels.shape, bool) if self.ignored_label is None else labels == self.ignored_label
        wrong = ~ignored & ((labels < 0) | (labels >= len(self.class_names)))
        if wrong.any():
            row, column = _first(wrong)
            but = "none is ignored" if self.ignored_label is None else f"{self.ignored_label} is ignored"
            raise ValueError(
                f"it holds the class {labels[row, column]} at row {row}, column {column}; there are "
                f"{len(self.class_names)}, counted from 0, and {but}"
            )
        return np.where(ignored, IGNORED, labels)

    def _of_table(self, codes):
        known = np.array(sorted(self.table))
        labels = np.array([self.table[code] for code in known.tolist()], "int32")
        index = np.searchsorted(known, codes).clip(max=len(known) - 1)
        wrong = known[index] != codes
        if wrong.any():
            row, column = _first(wrong)
            what, shown = ("colour", _colour(codes[row, column])) if self.by_colour else ("number", codes[row, column])
            others = len(np.unique(codes[wrong])) - 1
            more = f", nor {'is' if others == 1 else 'are'} {others} more" if others else ""
            raise ValueError(
                f"it holds the {what} {shown} at row {row}, column {column}, which is not in the palette{more}"
            )
        return labels[index]


def _code(colour):
    red, green, blue = map(int, colour)
    return red << 16 | green << 8 | blue


def _codes(pixels):
    red, green, blue = np.moveaxis(pixels.astype("int64"), -1, 0)
    return red << 16 | green << 8 | blue


def _colour(code):
    return tuple(int(code) >> shift & 255 for shift in (16, 8, 0))


def _first(wrong):
    return np.unravel_index(np.argmax(wrong), wrong.shape)
