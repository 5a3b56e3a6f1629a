"""Pascal VOC's files: one XML an image."""

import pathlib

from kvision.data.annotations import AnnotatedImage, Annotation, Problem, readable_sizes
from kvision.data.detection import detection_data, reader
from kvision.data.images import SUFFIXES, is_image
from kvision.errors import unknown

SIDES = ("xmin", "ymin", "xmax", "ymax")


@reader
def voc(folder, *, split=None, classes=None, check="full", **options):
    """Read a data set in Pascal VOC's format; what cannot be used is left out and reported, never fatal.

    Everingham et al. 2010, "The PASCAL Visual Object Classes (VOC) Challenge". VOC counts pixels from 1, and its boxes
    include both ends: `xmin` … `xmax` are the first and the last column of the object. So the box here, whose pixels
    begin at 0 and whose right and bottom lie behind the last pixel, is (xmin − 1, ymin − 1, xmax, ymax). Files by
    tools that count from 0 come out a pixel larger at the left and top, within the image. `difficult` is the file's,
    `area` that of the box. The files hold no masks.

    Needs `defusedxml`: `pip install "kvision[voc]"`.

    Args:
        folder: Either the folder with `Annotations`, `JPEGImages` and `ImageSets` (`VOCdevkit/VOC2007`), or a folder
            with XML files and their images side by side. An image without an XML file is no part of the data set.
        split: Name of a list in `ImageSets/Main`, such as `"trainval"`; None takes every XML.
        classes: Names of the classes, in the order of the labels; objects of others are reported. None takes the names
            that occur, in alphabetical order.
        check: `"full"` decodes every image once beforehand and reports those that fail; `"header"` reads their first
            bytes only, see `coco`.
        **options: Of the batches: `image_size`, `batch_size`, `shuffle`, `seed`, `masks`, `mask_size`, `max_boxes`,
            `drop_remainder`, as in `kvision.data.detection.detection_data`.

    Returns:
        A `DetectionData`; `image_id` counts the images, in the order of the XML files' names.

    Raises:
        ImportError: without `defusedxml`.
        ValueError: if the folder or the split does not exist, or no image can be used.

    ```python
    train = kvision.data.voc("VOCdevkit/VOC2007", split="trainval", image_size=(512, 512), shuffle=True)
    ```
    """
    folder = pathlib.Path(folder)
    problems, read = [], []
    for file in _files(folder, split, problems):
        size, image, objects = _read(file, folder, problems)
        if image is not None:
            read.append((file, size, image, objects))
    names = sorted({name for *_, objects in read for _, name, *_ in objects}) if classes is None else list(classes)
    sizes = readable_sizes([image for _, _, image, _ in read], check, problems)
    records = []
    for file, size, path, objects in read:
        if path not in sizes:
            continue
        if size is not None and size != sizes[path]:
            reason = f"{path.name} has {sizes[path]} pixels (height, width), the XML says {size}"
            problems.append(Problem(str(file), "size", reason))
            continue
        annotations = []
        for row, name, box, difficult in objects:
            if name in names:
                annotations.append(Annotation(row, box, names.index(name), difficult=difficult))
            else:
                problems.append(Problem(str(file), row, str(unknown("class", name, names))))
        records.append(AnnotatedImage(path, len(records), sizes[path], str(file), annotations))
    return detection_data("voc", records, names, problems, skip_broken=check == "header", **options)


def _files(folder, split, problems):
    """The XML files, in alphabetical order or in that of the split."""
    annotations = folder / "Annotations"
    if split is None:
        files = sorted((annotations if annotations.is_dir() else folder).glob("*.xml"))
        if not files:
            raise ValueError(
                f"voc: no XML files in {str(folder)!r}. Expected a folder with Annotations and JPEGImages, as "
                "VOCdevkit/VOC2007, or one with XML files beside their images."
            )
        return files
    lists = folder / "ImageSets" / "Main"
    known = sorted(path.stem for path in lists.glob("*.txt"))
    if split not in known:
        raise unknown(f"split in {str(lists)!r}", split, known)
    files = []
    for row, line in enumerate((lists / f"{split}.txt").read_text(encoding="utf-8").splitlines()):
        file = annotations / f"{''.join(line.split()[:1])}.xml"
        if file.is_file():
            files.append(file)
        elif line.strip():
            problems.append(Problem(str(lists / f"{split}.txt"), f"line {row + 1}", f"there is no {str(file)!r}"))
    return files


def _read(file, folder, problems):
    """Stated size, path of the image, and objects (row, name, box, difficult) of one XML."""
    try:
        root = _parse(file)
    except (OSError, SyntaxError, ValueError) as error:  # what the parser refuses, and what defusedxml forbids
        problems.append(Problem(str(file), "", f"cannot be read as XML: {error}"))
        return None, None, []
    image = _image_of(file, folder, root.findtext("filename"))
    if image is None:
        problems.append(Problem(str(file), "filename", f"there is no image {root.findtext('filename')!r} for it"))
        return None, None, []
    size = tuple(_number(root.find("size"), side) for side in ("height", "width"))
    size = tuple(map(int, size)) if all(side is not None and 1 <= side < 1e9 for side in size) else None
    objects = []
    for index, found in enumerate(root.findall("object")):
        row = f"object {index + 1}"
        name = (found.findtext("name") or "").strip()
        box = [_number(found.find("bndbox"), side) for side in SIDES]
        if not name or None in box:
            missing = (
                "name" if not name else ", ".join(s for s, number in zip(SIDES, box, strict=True) if number is None)
            )
            problems.append(Problem(str(file), row, f"it has no {missing}, or none that is a number"))
            continue
        left, top, right, bottom = box
        objects.append((row, name, (left - 1, top - 1, right, bottom), found.findtext("difficult", "0").strip() == "1"))
    return size, image, objects


def _parse(file):
    try:
        from defusedxml import ElementTree
    except ImportError:
        raise ImportError('Reading VOC needs defusedxml: pip install "kvision[voc]"') from None
    return ElementTree.parse(file).getroot()


def _image_of(file, folder, stated):
    """The image of an XML: the file that it names, or the one named like the XML where no reader takes that kind."""
    home = folder / "JPEGImages" if (folder / "Annotations").is_dir() else file.parent
    own = [file.stem + suffix for suffix in SUFFIXES] + [file.stem + suffix.upper() for suffix in SUFFIXES]
    named = [pathlib.PurePath(stated.strip()).name] if stated and stated.strip() else []
    readable = named and is_image(pathlib.PurePath(named[0]))
    names = named + own if readable else own + named
    return next((home / name for name in names if (home / name).is_file()), None)


def _number(parent, name):
    try:
        return float(parent.findtext(name))
    except (AttributeError, TypeError, ValueError):
        return None
