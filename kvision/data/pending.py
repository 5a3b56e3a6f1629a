"""Samples whose pixels are read last: once, under all that scaled, moved, mirrored and cut them before."""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from kvision.data.resampling import resized

EDGE = 1e-3  # of a pixel: so far beyond an edge counts as on it, since numbers are rounded

# Targets with a row for each object, and what stands in a row without one.
ROWS = {
    "boxes": 0,
    "labels": -1,
    "masks": 0,
    "box_masks": 0,
    "keypoints": 0,
    "crowd": 0,
    "area": 0,
    "difficult": 0,
}


def floats(numbers):
    """Numbers as float32 [n]: an array where they are known, which spares `tf.data` operations at every sample."""
    if tf.is_tensor(numbers):
        return tf.cast(numbers, tf.float32)
    if any(map(tf.is_tensor, numbers)):
        return tf.stack([tf.cast(number, tf.float32) for number in numbers])
    return np.array(numbers, "float32")


@dataclasses.dataclass(frozen=True)
class View:
    """What is shown of a stored image, and where: `new = old * scale + offset`. All pairs are (y, x).

    Args:
        scale, offset: float32 [2]; a negative scale mirrors.
        shown: First and last corner of the part of the new image that shows anything, in whole pixels, float32 [2, 2].
        size: Height and width of the new image, whole numbers or tensors.
        rigid: Whether pixels are known to be moved and mirrored only, so that nothing is interpolated.
    """

    scale: tf.Tensor
    offset: tf.Tensor
    shown: tf.Tensor
    size: tuple
    rigid: bool = False

    @classmethod
    def whole(cls, size):
        """The image as it is stored."""
        none = np.zeros(2, "float32")
        return cls(np.ones(2, "float32"), none, tf.stack([none, floats(size)]), tuple(size), rigid=True)

    def then(self, scale, offset, seen, valid, size, rigid):
        """This view scaled and moved once more.

        Args:
            scale, offset: As of a view, of this one's image to the next.
            seen: Corners of the part of this one's image that is shown, two float32 [2].
            valid: Height and width of the part of the new image that is no padding, float32 [2].
            size, rigid: As of a view.
        """
        ends = tf.minimum(tf.maximum(self.shown, seen[0]), seen[1]) * scale + offset
        ends = tf.stack([-tf.reduce_min(ends, axis=0), tf.reduce_max(ends, axis=0)])  # mirrored, they change places
        shown = tf.floor(ends + (0.5 + EDGE)) * [[-1.0], [1.0]]  # pixels whose centre lies inside
        shown = tf.minimum(tf.maximum(shown, 0.0), valid)
        return View(self.scale * scale, self.offset * scale + offset, shown, size, self.rigid and rigid)

    def placed(self, start, size):
        """This view as a part of a larger image, from `start` on."""
        return View(self.scale, self.offset + start, self.shown + start, size, self.rigid)

    def inverse(self, points):
        """Where points `[..., 2]` (x, y) of the new image lie in the stored one."""
        return (points - self.offset[::-1]) / self.scale[::-1]

    def window(self, stored):
        """Top and left, height and width of what is shown of an image of the size `stored`: two int32 [2]."""
        ends = (self.shown - self.offset) / self.scale
        limit = floats(stored)
        first = tf.clip_by_value(tf.floor(tf.reduce_min(ends, axis=0) + EDGE), 0.0, limit - 1.0)
        last = tf.clip_by_value(tf.math.ceil(tf.reduce_max(ends, axis=0) - EDGE), first + 1.0, limit)
        return tf.cast(first, tf.int32), tf.cast(last - first, tf.int32)

    def image(self, pixels, corner, interpolation):
        """The new image [*size, c], float32, black where it shows nothing.

        Args:
            pixels: The window of the stored image.
            corner: Its top and left there, int32 [2].
            interpolation: A name, or its index as a tensor.
        """
        low, high = tf.unstack(self.shown)
        mirrored, count = self.scale < 0, tf.maximum(high - low, 1.0)
        if self.rigid:
            shown = tf.cast(pixels, tf.float32)
        else:
            offset = self.offset + tf.cast(corner, tf.float32) * self.scale - low
            offset = tf.where(mirrored, count - offset, offset)
            sides = tf.cast(tf.shape(pixels)[:2], tf.float32)
            scale, offset = _within(sides, count, tf.abs(self.scale), offset)
            shown = resized(pixels, tf.cast(count, tf.int32), scale, offset, interpolation)
        shown = tf.raw_ops.Reverse(tensor=shown, dims=tf.concat([mirrored, [False]], axis=0))
        return self._padded(shown, 0, 0)

    def nearest(self, maps, fill):
        """New masks or label maps [n, *size] of stored ones [n, h, w], with `fill` where they show nothing."""
        for axis in (0, 1):
            centres = tf.range(self.shown[0, axis], self.shown[1, axis]) + 0.5
            index = tf.cast(tf.floor((centres - self.offset[axis]) / self.scale[axis]), tf.int32)
            maps = picked(maps, tf.clip_by_value(index, 0, tf.shape(maps)[1 + axis] - 1), 1 + axis)
        return self._padded(maps, 1, fill)

    def _padded(self, shown, axis, fill):
        """What is shown, amid what shows nothing; height is the given axis."""
        low, high = tf.unstack(tf.cast(self.shown, tf.int32))
        height, width = tf.unstack(tf.maximum(high - low, 0))
        shown = shown[(*(slice(None),) * axis, slice(height), slice(width))]
        rest = [[axis, shown.shape.rank - axis - 2], [0, 0]]
        around = tf.pad(tf.stack([low, tf.stack(self.size) - high], axis=1), rest)
        static = [side if isinstance(side, int) else None for side in self.size]
        whole = tf.pad(shown, around, constant_values=tf.cast(fill, shown.dtype))
        return tf.ensure_shape(whole, [*shown.shape[:axis], *static, *shown.shape[axis + 2 :]])


def _within(sides, count, scale, offset):
    """Scale and offset by which all of `count` pixels show a point between the edges of an image with these sides.

    Where sizes were rounded up, the last pixel's centre lies a little beyond; the others then move with it.
    """
    ends = (tf.stack([tf.fill([2], 0.5), count - 0.5]) - offset) / scale
    inside = tf.clip_by_value(ends, EDGE, sides - EDGE)
    differs = tf.reduce_any(tf.abs(inside - ends) > EDGE, axis=0)
    stretched = tf.where(count > 1, (count - 1.0) / tf.maximum(inside[1] - inside[0], EDGE), scale)
    return tf.where(differs, stretched, scale), tf.where(differs, 0.5 - inside[0] * stretched, offset)


def picked(pixels, indices, axis):
    """`tf.gather` along an axis; along the last one, where it moves one value at a time, by way of the transpose."""
    if axis < pixels.shape.rank - 1:
        return tf.gather(pixels, indices, axis=axis)
    shape = tf.shape(pixels)
    columns = tf.gather(tf.transpose(tf.reshape(pixels, [-1, shape[-1]])), indices)
    return tf.reshape(tf.transpose(columns), tf.concat([shape[:-1], tf.shape(indices)], axis=0))


@dataclasses.dataclass(frozen=True)
class Pending:
    """A sample whose geometry is known and whose pixels are yet to be read.

    Args:
        stored: Height and width of the stored image, whole numbers or int32 [2].
        read: A function of a window (top, left, height, width) to the pixels that the stored image has there; of None,
            to all of them.
        view: What is shown of it.
        put_together: A function of the image and the dict of targets to the sample.
        targets: What does not belong to single objects: `image_size`, `scale` or labels.
        rows: The objects as the view shows them, of which those that were dropped have the label −1, and `"row"`,
            int32, which of the stored ones each is; None where the task has no objects.
        num_rows: Rows of the targets, at least as many as objects.
        maps: Functions `(rows, view) -> tensor` by the name of the target: `masks`, `box_masks` or `label_map`.
        interpolation: Of the pixels.
        is_whole: Whether the view is the reader's own, which shows all of the image.
    """

    stored: object
    read: Callable
    view: View
    put_together: Callable
    targets: dict = dataclasses.field(default_factory=dict)
    rows: dict | None = None
    num_rows: object = None
    maps: dict = dataclasses.field(default_factory=dict)
    interpolation: object = "bilinear"
    is_whole: bool = True

    def pixels(self):
        """The image [h, w, c], float32."""
        if not self.is_whole:
            corner, sides = self.view.window(self.stored)
            return self.view.image(self.read((*tf.unstack(corner), *tf.unstack(sides))), corner, self.interpolation)
        pixels = self.read(None)
        if not self.view.rigid:
            return self.view.image(pixels, tf.zeros(2, tf.int32), self.interpolation)
        static = [side if isinstance(side, int) else None for side in self.view.size]
        return tf.ensure_shape(tf.cast(pixels, tf.float32), (*static, pixels.shape[-1]))

    def parts(self):
        """The image and the dict of targets."""
        targets, rows = dict(self.targets), self.rows
        if rows is not None and not self.is_whole:
            rows = taken(rows, rows["labels"] >= 0)
        made = {name: function(rows, self.view) for name, function in self.maps.items()}
        if rows is not None:
            rows = {name: value for name, value in rows.items() if name in ROWS}
            rows |= {name: made.pop(name) for name in list(made) if name in ROWS}
            targets |= padded(rows, self.num_rows)
        return self.pixels(), targets | made

    def finished(self):
        """The sample."""
        return self.put_together(*self.parts())


def taken(rows, kept):
    """The rows of objects of which `kept` [n] holds."""
    index = tf.where(kept)[:, 0]
    return {name: tf.gather(value, index) for name, value in rows.items()}


def padded(rows, num_rows):
    """Objects, with rows of padding behind them up to a number of rows."""
    padding, made = num_rows - tf.shape(rows["boxes"])[0], {}
    static = num_rows if isinstance(num_rows, int) else None
    for name, values in rows.items():
        around = [[0, padding]] + [[0, 0]] * (values.shape.rank - 1)
        made[name] = tf.ensure_shape(tf.pad(values, around, constant_values=ROWS[name]), (static, *values.shape[1:]))
    return made


def finished(sample):
    """The sample itself, where its pixels are pending."""
    return sample.finished() if isinstance(sample, Pending) else sample
