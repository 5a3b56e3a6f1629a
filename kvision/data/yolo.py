"""YOLO's files: one text file per image, one line per object, numbers relative to the image's size."""

import pathlib

import numpy as np

from kvision.data.annotations import AnnotatedImage, Annotation, Problem, readable_sizes
from kvision.data.detection import detection_data, reader
from kvision.data.geometry import cxcywh_to_xyxy
from kvision.data.images import is_image


@reader
def yolo(folder, *, split=None, classes=None, check="full", **options):
    """Read a data set in YOLO's format; what cannot be used is left out and reported, never fatal.

    A line is `class cx cy width height`, or `class x1 y1 x2 y2 x3 y3 …`, the polygon around an object, of which the
    box is then taken, and the mask on request. Numbers are fractions of the image's width and height; classes count
    from 0. An image without a text file, or with an empty one, is an image without objects.

    Args:
        folder: With `images` and `labels`, the second laid out like the first; or a folder with images and text
            files side by side.
        split: A sub-folder of `images` and `labels`, such as `"train"`; None takes all of them.
        classes: Names of the classes, in the order of the labels; objects of others are reported. None takes the lines
            of `classes.txt` if there is one, else numbers up to the highest that occurs.
        check: `"full"` decodes every image once beforehand and reports those that fail; `"header"` reads their first
            bytes only, see `coco`.
        **options: Of the batches: `image_size`, `batch_size`, `shuffle`, `seed`, `masks`, `mask_size`, `max_boxes`,
            `drop_remainder`, as in `kvision.data.detection.detection_data`.

    Returns:
        A `DetectionData`; `image_id` counts the images, in the order of their names.

    Raises:
        ValueError: if the folder or the split does not exist, or no image can be used.

    ```python
    train = kvision.data.yolo("coco128", split="train2017", image_size=(512, 512), shuffle=True)
    ```
    """
    folder = pathlib.Path(folder)
    images, labels = (folder / name if (folder / "images").is_dir() else folder for name in ("images", "labels"))
    start = images if split is None else images / split
    if not start.is_dir():
        raise ValueError(f"yolo: {str(start)!r} is not a folder. Expected images in images, text files in labels.")
    paths = sorted(path for path in start.rglob("*") if is_image(path))
    problems, rows = [], {}
    files = {path: (labels / path.relative_to(images)).with_suffix(".txt") for path in paths}
    for file in dict.fromkeys(files.values()):
        rows[file] = _rows(file, problems)
    names = _names(folder, labels, rows) if classes is None else tuple(map(str, classes))
    start = labels if split is None else labels / split
    for file in sorted(set(start.rglob("*.txt")) - set(rows)):
        if file.name != "classes.txt":
            problems.append(Problem(str(file), "", "there is no image for it"))
    records = []
    for path, size in readable_sizes(paths, check, problems).items():
        file = files[path]
        annotations = []
        for row, label, numbers in rows[file]:
            if label >= len(names):
                reason = f"the class {label} is unknown; there are {len(names)}, counted from 0"
                problems.append(Problem(str(file), row, reason))
            else:
                annotations.append(_annotation(row, label, numbers, size))
        records.append(AnnotatedImage(path, len(records), size, str(file), annotations))
    return detection_data("yolo", records, names, problems, skip_broken=check == "header", **options)


def _rows(file, problems):
    """Row, class and the other numbers of each line that can be read."""
    if not file.is_file():
        return []
    rows = []
    for index, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines()):
        if not line.strip():
            continue
        row = f"line {index + 1}"
        try:
            label, *numbers = map(float, line.split())
        except ValueError:
            label, numbers = -1, []
        shaped = len(numbers) == 4 or (len(numbers) >= 6 and len(numbers) % 2 == 0)
        if label < 0 or not float(label).is_integer() or not shaped:
            reason = (
                f"{line.strip()[:60]!r} is neither `class cx cy width height` nor `class x1 y1 x2 y2 x3 y3 …` with "
                "an integer from 0 as class"
            )
            problems.append(Problem(str(file), row, reason))
        else:
            rows.append((row, int(label), numbers))
    return rows


def _names(folder, labels, rows):
    for file in (folder / "classes.txt", labels / "classes.txt"):
        if file.is_file():
            return tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    return tuple(map(str, range(1 + max((label for found in rows.values() for _, label, _ in found), default=-1))))


def _annotation(row, label, numbers, size):
    height, width = size
    if len(numbers) == 4:
        box = cxcywh_to_xyxy(numbers) * (width, height, width, height)
        return Annotation(row, tuple(box.tolist()), label)
    points = np.reshape(numbers, (-1, 2)) * (width, height)
    box = (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())
    return Annotation(row, box, label, segmentation=[points.ravel().tolist()])
