"""Scaling of images, smoothly: antialiased bilinear interpolation, in less time than TensorFlow's own kernel."""

import tensorflow as tf

VALUES = 24  # of an output row in one product: fewer are slow, and more multiply by many zeros
QUANTUM = 4  # the columns that a product reads come in multiples of this, so that few shapes of it are prepared


def scale_and_translate(image, size, scale, offset, kernel="triangle"):
    """An image scaled and moved as `ScaleAndTranslate` of TensorFlow does it, antialiased; black beyond its edges.

    Args:
        image: [h, w, c].
        size: Height and width of the result.
        scale: Of rows and of columns, a tensor [2].
        offset: Of rows and of columns, in pixels of the result, a tensor [2].
        kernel: `"triangle"` is bilinear interpolation; or another of TensorFlow's names.

    Returns:
        [*size, c], float32.
    """
    if kernel == "triangle" and isinstance(size[1], int) and image.shape[-1] is not None:
        return _by_products(image, size, scale, offset)
    return _by_kernel(image, size, scale, offset, kernel)


def _by_kernel(image, size, scale, offset, kernel):
    size = tf.stack(size)
    resized = tf.raw_ops.ScaleAndTranslate(
        images=image[None], size=size, scale=scale, translation=offset, kernel_type=kernel, antialias=True
    )
    return resized[0]


def _by_products(image, size, scale, offset):
    """Rows by TensorFlow's kernel, which is quick on wide pixels, and columns by matrix products, a block at a time."""
    channels = image.shape[-1]
    height, width = tf.unstack(tf.shape(image)[:2])
    wide = tf.reshape(image, [height, 1, width * channels])
    rows = _by_kernel(wide, (size[0], 1), scale * [1.0, 0.0] + [0.0, 1.0], offset * [1.0, 0.0], "triangle")
    rows = tf.reshape(rows, [size[0], width * channels])
    block = max(1, VALUES // channels)
    first, weights = _weights(width, -(-size[1] // block), block, scale[1], offset[1])
    reach = tf.shape(weights)[1]
    read = tf.stack([tf.slice(rows, [0, at * channels], [size[0], reach * channels]) for at in tf.unstack(first)])
    weights = weights[:, :, None, :, None] * tf.eye(channels)[:, None]
    blocks = tf.matmul(read, tf.reshape(weights, [-1, reach * channels, block * channels]))
    resized = tf.reshape(tf.transpose(blocks, [1, 0, 2]), [size[0], -(-size[1] // block) * block, channels])
    return resized[:, : size[1]]


def _weights(width, count, block, scale, offset):
    """For blocks of columns, the first column of the image that each reads, and the weights [count, columns, block]."""
    step = 1.0 / scale
    radius = tf.maximum(step, 1.0)
    reach = tf.cast(tf.math.ceil((block - 1) * step + 2 * radius), tf.int32) + 1
    reach = tf.minimum(width, -(-reach // QUANTUM) * QUANTUM)
    centres = tf.reshape((tf.range(count * block, dtype=tf.float32) + (0.5 - offset)) * step, [count, 1, block])
    first = tf.clip_by_value(tf.cast(tf.floor(centres[:, 0, 0] - radius), tf.int32), 0, width - reach)
    columns = tf.cast(first[:, None] + tf.range(reach), tf.float32)[..., None] + 0.5
    weights = tf.nn.relu(1.0 - tf.abs(columns - centres) / radius)
    weights = tf.math.divide_no_nan(weights, tf.reduce_sum(weights, axis=1, keepdims=True))
    inside = (centres >= 0) & (centres <= tf.cast(width, tf.float32))
    return first, tf.where(inside, weights, 0.0)
