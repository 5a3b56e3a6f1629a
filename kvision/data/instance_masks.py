"""Images beside maps of instances, one number for each object, for instance segmentation."""

import csv
import io
import pathlib
from collections.abc import Mapping

import numpy as np

from kvision.data.annotations import AnnotatedImage, Annotation
from kvision.data.detection import detection_data
from kvision.data.files import read_text, relative
from kvision.data.label_maps import IGNORED, Naming, read_pixels
from kvision.data.masks import paired
from kvision.data.reader import reader
from kvision.data.values import key
from kvision.errors import unknown

COLUMNS = ("file", "id", "class")


def instance_data(reading, records, class_names, *, image_size=(512, 512), masks=True, mask_size=112, max_boxes=100):
    return detection_data(
        reading, records, class_names, image_size=image_size, masks=masks, mask_size=mask_size, max_boxes=max_boxes
    )


instance_data.__doc__ = detection_data.__doc__


@reader(instance_data)
def instance_masks(reading, images, instances, class_names, class_of=None, ignored_id=None, suffixes=("", ""), **batch):
    """Read images beside maps of instances: each object has a number of its own, background is 0.

    A map has the name of its image with the ending `.png` (`.tif`, `.bmp` or `.gif`), laid out alike in its own folder;
    of 8 or 16 bits, with a palette or without, or in colours, whose number is red + 256 green + 65536 blue, as COCO's
    panoptic files have it. An object of several parts is one object. What is not an object of `class_names` is left out
    and reported, and so is a map that has another size than its image.

    Args:
        images: Folder of the images; named splits as of `kvision.data.masks`.
        instances: Folder of the maps, such as VOC's `SegmentationObject`.
        class_names: Names of the classes, in the order of the labels, without a background.
        class_of: The class of each object.

            - None: there is one class.
            - A folder of label maps such as VOC's `SegmentationClass`: the class of most of the object's pixels, where
              0 is the background, k the class k − 1 of `class_names`, and 255 is ignored, as are objects of it.
            - A function of the number, which gives the name or the label of the class, or None for no object.
            - A dict `{file: {number: class}}`, or the path of a CSV file with the columns `file`, `id` and `class`.
              Files are named relative to the folder of the images, classes by their name or label.
        ignored_id: A number of the maps that is no object, such as 255 of VOC's borders; None: there is none.
        suffixes: What ends the name of an image, and what that of its map has in its place, as of `kvision.data.masks`;
            label maps of `class_of` may have it too.
        **batch: Of the batches.

    Returns:
        A `tf.data.Dataset` of batches `(images, targets)` in the data contract, as of `coco`, with masks.

    Raises:
        ValueError: if a folder or a split does not exist, there are several classes and no `class_of`, or no image or
            object can be used.

    ```python
    cells = kvision.data.instance_masks("images", "instances", ("cell",), image_size=(256, 256))
    things = {24: "person", 26: "car"}  # Cityscapes: 26003 is a car
    streets = kvision.data.instance_masks(
        "leftImg8bit",
        "gtFine",
        ("person", "car"),
        class_of=lambda number: things.get(number // 1000),
        suffixes=("_leftImg8bit", "_gtFine_instanceIds"),
        split="train",
    )
    voc = kvision.data.instance_masks(
        "VOC2012/JPEGImages", "VOC2012/SegmentationObject", names, "VOC2012/SegmentationClass", split="train"
    )
    ```
    """
    names = tuple(map(str, class_names))
    if not names:
        raise ValueError("instance_masks: class_names is empty; give the names of the objects' classes.")
    naming = Naming(reading.reader, suffixes)
    pairs = paired(reading, images, instances, naming)
    images = pathlib.Path(images)
    classes = _classes(reading, class_of, names, images, naming)
    records = []
    for path, header in reading.headers(pairs).items():
        upright = reading.is_upright(header)
        size = header.upright_size if upright else header.size
        found = AnnotatedImage(path, len(records), header, upright, str(pairs[path]), [])
        try:
            runs = _Runs(_numbers(read_pixels(pairs[path], size)))
            label_of = classes(path, runs.numbers)
        except ValueError as error:
            reading.unreadable(pairs[path], str(error), "map")
            continue
        for number, box, area, lengths in runs.objects():
            if number in (0, ignored_id):
                continue
            try:
                label = label_of(number)
            except ValueError as error:
                reading.problem(pairs[path], f"instance {number}", str(error))
                continue
            if label is not None:
                segmentation = {"size": list(size), "counts": lengths}
                found.annotations.append(Annotation(f"instance {number}", box, label, segmentation, area))
        records.append(found)
    return instance_data(reading, records, names, **batch)


def _numbers(pixels):
    """The number of each pixel's instance, [h, w]."""
    if pixels.ndim == 2:
        return pixels.astype("int64")
    if pixels.shape[-1] != 3:
        raise ValueError(
            f"it has {pixels.shape[-1]} channels; a map of instances has one, or three that are one number"
        )
    red, green, blue = np.moveaxis(pixels.astype("int64"), -1, 0)
    return red + 256 * green + 65536 * blue


class _Runs:
    """The runs of equal numbers in a map, down the columns as COCO has them, and by them the objects.

    Args:
        numbers: [h, w].
    """

    def __init__(self, numbers):
        self.numbers = numbers
        self.height = numbers.shape[0]
        self.pixels = numbers.T.ravel()
        self.starts = np.concatenate([[0], np.flatnonzero(np.diff(self.pixels)) + 1])
        self.ends = np.concatenate([self.starts[1:], [self.pixels.size]])

    def objects(self):
        """Number, box (left, top, right, bottom), pixels and run lengths of each, by ascending number."""
        number = self.pixels[self.starts]
        order = np.argsort(number, kind="stable")
        values, first = np.unique(number[order], return_index=True)
        for value, rows in zip(values.tolist(), np.split(order, first[1:]), strict=True):
            starts, ends = self.starts[rows], self.ends[rows]
            left, right = starts // self.height, (ends - 1) // self.height
            whole = (left != right).any()  # a run that goes on in the next column reaches both ends
            top = 0 if whole else int((starts % self.height).min())
            bottom = self.height if whole else int(((ends - 1) % self.height).max()) + 1
            box = float(left.min()), float(top), float(right.max() + 1), float(bottom)
            edges = np.stack([starts, ends], axis=1).ravel()
            lengths = np.diff(edges, prepend=0, append=self.pixels.size)
            yield value, box, float((ends - starts).sum()), lengths


def _classes(reading, class_of, names, images, naming):
    """A function of an image and the numbers of its map to a function from a number to the object's label."""
    if class_of is None:
        if len(names) > 1:
            raise ValueError(
                f"instance_masks: of {len(names)} classes, class_of must tell that of each object: a folder of label "
                "maps, a CSV file, or a dict {file: {number: class}}."
            )
        return lambda path, numbers: lambda number: 0
    if callable(class_of):
        return lambda path, numbers: lambda number: _label(class_of(number), names)
    if isinstance(class_of, Mapping):
        return _of_table({str(file): dict(rows) for file, rows in class_of.items()}, names, images)
    class_of = pathlib.Path(class_of)
    if class_of.is_dir():
        return lambda path, numbers: _of_map(path, numbers, names, images, class_of, naming)
    if not class_of.is_file():
        raise ValueError(
            f"instance_masks: class_of={str(class_of)!r} is neither a folder of label maps nor a CSV file."
        )
    return _of_table(_of_csv(reading, class_of), names, images)


def _of_csv(reading, path):
    """`{file: {number: class}}`; a row that lacks one of the three is a problem."""
    lines = csv.DictReader(io.StringIO(read_text(path), newline=""), restval="")
    try:
        rows = [(lines.line_num, row) for row in lines]
    except csv.Error as error:
        place = f"{str(path)!r}, line {lines.reader.line_num}"
        raise ValueError(
            f"instance_masks: {place}, cannot be read as CSV: {error}. Look at the quotes there."
        ) from None
    if not rows or not set(COLUMNS) <= set(rows[0][1]):
        got = ", ".join(map(str, rows[0][1])) if rows else "no row"
        raise ValueError(f"instance_masks: {str(path)!r} needs the columns {', '.join(COLUMNS)}: got {got}.")
    table = {}
    for number, row in rows:
        file, instance, name = (row[column].strip() for column in COLUMNS)
        if file and instance and name:
            table.setdefault(pathlib.PurePath(file).as_posix(), {})[instance] = name
        else:
            reason = f"expected a file, an id and a class, got {file!r}, {instance!r} and {name!r}"
            reading.problem(path, f"line {number}", reason)
    return table


def _of_table(table, names, images):
    table = {file: {key(number): name for number, name in rows.items()} for file, rows in table.items()}

    def classes(path, numbers):
        rows = table.get(relative(path, images), {})

        def label(number):
            if number not in rows:
                raise ValueError("its class is not told by class_of")
            return _label(rows[number], names)

        return label

    return classes


def _label(value, names):
    if value is None:
        return None
    if str(value) in names:
        return names.index(str(value))
    label = key(value)
    if isinstance(label, int) and 0 <= label < len(names):
        return label
    raise unknown("class", value, names)


def _of_map(path, numbers, names, images, folder, naming):
    """By the label map of an image."""
    found = naming.map_of(path, images, folder) or Naming("instance_masks").map_of(path, images, folder)
    if found is None:
        raise ValueError(f"there is no label map of {path.name} in {str(folder)!r}")
    try:
        labels = read_pixels(found, numbers.shape)
    except ValueError as error:
        raise ValueError(f"its label map {str(found)!r}: {error}") from None
    if labels.ndim != 2:
        raise ValueError(f"its label map {str(found)!r} has {labels.shape[-1]} channels, expected one number a pixel")

    def label(number):
        held, counts = np.unique(labels[numbers == number], return_counts=True)
        label = int(held[counts.argmax()])
        if label == IGNORED:
            return None
        if not 1 <= label <= len(names):
            raise ValueError(
                f"most of its pixels are of the class {label} in {str(found)!r}, expected 1 to {len(names)}"
            )
        return label - 1

    return label
