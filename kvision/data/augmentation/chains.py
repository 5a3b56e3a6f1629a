"""Chains of transforms that scale, move, mirror and cut: objects follow at once, pixels by the product of all."""

import dataclasses

import tensorflow as tf

from kvision.data.augmentation.moving import box_masks_at, place_objects
from kvision.data.augmentation.samples import LABEL_MAP_FILL, rows_of, size_of, take_apart, valid_size
from kvision.data.augmentation.warps import AxisAligned
from kvision.data.pending import ROWS, Pending, View, floats, taken

MASKS = ("masks", "box_masks")


def pend(sample):
    """A sample as a `Pending` one, whose stored image is its own, without the padding."""
    if isinstance(sample, Pending):
        return sample
    image, targets, put_together = take_apart(sample)
    size, maps, rows, num_rows = size_of(image), {}, None, None
    stored = valid_size(image, targets)  # padding is not read, or an edge would blend with it
    if "label_map" in targets:
        maps["label_map"] = lambda _, view: view.nearest(targets["label_map"][None], LABEL_MAP_FILL)[0]
    if "labels" in targets:
        num_rows = rows_of(targets)
        rows = {name: targets[name] for name in ROWS if name in targets and name not in MASKS}
        rows = taken(rows | {"row": tf.range(num_rows)}, targets["labels"] >= 0)
        if "masks" in targets:
            maps["masks"] = lambda rows, view: view.nearest(tf.gather(targets["masks"], rows["row"]), 0)
        if "box_masks" in targets:
            maps["box_masks"] = lambda rows, view: box_masks_at(
                *(tf.gather(targets[name], rows["row"]) for name in ("box_masks", "boxes")), rows["boxes"], view.inverse
            )

    def read(window):
        if window is None:
            return image
        top, left, height, width = window
        return image[top : top + height, left : left + width]

    rest = {name: value for name, value in targets.items() if name not in (*ROWS, "label_map")}
    return Pending(stored, read, View.whole(size), put_together, rest, rows, num_rows, maps)


def moved(pending, warp, interpolation="bilinear", min_visibility=0.0, keep=None, chosen=None):
    """A `Pending` sample under an `AxisAligned` warp.

    What an earlier step leaves outside of its image stays outside. Where steps interpolate in different ways, the
    pixels are read before the second.

    Args:
        pending: The sample.
        warp: The warp.
        interpolation, min_visibility, keep: As of `move`.
        chosen: A bool scalar, whether the sample is moved; None always moves it.
    """
    if warp.whole_pixels:
        interpolation = pending.interpolation
    elif not pending.view.rigid and not _is_same(pending.interpolation, interpolation):
        pending = pend(pending.finished())
    (scale, offset), valid, source = warp.linear(), floats(warp.valid), floats(warp.source)
    first, last = source[:2], source[:2] + source[2:]
    if chosen is not None:
        size = floats(warp.size)  # a change that is made at times keeps it
        before = tf.cast(valid_size(pending, pending.targets), tf.float32)
        still = tf.stack([tf.ones(2), tf.zeros(2), tf.zeros(2), size, before])
        either = tf.where(chosen, tf.stack([scale, offset, first, last, valid]), still)
        scale, offset, first, last, valid = tf.unstack(either)
    view = pending.view.then(scale, offset, (first, last), valid, tuple(warp.size), warp.whole_pixels)
    targets, rows = dict(pending.targets), pending.rows
    if rows is not None:
        linear = AxisAligned((0, 0, 0, 0), warp.size, valid, scale, offset)
        rows, kept = place_objects(rows, linear, min_visibility, _or(keep, chosen))
        rows = dict(rows, labels=tf.where(kept, rows["labels"], -1))
    if "image_size" in targets:
        targets["image_size"] = tf.cast(valid, targets["image_size"].dtype)
    if "scale" in targets:
        targets["scale"] *= tf.sqrt(tf.abs(tf.reduce_prod(scale)))
    return dataclasses.replace(
        pending, view=view, targets=targets, rows=rows, interpolation=interpolation, is_whole=False
    )


def _is_same(*interpolations):
    """Whether two interpolations are known to be one; those that are drawn are tensors."""
    return all(isinstance(each, str) for each in interpolations) and len(set(interpolations)) == 1


def _or(keep, chosen):
    """Which objects may stay: all where the sample is not moved."""
    return keep if keep is None or chosen is None else lambda boxes: keep(boxes) | ~chosen


def placed(pending, start, size):
    """A `Pending` sample as a part of a larger image of a size, from `start` (y, x) on."""
    rows = pending.rows
    if rows is not None:
        right_down = start[::-1]
        rows = dict(rows, boxes=rows["boxes"] + tf.tile(right_down, [2]))
        if "keypoints" in rows:
            moved_points = rows["keypoints"] + tf.concat([right_down, [0.0]], axis=0)
            rows["keypoints"] = tf.where(rows["keypoints"][..., 2:] > 0, moved_points, 0.0)
    return dataclasses.replace(pending, view=pending.view.placed(start, size), rows=rows, is_whole=False)
