"""Weighted box fusion: of boxes that overlap, their mean."""

from keras import ops

from kvision.ops._backend import kernels
from kvision.ops.boxes import columns, iou_of_columns
from kvision.ops.rows import take_rows


def fuse_boxes(boxes_xyxy, scores, labels, iou_threshold, num_views, max_outputs):
    """Weighted box fusion of the detections of several models or views.

    Solovyev, Wang and Gabruseva 2021, "Weighted boxes fusion", section 3. From the highest score down, a box joins the
    cluster of its label whose fused box it overlaps most, if by more than `iou_threshold`, or begins its own. A fused
    box is the mean of its members weighted by their scores; its score is their mean, times the fraction of the views
    that found it. No gradient flows through it.

    Args:
        boxes_xyxy: Boxes `[b, n, 4]` of all views.
        scores: Scores `[b, n]` above 0. A box of score 0, below, or NaN is left out.
        labels: Integers `[b, n]`.
        iou_threshold: IoU in [0, 1] above which a box joins a cluster; the paper's 0.55.
        num_views: How many views the boxes are from.
        max_outputs: How many boxes to give at most.

    Returns:
        `{"boxes": [b, max_outputs, 4], "scores": [b, max_outputs], "labels": [b, max_outputs], "indices": [b,
        max_outputs]}` by falling score: the last tell which of the n boxes is the cluster's best. Padding is 0, 0, −1
        and −1.

    Raises:
        ValueError: if shapes or numbers do not fit.

    >>> boxes = [[[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 8.0]]]
    >>> fused = fuse_boxes(boxes, [[0.75, 0.25]], [[1, 1]], iou_threshold=0.55, num_views=2, max_outputs=1)
    >>> keras.ops.convert_to_numpy(fused["boxes"]).tolist(), float(fused["scores"][0, 0])
    ([[[0.0, 0.0, 10.0, 9.5]]], 0.5)
    """
    boxes, scores = ops.cast(boxes_xyxy, "float32"), ops.cast(scores, "float32")
    if not 0 <= iou_threshold <= 1 or num_views < 1 or max_outputs < 1:
        raise ValueError(
            "fuse_boxes needs 0 <= iou_threshold <= 1, num_views >= 1 and max_outputs >= 1: got "
            f"iou_threshold={iou_threshold}, num_views={num_views} and max_outputs={max_outputs}."
        )
    if len(boxes.shape) != 3 or len(scores.shape) != 2 or boxes.shape[-1] != 4 or not scores.shape[-1]:
        raise ValueError(
            "fuse_boxes needs boxes [b, n, 4] and scores [b, n] with a fixed n of at least 1: got boxes "
            f"{tuple(boxes.shape)} and scores {tuple(scores.shape)}."
        )
    tensors = [ops.stop_gradient(tensor) for tensor in (boxes, scores, ops.cast(labels, "int32"))]
    surplus = max(0, max_outputs - scores.shape[-1])
    fused = _fuse(
        *tensors, iou_threshold=float(iou_threshold), num_views=int(num_views), max_outputs=max_outputs - surplus
    )
    fused = [
        ops.pad(part, [(0, 0), (0, surplus), *([(0, 0)] * (len(part.shape) - 2))], constant_values=padding)
        for part, padding in zip(fused, (0.0, 0.0, -1, -1), strict=True)
    ]
    return dict(zip(("boxes", "scores", "labels", "indices"), fused, strict=True))


@kernels.compiled
def _fuse(boxes, scores, labels, *, iou_threshold, num_views, max_outputs):
    count = scores.shape[1]
    scores, order = ops.top_k(ops.where(scores > 0, scores, 0.0), k=count)
    boxes = take_rows(boxes, order)
    labels = take_rows(labels, order)
    num_candidates = ops.max(ops.sum(ops.cast(scores > 0, "int32"), axis=1), initial=0)
    position = ops.arange(count, dtype="int32")

    def body(index, weighted_boxes, weights, members):
        """A cluster is kept where its first member stands, so that it has its label there."""
        box, score, label = (ops.take(values, index, axis=1)[:, None] for values in (boxes, scores, labels))
        fused = weighted_boxes / ops.maximum(weights, 1e-30)[..., None]
        overlaps = iou_of_columns(columns(fused), columns(box))
        overlaps = ops.where((members > 0) & (labels == label), overlaps, 0.0)
        joins = ops.max(overlaps, axis=1, keepdims=True) > iou_threshold
        cluster = ops.where(joins, ops.cast(ops.argmax(overlaps, axis=1), "int32")[:, None], index)
        chosen = ops.cast((position == cluster) & (score > 0), "float32")
        weight = chosen * score
        return index + 1, weighted_boxes + weight[..., None] * box, weights + weight, members + chosen

    start = (ops.convert_to_tensor(0, "int32"), ops.zeros_like(boxes), ops.zeros_like(scores), ops.zeros_like(scores))
    _, weighted_boxes, weights, members = ops.while_loop(lambda index, *_: index < num_candidates, body, start)
    fused = weighted_boxes / ops.maximum(weights, 1e-30)[..., None]
    found = weights / ops.maximum(members, 1.0) * ops.minimum(members, float(num_views)) / num_views
    scores, index = ops.top_k(found, k=max_outputs)
    is_there = scores > 0
    return (
        ops.where(is_there[..., None], take_rows(fused, index), 0.0),
        scores,
        ops.where(is_there, take_rows(labels, index), -1),
        ops.where(is_there, ops.cast(take_rows(order, index), "int32"), -1),
    )
