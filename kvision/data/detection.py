"""What a reader found, pictures with boxes and outlines, as `tf.data` in the data contract.

A batch is `(images, targets)`: see `DetectionData`. Readers list pictures and objects in pixels of the files; here they
are checked one by one, and those that cannot be used are left out and reported.
"""

import concurrent.futures
import dataclasses
import math
import pathlib

import numpy as np
import PIL.Image
import tensorflow as tf
from keras.src.utils.io_utils import print_msg

from kvision.data.geometry import area_xyxy, clip_xyxy, fit
from kvision.data.segmentations import draw_outline, parse_outline
from kvision.errors import choose

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
FORMATS = ("JPEG", "MPO", "PNG", "BMP", "GIF")  # pillow's names of what TensorFlow decodes
OVERHANG = 1.0  # pixels by which rounding may put a box beyond the border


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something that was left out.

    Args:
        file: The file in which it stands.
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
        outline: COCO's `segmentation`, or None.
        area: In pixels of the file; None for that of the box.
        crowd, difficult: COCO's `iscrowd` and VOC's `difficult`.
    """

    row: str
    box_xyxy: tuple
    label: int
    outline: object = None
    area: float | None = None
    crowd: bool = False
    difficult: bool = False


@dataclasses.dataclass(slots=True)
class Picture:
    """A picture that can be read, and its objects.

    Args:
        path: Of the picture.
        image_id: A whole number.
        size: Height and width in pixels, measured.
        file: The file in which its objects stand, for reports.
        annotations: Its `Annotation`s.
    """

    path: pathlib.Path
    image_id: int
    size: tuple
    file: str
    annotations: list


@dataclasses.dataclass(frozen=True)
class DetectionData:
    """Pictures with boxes, and what was left out of them.

    `dataset` gives batches `(images, targets)`. Images are RGB, float32 of 0…255, [b, height, width, 3]: resized with
    their aspect ratio kept, at the left and top, the rest black. Targets, with n = `max_boxes`:

    - `boxes` [b, n, 4] float32, left, top, right, bottom in pixels of these images; `labels` [b, n] int32 from 0,
      −1 where there is no box;
    - `box_masks` [b, n, mask_size, mask_size] uint8, relative to the box, or `masks` [b, n, height, width] uint8;
    - `crowd`, `difficult` [b, n] int32, 0 or 1; `area` [b, n] float32, in pixels of the file;
    - `image_size` [b, 2] int32, the height and width that the picture takes; `scale` [b] float32, pixels here out of
      one pixel of the file; `image_id` [b] int64.

    Args:
        dataset: The `tf.data.Dataset`.
        class_names: Names of the classes, in the order of the labels.
        counts: Objects used of each class.
        files: `{image_id: path}` of the pictures used.
        problems: A `Problem` for each picture and each object that is left out.
    """

    dataset: tf.data.Dataset
    class_names: tuple
    counts: tuple
    files: dict
    problems: tuple

    @property
    def classes(self):
        """Number of classes."""
        return len(self.class_names)


def measure(paths, check, problems):
    """Sizes of pictures; those that cannot be read are reported.

    Args:
        paths: Of the files.
        check: `"full"` decodes every file, by the decoder that training uses. `"header"` reads the first bytes only.
        problems: A list that receives a `Problem` for each file that cannot be read.

    Returns:
        `{path: (height, width)}`.
    """
    size_of = choose("check of the pictures", {"full": _decoded_size, "header": _stated_size}, check)
    paths = list(dict.fromkeys(paths))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        found = list(pool.map(size_of, paths))
    problems += [Problem(str(path), "", size) for path, size in zip(paths, found, strict=True) if isinstance(size, str)]
    return {path: size for path, size in zip(paths, found, strict=True) if not isinstance(size, str)}


def _decoded_size(path):
    try:
        return tuple(tf.io.decode_image(tf.io.read_file(str(path)), channels=3, expand_animations=False).shape[:2])
    except tf.errors.OpError as error:
        return f"the picture cannot be read: {error.message.split(chr(10))[0][:200]}"


def _stated_size(path):
    try:
        with PIL.Image.open(path) as image:
            if image.format not in FORMATS:
                return f"the picture is {image.format}, expected one of {', '.join(FORMATS)}"
            return image.height, image.width
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        return f"the picture cannot be read: {error}"


def detection_data(
    source,
    pictures,
    class_names,
    problems,
    *,
    image_size=(512, 512),
    batch_size=8,
    shuffle=False,
    seed=0,
    masks=False,
    mask_size=112,
    max_boxes=100,
    drop_remainder=False,
    skip_broken=False,
):
    """Batches in the data contract out of what a reader found; one line is printed if anything was left out.

    A box that is not finite, has no area, or reaches more than a pixel beyond its picture is left out and reported, and
    with `masks` an object whose outline is missing or cannot be read. Less than a pixel counts as rounding: it is cut
    off. A picture without boxes is a normal picture.

    Args:
        source: Name of the reader, for messages.
        pictures: `Picture`s, in order.
        class_names: Names of the classes, in the order of the labels.
        problems: `Problem`s so far.
        image_size: (height, width) of the images in pixels. Pictures are scaled up or down until they fill one of the
            two, smoothly (antialiased), and padded at the right or the bottom.
        batch_size: Pictures a batch.
        shuffle: Whether to go through the pictures in a new order each epoch.
        seed: Of the order.
        masks: Whether to give masks too.
        mask_size: Side of the masks relative to their boxes (`box_masks`); None gives `masks` as large as the images,
            which takes `max_boxes` times a third of their memory in float32.
        max_boxes: Boxes a picture; where there are more, the largest are kept, and the rest are reported.
        drop_remainder: Whether to leave out the last batch where it is smaller, so that shapes are wholly static.
        skip_broken: Whether a picture that fails to decode during training is dropped, with a warning by TensorFlow.

    Returns:
        A `DetectionData`.

    Raises:
        ValueError: if there is no picture, or a size that is not positive.
    """
    for name, size in (("image_size", min(image_size)), ("batch_size", batch_size), ("max_boxes", max_boxes)):
        if size < 1:
            raise ValueError(f"{source}: {name} must be at least 1, got {size}.")
    problems = list(problems)
    if not pictures:
        raise ValueError(f"{source}: there is no picture that can be used. {_tell(source, problems)}")
    for picture in pictures:
        picture.annotations = list(_usable(picture, masks, max_boxes, problems))
    table = _table(pictures, image_size)
    draw = _mask_drawer(pictures, table, image_size, mask_size, max_boxes) if masks else None

    data = tf.data.Dataset.range(len(pictures))
    data = data.shuffle(len(pictures), seed=seed) if shuffle else data
    data = data.map(_example(pictures, table, image_size, max_boxes, draw), tf.data.AUTOTUNE)
    data = data.ignore_errors(log_warning=True) if skip_broken else data
    data = data.batch(batch_size, drop_remainder=drop_remainder).prefetch(tf.data.AUTOTUNE)
    if problems:
        print_msg(_tell(source, problems))
    counts = np.bincount(table["labels"], minlength=len(class_names)).tolist()
    files = {picture.image_id: str(picture.path) for picture in pictures}
    return DetectionData(data, tuple(class_names), tuple(counts), files, tuple(problems))


def _usable(picture, masks, max_boxes, problems):
    """The annotations that can be used, boxes within the picture, outlines parsed."""
    used = []
    for annotation in picture.annotations:
        limits = (*reversed(picture.size), *reversed(picture.size))
        box = tuple(min(max(0.0, number), limit) for number, limit in zip(annotation.box_xyxy, limits, strict=True))
        reason = _fault(annotation.box_xyxy, box, picture.size)
        if masks and reason is None:
            try:
                annotation.outline = parse_outline(annotation.outline, picture.size)
            except ValueError as error:
                reason = f"the object {error}"
        if reason is None:
            annotation.box_xyxy = box
            used.append(annotation)
        else:
            problems.append(Problem(picture.file, annotation.row, reason))
    if len(used) > max_boxes:
        order = np.argsort(-area_xyxy([annotation.box_xyxy for annotation in used]), kind="stable")
        kept = set(order[:max_boxes].tolist())
        reason = (
            f"{len(used)} objects, of which the {max_boxes} largest are used and {len(used) - max_boxes} are left out; "
            "raise max_boxes to use them all"
        )
        problems.append(Problem(picture.file, picture.path.name, reason))
        used = [annotation for row, annotation in enumerate(used) if row in kept]
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
        return f"the box ({shown}) lies outside the picture of {size[0]} x {size[1]} (height x width), by {beyond:g}"
    return None


def _table(pictures, image_size):
    """Numbers of all pictures, and of all objects one after the other, those of picture k from `first[k]` on."""
    scales, sizes = zip(*(fit(picture.size, image_size) for picture in pictures), strict=True)
    scales, sizes = np.array(scales), np.array(sizes, "int32")
    counts = [len(picture.annotations) for picture in pictures]
    annotations = [annotation for picture in pictures for annotation in picture.annotations]
    boxes = np.array([annotation.box_xyxy for annotation in annotations], "float64").reshape(-1, 4)
    stated = np.array([np.nan if annotation.area is None else annotation.area for annotation in annotations])
    return {
        "first": np.cumsum([0, *counts]),
        "scale": scales.astype("float32"),
        "image_size": sizes,
        "image_id": np.array([picture.image_id for picture in pictures], "int64"),
        "boxes": clip_xyxy(boxes * np.repeat(scales, counts)[:, None], np.repeat(sizes, counts, axis=0)).astype(
            "float32"
        ),
        "labels": np.array([annotation.label for annotation in annotations], "int32"),
        "crowd": np.array([annotation.crowd for annotation in annotations], "int32"),
        "difficult": np.array([annotation.difficult for annotation in annotations], "int32"),
        "area": np.where(np.isnan(stated), area_xyxy(boxes), stated).astype("float32"),
    }


def _example(pictures, table, image_size, max_boxes, draw):
    """A function from the number of a picture to its image and targets, of static shapes."""
    paths = tf.constant([str(picture.path) for picture in pictures])
    numbers = {name: tf.constant(values) for name, values in table.items()}

    def example(row):
        image = tf.io.decode_image(tf.io.read_file(paths[row]), channels=3, expand_animations=False)
        image.set_shape((None, None, 3))
        targets = {name: numbers[name][row] for name in ("image_size", "scale", "image_id")}
        first, last = numbers["first"][row], numbers["first"][row + 1]
        for name in ("boxes", "labels", "crowd", "difficult", "area"):
            values = numbers[name][first:last]
            padding = [[0, max_boxes - (last - first)], *([0, 0] for _ in values.shape[1:])]
            padded = tf.pad(values, padding, constant_values=-1 if name == "labels" else 0)
            targets[name] = tf.ensure_shape(padded, (max_boxes, *values.shape[1:]))
        if draw is not None:
            name, function, shape = draw
            targets[name] = tf.ensure_shape(tf.numpy_function(function, [row], tf.uint8), shape)
        return _letterbox(image, targets["scale"], image_size), targets

    return example


def _letterbox(image, scale, image_size):
    """A picture scaled by exactly `scale` about its left top corner, on black; float32 [height, width, 3]."""
    scaled = tf.raw_ops.ScaleAndTranslate(
        images=image[None],
        size=image_size,
        scale=tf.stack([scale, scale]),
        translation=(0.0, 0.0),
        kernel_type="triangle",
        antialias=True,
    )
    return tf.ensure_shape(scaled[0], (*image_size, 3))


def _mask_drawer(pictures, table, image_size, mask_size, max_boxes):
    """Name and shape of the masks, and the NumPy function that draws those of a picture."""
    grid = tuple(image_size) if mask_size is None else (mask_size, mask_size)
    shape = (max_boxes, *grid)

    def draw(row):
        picture, scale = pictures[row], table["scale"][row]
        whole = (0.0, 0.0, image_size[1] / scale, image_size[0] / scale)
        masks = np.zeros(shape, "uint8")
        for mask, annotation in zip(masks, picture.annotations, strict=False):
            window = whole if mask_size is None else annotation.box_xyxy
            mask[:] = draw_outline(annotation.outline, picture.size, window, grid)
        return masks

    return "masks" if mask_size is None else "box_masks", draw, shape


def _tell(source, problems):
    """One line on what was left out."""
    if not problems:
        return "No picture was found."
    return f"kvision.data.{source}: {len(problems)} left out, listed in `problems`. First: {problems[0]}"
