"""Photos of any size as one batch: scaled until they fill the network's input, and padded at the right and bottom."""

import os

import numpy as np
import tensorflow as tf

from kvision.data.decoding import scale_and_pad
from kvision.data.geometry import check_size, fit
from kvision.data.images import read_image


def letterbox(photos, image_size, channels=3):
    """A batch of the data contract out of photos of any size, as the readers of `kvision.data` make it.

    `Detector.detect` does this and the way back; by itself it serves other models, and detectors that take more than
    images.

    Args:
        photos: A list of arrays [h, w, 3], [h, w, 1] or [h, w] in 0…255, PIL images, or paths of files,
            which are turned upright as their EXIF data say. Arrays and PIL images are taken as their pixels lie.
        image_size: (height, width) of the batch in pixels. Each photo is scaled up or down until it fills one of the
            two, smoothly (antialiased), at the left and top; the rest is black.
        channels: 3 for RGB, 1 for grey.

    Returns:
        Images [b, height, width, channels] float32 of 0…255, and `{"image_size": [b, 2] int32, "scale": [b] float32}`:
        the height and width that a photo takes without the padding, and its pixels here out of one of its own.

    Raises:
        ValueError: on an array of another shape, or a file that cannot be read.

    >>> images, targets = letterbox([np.zeros((300, 200, 3)), np.zeros((80, 160))], image_size=(64, 64))
    >>> images.shape, targets["image_size"].tolist()
    ((2, 64, 64, 3), [[64, 43], [32, 64]])
    """
    check_size("letterbox", image_size)
    photos = [read_photo(photo, channels) for photo in photos]
    fits = [fit(photo.shape[:2], image_size) for photo in photos]
    scales = np.array([scale for scale, _ in fits], "float32")
    images = [
        scale_and_pad(tf.constant(photo), scale, tuple(image_size)).numpy()
        for photo, scale in zip(photos, scales, strict=True)
    ]
    images = np.stack(images) if images else np.zeros((0, *image_size, channels), "float32")
    return images, {"image_size": np.array([size for _, size in fits], "int32").reshape(-1, 2), "scale": scales}


def read_photo(photo, channels=3):
    """The pixels [h, w, channels] of an array, a PIL image or a file, uint8 or float32."""
    if isinstance(photo, str | os.PathLike):
        return read_image(photo, channels)
    pixels = np.asarray(photo)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, channels) or 0 in pixels.shape:
        raise ValueError(
            f"letterbox: a photo is an array [h, w, {channels}], [h, w, 1] or [h, w] in 0…255, or a path: got "
            f"{type(photo).__name__} of shape {np.shape(photo)}. Of RGBA, leave out the last channel; give a batch as "
            "a list of its images."
        )
    pixels = pixels if pixels.dtype == "uint8" else pixels.astype("float32")
    return np.repeat(pixels, channels // pixels.shape[-1], axis=-1)
