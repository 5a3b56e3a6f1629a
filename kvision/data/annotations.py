"""What readers of detection data find: images with their objects, and problems; and which objects can be used."""

import dataclasses
import math
import pathlib

import numpy as np

from kvision.data.geometry import area_xyxy
from kvision.data.images import image_sizes
from kvision.data.segmentations import parse_segmentation

OVERHANG = 1.0  # pixels by which rounding may put a box beyond the border


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something that was left out.

    Args:
        file: The file that holds it.
        row: Which entry of the file; empty if it is the whole file.
        reason: What is wrong.
    """

    file: str
    row: str
    reason: str

    def __str__(self):
        return f"{self.file}{', ' if self.row else ''}{self.row}: {self.reason}"


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
        size: Height and width in pixels, measured.
        file: The file that lists its objects, for reports.
        annotations: Its `Annotation`s.
    """

    path: pathlib.Path
    image_id: int
    size: tuple
    file: str
    annotations: list


def readable_sizes(paths, check, problems):
    """`{path: (height, width)}` of the images that can be read; `problems` receives a `Problem` for each other one."""
    sizes, unreadable = image_sizes(paths, check)
    problems += [Problem(str(path), "", f"the image cannot be read: {reason}") for path, reason in unreadable.items()]
    return sizes


def usable_annotations(image, masks, max_boxes, problems):
    """The annotations of an `AnnotatedImage` that can be used, boxes clipped to the image, segmentations parsed.

    Args:
        image: An `AnnotatedImage`.
        masks: Whether an object needs a segmentation.
        max_boxes: How many of them, at most; the largest are kept.
        problems: A list that receives a `Problem` for each annotation that cannot be used.

    Returns:
        A list of `Annotation`s, in order.
    """
    used = []
    for annotation in image.annotations:
        limits = (*reversed(image.size), *reversed(image.size))
        box = tuple(min(max(0.0, number), limit) for number, limit in zip(annotation.box_xyxy, limits, strict=True))
        reason = _fault(annotation.box_xyxy, box, image.size)
        if masks and reason is None:
            try:
                annotation.segmentation = parse_segmentation(annotation.segmentation, image.size)
            except ValueError as error:
                reason = f"the object {error}"
        if reason is None:
            annotation.box_xyxy = box
            used.append(annotation)
        else:
            problems.append(Problem(image.file, annotation.row, reason))
    if len(used) > max_boxes:
        order = np.argsort(-area_xyxy([annotation.box_xyxy for annotation in used]), kind="stable")
        kept = set(order[:max_boxes].tolist())
        reason = (
            f"{len(used)} objects, of which the {max_boxes} largest are used and {len(used) - max_boxes} are left out; "
            "raise max_boxes to use them all"
        )
        problems.append(Problem(image.file, image.path.name, reason))
        used = [annotation for index, annotation in enumerate(used) if index in kept]
    return used


def _fault(box, clipped, size):
    """What is wrong with a box, or None."""
    shown = ", ".join(f"{number:g}" for number in box)
    if not all(map(math.isfinite, box)):
        return f"the box ({shown}) is not finite"
    left, top, right, bottom = box
    if right <= left or bottom <= top:
        return f"the box ({shown}) has no area; expected left < right and top < bottom"
    beyond = max(abs(number - inside) for number, inside in zip(box, clipped, strict=True))
    if beyond > OVERHANG or clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        return f"the box ({shown}) lies outside the image of {size[0]} x {size[1]} (height x width), by {beyond:g}"
    return None
