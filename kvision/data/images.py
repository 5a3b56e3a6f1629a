"""Image files: which kinds are read, whether one can be decoded, how large it is, and how it becomes a tensor."""

import concurrent.futures
import functools

import PIL.Image
import tensorflow as tf

from kvision.errors import choose

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
FORMATS = ("JPEG", "MPO", "PNG", "BMP", "GIF")  # pillow's names of what TensorFlow decodes


def is_image(path):
    """Whether the name of a file (a `pathlib` path) ends as that of an image we read."""
    return path.suffix.lower() in SUFFIXES


def image_sizes(paths, check="full", channels=3):
    """The size of each image file, or why it cannot be read.

    Args:
        paths: Of the files.
        check: `"full"` decodes every file, by the decoder that training uses. `"header"` reads the first bytes only.
        channels: With which training decodes: 3 for RGB, 1 for grey.

    Returns:
        `{path: (height, width)}`, and `{path: reason}` of those that cannot be read.
    """
    size_of = choose(
        "check of the images",
        {"full": functools.partial(_decoded_size, channels=channels), "header": _stated_size},
        check,
    )
    paths = list(dict.fromkeys(paths))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        found = dict(zip(paths, pool.map(size_of, paths), strict=True))
    return (
        {path: size for path, size in found.items() if not isinstance(size, str)},
        {path: reason for path, reason in found.items() if isinstance(reason, str)},
    )


def _decoded_size(path, channels):
    try:
        return tuple(decode(str(path), channels).shape[:2])
    except tf.errors.OpError as error:
        return error.message.split("\n")[0][:200]


def _stated_size(path):
    try:
        with PIL.Image.open(path) as image:
            if image.format not in FORMATS:
                return f"the format is {image.format}, expected one of {', '.join(FORMATS)}"
            return image.height, image.width
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        return str(error)


def decode(path, channels):
    """The image of a file, `[h, w, channels]` uint8; a GIF gives its first frame."""
    image = tf.io.decode_image(tf.io.read_file(path), channels=channels, expand_animations=False)
    image.set_shape((None, None, channels))
    return image


def scale_and_pad(image, scale, image_size):
    """An image scaled by exactly `scale` about its left top corner, on black; float32 `[*image_size, channels]`."""
    scaled = tf.raw_ops.ScaleAndTranslate(
        images=image[None],
        size=image_size,
        scale=tf.stack([scale, scale]),
        translation=(0.0, 0.0),
        kernel_type="triangle",
        antialias=True,
    )
    return tf.ensure_shape(scaled[0], (*image_size, image.shape[-1]))
