"""Four samples as the quarters of one, each resampled once."""

import dataclasses

import tensorflow as tf

from kvision.data.augmentation.chains import moved, pend, placed
from kvision.data.augmentation.mixing import Mixing
from kvision.data.augmentation.samples import largest, size_of, taken, uniform, valid_size
from kvision.data.augmentation.warps import AxisAligned
from kvision.data.pending import padded


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
    takes_pending = True

    def __post_init__(self):
        super().__post_init__()
        self.check_range("centre", 0.05, 0.95)
        self.check_range("scale", 0.05, 10.0)

    def prepared(self, sample):
        """A `Pending` sample, its targets, and the function that makes a sample of image and targets."""
        pending = pend(sample)
        self.check_size(pending)
        targets, put_together = self.soft(pending.targets, pending.put_together)
        if pending.rows is not None and self.max_boxes:
            rows = largest(pending.rows, self.max_boxes)
            pending = dataclasses.replace(pending, rows=rows, num_rows=self.max_boxes)
        pending = dataclasses.replace(pending, targets=targets)
        return pending, targets, put_together

    def alone(self, image, targets):
        return image.parts()

    def mix(self, own, others, seed):
        own, size = own[0], size_of(own[0])
        first, *seeds = tf.unstack(tf.random.split(seed, 5), num=5)
        middle = tf.round(tf.stack(uniform(first, self.centre, self.centre)) * size)
        quarters, images, maps = [], [], []
        for index, (pending, drawn) in enumerate(zip([own, *(other for other, _ in others)], seeds, strict=True)):
            far = tf.constant([index // 2, index % 2], tf.float32)
            start, end = middle * far, middle + (size - middle) * far
            quarter = self.quarter(pending, end - start, drawn)
            images.append(quarter.pixels())
            if "label_map" in quarter.maps:
                maps.append(quarter.maps["label_map"](None, quarter.view))
            quarters.append((placed(quarter, start, size), tf.reduce_prod((end - start) / size)))

        def put(parts):
            whole = tf.concat([tf.concat(parts[:2], axis=1), tf.concat(parts[2:], axis=1)], axis=0)
            return tf.ensure_shape(whole, (*size, *parts[0].shape[2:]))

        mixed, targets = put(images), own.targets
        if maps:
            return mixed, {"label_map": put(maps)}
        if "soft_label" in targets:
            return mixed, {"soft_label": sum(area * quarter.targets["soft_label"] for quarter, area in quarters)}
        if own.rows is None:
            return mixed, targets
        whole = {"image_size": tf.constant(size, targets["image_size"].dtype)} if "image_size" in targets else {}
        return mixed, targets | whole | self.objects_of([quarter for quarter, _ in quarters], own.num_rows)

    def objects_of(self, quarters, num_rows):
        """The rows of the targets: the objects of all quarters, with masks of those that are not too many."""
        parts = [dict(each.rows, part=tf.fill(tf.shape(each.rows["row"]), k)) for k, each in enumerate(quarters)]
        rows = largest({name: tf.concat([part[name] for part in parts], axis=0) for name in parts[0]}, num_rows)
        masks = {name: [] for name in quarters[0].maps}
        for index, quarter in enumerate(quarters):
            own = taken(rows, rows["part"] == index)
            for name, drawn in masks.items():
                drawn.append(quarter.maps[name](own, quarter.view))
        rows = {name: value for name, value in rows.items() if name not in ("part", "row")}
        return padded(rows | {name: tf.concat(drawn, axis=0) for name, drawn in masks.items()}, num_rows)

    def quarter(self, pending, sides, seed):
        """A part of a sample, of the size of the quarter."""
        valid = tf.cast(valid_size(pending, pending.targets), tf.float32)
        scale, down, right = uniform(seed, self.scale, (0.0, 1.0), (0.0, 1.0))
        scale = tf.maximum(scale, tf.reduce_max(sides / valid))
        seen = tf.maximum(tf.minimum(tf.round(sides / scale), valid), 1.0)
        corner = tf.floor((valid - seen) * tf.stack([down, right]))
        window = tf.unstack(tf.cast(tf.concat([corner, seen], axis=0), tf.int32))
        size = tuple(tf.unstack(tf.cast(sides, tf.int32)))
        warp = AxisAligned(source=tuple(window), size=size, valid=sides, scale=tuple(tf.unstack(sides / seen)))
        return moved(pending, warp, min_visibility=self.min_visibility)
