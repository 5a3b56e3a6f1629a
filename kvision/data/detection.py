"""Batches of the data contract out of what a reader of detection data found, as `tf.data`."""

import dataclasses
import functools
import inspect
import re

import numpy as np
import tensorflow as tf

from kvision._keras import print_message
from kvision.data.annotations import usable_annotations
from kvision.data.geometry import area_xyxy, check_size, clip_xyxy, fit
from kvision.data.images import decode, scale_and_pad
from kvision.data.segmentations import rasterize


@dataclasses.dataclass(frozen=True)
class DetectionData:
    """Images with boxes, and what was left out of them.

    `dataset` gives batches `(images, targets)`. Images are RGB, float32 of 0…255, [b, height, width, 3]: resized with
    their aspect ratio kept, at the left and top, the rest black. Targets, with n = `max_boxes`:

    - `boxes` [b, n, 4] float32, left, top, right, bottom in pixels of these images; `labels` [b, n] int32 from 0,
      −1 in padding rows;
    - `box_masks` [b, n, mask_size, mask_size] uint8, relative to the box, or `masks` [b, n, height, width] uint8;
    - `crowd`, `difficult` [b, n] int32, 0 or 1; `area` [b, n] float32, in pixels of the file;
    - `image_size` [b, 2] int32, the height and width that the image takes without its padding; `scale` [b] float32,
      pixels here out of one pixel of the file; `image_id` [b] int64.

    Args:
        dataset: The `tf.data.Dataset`.
        class_names: Names of the classes, in the order of the labels.
        counts: Number of objects used of each class.
        files: `{image_id: path}` of the images used.
        problems: A `Problem` for each image and each object that is left out.
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


def detection_data(
    source,
    records,
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

    A box that is not finite, has no area, or reaches more than a pixel beyond its image is left out and reported, and
    with `masks` an object whose segmentation is missing or cannot be read. Less than a pixel counts as rounding: it is
    cut off. An image without boxes is a normal image.

    Args:
        source: Name of the reader, for messages.
        records: `AnnotatedImage`s, in order.
        class_names: Names of the classes, in the order of the labels.
        problems: `Problem`s so far.
        image_size: (height, width) of the images in pixels. Files are scaled up or down until they fill one of the
            two, smoothly (antialiased), and padded at the right or the bottom.
        batch_size: Images per batch.
        shuffle: Whether to go through the images in a new order each epoch.
        seed: Of the order.
        masks: Whether to give masks too.
        mask_size: Side of the masks relative to their boxes (`box_masks`); None gives `masks` as large as the images,
            which takes `max_boxes` times a third of their memory in float32.
        max_boxes: Boxes per image; where there are more, the largest are kept, and the rest are reported.
        drop_remainder: Whether to leave out the last batch where it is smaller, so that shapes are wholly static.
        skip_broken: Whether an image that fails to decode during training is dropped, with a warning by TensorFlow.

    Returns:
        A `DetectionData`.

    Raises:
        ValueError: if there is no image, or a size that is not positive.
    """
    check_size(source, image_size)
    for name, size in (("image_size", min(image_size)), ("batch_size", batch_size), ("max_boxes", max_boxes)):
        if size < 1:
            raise ValueError(f"{source}: {name} must be at least 1, got {size}.")
    problems = list(problems)
    if not records:
        raise ValueError(f"{source}: there is no image that can be used. {_summary(source, problems)}")
    for record in records:
        record.annotations = usable_annotations(record, masks, max_boxes, problems)
    table = _table(records, image_size)
    draw = _mask_drawer(records, table, image_size, mask_size, max_boxes) if masks else None

    data = tf.data.Dataset.range(len(records))
    data = data.shuffle(len(records), seed=seed) if shuffle else data
    data = data.map(_example(records, table, image_size, max_boxes, draw), tf.data.AUTOTUNE)
    data = data.ignore_errors(log_warning=True) if skip_broken else data
    data = data.batch(batch_size, drop_remainder=drop_remainder).prefetch(tf.data.AUTOTUNE)
    if problems:
        print_message(_summary(source, problems))
    counts = np.bincount(table["labels"][table["labels"] >= 0], minlength=len(class_names)).tolist()
    files = {record.image_id: str(record.path) for record in records}
    return DetectionData(data, tuple(class_names), tuple(counts), files, tuple(problems))


def reader(function):
    """Let a reader show the options of the batches, which it passes on, in its signature and docstring."""
    own, batch = (
        [p for p in inspect.signature(each).parameters.values() if p.kind is not p.VAR_KEYWORD]
        for each in (function, detection_data)
    )
    batch = [p for p in batch if p.kind is p.KEYWORD_ONLY and p.name != "skip_broken"]
    signature = inspect.Signature(own + batch)

    @functools.wraps(function)
    def read(*arguments, **options):
        signature.bind(*arguments, **options)  # an unknown name is told before any file is read
        return function(*arguments, **options)

    read.__signature__ = signature
    if function.__doc__:
        described = re.search(
            r"^ {8}image_size: .*?(?=^ {8}skip_broken: )", detection_data.__doc__, re.M | re.S
        ).group()
        read.__doc__ = re.sub(r"^ {8}\*\*options: (?:.+\n)+", lambda _: described, function.__doc__, flags=re.M)
    return read


def _table(records, image_size):
    """Numbers of all images, and of all objects one after the other, those of image k from `first[k]` on."""
    scales, sizes = zip(*(fit(record.size, image_size) for record in records), strict=True)
    scales, sizes = np.array(scales), np.array(sizes, "int32")
    counts = [len(record.annotations) for record in records]
    annotations = [annotation for record in records for annotation in record.annotations]
    boxes = np.array([annotation.box_xyxy for annotation in annotations], "float64").reshape(-1, 4)
    clipped = clip_xyxy(boxes * np.repeat(scales, counts)[:, None], np.repeat(sizes, counts, axis=0))
    labels = np.array([annotation.label for annotation in annotations], "int32")
    stated = np.array([np.nan if annotation.area is None else annotation.area for annotation in annotations])
    return {
        "first": np.cumsum([0, *counts]),
        "scale": scales.astype("float32"),
        "image_size": sizes,
        "image_id": np.array([record.image_id for record in records], "int64"),
        "boxes": clipped.astype("float32"),
        "labels": np.where(area_xyxy(clipped.astype("float32")) > 0, labels, -1).astype(
            "int32"
        ),  # rounded away: padding
        "crowd": np.array([annotation.crowd for annotation in annotations], "int32"),
        "difficult": np.array([annotation.difficult for annotation in annotations], "int32"),
        "area": np.where(np.isnan(stated), area_xyxy(boxes), stated).astype("float32"),
    }


def _example(records, table, image_size, max_boxes, draw):
    """A function from the index of an image to the image and its targets, of static shapes."""
    paths = tf.constant([str(record.path) for record in records])
    columns = {name: tf.constant(values) for name, values in table.items()}

    def example(index):
        targets = {name: columns[name][index] for name in ("image_size", "scale", "image_id")}
        first, last = columns["first"][index], columns["first"][index + 1]
        for name in ("boxes", "labels", "crowd", "difficult", "area"):
            values = columns[name][first:last]
            padding = [[0, max_boxes - (last - first)], *([0, 0] for _ in values.shape[1:])]
            padded = tf.pad(values, padding, constant_values=-1 if name == "labels" else 0)
            targets[name] = tf.ensure_shape(padded, (max_boxes, *values.shape[1:]))
        if draw is not None:
            name, function, shape = draw
            targets[name] = tf.ensure_shape(tf.numpy_function(function, [index], tf.uint8), shape)
        return scale_and_pad(decode(paths[index], channels=3), targets["scale"], image_size), targets

    return example


def _mask_drawer(records, table, image_size, mask_size, max_boxes):
    """Name of the masks, the NumPy function that draws those of an image by its index, and their shape."""
    grid = tuple(image_size) if mask_size is None else (mask_size, mask_size)
    shape = (max_boxes, *grid)

    def draw(index):
        record, scale = records[index], table["scale"][index]
        whole = (0.0, 0.0, image_size[1] / scale, image_size[0] / scale)
        masks = np.zeros(shape, "uint8")
        for mask, annotation in zip(masks, record.annotations, strict=False):
            window = whole if mask_size is None else annotation.box_xyxy
            mask[:] = rasterize(annotation.segmentation, record.size, window, grid)
        return masks

    return "masks" if mask_size is None else "box_masks", draw, shape


def _summary(source, problems):
    """One line on what was left out."""
    if not problems:
        return "No image was found."
    return f"kvision.data.{source}: {len(problems)} left out, listed in `problems`. First: {problems[0]}"
