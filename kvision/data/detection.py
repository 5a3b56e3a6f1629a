"""Batches of the data contract out of what a reader of detection data found."""

import pathlib
import typing

import numpy as np
import tensorflow as tf

from kvision.data.annotations import usable_annotations
from kvision.data.decoding import decoder
from kvision.data.geometry import area_xyxy, check_size, clip_xyxy, fit
from kvision.data.pending import Pending, View
from kvision.data.segmentations import rasterize


def detection_data(reading, records, class_names, *, image_size=(512, 512), masks=False, mask_size=112, max_boxes=100):
    """The data set of batches `(images, targets)` in the data contract out of what a reader found.

    Images are RGB, float32 of 0…255, [b, height, width, 3]: resized with their aspect ratio kept, at the left and top,
    the rest black. Targets, with n = `max_boxes`:

    - `boxes` [b, n, 4] float32, left, top, right, bottom in pixels of these images; `labels` [b, n] int32 from 0,
      −1 in padding rows;
    - `box_masks` [b, n, mask_size, mask_size] uint8, relative to the box, or `masks` [b, n, height, width] uint8;
    - `crowd`, `difficult` [b, n] int32, 0 or 1; `area` [b, n] float32, in pixels of the file;
    - `image_size` [b, 2] int32, the height and width that the image takes without its padding; `scale` [b] float32,
      pixels here out of one pixel of the file; `image_id` [b] int64.

    A box is clipped to its image; where many reach beyond it by more than a pixel, that is reported. A box that is not
    finite, has no area or lies wholly outside is left out and reported, and with `masks` an object whose segmentation
    is missing or cannot be read. An image without boxes is a normal image.

    Args:
        image_size: (height, width) of the images in pixels. Files are scaled up or down until they fill one of the
            two, smoothly (antialiased), and padded at the right or the bottom.
        masks: Whether to give masks too.
        mask_size: Side of the masks relative to their boxes (`box_masks`); None gives `masks` as large as the images,
            which takes `max_boxes` times a third of their memory in float32.
        max_boxes: Boxes per image; where there are more, the largest are kept, and the rest are reported.

    Returns:
        A `tf.data.Dataset` with the attributes of all readers; `counts` are the objects used of each class.

    Raises:
        ValueError: if there is no image, no object of those listed can be used, or a size is not positive.
    """
    check_size(reading.reader, image_size)
    for name, size in (("image_size", min(image_size)), ("max_boxes", max_boxes)):
        if size < 1:
            raise ValueError(f"{reading.reader}: {name} must be at least 1, got {size}.")
    reading.require(records)
    usable_annotations(reading, records, masks, max_boxes)
    turned = sum(record.upright != reading.is_upright(record.header) for record in records)
    if turned:
        other = "stored" if reading.options.orientation == "upright" else "turned by their EXIF data"
        shown = "1 image is" if turned == 1 else f"{turned} images are"
        reading.notes.append(f"{shown} taken as {other}: so are the sizes that the data set states")
    table = _table(records, image_size)
    draw = _mask_drawer(records, mask_size) if masks else None
    counts = np.bincount(table["labels"][table["labels"] >= 0], minlength=len(class_names)).tolist()
    facts = {
        "class_names": tuple(class_names),
        "counts": tuple(counts),
        "files": {record.image_id: str(record.path) for record in records},
    }
    paths, headers = [record.path for record in records], [record.header for record in records]
    example = _example(records, table, image_size, max_boxes, draw)
    return reading.dataset(example, paths, headers, 3, facts, annotated=tuple(map(_file_objects, records)))


class FileObjects(typing.NamedTuple):
    """The objects of an image exactly as its files have them, for who writes them again.

    Args:
        image_id, path, size: Of the image; height and width in pixels, turned or not as its boxes are.
        rows: [n, 8] float64: left, top, right, bottom, label, area, crowd, difficult.
    """

    image_id: int
    path: pathlib.Path
    size: tuple
    rows: np.ndarray


def _file_objects(image):
    unknown = float("nan")
    rows = [
        (*part.box_xyxy, part.label, unknown if part.area is None else part.area, part.crowd, part.difficult)
        for part in image.annotations
    ]
    rows = np.array(rows, "float64").reshape(-1, 8)
    rows[:, 5] = np.where(np.isnan(rows[:, 5]), area_xyxy(rows[:, :4]), rows[:, 5])
    return FileObjects(image.image_id, image.path, image.size, rows)


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
    """A function from the index of an image to the `Pending` sample, of static shapes."""
    decode = decoder(
        [record.path for record in records],
        [record.header for record in records],
        [record.upright for record in records],
        channels=3,
    )
    columns = {name: tf.constant(table[name]) for name in ("image_size", "scale", "image_id")}
    numbers = tf.constant(np.concatenate([table["boxes"], table["area"][:, None]], axis=1))  # as few reads as can be
    kinds = tf.constant(np.stack([table[name] for name in ("labels", "crowd", "difficult")], axis=1))
    ends = tf.constant(np.stack([table["first"][:-1], table["first"][1:]], axis=1).astype("int32"))
    stored = tf.constant([record.size for record in records], tf.int32)

    def example(index):
        targets = {name: tf.gather(values, index) for name, values in columns.items()}
        first, last = tf.unstack(tf.gather(ends, index))
        at = tf.range(first, last)
        if (table["labels"] < 0).any():
            at = tf.boolean_mask(at, tf.gather(kinds, at)[:, 0] >= 0)
        boxes, area = tf.split(tf.gather(numbers, at), [4, 1], axis=1)
        rows = {"boxes": boxes, "area": area[:, 0], "row": at - first}
        rows |= dict(zip(("labels", "crowd", "difficult"), tf.unstack(tf.gather(kinds, at), axis=1), strict=True))
        shown = tf.stack([tf.zeros(2), tf.cast(targets["image_size"], tf.float32)])
        view = View(tf.fill([2], targets["scale"]), tf.zeros(2), shown, tuple(image_size))
        return Pending(
            stored=tf.gather(stored, index),
            read=lambda window: decode(index, window),
            view=view,
            put_together=lambda image, targets: (image, targets),
            targets=targets,
            rows=rows,
            num_rows=max_boxes,
            maps={} if draw is None else {draw[0]: lambda rows, now: draw[1](index, rows, now, now is view)},
        )

    return example


def _mask_drawer(records, mask_size):
    """Name of the masks, and a function that draws those of the objects of an image, as a view shows them."""

    def within(index, row, window, grid):
        return rasterize(records[index].annotations[row].segmentation, records[index].size, window, grid)

    def draw(index, rows, scale, offset, shown, size):
        masks = np.zeros((len(rows), *size), "uint8")
        (top, left), (bottom, right) = shown.astype(int)
        if bottom > top and right > left:
            window = ((shown - offset) / scale.astype("float64"))[:, ::-1].ravel()
            for mask, row in zip(masks, rows, strict=True):
                mask[top:bottom, left:right] = within(index, row, window, (bottom - top, right - left))
        return masks

    def draw_in_boxes(index, rows, scale, offset, boxes_xyxy, as_stored):
        masks = np.zeros((len(rows), mask_size, mask_size), "uint8")
        sides = (boxes_xyxy.reshape(-1, 2, 2) - offset[::-1]) / scale[::-1].astype("float64")
        for mask, row, window in zip(masks, rows, sides.reshape(-1, 4), strict=True):
            window = records[index].annotations[row].box_xyxy if as_stored else window  # without rounding
            mask[:] = within(index, row, window, (mask_size, mask_size))
        return masks

    def masks(index, rows, view, as_stored):
        place = (view.scale, view.offset)
        if mask_size is None:
            drawn = tf.numpy_function(draw, [index, rows["row"], *place, view.shown, view.size], tf.uint8)
            sides = [side if isinstance(side, int) else None for side in view.size]
        else:
            drawn = tf.numpy_function(draw_in_boxes, [index, rows["row"], *place, rows["boxes"], as_stored], tf.uint8)
            sides = [mask_size, mask_size]
        return tf.ensure_shape(drawn, (None, *sides))

    return "masks" if mask_size is None else "box_masks", masks
