"""RandAugment, and random erasing."""

import dataclasses
import math

import tensorflow as tf

from kvision.data.augmentation.geometric import Geometric, affine_matrix, region_of
from kvision.data.augmentation.photometric import Photometric, jitter
from kvision.data.augmentation.samples import inside, size_of, uniform, valid_size
from kvision.data.augmentation.warps import Projective

SHARPENED = ((1.0, 1.0, 1.0), (1.0, 5.0, 1.0), (1.0, 1.0, 1.0))  # pillow's smoothing kernel, sum 13


def autocontrast(image, targets):
    """Each channel scaled so that its darkest valid pixel is 0 and its brightest 255."""
    valid = inside(size_of(image), valid_size(image, targets))[..., None]
    low = tf.reduce_min(tf.where(valid, image, 255.0), axis=(0, 1))
    high = tf.reduce_max(tf.where(valid, image, 0.0), axis=(0, 1))
    return tf.where(high > low, (image - low) * tf.math.divide_no_nan(255.0, high - low), image)


def equalize(image, targets):
    """Each channel with an even histogram, as pillow's `ImageOps.equalize`."""
    weights = tf.cast(inside(size_of(image), valid_size(image, targets)), tf.int32)
    values = tf.cast(tf.round(image), tf.int32)
    channels = []
    for channel in tf.unstack(values, axis=-1):
        histogram = tf.math.unsorted_segment_sum(tf.reshape(weights, [-1]), tf.reshape(channel, [-1]), 256)
        last = histogram[tf.reduce_max(tf.where(histogram > 0, tf.range(256), 0))]
        step = (tf.reduce_sum(histogram) - last) // 255
        table = (tf.cumsum(histogram, exclusive=True) + step // 2) // tf.maximum(step, 1)
        table = tf.where(step > 0, tf.clip_by_value(table, 0, 255), tf.range(256))
        channels.append(tf.gather(table, channel))
    return tf.cast(tf.stack(channels, axis=-1), tf.float32)


def sharpness(image, factor):
    """Between a smoothed image (0), itself (1) and a sharpened one (2), as pillow's `ImageEnhance.Sharpness`."""
    channels = image.shape[-1]
    kernel = tf.tile(tf.constant(SHARPENED)[:, :, None, None] / 13.0, [1, 1, channels, 1])
    smooth = tf.nn.depthwise_conv2d(image[None], kernel, [1, 1, 1, 1], "VALID")[0]
    height, width = size_of(image)
    border = tf.pad(tf.ones([height - 2, width - 2, 1], tf.bool), [[1, 1], [1, 1], [0, 0]])
    smooth = tf.where(border, tf.pad(smooth, [[1, 1], [1, 1], [0, 0]]), image)
    return smooth + factor * (image - smooth)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandAugment(Geometric):
    """A few operations drawn from fourteen, all of one magnitude; boxes, masks and keypoints move along.

    Cubuk et al. 2020, "RandAugment: practical automated data augmentation with a reduced search space", section 3, with
    the ranges of AutoAugment. The operations are `RandAugment.operations`.

    Args:
        rate: How often, in [0, 1].
        num_operations: One after another, at least 1.
        magnitude: Of each, in [0, 10].
        fill, min_visibility, tight: As in `Geometric`; the default fill is a middle grey.

    >>> image = RandAugment(magnitude=9)(tf.fill([16, 24, 3], 100.0), seed=(0, 1))
    >>> tuple(image.shape)
    (16, 24, 3)
    """

    num_operations: int = 2
    magnitude: float = 9.0
    fill: float = 128.0

    moving = ("rotate", "shear x", "shear y", "translate x", "translate y")
    coloring = (
        "identity",
        "autocontrast",
        "equalize",
        "solarize",
        "posterize",
        "color",
        "contrast",
        "brightness",
        "sharpness",
    )
    operations = moving + coloring

    def __post_init__(self):
        super().__post_init__()
        self.check("num_operations", self.num_operations >= 1, "at least 1")
        self.check("magnitude", 0 <= self.magnitude <= 10, "in [0, 10]")

    on_pending = None  # it changes colours too

    def apply(self, image, targets, seed):
        sample = tf.cast(image, tf.float32), targets
        for own in tf.unstack(tf.random.split(seed, self.num_operations), num=self.num_operations):
            index, sign = uniform(own, (0.0, float(len(self.operations))), (-1.0, 1.0))
            index = tf.minimum(tf.cast(index, tf.int32), len(self.operations) - 1)
            sample = self.operated(*sample, index, tf.where(sign < 0, -1.0, 1.0))
        return sample

    def operated(self, image, targets, index, sign):
        """The sample after the operation of an index, in the direction of a sign."""
        first = len(self.moving)
        return tf.cond(
            index < first,
            lambda: self.moved(image, targets, self._warp(image, targets, index, sign)),
            lambda: (self._colored(image, targets, index - first, sign), targets),
        )

    def _warp(self, image, targets, index, sign):
        region = region_of(image, targets)
        height, width = (tf.cast(side, tf.float32) for side in region["source"][2:])
        level = sign * self.magnitude / 10
        rotate, shear_x, shear_y, right, down = (tf.where(index == k, level, 0.0) for k in range(len(self.moving)))
        furthest = 150 / 331  # of the sides: AutoAugment's 150 pixels of 331
        matrix = affine_matrix(
            (width / 2, height / 2),
            rotate * math.radians(30),
            (right * furthest * width, down * furthest * height),
            (1.0, 1.0),
            (tf.atan(0.3 * shear_x), tf.atan(0.3 * shear_y)),
        )
        return Projective(**region, matrix=matrix)

    def _colored(self, image, targets, index, sign):
        level = self.magnitude / 10
        factor = 1.0 + 0.9 * level * sign
        bits = 2.0 ** round(4 * level)
        ways = {
            "identity": lambda: image,
            "autocontrast": lambda: autocontrast(image, targets),
            "equalize": lambda: equalize(image, targets),
            "solarize": lambda: tf.where(image >= 256 * (1 - level) if level else image > 255, 255.0 - image, image),
            "posterize": lambda: tf.floor(image / bits) * bits if bits > 1 else image,
            "color": lambda: jitter(image, targets, 1.0, 1.0, factor, None),
            "contrast": lambda: jitter(image, targets, 1.0, factor, 1.0, None),
            "brightness": lambda: jitter(image, targets, factor, 1.0, 1.0, None),
            "sharpness": lambda: sharpness(image, factor),
        }
        new = tf.clip_by_value(tf.switch_case(index, [ways[name] for name in self.coloring]), 0.0, 255.0)
        if "image_size" in targets:
            new = tf.where(inside(size_of(image), targets["image_size"])[..., None], new, 0.0)
        return tf.ensure_shape(new, image.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomErasing(Photometric):
    """A rectangle of noise or of one value at a random position; labels, boxes and masks stay.

    Zhong et al. 2020, "Random erasing data augmentation", section 3.

    Args:
        rate: How often, in [0, 1].
        area: Smallest and largest fraction of the image's area.
        aspect: Smallest and largest width / height; the logarithm is drawn evenly.
        value: Of the pixels, in 0…255; None draws each anew.

    >>> image = RandomErasing(rate=1.0, value=0.0)(tf.fill([16, 16, 3], 9.0), seed=(0, 1))
    >>> bool(tf.reduce_any(image == 0.0))
    True
    """

    rate: float = 0.5
    area: tuple = (0.02, 0.33)
    aspect: tuple = (0.3, 3.3)
    value: float | None = None

    def __post_init__(self):
        super().__post_init__()
        self.check_range("area", 0.0, 1.0)
        self.check_range("aspect", 1e-2, 1e2)
        self.check("value", self.value is None or 0 <= self.value <= 255, "in 0…255, or None")

    def recoloured(self, image, targets, seed):
        first, second = tf.unstack(tf.random.split(seed))
        sides = tf.cast(valid_size(image, targets), tf.float32)
        logs = tuple(math.log(number) for number in self.aspect)
        area, aspect, down, right = uniform(first, self.area, logs, (0.0, 1.0), (0.0, 1.0))
        pixels, aspect = area * tf.reduce_prod(sides), tf.exp(aspect)
        patch = tf.minimum(tf.round(tf.sqrt(tf.stack([pixels / aspect, pixels * aspect]))), sides)
        start = tf.floor((sides - patch + 1.0) * tf.stack([down, right]))
        rows, columns = (
            (tf.range(side, dtype=tf.float32) >= start[axis])
            & (tf.range(side, dtype=tf.float32) < start[axis] + patch[axis])
            for axis, side in enumerate(size_of(image))
        )
        noise = tf.random.stateless_uniform(tf.shape(image), second, 0, 255) if self.value is None else self.value
        return tf.where(rows[:, None, None] & columns[None, :, None], noise, image)
