"""Four samples as the quarters of one, each resampled once."""

import dataclasses
import math

import tensorflow as tf

from kvision.data.augmentation.chains import moved, pend, placed
from kvision.data.augmentation.mixing import Mixing
from kvision.data.augmentation.samples import largest, size_of, uniforms, valid_size
from kvision.data.augmentation.warps import AxisAligned
from kvision.data.pending import padded, taken


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
        starts, quarters = self.quarters([own, *(other for other, _ in others)], size, seed)
        images = [quarter.pixels() for quarter in quarters]

        def put(parts):
            whole = tf.concat([tf.concat(parts[:2], axis=1), tf.concat(parts[2:], axis=1)], axis=0)
            return tf.ensure_shape(whole, (*size, *parts[0].shape[2:]))

        mixed, targets = put(images), own.targets
        if "label_map" in own.maps:
            return mixed, {"label_map": put([each.maps["label_map"](None, each.view) for each in quarters])}
        if "soft_label" in targets:
            labels = [
                tf.cast(tf.size(image), tf.float32) * each.targets["soft_label"]
                for image, each in zip(images, quarters, strict=True)
            ]
            return mixed, {"soft_label": tf.add_n(labels) / math.prod(mixed.shape)}
        if own.rows is None:
            return mixed, targets
        whole = {"image_size": tf.constant(size, targets["image_size"].dtype)} if "image_size" in targets else {}
        return mixed, targets | whole | self.objects_of(
            [placed(quarter, start, size) for quarter, start in zip(quarters, starts, strict=True)], own.num_rows
        )

    def objects_of(self, quarters, num_rows):
        """The rows of the targets: the objects of all quarters, with masks of those that are not too many."""
        parts = [dict(each.rows, part=tf.fill(tf.shape(each.rows["row"]), k)) for k, each in enumerate(quarters)]
        rows = largest({name: tf.concat([part[name] for part in parts], axis=0) for name in parts[0]}, num_rows)
        masks = {name: [] for name in quarters[0].maps}
        for index, quarter in enumerate(quarters):
            own = taken({name: rows[name] for name in ("row", "boxes")}, rows["part"] == index)
            for name, drawn in masks.items():
                drawn.append(quarter.maps[name](own, quarter.view))
        rows = {name: value for name, value in rows.items() if name not in ("part", "row")}
        return padded(rows | {name: tf.concat(drawn, axis=0) for name, drawn in masks.items()}, num_rows)

    def quarters(self, samples, size, seed):
        """Where each quarter begins in the whole, (y, x), and the parts of the samples that they show."""
        drawn = uniforms(seed, self.centre, self.centre, *[self.scale] * 4, *[(0.0, 1.0)] * 8)
        middle, at = tf.round(drawn[:2] * size), tf.reshape(drawn[6:], [4, 2])
        far = tf.constant([[0.0, 0], [0, 1], [1, 0], [1, 1]])
        starts, sides = middle * far, middle + (size - 2.0 * middle) * far
        valid = tf.stack([tf.cast(valid_size(each, each.targets), tf.float32) for each in samples])
        scale = tf.maximum(drawn[2:6], tf.reduce_max(sides / valid, axis=1))
        seen = tf.maximum(tf.minimum(tf.round(sides / scale[:, None]), valid), 1.0)
        sources = tf.concat([tf.floor((valid - seen) * at), seen], axis=1)
        terms = (tf.unstack(term) for term in (sources, sides, tf.cast(sides, tf.int32), sides / seen))
        made = []
        for pending, source, extent, shape, factors in zip(samples, *terms, strict=True):
            warp = AxisAligned(source=source, size=tuple(tf.unstack(shape)), valid=extent, scale=factors)
            made.append(moved(pending, warp, min_visibility=self.min_visibility))
        return tf.unstack(starts), made
