"""Batches of images with labels, out of what a reader of classes found."""

import numpy as np
import tensorflow as tf

from kvision.data.decoding import decoder
from kvision.data.geometry import check_size, fit
from kvision.data.pending import Pending, View


def labelled_images(reading, paths, headers, labels, channels, facts, *, image_size=(224, 224)):
    """The data set of batches `(images, labels)`.

    Images are float32 of 0…255, [b, height, width, channels]: resized with their aspect ratio kept, antialiased, in
    the middle, the rest black.

    Args:
        image_size: (height, width) in pixels. None keeps the size of every file, for `augment`, whose first transform
            gives them one: `RandomResizedCrop` then takes its window out of the file's own pixels, and of a JPEG
            nothing else is decoded.

    Returns:
        A `tf.data.Dataset` with the attributes of all readers.

    Raises:
        ValueError: if there is no image, or a size is not positive.
    """
    reading.require(paths)
    upright = [reading.is_upright(header) for header in headers]
    sizes = [h.upright_size if turned else h.size for h, turned in zip(headers, upright, strict=True)]
    decode = decoder(paths, headers, upright, channels)
    view_of = as_stored(sizes) if image_size is None else centred(reading, sizes, image_size)
    rows, stored = tf.constant(labels), tf.constant(sizes, tf.int32)

    def example(index):
        return Pending(
            stored=tf.gather(stored, index),
            read=lambda window: decode(index, window),
            view=view_of(index),
            put_together=lambda image, targets: (image, targets["label" if rows.shape.rank == 1 else "soft_label"]),
            targets={"label" if rows.shape.rank == 1 else "soft_label": tf.gather(rows, index)},
        )

    facts = {**facts, "files": {index: str(path) for index, path in enumerate(paths)}}
    return reading.dataset(example, paths, headers, channels, facts)


def as_stored(sizes):
    """A function from the index of an image to the view of all of it, of a static size if all have the same."""
    if len(set(sizes)) == 1:
        return lambda index: View.whole(sizes[0])
    sizes = tf.constant(sizes)
    return lambda index: View.whole(tf.unstack(tf.gather(sizes, index)))


def centred(reading, sizes, image_size):
    """A function from the index of an image to the view of it, scaled and in the middle of `image_size`."""
    check_size(reading.reader, image_size)
    if min(image_size) < 1:
        raise ValueError(f"{reading.reader}: image_size must be at least 1, got {min(image_size)}.")
    scales, inner = zip(*(fit(size, image_size) for size in sizes), strict=True)
    inner = np.array(inner, "float32")
    low = (np.array(image_size, "float32") - inner) // 2
    views = np.stack([np.broadcast_to(np.array(scales, "float32")[:, None], low.shape), low, low + inner], axis=1)
    views = tf.constant(views)

    def view(index):
        scale, low, high = tf.unstack(tf.gather(views, index))
        return View(scale, low, tf.stack([low, high]), tuple(image_size))

    return view


def check_channels(reading, channels):
    """Raises unless the channels are 3 or 1."""
    if channels not in (1, 3):
        raise ValueError(f"{reading.reader}: channels is 3 for RGB or 1 for grey, got {channels!r}.")
