"""What readers of detection data find: images with their objects, and problems; and which objects can be used."""

import dataclasses
import math
import pathlib

import numpy as np

from kvision.contract import MAX_RELATIVE_COORDINATE, MIN_BOXES_FOR_RELATIVE_CHECK
from kvision.data.geometry import area_xyxy
from kvision.data.images import Header
from kvision.data.segmentations import parse_segmentation

OVERHANG = 1.0  # pixels by which rounding may put a box beyond the border
MOST_CLIPPED = 0.05  # the fraction of boxes that may reach further before that is reported


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something that was left out, or looks wrong.

    Args:
        file: The file that holds it.
        row: Which entry of the file; empty if it is the whole file.
        reason: What is wrong.
    """

    file: str
    row: str
    reason: str

    def __str__(self):
        text = f"{self.file}{', ' if self.row else ''}{self.row}: {self.reason}"
        return text.encode("utf-8", "backslashreplace").decode("utf-8")  # names of files may be no text


@dataclasses.dataclass(slots=True)
class Annotation:
    """An object as a reader found it.

    Args:
        row: Which entry of the file it is, for reports.
        box_xyxy: Left, top, right, bottom in pixels of the file.
        label: The class, from 0.
        segmentation: As in COCO's files, polygons or run lengths, or None.
        area: In pixels of the file; None for that of the box.
        crowd, difficult: COCO's `iscrowd` and VOC's `difficult`.
    """

    row: str
    box_xyxy: tuple
    label: int
    segmentation: object = None
    area: float | None = None
    crowd: bool = False
    difficult: bool = False


@dataclasses.dataclass(slots=True)
class AnnotatedImage:
    """An image file that can be read, and the objects in it.

    Args:
        path: Of the image.
        image_id: An integer.
        header: Its `Header`.
        upright: Whether it is turned as its EXIF data say: its boxes were made so.
        file: The file that lists its objects, for reports.
        annotations: Its `Annotation`s.
    """

    path: pathlib.Path
    image_id: int
    header: Header
    upright: bool
    file: str
    annotations: list

    @property
    def size(self):
        """Height and width in pixels, turned or not."""
        return self.header.upright_size if self.upright else self.header.size


def usable_annotations(reading, records, masks, max_boxes):
    """Keep the annotations that can be used, boxes clipped to their images, segmentations parsed.

    Args:
        reading: The `Reading`, which notes a problem for each annotation that cannot be used.
        records: `AnnotatedImage`s.
        masks: Whether an object needs a segmentation.
        max_boxes: How many of them an image may have; the largest are kept.

    Raises:
        ValueError: If there were objects and none can be used, or all boxes seem to be fractions of their images.
    """
    _refuse_fractions(reading, records)
    listed = any(problem.row for problem in reading.problems) or any(record.annotations for record in records)
    clipped, used, first = 0, 0, None
    for record in records:
        over = _use(reading, record, masks, max_boxes)
        clipped += len(over)
        used += len(record.annotations)
        first = first or next(iter(over), None)
    if listed and not used:
        reasons = [str(problem) for problem in reading.problems if problem.row] or [
            str(problem) for problem in reading.problems
        ]
        raise ValueError(
            f"{reading.reader}: objects are listed, but none of them can be used. The first reasons: "
            f"{'; '.join(reasons[:3])}"
        )
    if first and clipped > MOST_CLIPPED * used:
        reach = "reaches beyond its image" if clipped == 1 else "reach beyond their image"
        reading.problem(
            first[0],
            "",
            f"{clipped} of {used} boxes {reach} by more than a pixel and {are(clipped)} clipped, the first in "
            f"{first[1]}: are they in the pixels of these images?",
        )


def _refuse_fractions(reading, records):
    """Raises where all boxes lie within a pixel or so, as the check of the contract does."""
    boxes = [(image, part) for image in records for part in image.annotations if all(map(math.isfinite, part.box_xyxy))]
    largest = max((abs(number) for _, part in boxes for number in part.box_xyxy), default=0)
    if len(boxes) >= MIN_BOXES_FOR_RELATIVE_CHECK and largest <= MAX_RELATIVE_COORDINATE:
        image, part = boxes[0]
        raise ValueError(
            f"{reading.reader}: all {len(boxes)} boxes lie within {MAX_RELATIVE_COORDINATE:g} pixels: they seem to be "
            f"fractions of the image size (first: {image.file}, {part.row}: ({_shown(part.box_xyxy)}), left, top, "
            "right, bottom). Boxes are in pixels here: multiply x by the width of the image and y by its height."
        )


def _use(reading, image, masks, max_boxes):
    """Keeps the usable annotations of an image; file and row of those whose boxes are clipped."""
    used, over = [], []
    limits = (*reversed(image.size), *reversed(image.size))
    for annotation in image.annotations:
        box = tuple(min(max(0.0, number), limit) for number, limit in zip(annotation.box_xyxy, limits, strict=True))
        reason = _fault(annotation.box_xyxy, box, image.size)
        if masks and reason is None:
            try:
                annotation.segmentation = parse_segmentation(annotation.segmentation, image.size)
            except ValueError as error:
                reason = f"the object {error}"
        if reason is not None:
            reading.problem(image.file, annotation.row, reason)
            continue
        if max(abs(number - inside) for number, inside in zip(annotation.box_xyxy, box, strict=True)) > OVERHANG:
            over.append((image.file, annotation.row))
        annotation.box_xyxy = box
        used.append(annotation)
    if len(used) > max_boxes:
        order = np.argsort(-area_xyxy([annotation.box_xyxy for annotation in used]), kind="stable")
        kept = set(order[:max_boxes].tolist())
        reason = (
            f"{len(used)} objects, of which the {max_boxes} largest {are(max_boxes)} used and {len(used) - max_boxes} "
            f"{are(len(used) - max_boxes)} left out; raise max_boxes to use them all"
        )
        reading.problem(image.file, image.path.name, reason)
        used = [annotation for index, annotation in enumerate(used) if index in kept]
    image.annotations = used
    return over


def are(count):
    """The verb for a number of things."""
    return "is" if count == 1 else "are"


def _shown(box):
    return ", ".join(f"{number:g}" for number in box)


def _fault(box, clipped, size):
    """What is wrong with a box, or None."""
    shown = _shown(box)
    if not all(map(math.isfinite, box)):
        return f"the box ({shown}) is not finite"
    left, top, right, bottom = box
    if right <= left or bottom <= top:
        return f"the box ({shown}) has no area; expected left < right and top < bottom"
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        return f"the box ({shown}) lies outside the image of {size[0]} x {size[1]} (height x width)"
    return None
