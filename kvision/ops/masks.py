"""Masks of boxes: cut out of images to train on, and pasted back into images (He et al. 2017, "Mask R-CNN")."""

import math

from keras import ops

from kvision.ops._backend import kernels
from kvision.ops._roi import clip_points
from kvision.ops.boxes import columns


def crop_masks(masks, matches, boxes_xyxy, size, aligned=False, furthest=1.0):
    """The part of a mask inside each box, `size` x `size`: the target of a mask head (Mask R-CNN, section 3.1).

    RoIAlign of the mask with as many samples a bin as the bin is cells wide, one at least, as torchvision and
    detectron2 do.

    Args:
        masks: `[b, n, h, w]` of 0 and 1, static n, h and w.
        matches: `[b, s]`, which of the n masks each box reads.
        boxes_xyxy: `[b, s, 4]` in cells of the masks. Receives no gradient.
        size: Bins along each side.
        aligned: Half-pixel alignment, as in `roi_align`.
        furthest: The longest side of a box, in sides of the mask.

    Returns:
        `[b, s, size, size]` in 0…1, float32.

    >>> masks = keras.ops.ones((1, 1, 8, 8))
    >>> crops = crop_masks(masks, [[0]], [[[0.0, 0.0, 8.0, 8.0]]], size=2)
    >>> keras.ops.convert_to_numpy(crops).tolist()
    [[[[1.0, 1.0], [1.0, 1.0]]]]
    """
    masks = ops.convert_to_tensor(masks)
    count, height, width = masks.shape[1:]
    image = ops.arange(ops.shape(masks)[0], dtype="int32")[:, None] * count
    chosen = ops.take(ops.reshape(masks, (-1, height, width)), image + ops.cast(matches, "int32"), axis=0)
    left, top, right, bottom = columns(ops.stop_gradient(boxes_xyxy))
    shift = 0.5 if aligned else 0.0
    rows, across = (
        _bins(low - shift, high - shift, cells=cells, size=size, most_samples=math.ceil(furthest * cells / size))
        for low, high, cells in ((top, bottom, height), (left, right, width))
    )
    return ops.matmul(ops.matmul(rows, ops.cast(chosen, "float32")), ops.swapaxes(across, -1, -2))


@kernels.compiled
def _bins(low, high, *, cells, size, most_samples):
    """What each of `cells` cells gives to each of `size` bins between two edges, `[..., size, cells]`."""
    width = (high - low) / size
    samples = ops.clip(ops.ceil(width), 1.0, float(most_samples))
    start = low[..., None] + ops.arange(size, dtype="float32") * width[..., None]
    cell = ops.arange(cells, dtype="float32")
    total = 0.0
    for index in range(most_samples):
        points, inside = clip_points(start + ((index + 0.5) / samples * width)[..., None], cells)
        inside = inside * ops.cast(index < samples, "float32")[..., None]
        total = total + ops.relu(1.0 - ops.abs(points[..., None] - cell)) * inside[..., None]
    return total / samples[..., None, None]


def paste_masks(masks, boxes_xyxy, image_size):
    """The masks of boxes at the size of the image, bilinear (Mask R-CNN, section 3.1, "Inference").

    As torchvision: the mask gets a padding of one empty cell, the box grows with it and is cut to whole pixels.

    Args:
        masks: `[b, k, m, m]` scores in 0…1.
        boxes_xyxy: `[b, k, 4]` in pixels.
        image_size: Height and width of the image.

    Returns:
        `[b, k, height, width]` scores in 0…1, float32, zero outside the boxes.
    """
    masks = ops.cast(masks, "float32")
    cells = masks.shape[-1]
    left, top, right, bottom = columns(boxes_xyxy)
    height, width = image_size
    rows, across = _pixels(top, bottom, cells=cells, size=height), _pixels(left, right, cells=cells, size=width)
    return ops.matmul(ops.matmul(rows, masks), ops.swapaxes(across, -1, -2))


@kernels.compiled
def _pixels(low, high, *, cells, size):
    """What each of `cells` cells between two edges gives to each of `size` pixels, `[..., size, cells]`."""
    centre, half = (low + high) / 2, (high - low) / 2 * ((cells + 2) / cells)
    low, high = ops.trunc(centre - half)[..., None], ops.trunc(centre + half)[..., None]
    pixel = ops.arange(size, dtype="float32")
    inside = ops.cast((pixel >= low) & (pixel <= high), "float32")
    point = (pixel - low + 0.5) * ((cells + 2) / ops.maximum(high - low + 1.0, 1.0)) - 0.5
    point = ops.clip(point, 0.0, cells + 1.0)[..., None] - 1.0
    return ops.relu(1.0 - ops.abs(point - ops.arange(cells, dtype="float32"))) * inside[..., None]
