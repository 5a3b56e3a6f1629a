"""Samples made of several: MixUp, CutMix, Mosaic and copy-paste, with labels, boxes, masks and label maps."""

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
from kvision.data.augmentation.moving import boxes_of_masks, large_enough, move_image, move_objects
from kvision.data.augmentation.samples import Transform, objects, size_of, take_apart, uniform, valid_size, with_objects
from kvision.data.augmentation.warps import AxisAligned


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
            *tf.cond(tf.random.stateless_uniform([], chance) < self.rate, mixed, lambda: (image, targets))
        )

    def prepared(self, sample):
        """The parts of a sample, with a float32 image and soft labels."""
        image, targets, put_together = take_apart(sample)
        if None in image.shape:
            raise ValueError(
                f"{type(self).__name__} needs images of one size, got the static shape {tuple(image.shape)}: crop or "
                "scale them first, by RandomResizedCrop or ScaleJitter."
            )
        if "label" in targets and self.classes:
            targets = {"soft_label": samples.one_hot(targets["label"], self.classes, type(self).__name__)}
            return tf.cast(image, tf.float32), targets, lambda image, targets: (image, targets["soft_label"])
        if "soft_label" in targets:
            targets = {"soft_label": tf.cast(targets["soft_label"], tf.float32)}
        if "labels" in targets and self.max_boxes:
            targets = with_objects(targets, objects(targets), self.max_boxes)
        return tf.cast(image, tf.float32), targets, put_together

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
class Mosaic(Mixing):
    """Four images as the quarters of one, that meet at a random point.

    Bochkovskiy, Wang and Liao 2020, "YOLOv4", section 3.3. Each quarter shows a part of an image of the size of the
    whole, scaled at random; the size of the images stays.

    Args:
        rate: How often, in [0, 1].
        centre: Smallest and largest position of the meeting point, as fractions of the sides.
        scale: Smallest and largest scale of the images; below the quarter's size, the image fills it.
        min_visibility: Objects of which a smaller fraction remains are dropped, in [0, 1].
        classes, max_boxes: As in `Mixing`; labels are weighted by the areas.

    >>> black = tf.zeros([8, 8, 3]), tf.constant(0)
    >>> image, label = Mosaic(classes=2)(black, (0, 1), lambda: [(tf.ones([8, 8, 3]), tf.constant(1))] * 3)
    >>> bool(abs(tf.reduce_mean(image) - label[1]) < 1e-6)
    True
    """

    centre: tuple = (0.25, 0.75)
    scale: tuple = (0.4, 1.0)
    min_visibility: float = 0.1
    num_partners = 3

    def __post_init__(self):
        super().__post_init__()
        self.check_range("centre", 0.05, 0.95)
        self.check_range("scale", 0.05, 10.0)

    def mix(self, own, others, seed):
        size = size_of(own[0])
        seeds = tf.unstack(tf.random.split(seed, 5), num=5)
        meeting = uniform(seeds[0], self.centre, self.centre)
        middle = [tf.round(fraction * side) for fraction, side in zip(meeting, size, strict=True)]
        quarters, rows, labels = [], None, 0.0
        targets = own[1]
        for index, (sample, drawn) in enumerate(zip([own, *others], seeds[1:], strict=True)):
            start = [middle[axis] if far else 0.0 for axis, far in enumerate((index // 2, index % 2))]
            end = [float(size[axis]) if far else middle[axis] for axis, far in enumerate((index // 2, index % 2))]
            image, made, more = self.quarter(*sample, size, start, end, drawn)
            quarters.append((image, made))
            if "soft_label" in targets:
                area = (end[0] - start[0]) * (end[1] - start[1]) / (size[0] * size[1])
                labels += area * made["soft_label"]
            if "labels" in targets:
                rows = more if rows is None else joined(rows, more)

        def put(parts):
            whole = tf.concat([tf.concat(parts[:2], axis=1), tf.concat(parts[2:], axis=1)], axis=0)
            return tf.ensure_shape(whole, (*size, *parts[0].shape[2:]))

        mixed = put([image for image, _ in quarters])
        if "label_map" in targets:
            return mixed, {"label_map": put([made["label_map"] for _, made in quarters])}
        if "soft_label" in targets:
            return mixed, {"soft_label": labels}
        if "labels" not in targets:
            return mixed, targets
        whole = {"image_size": tf.constant(size, targets["image_size"].dtype)} if "image_size" in targets else {}
        return mixed, with_objects(dict(targets, **whole), rows)

    def quarter(self, image, targets, size, start, end, seed):
        """The pixels of a sample between two corners (y, x) of the whole, its targets, its objects' rows there."""
        valid = tf.cast(valid_size(image, targets), tf.float32)
        start, end = tf.stack(start), tf.stack(end)
        scale, down, right = uniform(seed, self.scale, (0.0, 1.0), (0.0, 1.0))
        scale = tf.maximum(scale, tf.reduce_max((end - start) / valid))
        seen = tf.maximum(tf.minimum(tf.round((end - start) / scale), valid), 1.0)
        corner = tf.floor((valid - seen) * tf.stack([down, right]))
        window = tf.unstack(tf.cast(tf.concat([corner, seen], axis=0), tf.int32))
        factors = (end - start) / seen
        warp = AxisAligned(
            source=tuple(window),
            size=size,
            valid=tf.stack(size),
            scale=tuple(tf.unstack(factors)),
            offset=tuple(tf.unstack(start)),
        )
        sides = tf.cast(end - start, tf.int32)
        shown = dataclasses.replace(warp, size=tuple(tf.unstack(sides)), valid=sides, offset=(0.0, 0.0))
        image, made = move_image(image, targets, shown)
        if "labels" not in targets:
            return image, made, None
        inside = [
            (tf.range(side, dtype=tf.float32) >= start[axis]) & (tf.range(side, dtype=tf.float32) < end[axis])
            for axis, side in enumerate(size)
        ]
        patch = inside[0][:, None] & inside[1][None]
        rows = move_objects(objects(targets), targets, warp)
        return image, made, within_window(rows, tf.concat([start[::-1], end[::-1]], axis=0), patch, self.min_visibility)


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
