"""Samples made of several: MixUp, CutMix and copy-paste, with labels, boxes, masks and label maps."""

import dataclasses

import tensorflow as tf

from kvision.data.augmentation import samples
from kvision.data.augmentation.covering import (
    crop_masks,
    full_size_masks,
    seen_keypoints,
    within_window,
    without_window,
)
from kvision.data.augmentation.moving import boxes_of_masks, large_enough
from kvision.data.augmentation.samples import Transform, objects, size_of, take_apart, valid_size, with_objects


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixing(Transform):
    """Mixes a sample with others.

    Args:
        rate: How often, in [0, 1].
        classes: Number of classes, to turn class indices into soft labels [classes]; None where labels are soft or
            one-hot already, or targets.
        max_boxes: Rows of the targets of a detector, of which mixed samples need more; None keeps their number. Of more
            objects, the largest are kept.
    """

    classes: int | None = None
    max_boxes: int | None = None
    num_partners = 1

    def __call__(self, sample, seed, partners=None):
        """The mixed sample.

        Args:
            sample: As any transform takes it.
            seed: Two integers.
            partners: A function that gives the other samples, a list of `num_partners`. `augment` passes it.
        """
        if partners is None:
            raise ValueError(f"{type(self).__name__} mixes samples: pass `partners`, a function that gives the others.")
        image, targets, put_together = self.prepared(sample)
        if "label" in targets:
            raise ValueError(
                f"{type(self).__name__} mixes labels, and class indices cannot be mixed: pass classes=..., their "
                "number; the model is then trained on soft labels, by `categorical_crossentropy`."
            )
        chance, seed = tf.unstack(tf.random.split(seed))

        def mixed():
            return self.mix((image, targets), [self.prepared(partner)[:2] for partner in partners()], seed)

        if self.rate == 1:
            return put_together(*mixed())
        return put_together(
            *tf.cond(tf.random.stateless_uniform([], chance) < self.rate, mixed, lambda: self.alone(image, targets))
        )

    def alone(self, image, targets):
        """Image and targets of a sample that is not mixed."""
        return image, targets

    def prepared(self, sample):
        """The parts of a sample, with a float32 image and soft labels."""
        image, targets, put_together = take_apart(sample)
        self.check_size(image)
        targets, put_together = self.soft(targets, put_together)
        if "labels" in targets and self.max_boxes:
            targets = with_objects(targets, objects(targets), self.max_boxes)
        return tf.cast(image, tf.float32), targets, put_together

    def check_size(self, image):
        """Raises unless the size of an image, or of a `Pending` one, is known."""
        size = size_of(image)
        if not all(isinstance(side, int) for side in size):
            shape = tuple(side if isinstance(side, int) else None for side in size)
            raise ValueError(
                f"{type(self).__name__} needs images of one size, got the static size {shape}: crop or scale them "
                "first, by RandomResizedCrop or ScaleJitter."
            )

    def soft(self, targets, put_together):
        """Targets with a soft label, where they have any, and the function that makes a sample of these."""
        if "label" in targets and self.classes:
            targets = {"soft_label": samples.one_hot(targets["label"], self.classes, type(self).__name__)}
            return targets, lambda image, targets: (image, targets["soft_label"])
        if "soft_label" in targets:
            targets = {"soft_label": tf.cast(targets["soft_label"], tf.float32)}
        return targets, put_together

    def mix(self, own, others, seed):
        """Image and targets out of one's own and the others', pairs of both. Of subclasses."""
        raise NotImplementedError


def blend(one, other, weight):
    return weight * one["soft_label"] + (1.0 - weight) * other["soft_label"]


def joined(rows, more):
    """The objects of both."""
    return {name: tf.concat([rows[name], more[name]], axis=0) for name in rows}


def beta(seed, alpha):
    """A number of the Beta(alpha, alpha) distribution."""
    one, other = tf.unstack(tf.random.stateless_gamma([2], seed, alpha))
    return tf.clip_by_value(tf.math.divide_no_nan(one, one + other), 0.0, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixUp(Mixing):
    """Two images blended, and their labels; in detection, the objects of both.

    Zhang et al. 2018, "mixup: beyond empirical risk minimization", section 2; for detection Zhang et al. 2019, "Bag of
    freebies for training object detection neural networks", section 3.1, with alpha = 1.5. Label maps are refused: a
    pixel has one label.

    Args:
        rate: How often, in [0, 1].
        alpha: Of the Beta(alpha, alpha) distribution of the weight, above 0.
        classes, max_boxes: As in `Mixing`.

    >>> sample = tf.zeros([8, 8, 3]), tf.constant(0)
    >>> image, label = MixUp(classes=2)(sample, (0, 1), lambda: [(tf.ones([8, 8, 3]), tf.constant(1))])
    >>> bool(image[0, 0, 0] == label[1])
    True
    """

    alpha: float = 0.2

    def __post_init__(self):
        super().__post_init__()
        self.check("alpha", self.alpha > 0, "above 0")

    def mix(self, own, others, seed):
        (image, targets), (other_image, other) = own, others[0]
        if "label_map" in targets:
            raise ValueError("MixUp cannot mix label maps: a pixel has one label. Take CutMix or Mosaic.")
        weight = beta(seed, self.alpha)
        mixed = weight * image + (1.0 - weight) * other_image
        if "soft_label" in targets:
            return mixed, {"soft_label": blend(targets, other, weight)}
        if "labels" not in targets:
            return mixed, targets
        targets = dict(targets, **_common_region(targets, other))
        return mixed, with_objects(targets, joined(objects(targets), objects(other)))


def _common_region(targets, other):
    if "image_size" not in targets:
        return {}
    return {"image_size": tf.maximum(targets["image_size"], other["image_size"])}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CutMix(Mixing):
    """A rectangle of another image in place of one's own; labels by the areas, objects by what of them is seen.

    Yun et al. 2019, "CutMix: regularization strategy to train strong classifiers", section 3.1.

    Args:
        rate: How often, in [0, 1].
        alpha: Of the Beta(alpha, alpha) distribution of the fraction that stays, above 0.
        min_visibility: Objects of which a smaller fraction remains are dropped, in [0, 1].
        classes, max_boxes: As in `Mixing`.

    >>> sample = tf.zeros([8, 8, 3]), tf.constant(0)
    >>> image, label = CutMix(classes=2)(sample, (0, 1), lambda: [(tf.ones([8, 8, 3]), tf.constant(1))])
    >>> bool(abs(tf.reduce_mean(image) - label[1]) < 1e-6)
    True
    """

    alpha: float = 1.0
    min_visibility: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        self.check("alpha", self.alpha > 0, "above 0")
        self.check("min_visibility", 0 <= self.min_visibility <= 1, "a fraction in [0, 1]")

    def mix(self, own, others, seed):
        (image, targets), (other_image, other) = own, others[0]
        first, second = tf.unstack(tf.random.split(seed))
        sides = tf.cast(valid_size(image, targets), tf.float32)
        middle = tf.random.stateless_uniform([2], second) * sides
        half = sides * tf.sqrt(1.0 - beta(first, self.alpha)) / 2
        start, end = (tf.round(tf.clip_by_value(middle + sign * half, 0.0, sides)) for sign in (-1.0, 1.0))
        inside = [
            (tf.range(side, dtype=tf.float32) >= start[axis]) & (tf.range(side, dtype=tf.float32) < end[axis])
            for axis, side in enumerate(size_of(image))
        ]
        patch = inside[0][:, None] & inside[1][None]
        mixed = tf.where(patch[..., None], other_image, image)
        if "soft_label" in targets:
            fraction = tf.reduce_prod(end - start) / tf.reduce_prod(sides)
            return mixed, {"soft_label": blend(targets, other, 1.0 - fraction)}
        if "label_map" in targets:
            return mixed, {"label_map": tf.where(patch, other["label_map"], targets["label_map"])}
        if "labels" not in targets:
            return mixed, targets
        window = tf.concat([start[::-1], end[::-1]], axis=0)
        kept = without_window(objects(targets), window, patch, self.min_visibility)
        pasted = within_window(objects(other), window, patch, self.min_visibility)
        return mixed, with_objects(targets, joined(kept, pasted))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CopyPaste(Mixing):
    """Objects of another image pasted by their masks, over one's own; what they hide of these is taken off.

    Ghiasi et al. 2021, "Simple copy-paste is a strong data augmentation method for instance segmentation", section 3.
    Put `ScaleJitter` before it. Boxes enclose the masks afterwards.

    Args:
        rate: How often, in [0, 1].
        fraction: Of the objects of the other image that are pasted, on average, in [0, 1].
        min_visibility: Objects of which a smaller fraction of the mask remains are dropped, in [0, 1].

    ```python
    train = kvision.data.augment(train, [ScaleJitter((640, 640)), CopyPaste(rate=0.5)])
    ```
    """

    fraction: float = 0.5
    min_visibility: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        self.check("fraction", 0 <= self.fraction <= 1, "in [0, 1]")
        self.check("min_visibility", 0 <= self.min_visibility <= 1, "a fraction in [0, 1]")

    def mix(self, own, others, seed):
        (image, targets), (other_image, other) = own, others[0]
        if not {"masks", "box_masks"} & set(targets):
            raise ValueError('CopyPaste needs masks: targets with "masks" or "box_masks".')
        size = size_of(image)
        rows, more = objects(targets), objects(other)
        masks, more_masks = full_size_masks(rows, size), full_size_masks(more, size)
        chosen = tf.random.stateless_uniform([tf.shape(more["labels"])[0]], seed) < self.fraction
        if "crowd" in more:
            chosen &= more["crowd"] == 0
        more = {name: tf.boolean_mask(value, chosen) for name, value in more.items()}
        pasted = tf.reduce_any(tf.boolean_mask(more_masks, chosen) > 0, axis=0)
        mixed = tf.where(pasted[..., None], other_image, image)
        targets = dict(targets, **_common_region(targets, other))
        return mixed, with_objects(targets, joined(self._beneath(rows, masks, pasted), more))

    def _beneath(self, rows, masks, pasted):
        """Objects of which the pasted pixels are hidden; those that are not touched stay as they are."""
        shown = tf.where(pasted, tf.zeros_like(masks), masks)
        before, after = (tf.reduce_sum(tf.cast(value > 0, tf.float32), axis=(1, 2)) for value in (masks, shown))
        visible = tf.math.divide_no_nan(after, before)
        touched = after < before
        rows, boxes = dict(rows), rows["boxes"]
        if "area" in rows:
            rows["area"] = rows["area"] * visible
        if "keypoints" in rows:
            rows["keypoints"] = seen_keypoints(rows["keypoints"], ~pasted)
        if "masks" in rows:
            rows["masks"] = shown
        rows["boxes"] = tf.where(touched[:, None], boxes_of_masks(shown), boxes)
        if "box_masks" in rows:
            cells = crop_masks(shown, rows["boxes"], rows["box_masks"].shape[-1])
            rows["box_masks"] = tf.where(touched[:, None, None], cells, rows["box_masks"])
        kept = visible >= max(self.min_visibility, 1e-6)
        return large_enough({name: tf.boolean_mask(value, kept) for name, value in rows.items()})
