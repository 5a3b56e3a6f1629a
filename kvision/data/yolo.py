"""YOLO's files: one text file per image, one line per object, numbers relative to the image's size."""

import math
import pathlib
import re

import numpy as np

from kvision.contract import MAX_RELATIVE_COORDINATE
from kvision.data.annotations import AnnotatedImage, Annotation, Problem
from kvision.data.detection import detection_data
from kvision.data.files import homes, named_split, read_text, sub_folders, walk
from kvision.data.geometry import cxcywh_to_xyxy
from kvision.data.reader import reader
from kvision.data.yolo_yaml import existing, read_yaml

NO_LABELS = ("classes.txt", "labels.txt", "notes.txt", "train.txt", "val.txt", "test.txt")
MOST_CLASSES = 10_000  # a number from here on is no class where nothing names the classes


@reader(detection_data)
def yolo(reading, folder, **batch):
    """Read a data set in YOLO's format; what cannot be used is left out and reported, never fatal.

    A line is `class cx cy width height`, or `class x1 y1 x2 y2 x3 y3 …`, the polygon around an object, of which the
    box is then taken, and the mask on request; or a box with keypoints behind it, which are not read. Numbers are
    fractions of the image's width and height; classes count from 0. An image without a text file, or with an empty one,
    is an image without objects.

    The text file of `…/images/….jpg` is `…/labels/….txt`, or it lies beside the image: `images/train` and
    `labels/train`, `train/images` and `train/labels`, and one folder for all are read. Names of the classes and of the
    splits are those of `data.yaml`, in the folder or above it, in any of its forms; else the names are the lines of
    `classes.txt`, or numbers up to the highest that occurs in any split, and the splits are the folders. Reading a
    `data.yaml` needs PyYAML: `pip install "kvision[yolo]"`.

    Args:
        folder: Of the data set, or of one split of it.
        **batch: Of the batches.

    Returns:
        A data set as of `coco`; `image_id` counts the images, in the order of their names.

    Raises:
        ImportError: if there is a `data.yaml` and no PyYAML.
        ValueError: if the folder or the split does not exist, or no image or object can be used.

    ```python
    train = kvision.data.yolo("coco128", split="train2017", image_size=(512, 512), shuffle=True)
    ```
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise ValueError(f"yolo: {str(folder)!r} is not a folder. Expected images in images, text files in labels.")
    described = read_yaml(folder)
    every = reading.images(walk(folder), folder)
    paths = reading.chosen(_of_split(reading, folder, described, every), folder)
    texts = {path: _text_of(path, folder) for path in every}
    if paths and not any(texts[path] for path in paths):
        raise ValueError(
            f"yolo: none of the {len(paths)} images has a text file. Of {str(paths[0])!r} it is expected in a folder "
            "labels that is laid out like images, or beside the image."
        )
    stated = described.names if described else _listed_names(folder)
    counted = every if stated is None and reading.options.classes is None else paths
    lines = {file: _lines(file) for file in dict.fromkeys(texts[path] for path in counted) if file}
    pose = _pose(described, [numbers for found in lines.values() for _, numbers in found])
    rows = {file: [(row, *_label_and_rest(numbers, pose)) for row, numbers in found] for file, found in lines.items()}
    if stated is not None:
        names = reading.class_names(reading.different(stated, described.file if described else folder))
    else:  # the names are numbers, or `classes` gives them
        names = tuple(map(str, reading.options.classes or range(1 + _highest(rows))))
        stated = names
    _note_counting_from_1(reading, folder, rows, len(stated))
    if reading.options.split is None:
        _orphans(reading, folder, set(texts.values()))
    records = []
    for path, header in reading.headers(paths).items():
        record = AnnotatedImage(path, len(records), header, reading.is_upright(header), str(texts[path]), [])
        for row, label, numbers in rows.get(texts[path], ()):
            if label is None:
                reading.problem(texts[path], row, numbers)
            elif label >= len(stated):
                reading.problem(
                    texts[path], row, f"the class {label} is unknown; there are {len(stated)}, counted from 0"
                )
            elif stated[label] not in names:
                reading.other_class(folder, stated[label])
            else:
                record.annotations.append(_annotation(row, names.index(stated[label]), numbers, record.size))
        records.append(record)
    return detection_data(reading, records, names, **batch)


def _of_split(reading, folder, described, every):
    """The images of a named split, or all."""
    split = reading.options.split
    if not isinstance(split, str):
        return every
    homes = [folder / "images", folder] if (folder / "images").is_dir() else [folder]
    known = {}
    for home in homes:
        for part in sub_folders(home):
            if any(path.is_relative_to(part) for path in every) and part.name not in ("images", "labels"):
                known.setdefault(part.name, [part])
    known |= described.splits if described else {}
    starts = named_split(f"split of {str(folder)!r}", split, known)
    chosen = set()
    for start in starts:
        if start.is_dir():
            chosen.update(path for path in every if path.is_relative_to(start))
            continue
        for line in filter(None, map(str.strip, read_text(start).splitlines())):
            files = existing(start.parent, [], line)
            chosen.update(files)
            if not files:
                reading.problem(start, line[:60], "there is no such image in the data set")
    return [path for path in every if path in chosen]


def _text_of(path, folder):
    """The text file of an image; None if there is none."""
    beside = path.with_suffix(".txt")
    for root, parts in ((folder, path.relative_to(folder).parts), (pathlib.Path(path.anchor), path.parts)):
        at = [index for index, part in enumerate(parts[:-1]) if part.lower() == "images"]
        if at:
            mirrored = (root / pathlib.Path(*parts[: at[-1]], "labels", *parts[at[-1] + 1 :])).with_suffix(".txt")
            if mirrored.is_file():
                return mirrored
    labels = (folder / "labels" / path.relative_to(folder)).with_suffix(".txt")
    return next((file for file in (beside, labels) if file.is_file()), None)


def _orphans(reading, folder, known):
    """Note the text files without an image."""
    for file in walk(folder):
        if file.suffix.lower() == ".txt" and file not in known and file.name.lower() not in NO_LABELS:
            if all(numbers is None or len(numbers) < 5 for _, numbers in _lines(file)):
                continue  # another kind of text
            reading.problem(file, "", "there is no image for it")


def _lines(file):
    """Row and numbers of each line that is not empty; None where they are none."""
    found = []
    for index, line in enumerate(read_text(file).splitlines()):
        text = line.strip().strip("\0")
        if text:
            commas = "," in text and not re.search(r"[^,\s]\s+[^,\s]", text)  # else they may be decimal
            parts = text.split(",") if commas else text.split()
            try:
                found.append((f"line {index + 1}", [float(part) for part in parts]))
            except ValueError:
                found.append((f"line {index + 1}", text[:60]))
    return found


@np.errstate(over="ignore", invalid="ignore")
def _pose(described, lines):
    """How many numbers a line with keypoints has behind its class; None if the lines hold boxes and polygons.

    A `data.yaml` says so by `kpt_shape`. Without it, all long lines hold keypoints if every third number behind the box
    says whether one is visible (0, 1 or 2); or if all are equally long, every keypoint lies in its box, and in one of
    them the size of the box, taken as the second corner of a polygon, lies far from all others.
    """
    if described and described.keypoints:
        return 4 + described.keypoints
    long = [numbers[1:] for numbers in lines if isinstance(numbers, list) and len(numbers) > 6]
    counts = {len(numbers) for numbers in long}
    if len(counts) != 1:
        return None
    count = counts.pop()
    rows = np.array(long)
    if (count - 4) % 3 == 0 and count > 4 and np.isin(rows[:, 6::3], (0, 1, 2)).all():
        return count
    if count % 2:
        return None
    box, points = rows[:, :4], rows[:, 4:].reshape(len(rows), -1, 2)
    inside_box = np.abs(points - box[:, None, :2]) <= box[:, None, 2:] / 2 + 1e-3
    others = np.concatenate([box[:, None, :2], points], axis=1)
    low, high = others.min(axis=1), others.max(axis=1)
    gaps = np.maximum(low - box[:, 2:], box[:, 2:] - high)
    far = (gaps > np.maximum(high - low, 1e-3)).any(axis=1)
    return count if (inside_box | (points == 0)).all() and far.any() else None


def _label_and_rest(numbers, pose):
    """The class and its numbers, four of a box or those of a polygon; None and a reason if the line is none."""
    label, *rest = numbers if isinstance(numbers, list) else [-1]
    shown = numbers if isinstance(numbers, str) else " ".join(f"{each:g}" for each in numbers)
    if len(rest) == pose:
        rest = rest[:4]
    shaped = len(rest) == 4 or (len(rest) >= 6 and len(rest) % 2 == 0 and pose is None)
    if not 0 <= label < MOST_CLASSES or label != int(label) or not shaped:
        return None, (
            f"{shown[:60]!r} is neither `class cx cy width height` nor `class x1 y1 x2 y2 x3 y3 …` with an integer "
            f"from 0 to {MOST_CLASSES - 1} as class"
        )
    if all(map(math.isfinite, rest)) and max(rest) > MAX_RELATIVE_COORDINATE:
        return None, (
            f"{shown[:60]!r} holds {max(rest):g}; expected fractions of the image's width and height, from 0 to 1: "
            "these look like pixels"
        )
    return int(label), rest


def _note_counting_from_1(reading, folder, rows, count):
    """Note classes that seem to count from 1, first of all: every object would be of the class behind its own."""
    labels = {label for found in rows.values() for _, label, _ in found if label is not None}
    if labels and (min(labels), max(labels)) == (1, count):
        reason = (
            f"no object is of class 0, and there are some of class {count} beside {count} names: classes count from 0, "
            "these seem to count from 1; subtract 1 from each"
        )
        reading.problems.insert(0, Problem(str(folder), "", reason))


def _highest(rows):
    return max((label for found in rows.values() for _, label, _ in found if label is not None), default=-1)


def _listed_names(folder):
    for home in (folder / "labels", *homes(folder)):
        for name in ("classes.txt", "labels.txt"):
            if (home / name).is_file():
                lines = (line.strip() for line in read_text(home / name).splitlines())
                return tuple(line for line in lines if line) or None
    return None


@np.errstate(over="ignore", invalid="ignore")
def _annotation(row, label, numbers, size):
    height, width = size
    if len(numbers) == 4:
        box = cxcywh_to_xyxy(numbers) * (width, height, width, height)
        return Annotation(row, tuple(box.tolist()), label)
    points = np.reshape(numbers, (-1, 2)) * (width, height)
    box = (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())
    return Annotation(row, box, label, segmentation=[points.ravel().tolist()])
