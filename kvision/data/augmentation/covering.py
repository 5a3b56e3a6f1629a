"""Objects of which a part is covered or cut off: their boxes, masks and keypoints, and whether enough is left."""

import tensorflow as tf

from kvision.data.augmentation.moving import cut_box_masks, large_enough


def within_window(rows, window, patch, min_visibility):
    """Objects cut to a window [4], xyxy, whose pixels are `patch` [h, w]."""
    boxes = rows["boxes"]
    cut = tf.concat([tf.maximum(boxes[:, :2], window[:2]), tf.minimum(boxes[:, 2:], window[2:])], axis=-1)
    visible = _area(cut) / tf.maximum(_area(boxes), 1e-6)
    return _cut(rows, tf.where(visible[:, None] > 0, cut, boxes), visible, patch, min_visibility)


def without_window(rows, window, patch, min_visibility):
    """Objects of which a window [4], xyxy, is hidden, whose pixels are `patch` [h, w]."""
    boxes = rows["boxes"]
    shared = tf.concat([tf.maximum(boxes[:, :2], window[:2]), tf.minimum(boxes[:, 2:], window[2:])], axis=-1)
    visible = 1.0 - _area(shared) / tf.maximum(_area(boxes), 1e-6)
    cut = []
    for axis in (0, 1):  # a side moves where the window hides the box along all of its length
        across = 1 - axis
        hides = (window[across] <= boxes[:, across]) & (window[across + 2] >= boxes[:, across + 2])
        low, high = boxes[:, axis], boxes[:, axis + 2]
        cut.append(tf.where(hides & (window[axis] <= low), tf.minimum(tf.maximum(window[axis + 2], low), high), low))
        cut.append(tf.where(hides & (window[axis + 2] >= high), tf.minimum(tf.maximum(window[axis], low), high), high))
    cut = tf.stack([cut[0], cut[2], cut[1], cut[3]], axis=-1)
    rows = dict(rows)
    if "box_masks" in rows:
        rows["box_masks"] = tf.where(
            _cells_in(boxes, window, rows["box_masks"].shape[-1]), tf.zeros_like(rows["box_masks"]), rows["box_masks"]
        )
    return _cut(rows, tf.where(visible[:, None] > 1e-6, cut, boxes), visible, ~patch, min_visibility)


def _cells_in(boxes, window, side):
    """Which cells of box masks [n, side, side] have their centre in a window."""
    steps = (tf.range(side, dtype=tf.float32) + 0.5) / side
    x, y = (boxes[:, axis, None] + steps * (boxes[:, axis + 2] - boxes[:, axis])[:, None] for axis in (0, 1))
    x, y = ((value >= window[axis]) & (value < window[axis + 2]) for axis, value in enumerate((x, y)))
    return y[:, :, None] & x[:, None, :]


def _area(boxes):
    sides = tf.maximum(boxes[:, 2:] - boxes[:, :2], 0.0)
    return sides[:, 0] * sides[:, 1]


def _cut(rows, boxes, visible, patch, min_visibility):
    """Objects with the part of their boxes that is seen, of which enough is."""
    rows = cut_box_masks(rows, boxes)
    if "area" in rows:
        rows["area"] = rows["area"] * visible
    if "masks" in rows:
        rows["masks"] = rows["masks"] * tf.cast(patch, rows["masks"].dtype)  # faster than `tf.where`
    if "keypoints" in rows:
        rows["keypoints"] = seen_keypoints(rows["keypoints"], patch)
    kept = visible >= max(min_visibility, 1e-6)
    return large_enough({name: tf.boolean_mask(value, kept) for name, value in rows.items()})


def seen_keypoints(keypoints, seen):
    """Keypoints [n, k, 3], those on pixels that are not `seen` [h, w] or [n, h, w] as unlabelled."""
    height, width = seen.shape[-2:]
    index = tf.cast(tf.floor(keypoints[..., 1::-1]), tf.int32)
    index = tf.clip_by_value(index, 0, [height - 1, width - 1])
    there = tf.gather_nd(seen, index, batch_dims=seen.shape.rank - 2)
    return tf.where(there[..., None], keypoints, 0.0)


def full_size_masks(rows, size):
    """Masks [n, h, w] of objects, also where they are given relative to the boxes."""
    if "masks" in rows:
        return rows["masks"]
    cells, boxes = rows["box_masks"], rows["boxes"]
    steps, within = [], []
    for axis in (0, 1):  # y, x
        low, high = (boxes[:, index, None] for index in (1 - axis, 3 - axis))
        centres = tf.range(size[axis], dtype=tf.float32) + 0.5
        index = tf.cast(tf.floor((centres - low) / tf.maximum(high - low, 1e-6) * cells.shape[-1]), tf.int32)
        within.append((index >= 0) & (index < cells.shape[-1]))
        steps.append(tf.clip_by_value(index, 0, cells.shape[-1] - 1))
    masks = tf.gather(tf.gather(cells, steps[0], axis=1, batch_dims=1), steps[1], axis=2, batch_dims=1)
    return tf.where(within[0][:, :, None] & within[1][:, None], masks, tf.zeros_like(masks))


def crop_masks(masks, boxes, side):
    """Masks [n, side, side] relative to boxes [n, 4], of masks [n, h, w]: the pixel at the centre of each cell."""
    steps = (tf.range(side, dtype=tf.float32) + 0.5) / side
    x, y = (boxes[:, axis, None] + steps * (boxes[:, axis + 2] - boxes[:, axis])[:, None] for axis in (0, 1))
    height, width = (tf.shape(masks)[axis] for axis in (1, 2))
    y, x = (
        tf.clip_by_value(tf.cast(tf.floor(value), tf.int32), 0, most - 1) for value, most in ((y, height), (x, width))
    )
    return tf.gather(tf.gather(masks, y, axis=1, batch_dims=1), x, axis=2, batch_dims=1)
