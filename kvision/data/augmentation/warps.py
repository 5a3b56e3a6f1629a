"""The geometric core: where a point of the image goes, and what each pixel of the new one shows.

Coordinates are continuous, with the edges of the image at 0 and its width: the centre of the first pixel is 0.5. An
operation is one mapping of the plane, and image, boxes, masks and keypoints all follow it.
"""

import dataclasses
import functools

import tensorflow as tf

from kvision.data.pending import floats, picked
from kvision.data.resampling import INTERPOLATIONS, KERNELS, scale_and_translate


@dataclasses.dataclass(frozen=True)
class Warp:
    """A mapping of the plane.

    Args:
        source: Top, left, height and width of the region of the old image that can be seen: int32 tensors, or Python's
            integers where it is the whole image.
        size: Height and width of the new image.
        valid: Height and width of its valid region; beyond it is padding.
    """

    source: tuple
    size: tuple
    valid: tf.Tensor

    points_a_side = 1  # of a box, to follow its outline: its corners suffice where lines stay straight

    def forward(self, points):
        """Where points `[..., 2]` (x, y) of the old image lie in the new one. Of subclasses."""
        raise NotImplementedError

    def inverse(self, points):
        """Where points `[..., 2]` (x, y) of the new image lay in the old one. Of subclasses."""
        raise NotImplementedError

    def visible(self, image, axis=0):
        """The part of an old image, or of masks, that can be seen; height is the given axis."""
        top, left, height, width = self.source
        if all(isinstance(number, int) for number in self.source):  # known to be the whole
            return image
        whole = (slice(None),) * axis
        return image[(*whole, slice(top, top + height), slice(left, left + width))]

    def image(self, image, interpolation, fill):
        """The new image [h, w, c], float32; the interpolation is a name, or its index as a tensor. Of subclasses."""
        raise NotImplementedError

    def nearest(self, maps, fill):
        """New masks or label maps [n, h, w], of the type of the old ones. Of subclasses."""
        raise NotImplementedError

    def local_scale(self):
        """Pixels of the new image for one of the old, at the centre of what can be seen."""
        top, left, height, width = (tf.cast(number, tf.float32) for number in self.source)
        around = tf.constant([[-0.5, 0.0], [0.5, 0.0], [0.0, -0.5], [0.0, 0.5]])
        moved = self.forward(tf.stack([left + width / 2, top + height / 2]) + around)
        across, down = moved[1] - moved[0], moved[3] - moved[2]
        return tf.sqrt(tf.abs(across[0] * down[1] - across[1] * down[0]))


@dataclasses.dataclass(frozen=True)
class AxisAligned(Warp):
    """Scales, moves and mirrors: `new = (old − corner of the source) * scale + offset`, with (y, x) in each.

    Args:
        whole_pixels: Whether pixels are only moved, so that nothing is interpolated.
    """

    scale: tuple = (1.0, 1.0)
    offset: tuple = (0.0, 0.0)
    whole_pixels: bool = False

    def _terms(self):
        return tuple(floats(value) for value in (self.source[:2], self.scale, self.offset))

    def linear(self):
        """Scale and offset, (y, x), of `new = old * scale + offset`: two float32 [2]."""
        corner, scale, offset = self._terms()
        return scale, offset - corner * scale

    def forward(self, points):
        corner, scale, offset = (pair[::-1] for pair in self._terms())
        return (points - corner) * scale + offset

    def inverse(self, points):
        corner, scale, offset = (pair[::-1] for pair in self._terms())
        return (points - offset) / scale + corner

    def local_scale(self):
        return tf.sqrt(tf.abs(tf.reduce_prod(floats(self.scale))))

    def image(self, image, interpolation, fill):
        if not isinstance(interpolation, str):
            ways = [functools.partial(self.image, image, name, fill) for name in INTERPOLATIONS]
            return tf.switch_case(interpolation, ways)
        if self.whole_pixels or interpolation == "nearest":
            return tf.cast(self._gather(image, fill, axis=0), tf.float32)
        _, scale, offset = self._terms()
        scaled = scale_and_translate(self.visible(image), self.size, scale, offset, KERNELS[interpolation])
        if fill:
            rows, columns = (self._indices(axis)[1] for axis in (0, 1))
            scaled = tf.where(rows[:, None, None] & columns[None, :, None], scaled, fill)
        return tf.clip_by_value(scaled, 0.0, 255.0) if interpolation == "bicubic" else scaled

    def nearest(self, maps, fill):
        return self._gather(maps, fill, axis=1)

    def _indices(self, axis):
        """The rows or columns of the source that those of the new image show, and which show any."""
        centres = tf.range(self.size[axis], dtype=tf.float32) + 0.5
        index = tf.cast(tf.floor((centres - tf.cast(self.offset[axis], tf.float32)) / self.scale[axis]), tf.int32)
        return index, (index >= 0) & (index < self.source[2 + axis])

    def _kept(self, direction):
        """1 or −1 where what is seen is known to stay or to be mirrored along an axis, as a whole; else 0."""
        seen, side = self.source[2 + direction], self.size[direction]
        scale, offset = self.scale[direction], self.offset[direction]
        known = all(isinstance(value, int | float) for value in (seen, side, scale, offset))
        if not known or seen != side or (scale, offset) not in ((1, 0), (-1, side)):
            return 0
        return int(scale)

    def _stays(self, direction, length):
        """Whether pixels are known to stay where they are along an axis of this length, as far as they are seen."""
        terms = (self.source[direction], self.scale[direction], self.offset[direction])
        known = isinstance(self.size[direction], int) and all(isinstance(value, int | float) for value in terms)
        return known and terms == (0, 1, 0) and self.size[direction] == length

    def _gather(self, pixels, fill, axis):
        kept = [self._kept(direction) for direction in (0, 1)]
        if all(kept):  # cheaper than picking rows and columns
            mirrored = [axis + direction for direction in (0, 1) if kept[direction] < 0]
            pixels = self.visible(pixels, axis)
            return tf.reverse(pixels, mirrored) if mirrored else pixels
        seen = None
        for direction in (0, 1):
            index, inside = self._indices(direction)
            inside = inside[:, None] if direction == 0 else inside[None]
            seen = inside if seen is None else seen & inside
            if self._stays(direction, pixels.shape[axis + direction]):
                continue
            last = self.source[2 + direction] - 1
            pixels = picked(pixels, tf.clip_by_value(index, 0, last) + self.source[direction], axis + direction)
        seen = seen[..., None] if axis == 0 else seen
        if fill == 0 and not pixels.dtype.is_floating:
            return pixels * tf.cast(seen, pixels.dtype)  # faster than `tf.where`
        return tf.where(seen, pixels, tf.cast(fill, pixels.dtype))


@dataclasses.dataclass(frozen=True)
class Projective(Warp):
    """Lines stay lines: affine and perspective mappings.

    Args:
        matrix: [3, 3], takes (x, y, 1) of the old image to the new.
    """

    matrix: tf.Tensor = None

    def forward(self, points):
        return _projected(self.matrix, points)

    def inverse(self, points):
        return _projected(self._inverse(), points)

    def _inverse(self):
        return tf.cast(tf.linalg.inv(tf.cast(self.matrix, tf.float64)), tf.float32)

    def image(self, image, interpolation, fill):
        return self._transformed(tf.cast(self.visible(image), tf.float32)[None], interpolation, fill)[0]

    def nearest(self, maps, fill):
        return self._transformed(self.visible(maps, axis=1)[..., None], "nearest", fill)[..., 0]

    def _transformed(self, images, interpolation, fill):
        top, left = (tf.cast(number, tf.float32) for number in self.source[:2])
        by_index = _shift(-left - 0.5, -top - 0.5) @ self._inverse() @ _shift(0.5, 0.5)  # TensorFlow counts centres
        by_index /= by_index[2, 2]
        of_kernel = {"uint8": tf.uint8, "int32": tf.int32}.get(images.dtype.name, images.dtype)
        return tf.raw_ops.ImageProjectiveTransformV3(
            images=tf.cast(images, of_kernel),
            transforms=tf.reshape(by_index, [1, 9])[:, :8],
            output_shape=tf.stack(self.size),
            interpolation=interpolation.upper(),
            fill_mode="CONSTANT",
            fill_value=float(fill),
        )


@dataclasses.dataclass(frozen=True)
class Field(Warp):
    """Any smooth mapping, given by where each point of the new image lay in the old one.

    Args:
        backward: A function of points `[..., 2]`; it moves neighbours by nearly the same, so that it can be inverted.
    """

    backward: object = None
    points_a_side = 8
    iterations = 20

    def inverse(self, points):
        return self.backward(points)

    def forward(self, points):
        (found,) = tf.while_loop(
            lambda found: True,
            lambda found: (found - (self.backward(found) - points),),
            (points,),
            maximum_iterations=self.iterations,
        )
        return found

    def _positions(self):
        """Where the pixels of the new image lay in the source, [h, w, 2] (x, y)."""
        y, x = (tf.range(side, dtype=tf.float32) + 0.5 for side in self.size)
        points = self.backward(tf.stack(tf.meshgrid(x, y), axis=-1))
        return points - floats(self.source[1::-1])

    def image(self, image, interpolation, fill):
        image, points = tf.cast(self.visible(image), tf.float32), self._positions()
        if interpolation == "nearest":
            return pixels_at(image, tf.floor(points), fill)
        return bilinear(image, points, fill)

    def nearest(self, maps, fill):
        indices = tf.cast(tf.floor(self._positions()), tf.int32)
        maps = self.visible(maps, axis=1)
        height, width = tf.unstack(tf.shape(maps)[1:])
        wide_high = tf.stack([width, height])
        inside = tf.reduce_all((indices >= 0) & (indices < wide_high), axis=-1)
        x, y = tf.unstack(tf.clip_by_value(indices, 0, wide_high - 1), axis=-1)
        flat = tf.gather(tf.reshape(maps, [-1, height * width]), y * width + x, axis=1)
        return tf.where(inside, flat, tf.cast(fill, maps.dtype))


def pixels_at(image, indices, fill):
    """The pixels [..., c] of an image [h, w, c] at whole (x, y) `[..., 2]`; `fill` outside of it."""
    size = tf.shape(image)[:2]
    indices = tf.cast(indices[..., ::-1], tf.int32)
    inside = tf.reduce_all((indices >= 0) & (indices < size), axis=-1, keepdims=True)
    pixels = tf.gather_nd(image, tf.clip_by_value(indices, 0, size - 1))
    return tf.where(inside, pixels, tf.cast(fill, pixels.dtype))


def bilinear(image, points, fill=None):
    """An image [h, w, c] between its pixels, at (x, y) `[..., 2]`; `fill` outside, or the nearest pixel where None."""
    points = points - 0.5
    if fill is None:
        height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float32))
        points = tf.clip_by_value(points, 0.0, tf.stack([width, height]) - 1.0)
    first = tf.floor(points)
    weight = points - first
    value = 0.0
    for x in (0, 1):
        for y in (0, 1):
            part = tf.abs(1.0 - x - weight[..., :1]) * tf.abs(1.0 - y - weight[..., 1:])
            value += part * pixels_at(image, first + [float(x), float(y)], 0.0 if fill is None else fill)
    return value


def _projected(matrix, points):
    moved = tf.linalg.matvec(matrix[:, :2], points) + matrix[:, 2]
    return moved[..., :2] / moved[..., 2:]


def _shift(x, y):
    return matrix3(1.0, 0.0, x, 0.0, 1.0, y)


def matrix3(*rows):
    """A matrix [3, 3] of its first two rows, or all three."""
    rows = rows if len(rows) == 9 else (*rows, 0.0, 0.0, 1.0)
    return tf.reshape(tf.stack([tf.cast(number, tf.float32) for number in rows]), [3, 3])
