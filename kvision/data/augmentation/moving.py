"""A sample under a mapping of the plane: image, boxes, masks, keypoints and label map move together."""

import tensorflow as tf

from kvision.data.augmentation.samples import LABEL_MAP_FILL, objects, rows_of, zero_beyond
from kvision.data.augmentation.warps import AxisAligned
from kvision.data.pending import EDGE, padded, taken

SMALLEST = 1.0 - 1e-3  # pixels of a box's side


def move(image, targets, warp, *, interpolation="bilinear", fill=0.0, min_visibility=0.0, tight=False, keep=None):
    """Image and targets of a sample, moved.

    Args:
        image: [h, w, c].
        targets: The dict of `take_apart`.
        warp: The `Warp`.
        interpolation: Of the image; masks and label maps take the nearest pixel.
        fill: Value of the pixels that show nothing of the old image.
        min_visibility: Objects of which a smaller fraction than this remains in the image are dropped.
        tight: Whether boxes enclose what their masks show, instead of the outline of the moved box.
        keep: A function of the boxes [k, 4] of the old image: which objects may stay; None keeps all.

    Returns:
        The image, float32, and the targets. Boxes are cut to the valid region, and those with a side under a pixel
        dropped; the rows of dropped objects become padding.
    """
    new, made = move_image(image, targets, warp, interpolation, fill)
    if "labels" in targets:
        rows = move_objects(objects(targets), targets, warp, min_visibility, tight, keep)
        made |= padded(rows, rows_of(targets))
    return new, made


def move_image(image, targets, warp, interpolation="bilinear", fill=0.0):
    """As `move`, without the rows of objects."""
    made = dict(targets)
    new = warp.image(image, interpolation, fill)
    if "image_size" in targets:
        new = zero_beyond(new, warp.valid)
        made["image_size"] = tf.ensure_shape(tf.cast(warp.valid, targets["image_size"].dtype), (2,))
    if "label_map" in targets:
        maps = warp.nearest(targets["label_map"][None], LABEL_MAP_FILL)[0]
        made["label_map"] = tf.ensure_shape(maps, _static(warp.size))
    if "scale" in targets:
        made["scale"] = targets["scale"] * warp.local_scale()
    return tf.ensure_shape(new, (*_static(warp.size), image.shape[-1])), made


def _static(size):
    return tuple(side if isinstance(side, int) else None for side in size)


def move_objects(rows, targets, warp, min_visibility=0.0, tight=False, keep=None):
    """The rows of the objects alone, moved, without padding; `targets` tell whether the image is padded."""
    moved, kept = place_objects(rows, warp, min_visibility, keep)
    rows = taken(moved | {"old": rows["boxes"]}, kept)
    old = rows.pop("old")
    if "masks" in rows:
        masks = warp.nearest(rows["masks"], 0)
        masks = zero_beyond(masks, warp.valid, axis=1) if "image_size" in targets else masks
        rows["masks"] = tf.ensure_shape(masks, (None, *_static(warp.size)))
    if "box_masks" in rows:
        cells = rows["box_masks"]
        rows["box_masks"] = box_masks_at(cells, old, rows["boxes"], warp.inverse)
        if tight and "masks" not in rows:
            hulls = boxes_of_masks(rows["box_masks"])
            rows["boxes"] = _within(rows["boxes"], hulls / cells.shape[-1])
            rows["box_masks"] = box_masks_at(cells, old, rows["boxes"], warp.inverse)
    if tight and "masks" in rows:
        rows = tightened(rows)
    elif tight:
        rows = large_enough(rows)
    return rows


def place_objects(rows, warp, min_visibility=0.0, keep=None):
    """Objects with their boxes, areas and keypoints moved, and which of them stay."""
    old = rows["boxes"]
    if isinstance(warp, AxisAligned):
        boxes, visible = scaled_boxes(old, *warp.linear(), warp.valid)
    else:
        boxes, visible = visible_boxes(warp.forward(_outlines(old, warp.points_a_side)), warp.valid)
    kept = visible >= max(min_visibility, 1e-6)
    if keep is not None:
        kept &= keep(old)
    rows = dict(rows, boxes=boxes)
    if "area" in rows:
        rows["area"] = rows["area"] * visible
    if "keypoints" in rows:
        rows["keypoints"] = _moved_keypoints(rows["keypoints"], warp)
    kept &= tf.reduce_all(boxes[:, 2:] - boxes[:, :2] >= SMALLEST, axis=-1)
    return rows, kept


def tightened(rows):
    """Objects with the boxes of their masks; those without a pixel are dropped."""
    old = rows["boxes"]
    rows = dict(rows, boxes=boxes_of_masks(rows["masks"]))
    if "box_masks" in rows:
        rows["box_masks"] = box_masks_at(rows["box_masks"], old, rows["boxes"], lambda points: points)
    return large_enough(rows)


def large_enough(rows):
    """The objects whose boxes are at least a pixel wide and high."""
    return taken(rows, tf.reduce_all(rows["boxes"][:, 2:] - rows["boxes"][:, :2] >= SMALLEST, axis=-1))


def cut_box_masks(rows, boxes_xyxy):
    """Objects with other boxes, and with their box masks relative to these."""
    if "box_masks" in rows:
        cut = box_masks_at(rows["box_masks"], rows["boxes"], boxes_xyxy, lambda points: points)
        rows = dict(rows, box_masks=cut)
    return dict(rows, boxes=boxes_xyxy)


def _within(boxes, fractions):
    corners, sides = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    return tf.concat([corners + fractions[:, :2] * sides, corners + fractions[:, 2:] * sides], axis=-1)


def _outlines(boxes, points_a_side):
    """Points [n, 4 * points_a_side, 2] around boxes [n, 4], from the left top corner clockwise."""
    x1, y1, x2, y2 = tf.split(boxes, 4, axis=-1)
    corners = tf.stack([x1, y1, x2, y1, x2, y2, x1, y2], axis=-1)
    corners = tf.reshape(corners, [-1, 4, 1, 2])
    step = tf.range(points_a_side, dtype=tf.float32)[:, None] / points_a_side
    return tf.reshape(corners + (tf.roll(corners, -1, axis=1) - corners) * step, [-1, 4 * points_a_side, 2])


def scaled_boxes(boxes, scale, offset, size):
    """What `visible_boxes` gives of boxes [n, 4] that are scaled and moved, by pairs (y, x)."""
    sides = tf.reshape(boxes, [-1, 2, 2]) * scale[::-1] + offset[::-1]
    low, high = tf.reduce_min(sides, axis=1), tf.reduce_max(sides, axis=1)  # a mirrored box has its corners swapped
    limit = tf.cast(tf.stack([size[1], size[0]]), tf.float32)
    cut = tf.clip_by_value(tf.stack([low, high], axis=1), 0.0, limit)
    seen, whole = tf.reduce_prod(cut[:, 1] - cut[:, 0], axis=-1), tf.reduce_prod(high - low, axis=-1)
    return tf.reshape(cut, [-1, 4]), tf.clip_by_value(tf.math.divide_no_nan(seen, whole), 0.0, 1.0)


def visible_boxes(outlines, size):
    """The boxes around what lies inside of an image, and how much of the area that is.

    Args:
        outlines: [n, m, 2] corners (x, y) of convex polygons, in order.
        size: Height and width of the image.

    Returns:
        Boxes [n, 4], xyxy, all 0 where nothing is inside, and fractions [n] in [0, 1].

    >>> boxes, visible = visible_boxes(tf.constant([[[5.0, 0], [10, 5], [5, 10], [0, 5]]]), (10, 5))
    >>> boxes.numpy().tolist(), round(float(visible[0]), 3)
    ([[0.0, 0.0, 5.0, 10.0]], 0.5)
    """
    limit = tf.cast(tf.stack([size[1], size[0]]), tf.float32)
    delta = tf.roll(outlines, -1, axis=1) - outlines
    # Liang and Barsky: the part of each edge that is inside, and the corners of the image inside of the polygon.
    divisor = tf.where(tf.abs(delta) < 1e-6, 1e-6, delta)
    enter, leave = -outlines / divisor, (limit - outlines) / divisor
    first = tf.maximum(tf.reduce_max(tf.minimum(enter, leave), axis=-1), 0.0)
    last = tf.minimum(tf.reduce_min(tf.maximum(enter, leave), axis=-1), 1.0)
    crosses = first <= last
    corners = tf.stack([tf.zeros(2), limit * [1.0, 0.0], limit, limit * [0.0, 1.0]])
    points = tf.concat(
        [
            outlines + first[..., None] * delta,
            outlines + last[..., None] * delta,
            tf.broadcast_to(corners, [tf.shape(outlines)[0], 4, 2]),
        ],
        axis=1,
    )
    usable = tf.concat([crosses, crosses, _contains(outlines, delta, corners)], axis=1)
    points = tf.clip_by_value(points, 0.0, limit)
    spare = tf.gather(points, tf.argmax(tf.cast(usable, tf.int32), axis=1), batch_dims=1)
    points = tf.where(usable[..., None], points, spare[:, None])  # a repeated point changes neither hull nor area
    some = tf.reduce_any(usable, axis=1, keepdims=True)
    boxes = tf.concat([tf.reduce_min(points, axis=1), tf.reduce_max(points, axis=1)], axis=-1)
    centred = points - tf.reduce_mean(points, axis=1, keepdims=True)
    order = tf.argsort(tf.atan2(centred[..., 1], centred[..., 0]), axis=1)
    seen = _area(tf.gather(centred, order, batch_dims=1))
    whole = _area(outlines - outlines[:, :1])
    fraction = tf.clip_by_value(tf.math.divide_no_nan(seen, whole), 0.0, 1.0)
    return tf.where(some, boxes, 0.0), tf.where(some[:, 0], fraction, 0.0)


def _contains(outlines, delta, points):
    """Which of the points [p, 2] lie inside of polygons [n, m, 2]: [n, p], by the crossings of a ray."""
    start, delta, point = outlines[:, None], delta[:, None], points[None, :, None]
    end = start + delta
    straddles = (start[..., 1] > point[..., 1]) != (end[..., 1] > point[..., 1])
    at = start[..., 0] + tf.math.divide_no_nan(point[..., 1] - start[..., 1], delta[..., 1]) * delta[..., 0]
    crossings = tf.reduce_sum(tf.cast(straddles & (point[..., 0] < at), tf.int32), axis=-1)
    return crossings % 2 == 1


def _area(polygons):
    after = tf.roll(polygons, -1, axis=1)
    return tf.abs(tf.reduce_sum(polygons[..., 0] * after[..., 1] - polygons[..., 1] * after[..., 0], axis=1)) / 2


def _moved_keypoints(keypoints, warp):
    points = warp.forward(keypoints[..., :2])
    limit = tf.cast(tf.stack([warp.valid[1], warp.valid[0]]), tf.float32)
    inside = tf.clip_by_value(points, 0.0, limit)  # a point on an edge is inside, however it is rounded
    labelled = tf.reduce_all(tf.abs(points - inside) < EDGE, axis=-1, keepdims=True) & (keypoints[..., 2:] > 0)
    return tf.where(labelled, tf.concat([inside, keypoints[..., 2:]], axis=-1), 0.0)


def box_masks_at(cells, old_boxes, new_boxes, inverse):
    """Masks [n, s, s] relative to new boxes, out of those relative to the old ones."""
    side = cells.shape[-1]
    steps = (tf.range(side, dtype=tf.float32) + 0.5) / side
    grid = tf.stack(tf.meshgrid(steps, steps), axis=-1)
    new, old = new_boxes[:, None, None], old_boxes[:, None, None]
    points = inverse(new[..., :2] + grid * (new[..., 2:] - new[..., :2]))
    relative = tf.math.divide_no_nan(points - old[..., :2], old[..., 2:] - old[..., :2])
    index = tf.cast(tf.floor(relative[..., ::-1] * side), tf.int32)
    within = tf.reduce_all((index >= 0) & (index < side), axis=-1)
    taken = tf.gather_nd(cells, tf.clip_by_value(index, 0, side - 1), batch_dims=1)
    return tf.ensure_shape(tf.where(within, taken, tf.zeros_like(taken)), (None, side, side))


def boxes_of_masks(masks):
    """The smallest boxes [n, 4] (xyxy) around masks [n, h, w]; all 0 for an empty mask."""
    ends = []
    for axis in (1, 2):
        some = tf.reduce_any(masks > 0, axis=axis)
        index = tf.range(tf.shape(some)[1])
        ends.append(tf.reduce_min(tf.where(some, index, tf.shape(some)[1]), axis=1))
        ends.append(tf.reduce_max(tf.where(some, index + 1, 0), axis=1))
    left, right, top, bottom = (tf.cast(end, tf.float32) for end in ends)
    return tf.where((right > left)[:, None], tf.stack([left, top, right, bottom], axis=-1), 0.0)
