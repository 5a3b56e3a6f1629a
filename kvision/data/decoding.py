"""Image files as tensors of `tf.data`: decoded, whole or a window alone, turned upright, scaled."""

import os

import tensorflow as tf

from kvision.data.images import TURNS, load_stored
from kvision.data.resampling import scale_and_translate

BESIDE = 8  # columns beside a window whose colours a decoder of JPEG interpolates into it


def decoder(paths, headers, upright, channels):
    """A function of `tf.data` from the index of a file to its pixels, `[h, w, channels]` uint8.

    It also takes a window (top, left, height, width; whole numbers) of the image as it is turned, and then gives these
    pixels alone, the same that the whole image has there. Of a JPEG only they are decoded.

    Args:
        paths: Of the files.
        headers: Their `Header`s.
        upright: For each of them, whether its image is turned as its orientation says.
        channels: 3 for RGB, 1 for grey.
    """
    names = tf.constant([os.fsencode(path) for path in paths])
    fast = [header.is_fast(channels) for header in headers]
    by_window = [header.is_fast(channels) and header.kind == "JPEG" for header in headers]
    turns = [TURNS[header.orientation if turn else 1] for header, turn in zip(headers, upright, strict=True)]
    sizes = tf.constant([header.size for header in headers])
    turned, turns = any(map(any, turns)), tf.constant(turns)

    def whole(index):
        def slow():
            load = lambda at: load_stored(paths[at], headers[at], channels)  # noqa: E731
            return tf.numpy_function(load, [index], tf.uint8)

        def quick():
            return tf.io.decode_image(tf.io.read_file(tf.gather(names, index)), channels, expand_animations=False)

        return tf.ensure_shape(_either(fast, index, quick, slow), (None, None, channels))

    def windowed(index, top, left, height, width):
        def cut(pixels):
            return pixels[top : top + height, left : left + width]

        def quick():
            first = tf.maximum(left - BESIDE, 0)
            last = tf.minimum(left + width + BESIDE, tf.gather(sizes, index)[1])
            around = tf.stack([top, first, height, last - first])
            pixels = tf.io.decode_and_crop_jpeg(tf.io.read_file(tf.gather(names, index)), around, channels)
            return pixels[:, left - first : left - first + width]

        return _either(by_window, index, quick, lambda: cut(whole(index)))

    def image(index, window=None):
        """Builds only the branches that the files need."""
        turn = tf.gather(turns, index) if turned else None
        if window is None:
            pixels = whole(index)
        else:
            stored = _before_turn(window, turn, tf.gather(sizes, index)) if turned else window
            pixels = windowed(index, *stored)
        if turned:
            pixels = tf.cond(tf.reduce_any(turn), lambda: _turned(pixels, turn), lambda: pixels)
        return tf.ensure_shape(pixels, (None, None, channels))

    return image


def _either(conditions, index, one, other):
    """What a function gives where the condition of this index holds, else another; only those in need are built."""
    if all(conditions):
        return one()
    if not any(conditions):
        return other()
    return tf.cond(tf.gather(conditions, index), one, other)


def _turned(pixels, turn):
    pixels = tf.cond(turn[0], lambda: tf.transpose(pixels, (1, 0, 2)), lambda: pixels)
    return tf.raw_ops.Reverse(tensor=pixels, dims=tf.concat([turn[1:], [False]], axis=0))


def _before_turn(window, turn, size):
    """Where a window of the turned image lies in the stored one, of this size."""
    size = tf.where(turn[0], size[::-1], size)
    corner, sides = tf.stack(window[:2]), tf.stack(window[2:])
    corner = tf.where(turn[1:], size - corner - sides, corner)
    corner, sides = (tf.where(turn[0], pair[::-1], pair) for pair in (corner, sides))
    return *tf.unstack(corner), *tf.unstack(sides)


def scale_and_pad(image, scale, image_size, offset=(0, 0)):
    """An image scaled by exactly `scale`, its left top corner at `offset`, on black; float32 `[*image_size, channels]`.

    Args:
        image: [h, w, channels].
        scale: Pixels there out of one of the image.
        image_size: Height and width of the result.
        offset: Rows and columns, whole.
    """
    scaled = scale_and_translate(image, tuple(image_size), tf.stack([scale, scale]), tf.cast(offset, tf.float32))
    return tf.ensure_shape(scaled, (*image_size, image.shape[-1]))
