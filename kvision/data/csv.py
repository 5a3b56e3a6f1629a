"""Tables: a CSV file with a row per box, or a row per image and its labels."""

import csv as csv_format
import pathlib

import numpy as np

from kvision.data.annotations import AnnotatedImage, Annotation
from kvision.data.detection import detection_data
from kvision.data.files import inside, natural, read_text
from kvision.data.labels import check_channels, labelled_images
from kvision.data.reader import reader
from kvision.data.values import flag, number

FILE = ("file", "filename", "file_name", "image", "image_path", "path", "image_id", "id")
LABEL = ("label", "class", "class_name", "name", "category")
CORNERS = (
    ("xmin", "ymin", "xmax", "ymax"),
    ("x1", "y1", "x2", "y2"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("left", "top", "right", "bottom"),
)


@reader(detection_data)
def csv(reading, file, images, *, file_column=None, label_column=None, corner_columns=None, outside=False, **batch):
    """Read boxes out of a CSV file; what cannot be used is left out and reported, never fatal.

    A row is a box: the file of its image, its corners in pixels, its class. An image has as many rows as objects; a row
    whose corners are all empty stands for an image without any. Columns are found by their names.

    Args:
        file: Path of the CSV, whose first row holds the names of the columns.
        images: Folder of the images.
        file_column: Name of the column with the files, relative to the folder; None takes the first of `file`,
            `filename`, `image`, `path` and the like.
        label_column: That of the classes; None takes `label`, `class`, `name` or the like.
        corner_columns: Those of left, top, right and bottom; None takes `xmin, ymin, xmax, ymax`, `x1, y1, x2, y2` or
            the like.
        outside: Whether a file may lie outside the folder.
        **batch: Of the batches.

    Returns:
        A data set as of `kvision.data.coco`; `image_id` counts the images, in the order of the file. Classes are in
        natural order of their names.

    Raises:
        ValueError: if the CSV cannot be read or lacks a column, or no image or object can be used.

    ```python
    train = kvision.data.csv("boxes.csv", "images", image_size=(512, 512), shuffle=True)
    ```
    """
    reading.refuse_named_split("Pass a range such as split=(0, 0.8), or a list of files.")
    columns, rows = _rows("csv", file)
    at_file = _column("csv", file, columns, "file_column", file_column, FILE)
    at_label = _column("csv", file, columns, "label_column", label_column, LABEL)
    corners = tuple(corner_columns) if corner_columns else next((c for c in CORNERS if set(c) <= set(columns)), None)
    if corners is None or len(corners) != 4 or not set(corners) <= set(columns):
        raise ValueError(
            f"csv: {str(file)!r} needs four columns with left, top, right and bottom, such as xmin, ymin, xmax, ymax; "
            f"it has {', '.join(columns)[:200]}. Name them by corner_columns; csv_labels reads labels."
        )
    by_image = _by_image(reading, file, rows, at_file, images, outside)
    names = reading.class_names(_sorted({row[at_label].strip() for _, row in rows if row[at_label].strip()}))
    records = []
    for path, header in reading.headers(reading.chosen(by_image, pathlib.Path(images))).items():
        record = AnnotatedImage(path, len(records), header, reading.is_upright(header), str(file), [])
        for place, row in by_image[path]:
            if not any(row[corner].strip() for corner in corners):
                continue
            box, name = tuple(number(row[corner]) for corner in corners), row[at_label].strip()
            if None in box or not name:
                shown = ", ".join(row[corner] for corner in corners)[:60]
                reading.problem(file, place, f"({shown}) are not four numbers, or there is no class {name!r}")
            elif name not in names:
                reading.other_class(file, name)
            else:
                record.annotations.append(Annotation(f"{place} ({path.name})", box, names.index(name)))
        records.append(record)
    return detection_data(reading, records, names, **batch)


@reader(labelled_images, batch_size=32)
def csv_labels(
    reading, file, images, *, file_column=None, label_column=None, separator=None, channels=3, outside=False, **batch
):
    """Read images with the labels of a CSV file, one or several each; what cannot be used is left out and reported.

    A row is an image. Its labels stand in one column, several of them with a separator between, or in several rows; or
    each class has a column of 0 and 1. An image that is listed with contradictory labels is left out and reported.

    Args:
        file: Path of the CSV, whose first row holds the names of the columns.
        images: Folder of the images.
        file_column: Name of the column with the files, relative to the folder; None takes the first of `file`,
            `filename`, `image`, `path` and the like.
        label_column: That of the labels; None takes `label`, `class` or the like, or, with a separator, `labels` or
            `tags`, or else each other column as a class of 0 and 1.
        separator: What stands between several labels, such as `" "` or `"|"`; None reads one label.
        channels: 3 for RGB, 1 for grey.
        outside: Whether a file may lie outside the folder.
        **batch: Of the batches.

    Returns:
        A data set as of `kvision.data.image_folder`. With several labels, those are [b, classes] float32 of 0 and 1.
        Classes are in natural order of their names, or in that of the columns.

    Raises:
        ValueError: if the CSV cannot be read or lacks a column, or no image can be used.

    ```python
    train = kvision.data.csv_labels("tags.csv", "images", label_column="tags", separator="|", shuffle=True)
    ```
    """
    check_channels(reading, channels)
    reading.refuse_named_split("Pass a range such as split=(0, 0.8), or a list of files.")
    columns, rows = _rows("csv_labels", file)
    at_file = _column("csv_labels", file, columns, "file_column", file_column, FILE)
    usual = LABEL if separator is None else ("labels", "tags", *LABEL)
    by_columns = label_column is None and separator is None and not set(usual) & set(columns)
    if by_columns:
        known = [column for column in columns if column != at_file]
        labels_of = lambda row: [name for name in known if flag(row[name])]  # noqa: E731
        several = True
        bad = [row for _, row in rows if any(row[name].strip() not in ("0", "1", "0.0", "1.0") for name in known)]
        if bad or not known:
            raise ValueError(
                f"csv_labels: {str(file)!r} has no column {', '.join(LABEL)}, and its other columns, "
                f"{', '.join(known)[:200]}, do not all hold 0 and 1. Name the one of the labels by label_column."
            )
    else:
        at_label = _column("csv_labels", file, columns, "label_column", label_column, usual)
        several = separator is not None
        split = (lambda text: text.split(separator)) if several else (lambda text: [text])
        labels_of = lambda row: [part.strip() for part in split(row[at_label]) if part.strip()]  # noqa: E731
        known = _sorted({name for _, row in rows for name in labels_of(row)})
    names = reading.class_names(known)
    by_image = _by_image(reading, file, rows, at_file, images, outside)
    chosen = {}
    for path in reading.chosen(by_image, pathlib.Path(images)):
        place = by_image[path][0][0]
        found = [labels_of(row) for _, row in by_image[path]]
        labels = list(dict.fromkeys(name for part in found for name in part))
        if (len(labels) > 1 and not several) or (by_columns and any(set(part) != set(labels) for part in found)):
            places = ", ".join(place for place, _ in by_image[path][:4])
            reason = (
                f"{path.name} is listed more than once ({places}), with other labels each time "
                f"({', '.join(map(repr, labels[:4]))}), and left out; a separator, such as '|', reads several labels "
                "of an image, in one row or in many"
            )
            reading.problem(file, place, reason)
            continue
        for name in set(labels) - set(names):
            reading.other_class(file, name)
        kept = [names.index(name) for name in labels if name in names]
        if several or kept:
            chosen[path] = kept
        elif not labels:
            reading.problem(file, place, f"{path.name} has no label")
    headers = reading.headers(chosen, channels)
    hot = np.zeros((len(headers), len(names)), "float32")
    for row, path in zip(hot, headers, strict=True):
        row[chosen[path]] = 1
    labels = hot if several else np.array([chosen[path][0] for path in headers], "int32")
    facts = {"class_names": names, "counts": tuple(hot.sum(axis=0).astype(int).tolist())}
    return labelled_images(reading, list(headers), list(headers.values()), labels, channels, facts, **batch)


def _rows(kind, file):
    """Names of the columns, and place and values by column of each row that is not empty."""
    try:
        text = read_text(file)
        dialect = csv_format.Sniffer().sniff(text[:4096].splitlines()[0], ",;\t") if text.strip() else "excel"
    except OSError as error:
        raise ValueError(f"{kind}: {str(file)!r} cannot be read: {error}") from None
    except csv_format.Error:
        dialect = "excel"
    lines = csv_format.reader(text.splitlines(), dialect)
    try:
        read = list(lines)
    except csv_format.Error as error:
        raise ValueError(
            f"{kind}: {str(file)!r}, line {lines.line_num}, cannot be read as CSV: {error}. Look at the quotes there."
        ) from None
    columns = [name.strip() for name in read[0]] if read else []
    if len(columns) < 2 or len(set(columns)) < len(columns):
        raise ValueError(
            f"{kind}: the first row of {str(file)!r} holds the names of its columns, at least two and each another: "
            f"got {', '.join(columns)[:200] or 'nothing'}."
        )
    rows = [
        (f"line {index}", dict(zip(columns, row + [""] * len(columns), strict=False)))
        for index, row in enumerate(read[1:], 2)
        if any(cell.strip() for cell in row)
    ]
    if not rows:
        raise ValueError(f"{kind}: {str(file)!r} holds the names of its columns, but no row below them.")
    return columns, rows


def _column(kind, file, columns, argument, name, usual):
    """The column of a name, or the first of the usual names that exists."""
    found = name if name in columns else next((each for each in usual if name is None and each in columns), None)
    if found is None:
        raise ValueError(
            f"{kind}: {str(file)!r} has no column {name or ', '.join(usual)}; it has {', '.join(columns)[:200]}. "
            f"Name it by {argument}."
        )
    return found


def _by_image(reading, file, rows, at_file, images, outside):
    """`{path: [(place, row), …]}`."""
    found = {}
    for place, row in rows:
        try:
            path = inside(images, row[at_file].strip(), outside)
        except ValueError as error:
            reading.problem(file, place, str(error))
            continue
        found.setdefault(path, []).append((place, row))
    return found


def _sorted(names):
    return sorted(names, key=natural)
