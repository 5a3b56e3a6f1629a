"""Batches of images with labels, out of what a reader of classes found."""

import tensorflow as tf

from kvision.data.decoding import decoder, scale_and_pad
from kvision.data.geometry import check_size, fit


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
    image = as_stored(decode, sizes) if image_size is None else centred(reading, decode, sizes, image_size)
    rows = tf.constant(labels)

    def example(index):
        return image(index), rows[index]

    def cropped(index, window_of):
        return decode(index, window_of(tf.constant(sizes)[index])), rows[index]

    facts = {**facts, "files": {index: str(path) for index, path in enumerate(paths)}}
    return reading.dataset(example, paths, headers, channels, facts, cropped=None if image_size else cropped)


def as_stored(decode, sizes):
    """A function from the index of an image to its pixels in float32, of a static size if all have the same."""
    height, width = sizes[0] if len(set(sizes)) == 1 else (None, None)

    def image(index):
        pixels = tf.cast(decode(index), tf.float32)
        return tf.ensure_shape(pixels, (height, width, pixels.shape[-1]))

    return image


def centred(reading, decode, sizes, image_size):
    """A function from the index of an image to its pixels, scaled and in the middle of `image_size`."""
    check_size(reading.reader, image_size)
    if min(image_size) < 1:
        raise ValueError(f"{reading.reader}: image_size must be at least 1, got {min(image_size)}.")
    fits = [fit(size, image_size) for size in sizes]
    scales = tf.constant([scale for scale, _ in fits], tf.float32)
    offsets = tf.constant(
        [[(all_ - part) // 2 for all_, part in zip(image_size, inner, strict=True)] for _, inner in fits], tf.int32
    )
    return lambda index: scale_and_pad(decode(index), scales[index], tuple(image_size), offsets[index])


def check_channels(reading, channels):
    """Raises unless the channels are 3 or 1."""
    if channels not in (1, 3):
        raise ValueError(f"{reading.reader}: channels is 3 for RGB or 1 for grey, got {channels!r}.")
