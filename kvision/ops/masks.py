"""Masks cut out of images to train on (He et al. 2017, "Mask R-CNN"), and masks averaged over regions (Dai 2016)."""

import math

from keras import ops

from kvision.ops._backend import kernels
from kvision.ops._roi import clip_points
from kvision.ops.boxes import columns, iou_xyxy

CHUNK_CELLS = 2**19  # of an image's masks that are gathered at once, 2 MiB in float32


def crop_masks(masks, matches, boxes_xyxy, size, aligned=False, furthest=1.0):
    """The part of a mask inside each box, `size` x `size`: the target of a mask head (Mask R-CNN, section 3.1).

    RoIAlign of the mask with as many samples a bin as the bin is cells wide, one at least, as torchvision and
    detectron2 do. The mask of each box is read by chunks of boxes: all at once they would take a float32 mask of the
    size of the image for every box.

    Args:
        masks: `[b, n, h, w]` of 0 and 1, static n, h and w.
        matches: `[b, s]`, which of the n masks each box reads; static s.
        boxes_xyxy: `[b, s, 4]` in cells of the masks.
        size: Bins along each side.
        aligned: Half-pixel alignment, as in `roi_align`.
        furthest: The longest side of a box, in sides of the mask.

    Returns:
        `[b, s, size, size]` in 0…1, float32; no gradient flows through it.

    >>> masks = keras.ops.ones((1, 1, 8, 8))
    >>> crops = crop_masks(masks, [[0]], [[[0.0, 0.0, 8.0, 8.0]]], size=2)
    >>> keras.ops.convert_to_numpy(crops).tolist()
    [[[[1.0, 1.0], [1.0, 1.0]]]]
    """
    masks, boxes = ops.convert_to_tensor(masks), ops.convert_to_tensor(boxes_xyxy)
    count, height, width = masks.shape[1:]
    num_boxes = boxes.shape[1]
    image = ops.arange(ops.shape(masks)[0], dtype="int32")[:, None] * count
    flat, indices = ops.reshape(masks, (-1, height, width)), image + ops.cast(matches, "int32")
    left, top, right, bottom = columns(ops.stop_gradient(boxes))
    shift = 0.5 if aligned else 0.0
    rows, across = (
        _bins(low - shift, high - shift, cells=cells, size=size, most_samples=math.ceil(furthest * cells / size))
        for low, high, cells in ((top, bottom, height), (left, right, width))
    )

    def crop(chunk):
        indices, rows, across = chunk
        chosen = ops.cast(ops.take(flat, indices, axis=0), "float32")
        return ops.matmul(ops.matmul(rows, chosen), ops.swapaxes(across, -1, -2))

    at_once = max(1, min(num_boxes, CHUNK_CELLS // (height * width)))
    num_chunks = -(-num_boxes // at_once)
    if num_chunks == 1:
        return ops.stop_gradient(crop((indices, rows, across)))
    chunks = tuple(_in_chunks(values, num_chunks, at_once) for values in (indices, rows, across))
    crops = ops.transpose(ops.map(crop, chunks), (1, 0, 2, 3, 4))
    return ops.stop_gradient(ops.reshape(crops, (-1, num_chunks * at_once, size, size))[:, :num_boxes])


def _in_chunks(values, num_chunks, at_once):
    """`[b, s, …]` → `[num_chunks, b, at_once, …]`, padded with zeros."""
    rest = tuple(values.shape[2:])
    surplus = num_chunks * at_once - values.shape[1]
    values = ops.pad(values, [(0, 0), (0, surplus), *([(0, 0)] * len(rest))])
    values = ops.reshape(values, (-1, num_chunks, at_once, *rest))
    return ops.transpose(values, (1, 0, *range(2, len(values.shape))))


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


def vote_masks(boxes_xyxy, labels, region_boxes_xyxy, region_masks, region_scores, iou_threshold=0.5):
    """The mask of each detection as the mean of the masks of all regions whose boxes overlap its own.

    Dai et al. 2016 ("Instance-Aware Semantic Segmentation via Multi-task Network Cascades"), section 6, mask voting:
    pixel by pixel, weighed by the regions' scores for the class of the detection. What a region estimates is read
    between its cells; a region is zero outside its box.

    Args:
        boxes_xyxy: `[b, k, 4]`, boxes of the detections in pixels.
        labels: `[b, k]`, their classes from 0; padding is -1.
        region_boxes_xyxy: `[b, n, 4]`, boxes of the regions, those of the detections among them.
        region_masks: `[b, n, m, m]` in 0…1, relative to the regions' boxes.
        region_scores: `[b, n, classes]` in 0…1.
        iou_threshold: Overlap of the boxes from which on a region votes, in (0, 1].

    Returns:
        `[b, k, m, m]` in 0…1, float32, relative to the boxes of the detections; zero for padding and where no region
        with a score overlaps.

    Raises:
        ValueError: On a threshold that is not in (0, 1].

    >>> box, masks = [0.0, 0.0, 8.0, 8.0], np.stack([np.ones((4, 4)), np.zeros((4, 4))])
    >>> voted = vote_masks([[box]], [[0]], [[box, box]], masks[None], [[[0.75], [0.25]]])
    >>> float(voted[0, 0, 1, 1])
    0.75
    """
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"Voting needs 0 < iou_threshold <= 1: got {iou_threshold}.")
    boxes, regions = (ops.convert_to_tensor(values, "float32") for values in (boxes_xyxy, region_boxes_xyxy))
    labels, masks = ops.convert_to_tensor(labels), ops.cast(region_masks, "float32")
    size = masks.shape[-1]
    scores = ops.transpose(ops.cast(region_scores, "float32"), (0, 2, 1))
    weights = ops.take_along_axis(scores, ops.maximum(labels, 0)[..., None], axis=1)
    votes = (iou_xyxy(boxes, regions) >= iou_threshold) & (labels >= 0)[..., None]
    weights = ops.where(votes, weights, 0.0)
    weights = weights / ops.maximum(ops.sum(weights, axis=-1, keepdims=True), 1e-12)

    def vote(index, voted):
        left, top, right, bottom = columns(ops.take(boxes, index, axis=1)[:, None])
        from_left, from_top, from_right, from_bottom = columns(regions)
        rows = _places(top, bottom, from_top, from_bottom, size) * ops.take(weights, index, axis=1)[..., None, None]
        across = _places(left, right, from_left, from_right, size)
        mask = ops.sum(ops.matmul(ops.matmul(rows, masks), ops.swapaxes(across, -1, -2)), axis=1)
        here = ops.cast(ops.arange(boxes.shape[1]) == index, "float32")[:, None, None]
        return voted + here * mask[:, None]

    # One detection after the other: all at once they would take the weights of every region's cells for each. No list
    # of tensors, as `ops.map` has: runtimes of phones know none.
    nothing = ops.zeros((ops.shape(boxes)[0], boxes.shape[1], size, size), "float32")
    return ops.fori_loop(0, boxes.shape[1], vote, nothing)


def _places(low, high, from_low, from_high, size):
    """What each cell between the edges of a region gives to each of those between two others, `[..., size, size]`."""
    middles = (ops.arange(size, dtype="float32") + 0.5) / size
    points = low[..., None] + middles * (high - low)[..., None]
    points = (points - from_low[..., None]) / ops.maximum(from_high - from_low, 1e-6)[..., None] * size
    inside = ops.cast((points >= 0.0) & (points <= size), "float32")
    points = ops.clip(points - 0.5, 0.0, size - 1.0)
    return ops.relu(1.0 - ops.abs(points[..., None] - ops.arange(size, dtype="float32"))) * inside[..., None]
