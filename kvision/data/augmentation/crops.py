"""Crops and scales: what is shown of an image, and how large."""

import dataclasses
import math
import numbers

import tensorflow as tf

from kvision.data.augmentation.geometric import Geometric, region_of
from kvision.data.augmentation.samples import objects, size_of, uniform, valid_size
from kvision.data.augmentation.warps import AxisAligned
from kvision.data.pending import floats
from kvision.data.resampling import INTERPOLATIONS


@dataclasses.dataclass(frozen=True)
class Crop(Geometric):
    """A window of fixed size at a random position; where the image is smaller, it is padded at the right and bottom.

    Args:
        size: Height and width in pixels.
        padding: Pixels of `fill` around the image before the crop; He et al. 2016, "Deep Residual Learning",
            section 4.2, take 4 for CIFAR's 32.
        fill, min_visibility, tight: As in `Geometric`.

    >>> tuple(Crop((24, 24))(tf.zeros([32, 48, 3]), seed=(0, 1)).shape)
    (24, 24, 3)
    """

    size: tuple
    padding: int = 0

    def __post_init__(self):
        super().__post_init__()
        _check_size(self)
        self.check("rate", self.rate == 1, "1: every image gets the size of the crop")
        self.check("padding", self.padding >= 0, "at least 0")

    def warp(self, image, targets, seed):
        valid = valid_size(image, targets)
        spare = tf.maximum(valid + 2 * self.padding - self.size, 0)
        first = tf.floor(tf.random.stateless_uniform([2], seed) * tf.cast(spare + 1, tf.float32))
        if self._fits(image, targets):  # no more than a slice
            corner = tf.unstack(tf.cast(first, tf.int32))
            return AxisAligned((*corner, *self.size), self.size, valid=self.size, whole_pixels=True)
        return AxisAligned(
            source=region_of(image, targets)["source"],
            size=self.size,
            valid=tf.minimum(valid + 2 * self.padding, self.size),
            offset=tuple(tf.unstack(self.padding - first)),
            whole_pixels=True,
        )

    def _fits(self, image, targets):
        """Whether the window is known to lie in the image."""
        if self.padding or "image_size" in targets:
            return False
        sides = zip(size_of(image), self.size, strict=True)
        return all(isinstance(side, int) and side >= cut for side, cut in sides)


def _check_size(transform):
    size = transform.size
    holds = isinstance(size, tuple | list) and len(size) == 2
    holds = holds and all(isinstance(side, numbers.Integral) and side > 0 for side in size)
    transform.check("size", holds, "(height, width) in whole pixels")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Resampled(Geometric):
    """A scaled part of the image, by a named or a random interpolation."""

    interpolation: str = "bilinear"

    def __post_init__(self):
        super().__post_init__()
        if self.size is not None:
            _check_size(self)
            self.check("rate", self.rate == 1, "1: every image gets the size")
        known = (*INTERPOLATIONS, "random")
        self.check("interpolation", self.interpolation in known, f"one of {', '.join(known)}")

    def planned(self, image, targets, seed):
        first, second = tf.unstack(tf.random.split(seed))
        warp, keep = self.plan(image, targets, first)
        return warp, self.way(second), keep

    def way(self, seed):
        """The interpolation: its name, or one that is drawn, as an index."""
        if self.interpolation != "random":
            return self.interpolation
        return tf.random.stateless_uniform([], seed, 0, len(INTERPOLATIONS), tf.int32)

    def plan(self, image, targets, seed):
        """The warp, and a function of the boxes which of them may stay; None for all. Of subclasses."""
        raise NotImplementedError

    def result_size(self, image):
        """Height and width of the new image."""
        return size_of(image) if self.size is None else tuple(self.size)


def window_warp(window, size):
    """The part of an image in a window (top, left, height, width; whole numbers), scaled to a size."""
    scale = tuple(
        tf.cast(new, tf.float32) / tf.cast(old, tf.float32) for new, old in zip(size, window[2:], strict=True)
    )
    return AxisAligned(source=window, size=size, valid=size, scale=scale)


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop(_Resampled):
    """The Inception crop: a window of random area and aspect ratio, scaled to one size.

    Szegedy et al. 2015, "Going deeper with convolutions", section 6. Scaling down is antialiased. A window that does
    not fit is drawn again, up to ten times; then the largest one in the centre is taken.

    Args:
        size: Height and width in pixels.
        area: Smallest and largest fraction of the image's area.
        aspect: Smallest and largest width / height; the logarithm is drawn evenly.
        interpolation: `"nearest"`, `"bilinear"`, `"bicubic"`, `"area"`, or `"random"`, one of them for each image
            (Howard 2013, "Some improvements on deep convolutional neural network based image classification").
        fill, min_visibility, tight: As in `Geometric`.

    >>> image = RandomResizedCrop((24, 24))(tf.zeros([32, 48, 3]), seed=(0, 1))
    >>> tuple(image.shape)
    (24, 24, 3)
    """

    size: tuple
    area: tuple = (0.08, 1.0)
    aspect: tuple = (3 / 4, 4 / 3)

    tries = 10

    def __post_init__(self):
        super().__post_init__()
        self.check_range("area", 1e-4, 1.0)
        self.check_range("aspect", 1e-2, 1e2)

    def plan(self, image, targets, seed):
        return window_warp(self.window(valid_size(image, targets), seed), self.result_size(image)), None

    def window(self, valid, seed):
        """Top, left, height and width of the window in an image of the size `valid`."""
        limits = tf.cast(valid, tf.float32)
        height, width = tf.unstack(limits)
        drawn = tf.random.stateless_uniform([4, self.tries], seed)
        area = height * width * (self.area[0] + drawn[0] * (self.area[1] - self.area[0]))
        low, high = (math.log(number) for number in self.aspect)
        aspect = tf.exp(low + drawn[1] * (high - low))
        tried = tf.round(tf.sqrt(tf.stack([area / aspect, area * aspect])))
        fits = tf.reduce_all((tried >= 1) & (tried <= limits[:, None]), axis=0)
        index = tf.argmax(tf.cast(fits, tf.int32))
        aspect = tf.clip_by_value(width / height, *self.aspect)  # where none fits
        largest = tf.round(tf.minimum(limits, tf.stack([width / aspect, height * aspect])))
        some = fits[index]
        sides = tf.where(some, tried[:, index], tf.maximum(largest, 1.0))
        corner = tf.where(some, drawn[2:, index] * (limits - sides + 1), (limits - sides) / 2)
        return tuple(tf.unstack(tf.cast(tf.concat([tf.floor(corner), sides], axis=0), tf.int32)))


@dataclasses.dataclass(frozen=True)
class IoUCrop(_Resampled):
    """SSD's crop: a window that overlaps an object by a drawn IoU at least; objects stay whose centre is inside.

    Liu et al. 2016, "SSD", section 2.2, "Data augmentation": sides of 0.3 to 1, aspect ratio 1/2 to 2, IoU of at least
    0, 0.1, 0.3, 0.5, 0.7 or 0.9, or the whole image. The window is scaled to `size`.

    Args:
        size: Height and width in pixels; None keeps those of the image.
        rate: How often, in [0, 1].
        interpolation: As in `RandomResizedCrop`.
        fill, min_visibility, tight: As in `Geometric`.

    >>> targets = {"boxes": tf.constant([[8.0, 8, 24, 24]]), "labels": tf.constant([0])}
    >>> image, targets = IoUCrop()((tf.zeros([32, 48, 3]), targets), seed=(0, 1))
    >>> tuple(image.shape), targets["labels"].numpy().tolist()
    ((32, 48, 3), [0])
    """

    size: tuple | None = None

    overlaps = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, None)
    tries = (8, 40)  # thresholds, and windows of each

    def plan(self, image, targets, seed):
        if "labels" not in targets:
            raise ValueError("IoUCrop needs boxes; where there are none, take RandomResizedCrop.")
        window = self._window(valid_size(image, targets), objects(targets)["boxes"], seed)
        first = floats(window[1::-1])
        last = first + floats(window[:1:-1])

        def keep(boxes):
            centres = (boxes[:, :2] + boxes[:, 2:]) / 2
            return tf.reduce_all((centres > first) & (centres < last), axis=-1)

        return window_warp(window, self.result_size(image)), keep

    def _window(self, valid, boxes, seed):
        """Top, left, height and width: the first window that overlaps as drawn; the whole image where none does."""
        first, second = tf.unstack(tf.random.split(seed))
        far = tf.cast(tf.stack([valid[1], valid[0]]), tf.float32)
        chosen = tf.random.stateless_uniform(self.tries[:1], first, 0, len(self.overlaps), tf.int32)
        least = tf.gather([2.0 if overlap is None else overlap for overlap in self.overlaps], chosen)[:, None]
        drawn = tf.random.stateless_uniform([*self.tries, 4], second)
        sides = tf.maximum(tf.floor(far * (0.3 + 0.7 * drawn[..., :2])), 1.0)
        corners = tf.floor((far - sides) * drawn[..., 2:])
        ratio = sides[..., 0] / sides[..., 1]
        starts, ends = (value[:, :, None] for value in (corners, corners + sides))
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        holds = tf.reduce_all((centres > starts) & (centres < ends), axis=-1)
        shared = tf.maximum(tf.minimum(ends, boxes[:, 2:]) - tf.maximum(starts, boxes[:, :2]), 0.0)
        shared = tf.where(holds, shared[..., 0] * shared[..., 1], 0.0)
        box_sides = boxes[:, 2:] - boxes[:, :2]
        together = sides[..., 0:1] * sides[..., 1:] + box_sides[:, 0] * box_sides[:, 1] - shared
        lowest = tf.reduce_min(tf.where(holds, shared / together, 1.0), axis=-1)
        usable = (ratio >= 0.5) & (ratio <= 2.0) & tf.reduce_any(holds, axis=-1) & (lowest >= least)
        usable |= least > 1.0  # stands for the whole image
        index = tf.argmax(tf.cast(tf.reshape(usable, [-1]), tf.int32))
        whole = ~tf.reduce_any(usable) | (tf.repeat(least[:, 0], self.tries[1])[index] > 1.0)
        corner = tf.where(whole, tf.zeros(2), tf.reshape(corners, [-1, 2])[index])
        side = tf.where(whole, far, tf.reshape(sides, [-1, 2])[index])
        return tuple(tf.cast(number, tf.int32) for number in (corner[1], corner[0], side[1], side[0]))


@dataclasses.dataclass(frozen=True)
class ZoomOut(_Resampled):
    """SSD's expansion for small objects: the image somewhere on a larger canvas, scaled to `size`.

    Liu et al. 2016, "SSD", section 3.6: a canvas of up to four times the sides, filled with the mean colour.

    Args:
        size: Height and width in pixels; None keeps those of the image.
        ratio: Smallest and largest side of the canvas, in sides of the image, at least 1.
        rate: How often, in [0, 1].
        interpolation: As in `RandomResizedCrop`.
        fill, min_visibility, tight: As in `Geometric`.

    >>> targets = {"boxes": tf.constant([[8.0, 8, 24, 24]]), "labels": tf.constant([0])}
    >>> image, targets = ZoomOut(ratio=(2, 2))((tf.zeros([32, 48, 3]), targets), seed=(0, 1))
    >>> (targets["boxes"][0, 2:] - targets["boxes"][0, :2]).numpy().tolist()
    [8.0, 8.0]
    """

    size: tuple | None = None
    ratio: tuple = (1.0, 4.0)

    def __post_init__(self):
        super().__post_init__()
        self.check_range("ratio", low=1.0)

    def plan(self, image, targets, seed):
        valid, size = valid_size(image, targets), self.result_size(image)
        new = valid if self.size is None else tf.stack(size)
        ratio, down, right = uniform(seed, self.ratio, (0.0, 1.0), (0.0, 1.0))
        shown = tf.cast(new, tf.float32) / ratio
        offset = (tf.cast(new, tf.float32) - shown) * tf.stack([down, right])
        scale = shown / tf.cast(valid, tf.float32)
        warp = AxisAligned(
            source=region_of(image, targets)["source"],
            size=size,
            valid=new,
            scale=tuple(tf.unstack(scale)),
            offset=tuple(tf.unstack(offset)),
        )
        return warp, None


@dataclasses.dataclass(frozen=True)
class ScaleJitter(_Resampled):
    """Large-scale jitter: the image scaled by a random factor, then cropped or padded to one size.

    Ghiasi et al. 2021, "Simple copy-paste is a strong data augmentation method", section 3: 0.1 to 2 is large-scale
    jitter, 0.8 to 1.25 the standard one. At scale 1 the image fills `size` with its aspect ratio kept; the padding is
    black, at the right and bottom.

    Args:
        size: Height and width in pixels.
        scale: Smallest and largest factor.
        interpolation: As in `RandomResizedCrop`.
        fill, min_visibility, tight: As in `Geometric`.

    >>> targets = {"boxes": tf.constant([[8.0, 8, 24, 24]]), "labels": tf.constant([0])}
    >>> image, targets = ScaleJitter((64, 64), scale=(0.5, 0.5))((tf.zeros([32, 32, 3]), targets), seed=(0, 1))
    >>> tuple(image.shape), targets["boxes"].numpy().tolist()
    ((64, 64, 3), [[8.0, 8.0, 24.0, 24.0]])
    """

    size: tuple
    scale: tuple = (0.1, 2.0)

    def __post_init__(self):
        super().__post_init__()
        self.check_range("scale", low=1e-2)

    def plan(self, image, targets, seed):
        valid = valid_size(image, targets)
        sides, size = tf.cast(valid, tf.float32), tf.constant(self.size, tf.float32)
        factor, down, right = uniform(seed, self.scale, (0.0, 1.0), (0.0, 1.0))
        scale = tf.reduce_min(size / sides) * factor
        scaled = tf.maximum(tf.floor(sides * scale + 0.5), 1.0)
        offset = tf.round((tf.minimum(size, scaled) - scaled) * tf.stack([down, right]))
        warp = AxisAligned(
            source=region_of(image, targets)["source"],
            size=tuple(self.size),
            valid=tf.cast(tf.minimum(scaled, size), tf.int32),
            scale=(scale, scale),
            offset=tuple(tf.unstack(offset)),
        )
        return warp, None
