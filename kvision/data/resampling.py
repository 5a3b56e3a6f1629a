"""Scaling of images, smoothly: antialiased interpolation, in less time than TensorFlow's kernel takes by itself."""

import functools

import tensorflow as tf

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "area")
KERNELS = {"bilinear": "triangle", "bicubic": "keyscubic", "area": "box"}


def resized(image, size, scale, offset, interpolation):
    """An image [h, w, c] scaled and moved, float32 [*size, c]; all of the new one shows a point of the old.

    Args:
        size, scale, offset: As of `scale_and_translate`; scales are above 0.
        interpolation: One of `INTERPOLATIONS`, or its index as a tensor.
    """
    if not isinstance(interpolation, str):
        ways = [functools.partial(resized, image, size, scale, offset, name) for name in INTERPOLATIONS]
        return tf.switch_case(interpolation, ways)
    if interpolation == "nearest":
        for axis in (0, 1):
            centres = tf.cast(tf.range(size[axis]), tf.float32) + 0.5
            index = tf.cast(tf.floor((centres - offset[axis]) / scale[axis]), tf.int32)
            image = tf.gather(image, tf.clip_by_value(index, 0, tf.shape(image)[axis] - 1), axis=axis)
        return tf.cast(image, tf.float32)
    scaled = scale_and_translate(image, size, scale, offset, KERNELS[interpolation])
    return tf.clip_by_value(scaled, 0.0, 255.0) if interpolation == "bicubic" else scaled


def scale_and_translate(image, size, scale, offset, kernel="triangle"):
    """An image scaled and moved as `ScaleAndTranslate` of TensorFlow does it, antialiased; black beyond its edges.

    The kernel is quick along rows of many values and slow along the few colours of a pixel. So it scales the rows, as
    if each were one pixel of many colours, then those of the transposed image.

    Args:
        image: [h, w, c].
        size: Height and width of the result.
        scale: Of rows and of columns, a tensor [2].
        offset: Of rows and of columns, in pixels of the result, a tensor [2].
        kernel: `"triangle"` is bilinear interpolation; or another of TensorFlow's names.

    Returns:
        [*size, c], float32.
    """
    pairs = (tf.unstack(pair) if tf.is_tensor(pair) else pair for pair in (size, scale, offset))
    for side, *terms in zip(*pairs, strict=True):
        image = tf.transpose(_scaled_rows(image, side, *terms, kernel), (1, 0, 2))
    return image


def _scaled_rows(image, height, scale, offset, kernel):
    """An image with its rows scaled; all of a row counts as one pixel of many colours."""
    channels = image.shape[-1]
    rows = tf.reshape(image, [1, tf.shape(image)[0], 1, -1])
    scaled = tf.raw_ops.ScaleAndTranslate(
        images=rows, size=[height, 1], scale=[scale, 1.0], translation=[offset, 0.0], kernel_type=kernel, antialias=True
    )
    return tf.reshape(scaled, [height, image.shape[1] or -1, channels])
