"""What a transform gets and gives: one sample of a data set, of whichever task, as an image and a dict of targets."""

import dataclasses
import math
import numbers
import typing

import numpy as np
import tensorflow as tf

from kvision.data.pending import ROWS, Pending, padded, taken

LABEL_MAP_FILL = 255  # the label that losses and metrics of segmentation ignore

PER_IMAGE = ("image_size", "scale", "image_id")


def take_apart(sample):
    """The image of a sample, its targets as a dict, and the function that makes a sample of both again.

    The dict has the entries of the data contract, or `"label"`, `"soft_label"` or `"label_map"`.
    """
    image, *rest = sample if isinstance(sample, tuple | list) else (sample,)
    if image.shape.rank != 3 or len(rest) > 1:
        _refuse(sample)
    if not rest:
        return image, {}, lambda image, targets: image
    (value,) = rest
    if isinstance(value, dict):
        _check_targets(value)
        if value["boxes"].shape.rank != 2 or value["labels"].shape.rank != 1:
            _refuse(sample)
        return image, dict(value), lambda image, targets: (image, targets)
    names = {0: "label", 1: "soft_label", 2: "label_map", 3: "label_map"}
    name = names.get(value.shape.rank)
    if name is None or (value.shape.rank == 3 and value.shape[-1] != 1):
        _refuse(sample)
    if name == "label_map" and not value.shape[:2].is_compatible_with(image.shape[:2]):
        _refuse(sample)
    if name == "label_map" and value.shape.rank == 3:
        return image, {name: value[..., 0]}, lambda image, targets: (image, targets[name][..., None])
    return image, {name: value}, lambda image, targets: (image, targets[name])


def _refuse(sample):
    got = tf.nest.map_structure(lambda value: str(tuple(value.shape)), sample)
    raise ValueError(
        "augment: a sample is an image [h, w, c], or (image, class index), (image, one-hot or soft label [classes]), "
        "(image, label map [h, w] or [h, w, 1]) or (image, targets of the data contract): got the shapes "
        f"{got}. Leave out other entries with `dataset.map` first; grey images need a last axis of one channel."
    )


def _check_targets(targets):
    if not {"boxes", "labels"} <= set(targets):
        raise ValueError(f'augment: targets need "boxes" [n, 4] and "labels" [n], got {sorted(targets)}.')
    for name, value in targets.items():
        if name not in ROWS and name not in PER_IMAGE and value.shape.rank != 0:
            raise ValueError(
                f"augment: targets have the entry {name!r} of shape {tuple(value.shape)}, which no transform can move "
                f"along. Known are {', '.join((*ROWS, *PER_IMAGE))}; leave it out with `dataset.map` first."
            )


def size_of(image):
    """Height and width of an image: integers where they are known, else tensors."""
    if isinstance(image, Pending):
        return image.view.size
    dynamic = tf.shape(image)
    return tuple(dynamic[axis] if side is None else side for axis, side in enumerate(image.shape[:2]))


def valid_size(image, targets):
    """Height and width without the padding, int32."""
    return targets["image_size"] if "image_size" in targets else tf.stack(size_of(image))


def inside(size, valid):
    """Whether each pixel of an image of `size` lies in its valid region: [h, w] of bool."""
    return (tf.range(size[0]) < valid[0])[:, None] & (tf.range(size[1]) < valid[1])[None]


def zero_beyond(pixels, valid, axis=0):
    """Pixels with 0 beyond a valid height and width, cut and padded, which is several times as fast as `tf.where`.

    Args:
        pixels: An image [h, w, c], or masks with height and width as axes `axis` and `axis + 1`.
        valid: Height and width of the valid region, int32 [2].
        axis: That of the height.
    """
    size = tf.shape(pixels)[axis : axis + 2]
    valid = tf.minimum(tf.cast(valid, tf.int32), size)
    cut = pixels[(*(slice(None),) * axis, slice(None, valid[0]), slice(None, valid[1]))]
    padding = tf.pad((size - valid)[:, None], [[axis, pixels.shape.rank - axis - 2], [1, 0]])
    return tf.ensure_shape(tf.pad(cut, padding), pixels.shape)


def objects(targets):
    """The rows of the targets that are objects, without the padding."""
    return taken({name: targets[name] for name in ROWS if name in targets}, targets["labels"] >= 0)


def with_objects(targets, rows, num_rows=None):
    """Targets with these objects in front and padding behind; of more than there are rows, the largest are kept.

    Args:
        targets: Whose other entries stay, and whose rows are as many as there shall be.
        rows: The objects, a dict as `objects` gives it.
        num_rows: Rows of the targets; None keeps their number.
    """
    num_rows = num_rows or rows_of(targets)
    return targets | padded(largest(rows, num_rows), num_rows)


def rows_of(targets):
    """The number of rows of targets."""
    return targets["labels"].shape[0] or tf.shape(targets["labels"])[0]


def largest(rows, num_rows):
    """Objects without padding, the largest where there are more than a number of rows, in their order."""
    sides = rows["boxes"][:, 2:] - rows["boxes"][:, :2]
    real = rows["labels"] >= 0
    area = tf.where(real, tf.reduce_prod(sides, axis=-1), -1.0)
    count = tf.minimum(tf.reduce_sum(tf.cast(real, tf.int32)), num_rows)
    index = tf.sort(tf.argsort(area, direction="DESCENDING", stable=True)[:count])
    return {name: tf.gather(values, index) for name, values in rows.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
    """A random change of a sample, as a pure function of (sample, seed).

    Args:
        rate: How often the change is made, in [0, 1]; else the sample stays as it is.
    """

    rate: float = 1.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            self._check_kind(field.name, typing.get_args(field.type) or (field.type,))
        self.check("rate", 0 <= self.rate <= 1, "a probability in [0, 1]")

    def _check_kind(self, name, kinds):
        """Raises unless an argument is of the kind that its bounds are about."""
        value = getattr(self, name)
        if value is None and type(None) in kinds:
            return
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_)
        if float in kinds:
            self.check(name, is_number, "one number")
        elif int in kinds:
            self.check(name, is_number and isinstance(value, numbers.Integral), "one whole number")
        elif bool in kinds:
            self.check(name, isinstance(value, bool | np.bool_), "True or False")

    def check(self, name, holds, expected):
        """Raises the ValueError of an argument that does not hold."""
        if not holds:
            raise ValueError(f"{type(self).__name__}: {name} must be {expected}, got {getattr(self, name)!r}.")

    def check_range(self, name, low=-math.inf, high=math.inf):
        """Raises unless an argument is (smallest, largest) within bounds."""
        pair = getattr(self, name)
        pair = pair if isinstance(pair, tuple | list) else ()
        holds = len(pair) == 2 and all(isinstance(number, numbers.Real) for number in pair)
        holds = holds and low <= pair[0] <= pair[1] <= high
        self.check(name, holds, f"(smallest, largest) within {low:g}…{high:g}")

    def __call__(self, sample, seed):
        """The changed sample; images are float32 of 0…255.

        Args:
            sample: `image`, `(image, label)`, `(image, label map)` or `(image, targets)`.
            seed: Two integers, as TensorFlow's stateless random functions take.
        """
        image, targets, put_together = take_apart(sample)
        return put_together(*self.changed(image, targets, seed))

    def changed(self, image, targets, seed):
        """Image and targets, changed as often as `rate` says."""
        if self.rate == 1:
            return self.apply(image, targets, seed)
        chance, seed = tf.unstack(tf.random.split(seed))
        return tf.cond(
            tf.random.stateless_uniform([], chance) < self.rate,
            lambda: self.apply(image, targets, seed),
            lambda: (tf.cast(image, tf.float32), targets),
        )

    def apply(self, image, targets, seed):
        """Image, float32, and targets, changed. Of subclasses."""
        raise NotImplementedError


def uniform(seed, *ranges):
    """A number for each `(low, high)`, drawn evenly: a tuple of float32 scalars."""
    return tuple(tf.unstack(uniforms(seed, *ranges)))


def uniforms(seed, *ranges):
    """As `uniform`, the numbers as one tensor."""
    low, high = (tf.constant([pair[end] for pair in ranges], tf.float32) for end in (0, 1))
    return low + (high - low) * tf.random.stateless_uniform([len(ranges)], seed)


def one_hot(label, classes, who):
    """A class index as a soft label [classes]; one out of range, which would become a label of nothing, is an error."""
    known = (label >= 0) & (label < classes)
    message = f"{who}(classes={classes}): labels must lie in 0 to {classes - 1}, got"
    with tf.control_dependencies([tf.debugging.Assert(known, [message, label])]):
        return tf.one_hot(label, classes)
