"""Flips, affine mappings, perspective, lens distortion and elastic deformation.

The size of the image stays. All happens within the valid region of a padded image and about its centre.
"""

import dataclasses
import math
import numbers

import tensorflow as tf

from kvision.data.augmentation.chains import moved
from kvision.data.augmentation.moving import move
from kvision.data.augmentation.samples import Transform, size_of, uniform, valid_size
from kvision.data.augmentation.warps import AxisAligned, Field, Projective, bilinear, matrix3
from kvision.data.pending import floats

INTERPOLATIONS = ("bilinear", "nearest")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Geometric(Transform):
    """A random mapping of the plane that the whole sample follows.

    Args:
        rate: How often, in [0, 1].
        fill: Value of the pixels that show nothing of the old image, in 0…255. Label maps get 255, which is ignored.
        min_visibility: Objects of which a smaller fraction remains visible are dropped, in [0, 1].
        tight: Whether boxes enclose what their masks show, instead of the outline of the moved box, which is looser.
    """

    fill: float = 0.0
    min_visibility: float = 0.1
    tight: bool = False

    def __post_init__(self):
        super().__post_init__()
        self.check("fill", 0 <= self.fill <= 255, "a value of pixels in 0…255")
        self.check("min_visibility", 0 <= self.min_visibility <= 1, "a fraction in [0, 1]")

    def warp(self, image, targets, seed):
        """The `Warp` of a sample. Of subclasses."""
        raise NotImplementedError

    def planned(self, image, targets, seed):
        """The warp, the interpolation, and a function of the boxes which of them may stay, or None for all."""
        return self.warp(image, targets, seed), getattr(self, "interpolation", "bilinear"), None

    def apply(self, image, targets, seed):
        return self.moved(image, targets, *self.planned(image, targets, seed))

    def on_pending(self, pending, seed):
        """A `Pending` sample changed, its pixels still unread; None where the change is of another kind."""
        if self.fill or self.tight:
            return None
        chosen = None
        if self.rate != 1:
            chance, seed = tf.unstack(tf.random.split(seed))
            chosen = tf.random.stateless_uniform([], chance) < self.rate
        warp, interpolation, keep = self.planned(pending, pending.targets | (pending.rows or {}), seed)
        if not isinstance(warp, AxisAligned):
            return None
        return moved(pending, warp, interpolation, self.min_visibility, keep, chosen)

    def moved(self, image, targets, warp, interpolation="bilinear", keep=None):
        """The sample under a warp, by this transform's rules."""
        if self.tight and "labels" in targets and not {"masks", "box_masks"} & set(targets):
            raise ValueError(f"{type(self).__name__}(tight=True) takes boxes from masks, and the targets have none.")
        return move(
            image,
            targets,
            warp,
            interpolation=interpolation,
            fill=self.fill,
            min_visibility=self.min_visibility,
            tight=self.tight,
            keep=keep,
        )


def region_of(image, targets):
    """The source, size and valid region of a warp that keeps all three."""
    size, valid = size_of(image), valid_size(image, targets)
    whole = "image_size" not in targets and all(isinstance(side, int) for side in size)
    return {"source": (0, 0, *(size if whole else tf.unstack(valid))), "size": size, "valid": valid}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Flip(Geometric):
    """Mirrors the sample. Keypoints are (x, y, visibility) with x and y from the left top edge, so that x becomes
    width − x; torchvision's are indices of pixels, width − 1 − x.

    Args:
        rate: How often, in [0, 1].
        keypoint_pairs: Indices of keypoints that change places, such as left and right eye: `((1, 2), (3, 4))`.
    """

    rate: float = 0.5
    keypoint_pairs: tuple = ()
    axis = None

    def __post_init__(self):
        super().__post_init__()
        pairs = self.keypoint_pairs if isinstance(self.keypoint_pairs, tuple | list) else [None]
        holds = all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs)
        indices = [index for pair in pairs for index in pair] if holds else []
        holds = holds and all(isinstance(index, numbers.Integral) and index >= 0 for index in indices)
        holds = holds and len(set(indices)) == len(indices)
        self.check("keypoint_pairs", holds, "pairs of indices from 0 such as ((1, 2), (3, 4)), each index once")

    def warp(self, image, targets, seed):
        region = region_of(image, targets)
        scale, offset = [1.0, 1.0], [0.0, 0.0]
        side = region["source"][2 + self.axis]
        scale[self.axis], offset[self.axis] = -1.0, float(side) if isinstance(side, int) else tf.cast(side, tf.float32)
        return AxisAligned(**region, scale=tuple(scale), offset=tuple(offset), whole_pixels=True)

    def changed(self, image, targets, seed):
        if self.rate == 1 or not set(targets) <= {"label", "soft_label"}:
            return super().changed(image, targets, seed)
        chance, _ = tf.unstack(tf.random.split(seed))
        chosen = tf.random.stateless_uniform([], chance) < self.rate  # cheaper than two branches
        mirrored = tf.stack([chosen if axis == self.axis else False for axis in range(3)])
        return tf.raw_ops.Reverse(tensor=tf.cast(image, tf.float32), dims=mirrored), targets

    def on_pending(self, pending, seed):
        return None if self.keypoint_pairs else super().on_pending(pending, seed)

    def apply(self, image, targets, seed):
        image, targets = super().apply(image, targets, seed)
        if self.keypoint_pairs and "keypoints" in targets:
            number = targets["keypoints"].shape[1]
            order = list(range(number))
            for first, second in self.keypoint_pairs:
                self.check("keypoint_pairs", max(first, second) < number, f"pairs of indices below {number}")
                order[first], order[second] = second, first
            targets = dict(targets, keypoints=tf.gather(targets["keypoints"], order, axis=1))
        return image, targets


class HorizontalFlip(_Flip):
    __doc__ = f"""{_Flip.__doc__.replace("Mirrors the sample.", "Mirrors left and right.")}
    >>> image, label = HorizontalFlip(rate=1.0)((tf.constant([[[1.0], [2.0], [3.0]]]), tf.constant(4)), seed=(0, 0))
    >>> image[0, :, 0].numpy().tolist(), int(label)
    ([3.0, 2.0, 1.0], 4)
    """

    axis = 1


class VerticalFlip(_Flip):
    __doc__ = f"""{_Flip.__doc__.replace("Mirrors the sample.", "Mirrors top and bottom.")}
    >>> flipped = VerticalFlip(rate=1.0)(tf.constant([[[1.0]], [[2.0]]]), seed=(0, 0))
    >>> flipped[:, 0, 0].numpy().tolist()
    [2.0, 1.0]
    """

    axis = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Affine(Geometric):
    """Rotation, translation, scale, stretching and shear, resampled once.

    Each is drawn evenly from its range. A mapping that only scales and moves is antialiased.

    Args:
        rate: How often, in [0, 1].
        rotation: Degrees, at most, in either direction.
        translation: Fraction of width and height, at most, in either direction, in [0, 1].
        scale: Smallest and largest scale; the logarithm is drawn evenly.
        stretching: Largest ratio of the scales of both axes, at least 1: the width is scaled by its root or the height.
        shear: Degrees, at most, in either direction, of each axis, below 45.
        interpolation: `"bilinear"` or `"nearest"`.
        fill, min_visibility, tight: As in `Geometric`.

    Raises:
        ValueError: If an argument is out of its range.

    >>> image = Affine(rotation=15, translation=0.1, scale=(0.8, 1.2))(tf.zeros([32, 48, 3]), seed=(0, 1))
    >>> tuple(image.shape)
    (32, 48, 3)
    """

    rotation: float = 0.0
    translation: float = 0.0
    scale: tuple = (1.0, 1.0)
    stretching: float = 1.0
    shear: float = 0.0
    interpolation: str = "bilinear"

    def __post_init__(self):
        super().__post_init__()
        self.check("rotation", 0 <= self.rotation <= 180, "degrees in [0, 180], of either direction")
        self.check("translation", 0 <= self.translation <= 1, "a fraction in [0, 1]")
        self.check_range("scale", low=1e-3)
        self.check("stretching", self.stretching >= 1, "a ratio of at least 1")
        self.check("shear", 0 <= self.shear < 45, "degrees in [0, 45)")
        self.check("interpolation", self.interpolation in INTERPOLATIONS, f"one of {', '.join(INTERPOLATIONS)}")

    def warp(self, image, targets, seed):
        region = region_of(image, targets)
        height, width = (tf.cast(side, tf.float32) for side in region["source"][2:])
        symmetric = (-1.0, 1.0)
        low, high = (math.log(number) for number in self.scale)
        angle, right, down, log_scale, log_stretch, shear_x, shear_y = uniform(
            seed, *[symmetric] * 3, (low, high), *[symmetric] * 3
        )
        scale, stretch = tf.exp(log_scale), tf.exp(log_stretch * math.log(self.stretching) / 2)
        scales = (scale / stretch, scale * stretch)
        centre = (width / 2, height / 2)
        translation = (right * self.translation * width, down * self.translation * height)
        if not self.rotation and not self.shear:
            offset = [
                middle - factor * middle + shift
                for middle, factor, shift in zip(centre, scales[::-1], translation, strict=True)
            ]
            return AxisAligned(**region, scale=scales, offset=tuple(offset[::-1]))
        angle, shear_x, shear_y = (
            number * most * math.pi / 180
            for number, most in ((angle, self.rotation), (shear_x, self.shear), (shear_y, self.shear))
        )
        return Projective(**region, matrix=affine_matrix(centre, angle, translation, scales[::-1], (shear_x, shear_y)))


def affine_matrix(centre, angle, translation, scales, shears):
    """A matrix [3, 3] that scales, shears, rotates clockwise (radians) about a centre, and translates; x before y."""
    cosine, sine = tf.cos(angle), tf.sin(angle)
    linear = (
        matrix3(cosine, -sine, 0.0, sine, cosine, 0.0)
        @ matrix3(1.0, tf.tan(shears[0]), 0.0, tf.tan(shears[1]), 1.0, 0.0)
        @ matrix3(scales[0], 0.0, 0.0, 0.0, scales[1], 0.0)
    )
    there = matrix3(1.0, 0.0, centre[0] + translation[0], 0.0, 1.0, centre[1] + translation[1])
    return there @ linear @ matrix3(1.0, 0.0, -centre[0], 0.0, 1.0, -centre[1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Perspective(Geometric):
    """Moves each corner of the image inwards, each by a distance of its own.

    Args:
        rate: How often, in [0, 1].
        distortion: How far a corner moves, at most, as a fraction of half the width and half the height, in [0, 0.9].
        interpolation: `"bilinear"` or `"nearest"`.
        fill, min_visibility, tight: As in `Geometric`.

    >>> tuple(Perspective(distortion=0.3)(tf.zeros([32, 48, 3]), seed=(0, 1)).shape)
    (32, 48, 3)
    """

    distortion: float = 0.3
    interpolation: str = "bilinear"

    def __post_init__(self):
        super().__post_init__()
        self.check("distortion", 0 <= self.distortion <= 0.9, "a fraction in [0, 0.9]")
        self.check("interpolation", self.interpolation in INTERPOLATIONS, f"one of {', '.join(INTERPOLATIONS)}")

    def warp(self, image, targets, seed):
        region = region_of(image, targets)
        far = floats(region["source"][:1:-1])
        corners = tf.constant([[0.0, 0], [1, 0], [1, 1], [0, 1]]) * far
        inwards = tf.constant([[1.0, 1], [-1, 1], [-1, -1], [1, -1]]) * far / 2 * self.distortion
        moved = corners + inwards * tf.random.stateless_uniform([4, 2], seed)
        return Projective(**region, matrix=matrix_of_corners(corners, moved))


def matrix_of_corners(old, new):
    """The matrix [3, 3] of the perspective mapping of four points [4, 2] to four others."""
    x, y = old[:, :1], old[:, 1:]
    one, zero = tf.ones_like(x), tf.zeros_like(x)
    rows_x = tf.concat([x, y, one, zero, zero, zero, -x * new[:, :1], -y * new[:, :1]], axis=1)
    rows_y = tf.concat([zero, zero, zero, x, y, one, -x * new[:, 1:], -y * new[:, 1:]], axis=1)
    system = tf.cast(tf.concat([rows_x, rows_y], axis=0), tf.float64)
    solved = tf.linalg.solve(system, tf.cast(tf.reshape(tf.transpose(new), [8, 1]), tf.float64))
    return tf.cast(tf.reshape(tf.concat([solved[:, 0], tf.ones(1, tf.float64)], axis=0), [3, 3]), tf.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LensDistortion(Geometric):
    """Barrel and pincushion distortion: a pixel at distance r of the centre shows what was at r (1 + k r²).

    Distances are fractions of half the diagonal. Brown 1966, "Decentering distortion of lenses", its radial term.

    Args:
        rate: How often, in [0, 1].
        strength: Largest |k|, in [0, 0.25]; positive ones show more of the image (barrel).
        fill, min_visibility, tight: As in `Geometric`.

    >>> tuple(LensDistortion(strength=0.2)(tf.zeros([32, 48, 3]), seed=(0, 1)).shape)
    (32, 48, 3)
    """

    strength: float = 0.2

    def __post_init__(self):
        super().__post_init__()
        self.check("strength", 0 <= self.strength <= 0.25, "in [0, 0.25]")

    def warp(self, image, targets, seed):
        region = region_of(image, targets)
        centre = floats(region["source"][:1:-1]) / 2
        (strength,) = uniform(seed, (-self.strength, self.strength))

        def backward(points):
            radius = (points - centre) / tf.norm(centre)
            squared = tf.minimum(tf.reduce_sum(radius**2, axis=-1, keepdims=True), 1.5)
            return centre + (points - centre) * (1 + strength * squared)

        return Field(**region, backward=backward)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Elastic(Geometric):
    """Smooth random displacements, drawn on a coarse grid and interpolated by cubic curves.

    Ronneberger, Fischer and Brox 2015, "U-Net", section 3.1.

    Args:
        rate: How often, in [0, 1].
        strength: Standard deviation of the displacements as a fraction of the cells of the grid, in [0, 0.15]; they are
            cut at two, so that nothing folds.
        cells: Cells of the grid along each side, at least 1.
        fill, min_visibility, tight: As in `Geometric`.

    >>> tuple(Elastic()(tf.zeros([32, 48, 3]), seed=(0, 1)).shape)
    (32, 48, 3)
    """

    strength: float = 0.1
    cells: int = 3

    def __post_init__(self):
        super().__post_init__()
        self.check("strength", 0 <= self.strength <= 0.15, "in [0, 0.15]")
        self.check("cells", self.cells >= 1, "at least 1")

    def warp(self, image, targets, seed):
        region = region_of(image, targets)
        spacing = floats(region["source"][:1:-1]) / self.cells
        nodes = tf.random.stateless_normal([1, self.cells + 3, self.cells + 3, 2], seed)
        nodes = tf.clip_by_value(nodes, -2.0, 2.0) * spacing * self.strength
        steps = 8  # of the tabulated field, a cell; between them it is linear
        fine = tf.image.resize(nodes, [(self.cells + 3) * steps] * 2, "bicubic")[0]

        def backward(points):
            return points + bilinear(fine, (points / spacing + 1.5) * steps)

        return Field(**region, backward=backward)
