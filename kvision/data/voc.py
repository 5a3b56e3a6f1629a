"""Pascal VOC's files: one XML an image."""

import pathlib

from kvision.data.annotations import AnnotatedImage, Annotation, Problem
from kvision.data.detection import detection_data
from kvision.data.files import named_split, natural, read_text, walk
from kvision.data.images import SUFFIXES, is_image
from kvision.data.reader import reader
from kvision.data.values import flag, number, pixels

SIDES = ("xmin", "ymin", "xmax", "ymax")
XML_FOLDERS = ("Annotations", "annotations", "xmls", "labels")
IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "imgs")


@reader(detection_data)
def voc(reading, folder, **batch):
    """Read a data set in Pascal VOC's format; what cannot be used is left out and reported, never fatal.

    Everingham et al. 2010, "The PASCAL Visual Object Classes (VOC) Challenge". VOC counts pixels from 1, and its boxes
    include both ends: `xmin` … `xmax` are the first and the last column of the object. So the box here, whose pixels
    begin at 0 and whose right and bottom lie behind the last pixel, is (xmin − 1, ymin − 1, xmax, ymax). Files by
    tools that count from 0 come out a pixel larger at the left and top, within the image. `difficult` is the file's,
    `area` that of the box; several `bndbox` of an object are as many objects. The files hold no masks.

    The labels are in the alphabetical order of all names in the folder, whatever the split. A named split is a list in
    `ImageSets/Main`, such as `"trainval"`.

    Needs `defusedxml`: `pip install "kvision[voc]"`.

    Args:
        folder: Either the folder with `Annotations`, `JPEGImages` and `ImageSets` (`VOCdevkit/VOC2007`), one with
            `annotations` and `images`, or a folder with XML files and their images side by side. An image without an
            XML file is no part of the data set.
        **batch: Of the batches.

    Returns:
        A data set as of `coco`; `image_id` counts the images, in the order of the XML files' names.

    Raises:
        ImportError: without `defusedxml`.
        ValueError: if the folder or the split does not exist, or no image or object can be used.

    ```python
    train = kvision.data.voc("VOCdevkit/VOC2007", split="trainval", image_size=(512, 512), shuffle=True)
    ```
    """
    folder = pathlib.Path(folder)
    home = next((folder / name for name in XML_FOLDERS if (folder / name).is_dir()), folder)
    images = next((folder / name for name in IMAGE_FOLDERS if (folder / name).is_dir()), home)
    every = [path for path in walk(home) if path.suffix.lower() == ".xml"] if home.is_dir() else []
    if not every:
        raise ValueError(
            f"voc: no XML files in {str(home)!r}. Expected a folder with Annotations and JPEGImages, as "
            "VOCdevkit/VOC2007, or one with XML files beside their images."
        )
    named = {path.relative_to(images).as_posix(): path for path in walk(images) if is_image(path)}
    listed = _of_split(reading, folder, home, every)
    read = {file: _read(file, home, named) for file in listed}
    chosen = set(reading.chosen([found.image for found in read.values() if found.image], folder))
    read = {file: found for file, found in read.items() if found.image in chosen or found.image is None}
    names = reading.class_names(_names(reading, every, read, home, named))
    for found in read.values():
        reading.problems += found.problems
    headers = reading.headers([found.image for found in read.values() if found.image])
    records = []
    for file, found in read.items():
        if found.image not in headers:
            continue
        header = headers[found.image]
        upright = reading.is_upright(header, found.size)
        if upright is None:
            reason = f"{found.image.name} has {header.shown} pixels (height, width), the XML says {found.size}"
            reading.problem(file, "size", reason)
            continue
        annotations = []
        for row, name, box, difficult in found.objects:
            if name in names:
                annotations.append(Annotation(row, box, names.index(name), difficult=difficult))
            else:
                reading.other_class(folder, name)
        records.append(AnnotatedImage(found.image, len(records), header, upright, str(file), annotations))
    return detection_data(reading, records, names, **batch)


class Found:
    """What an XML holds: the size that it states, the path of its image, objects (row, name, box, difficult)."""

    def __init__(self, file):
        self.file, self.size, self.image, self.objects, self.problems = file, None, None, [], []

    def problem(self, row, reason):
        """Note something that is left out; returns the XML."""
        self.problems.append(Problem(str(self.file), row, reason))
        return self


def _of_split(reading, folder, home, every):
    """The XML files, in natural order or in that of the split."""
    split = reading.options.split
    if not isinstance(split, str):
        return every
    lists = folder / "ImageSets" / "Main"
    known = {path.stem: path for path in sorted(lists.glob("*.txt"), key=natural)}
    listing = named_split(f"split in {str(lists)!r}", split, known)
    files = []
    for row, line in enumerate(read_text(listing).splitlines()):
        file = home / f"{''.join(line.split()[:1])}.xml"
        if file in every:
            files.append(file)
        elif line.strip():
            reading.problem(listing, f"line {row + 1}", f"there is no {str(file)!r}")
    return files


def _names(reading, every, read, home, named):
    """The names of all classes of the data set, of the files that are not read only where they matter."""
    names = {name for found in read.values() for _, name, *_ in found.objects}
    asked = reading.options.classes
    if asked is None or not names.issuperset(map(str, asked)):
        rest = (_read(file, home, named) for file in every if file not in read)
        names |= {name for found in rest for _, name, *_ in found.objects}
    return sorted(names, key=natural)


def _read(file, home, named):
    """What an XML holds; without an image if it cannot be used."""
    found = Found(file)
    try:
        root = _parse(file)
    except (OSError, SyntaxError, ValueError, LookupError) as error:  # the parser's, and what defusedxml forbids
        return found.problem("", f"cannot be read as XML: {error}")
    found.image = _image_of(file, home, named, root.findtext("filename"))
    if found.image is None:
        return found.problem("filename", f"there is no image {root.findtext('filename')!r} for it")
    found.size = pixels(root.findtext("size/height"), root.findtext("size/width"))
    for index, entry in enumerate(root.findall("object")):
        row = f"object {index + 1}"
        name = (entry.findtext("name") or "").strip()
        boxes = entry.findall("bndbox")
        if not name or not boxes:
            found.problem(row, f"it has no {'bndbox' if name else 'name'}")
            continue
        for at, box in enumerate(boxes):
            part = f"{row}, bndbox {at + 1}" if len(boxes) > 1 else row
            sides = [number(box.findtext(side)) for side in SIDES]
            missing = [side for side, value in zip(SIDES, sides, strict=True) if value is None]
            if missing:
                found.problem(part, f"it has no {', '.join(missing)}, or none that is a number")
            else:
                left, top, right, bottom = sides
                corners = (left - 1, top - 1, right, bottom)
                found.objects.append((part, name, corners, flag(entry.findtext("difficult"))))
    return found


def _parse(file):
    try:
        from defusedxml import ElementTree
    except ImportError:
        raise ImportError('Reading VOC needs defusedxml: pip install "kvision[voc]"') from None
    try:
        return ElementTree.parse(file).getroot()
    except SyntaxError:
        text = read_text(file)  # in an encoding that it does not state
        if text.encode() == file.read_bytes():
            raise
        return ElementTree.fromstring(text)


def _image_of(file, home, named, stated):
    """The image of an XML: the file that it names, or the one named like the XML where no reader takes that kind."""
    stem = file.relative_to(home).with_suffix("").as_posix()
    own = [stem + suffix for suffix in SUFFIXES] + [stem + suffix.upper() for suffix in SUFFIXES]
    name = pathlib.PureWindowsPath(stated.strip()).name if stated and stated.strip() else None
    beside = (pathlib.PurePath(stem).parent / name).as_posix() if name else None
    stated_names = list(dict.fromkeys(each for each in (beside, name) if each))
    readable = name is not None and is_image(pathlib.PurePath(name))
    names = stated_names + own if readable else own + stated_names
    return next((named[each] for each in names if each in named), None)
