"""Non-maximum suppression: of boxes that overlap, the one with the highest score is kept."""

from keras import ops

from kvision.ops._backend import kernels
from kvision.ops.boxes import iou_of_columns
from kvision.ops.rows import take_rows

LOWEST = -3e38  # finite in float32
CHUNK_SIZE = 128


def nms(boxes_xyxy, scores, iou_threshold, max_outputs):
    """Greedy non-maximum suppression, exact, of a fixed size.

    Girshick et al. 2014 (R-CNN), section 2.2. From the highest score down, a box is kept unless its IoU with a kept one
    exceeds `iou_threshold`. Of equal scores the lower index comes first. The sorted boxes are processed in chunks of
    128: within a chunk the rule is iterated to its fixed point, then the chunk's survivors suppress all later boxes. It
    stops when every image has `max_outputs`. No gradient flows through it.

    Args:
        boxes_xyxy: Boxes `[..., n, 4]`; any number of leading dimensions, such as images and pyramid levels.
        scores: Scores `[..., n]`. A box of score -inf (or NaN) is never selected, which is how padding is left out.
        iou_threshold: IoU in [0, 1] above which the lower score is suppressed.
        max_outputs: How many boxes to select at most.

    Returns:
        A pair of int32: indices `[..., max_outputs]` into the `n` boxes, by falling score, padded with -1; and how many
        were selected, `[...]`.

    Raises:
        ValueError: If shapes or numbers do not fit.

    Example:

    >>> boxes = [[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10]]
    >>> indices, count = nms(boxes, [0.7, 0.9, 0.8], iou_threshold=0.5, max_outputs=3)
    >>> keras.ops.convert_to_numpy(indices).tolist()
    [1, 2, -1]
    """
    return _nms_of_any_rank(boxes_xyxy, scores, None, iou_threshold, max_outputs)


def batched_nms(boxes_xyxy, scores, labels, iou_threshold, max_outputs):
    """Non-maximum suppression in which only boxes of the same label suppress each other.

    Girshick et al. 2014 (R-CNN), section 2.2: for each class independently.

    Args:
        boxes_xyxy: Boxes `[..., n, 4]`.
        scores: Scores `[..., n]`. A box of score -inf (or NaN) is never selected.
        labels: Integers `[..., n]`: classes, or pyramid levels, or any other groups.
        iou_threshold: IoU in [0, 1] above which the lower score is suppressed.
        max_outputs: How many boxes to select at most, over all labels.

    Returns:
        As `nms`.

    Raises:
        ValueError: If shapes or numbers do not fit.

    Example:

    >>> boxes = [[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10]]
    >>> indices, count = batched_nms(boxes, [0.7, 0.9, 0.8], [5, 5, 6], iou_threshold=0.5, max_outputs=3)
    >>> keras.ops.convert_to_numpy(indices).tolist()
    [1, 2, -1]
    """
    return _nms_of_any_rank(boxes_xyxy, scores, labels, iou_threshold, max_outputs)


def select_detections(boxes_xyxy, scores, labels, iou_threshold, max_outputs):
    """The detections of an image: the candidates that survive `batched_nms`, at a fixed size.

    Args:
        boxes_xyxy, scores, labels, iou_threshold, max_outputs: As in `batched_nms`, with one leading dimension.

    Returns:
        `{"boxes": [b, max_outputs, 4], "scores": [b, max_outputs], "labels": [b, max_outputs]}` by falling score;
        padding is 0, 0 and -1.

    Example:

    >>> found = select_detections([[[0, 0, 10, 10], [0, 0, 10, 9]]], [[0.7, 0.9]], [[5, 5]], 0.5, max_outputs=2)
    >>> keras.ops.convert_to_numpy(found["labels"]).tolist()
    [[5, -1]]
    """
    boxes, scores = ops.cast(boxes_xyxy, "float32"), ops.cast(scores, "float32")
    keep, _ = batched_nms(boxes, scores, labels, iou_threshold, max_outputs)
    found, index = keep >= 0, ops.maximum(keep, 0)
    scores = ops.maximum(scores, LOWEST)  # a converter to ONNX makes a product of `where`, and -inf · 0 is NaN
    return {
        "boxes": ops.where(found[..., None], take_rows(boxes, index), 0.0),
        "scores": ops.where(found, take_rows(scores, index), 0.0),
        "labels": ops.where(found, take_rows(labels, index), -1),
    }


def _nms_of_any_rank(boxes, scores, labels, iou_threshold, max_outputs):
    boxes, scores = ops.cast(boxes, "float32"), ops.cast(scores, "float32")
    if not 0 <= iou_threshold <= 1 or max_outputs < 1:
        raise ValueError(
            "Non-maximum suppression needs 0 <= iou_threshold <= 1 and max_outputs >= 1: "
            f"got iou_threshold={iou_threshold} and max_outputs={max_outputs}."
        )
    if len(boxes.shape) != len(scores.shape) + 1 or boxes.shape[-1] != 4 or scores.shape[-1] is None:
        raise ValueError(
            "Non-maximum suppression needs boxes [..., n, 4] and scores [..., n] with a fixed n: "
            f"got boxes {tuple(boxes.shape)} and scores {tuple(scores.shape)}."
        )
    count = scores.shape[-1]
    leading = ops.shape(scores)[:-1]
    if count == 0:
        return ops.full((*leading, max_outputs), -1, "int32"), ops.zeros(leading, "int32")
    tensors = [ops.reshape(boxes, (-1, count, 4)), ops.reshape(scores, (-1, count))]
    if labels is not None:
        tensors.append(ops.reshape(ops.cast(labels, "int32"), (-1, count)))
    tensors = [ops.stop_gradient(tensor) for tensor in tensors]
    indices, kept = _nms(*tensors, iou_threshold=float(iou_threshold), max_outputs=int(max_outputs))
    return ops.reshape(indices, (*leading, max_outputs)), ops.reshape(kept, leading)


@kernels.compiled
def _nms(boxes, scores, labels=None, *, iou_threshold, max_outputs):
    count = scores.shape[1]
    size = min(CHUNK_SIZE, count)
    num_chunks = -(-count // size)
    padding = [(0, 0), (0, num_chunks * size - count)]

    def chunk_of(chunk, values):
        """Of `[…, n]` the chunk, `[…, size]`."""
        return ops.take(ops.reshape(values, (*values.shape[:-2], -1, num_chunks, size)), chunk, axis=-2)

    scores, order = ops.top_k(ops.where(scores > -float("inf"), scores, -float("inf")), k=count)
    # One table of the corners, [4, batch, n], and all that is read of it, is compiled once, not four times.
    tables = [ops.pad(ops.transpose(take_rows(boxes, order), (2, 0, 1)), [(0, 0), *padding])]
    if labels is not None:
        tables.append(ops.pad(take_rows(labels, order), padding)[None])
    groups = _columns_of(tables)
    alive = ops.pad(scores > -float("inf"), padding)
    needed = (_largest_count(alive) + size - 1) // size
    position = ops.arange(num_chunks * size, dtype="int32")

    def body(chunk, alive):
        candidates, chunk_position = chunk_of(chunk, alive), chunk * size + position[:size]
        members = _columns_of([chunk_of(chunk, table) for table in tables])
        pairs = _suppressing(members, chunk_position, members, chunk_position, iou_threshold)
        kept, _ = ops.while_loop(
            lambda now, before: ops.any(now != before),
            lambda now, _: (_survivors(candidates, now, pairs), now),
            (candidates, ops.logical_not(candidates)),
        )
        pairs = _suppressing(members, chunk_position, groups, position, iou_threshold)
        return chunk + 1, _survivors(alive, kept, pairs)

    def unfinished(chunk, alive):
        selected = ops.sum(ops.cast(ops.logical_and(alive, position < chunk * size), "int32"), axis=1)
        return ops.logical_and(chunk < needed, ops.any(selected < max_outputs))

    _, alive = ops.while_loop(unfinished, body, (ops.convert_to_tensor(0, "int32"), alive))
    return _first(max_outputs, alive[:, :count], order)


def _columns_of(tables):
    """`[columns, …]` of each table → a list of columns `[…]`."""
    return [column for table in tables for column in ops.unstack(table, table.shape[0])]


def _largest_count(mask):
    return ops.max(ops.sum(ops.cast(mask, "int32"), axis=1), initial=0)


def _suppressing(first, first_position, second, second_position, iou_threshold):
    """`[batch, first, second]`: whether the first, if kept, suppresses the second, from corners and any labels."""
    first, second = [values[:, :, None] for values in first], [values[:, None, :] for values in second]
    pairs = iou_of_columns(first[:4], second[:4]) > iou_threshold
    for label1, label2 in zip(first[4:], second[4:], strict=True):
        pairs = ops.logical_and(pairs, label1 == label2)
    return ops.logical_and(pairs, first_position[:, None] < second_position)


def _survivors(candidates, kept, pairs):
    """The candidates that no kept box suppresses."""
    return ops.logical_and(candidates, ops.logical_not(ops.any(ops.logical_and(pairs, kept[:, :, None]), axis=1)))


def _first(size, mask, values):
    """The first `size` values under the mask, padded with -1; and how many they are."""
    count = mask.shape[1]
    found = min(size, count)
    falling = ops.arange(count, 0, -1, dtype="float32")
    rank, index = ops.top_k(ops.where(mask, falling, 0.0), k=found)
    values = ops.where(rank > 0, take_rows(values, index), -1)
    total = ops.minimum(ops.sum(ops.cast(mask, "int32"), axis=1), found)
    return ops.pad(values, [(0, 0), (0, size - found)], constant_values=-1), total
