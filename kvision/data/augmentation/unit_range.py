"""A word about images in 0…1 before a transform of colours in 0…255 ruins them."""

import warnings

import numpy as np
import tensorflow as tf

from kvision.contract import unit_range
from kvision.data.augmentation.photometric import Photometric
from kvision.data.augmentation.policies import RandAugment


def needs_bytes(transform):
    """Whether a transform is about colours in 0…255: it changes them, or fills in one that is not black."""
    return isinstance(transform, Photometric | RandAugment) or getattr(transform, "fill", 0) > 1


def watched(images, here, transform):
    """The images [n, h, w, c]; where `here`, a bool tensor, holds, with a warning if they lie in 0…1.

    It is looked at in the data set as it runs, at one sample an epoch: to read one beforehand would cost others, which
    shuffle or come from a generator, more than time.
    """
    if not images.dtype.is_floating:
        return images

    def look():
        first = images[:8]
        return tf.numpy_function(lambda pixels: _warn(pixels, type(transform).__name__), [first], tf.bool)

    with tf.control_dependencies([tf.cond(here, look, lambda: True)]):
        return tf.identity(images)


def _warn(images, who):
    found = unit_range(images)
    if found:
        warnings.warn(
            f"{who}: the images lie within {found[0]:.3g} to {found[1]:.3g}. Transforms take colours of 0…255 and ruin "
            "these: multiply them by 255 before augment, and prepare them after it or in the model.",
            stacklevel=2,
        )
    return np.True_
