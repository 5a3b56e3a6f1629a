"""Which ground-truth box each anchor is trained towards."""

from keras import ops

from kvision.ops._backend import kernels
from kvision.ops.boxes import columns, iof_of_columns, iou_of_columns

BACKGROUND = -1
IGNORED = -2

# Fraction of an anchor inside a crowd from which on it is no background; Detectron filters proposals by the same.
CROWD_FRACTION = 0.7

CHUNK_SIZE = 4

LOW_QUALITY = (False, True, "single")


def match(boxes_xyxy, labels, anchors_xyxy, low, high, allow_low_quality=False, crowd=None):
    """The index of the ground-truth box that each anchor, or proposal, is trained towards.

    Ren et al. 2015 (Faster R-CNN), section 3.1.2. An anchor takes the box it overlaps most if they overlap by at least
    `high`; it is background if it overlaps every box by less than `low`, and ignored in between. With
    `allow_low_quality`, every box gets the anchors that overlap it most, however little that is. A box that no anchor
    touches stays unmatched.

    The matrix of anchors by boxes is never held: the function goes through the boxes chunk by chunk, up to the last one
    that any image of the batch has. No gradient flows through it.

    Args:
        boxes_xyxy: Ground truth `[batch, n, 4]`, padded.
        labels: Classes `[batch, n]`. Rows with a label below 0 are padding.
        anchors_xyxy: Anchors `[anchors, 4]`, or proposals `[batch, anchors, 4]`.
        low: Overlap in (0, high] below which an anchor is background.
        high: Overlap in [low, 1] from which on an anchor matches.
        allow_low_quality: Whether every box gets its best anchors. True: all that tie for it, and each takes the box
            that it overlaps most itself (Detectron's rule). `"single"`: the first of them, which takes this box even
            if it overlaps another one more; of two boxes with the same best anchor the first gets it (the rule of
            TensorFlow's Object Detection API, and so of EfficientDet).
        crowd: Optional `[batch, n]`, true for boxes around a crowd. They match no anchor, and background with at least
            `CROWD_FRACTION` of its area inside one is ignored.

    Returns:
        int32 `[batch, anchors]`: the index of the box, or `BACKGROUND` (-1), or `IGNORED` (-2).

    Raises:
        ValueError: If the thresholds are not in order, if `allow_low_quality` is another value, or if the shapes do
            not fit.

    Example:

    >>> boxes = [[[0, 0, 10, 10], [0, 0, 0, 0]]]
    >>> anchors = [[0, 0, 10, 9], [0, 5, 10, 15], [50, 50, 60, 60]]
    >>> matches = match(boxes, [[3, -1]], anchors, low=0.3, high=0.5)
    >>> keras.ops.convert_to_numpy(matches).tolist()
    [[0, -2, -1]]
    """
    if not 0 < low <= high <= 1:
        raise ValueError(f"Matching needs 0 < low <= high <= 1: got low={low} and high={high}.")
    check_low_quality(allow_low_quality)
    boxes, anchors = ops.cast(boxes_xyxy, "float32"), ops.cast(anchors_xyxy, "float32")
    valid = ops.convert_to_tensor(labels) >= 0
    if len(boxes.shape) != 3 or len(valid.shape) != 2 or len(anchors.shape) not in (2, 3):
        raise ValueError(
            "Matching needs boxes [batch, n, 4], labels [batch, n] and anchors [anchors, 4] or [batch, anchors, 4]: "
            f"got boxes {tuple(boxes.shape)}, labels {tuple(valid.shape)} and anchors {tuple(anchors.shape)}."
        )
    if len(anchors.shape) == 2:
        anchors = anchors[None]
    if crowd is not None:
        crowd = ops.logical_and(ops.cast(crowd, "bool"), valid)
        valid = ops.logical_and(valid, ops.logical_not(crowd))
    boxes, anchors = ops.stop_gradient(boxes), ops.stop_gradient(anchors)
    matches = _match(boxes, valid, anchors, low=low, high=high, allow_low_quality=allow_low_quality)
    return matches if crowd is None else _ignore_crowds(matches, boxes, crowd, anchors)


def check_low_quality(value):
    """A ValueError for a rule of low-quality matches that does not exist."""
    if value not in LOW_QUALITY:
        raise ValueError(f"Low-quality matches are True, False or 'single': got {value!r}.")


def _chunks_of(boxes, valid):
    """Boxes as `[chunks, CHUNK_SIZE, 4, batch, 1]`, zeros where not valid, and how many chunks the fullest row needs.

    There is one chunk more than the boxes fill, so that a loop may read ahead.
    """
    count = boxes.shape[1]
    num_chunks = -(-count // CHUNK_SIZE)
    boxes = ops.where(valid[..., None], boxes, 0.0)
    boxes = ops.pad(boxes, [(0, 0), (0, (num_chunks + 1) * CHUNK_SIZE - count), (0, 0)])
    boxes = ops.reshape(ops.transpose(boxes, (1, 2, 0)), (num_chunks + 1, CHUNK_SIZE, 4, -1, 1))
    last = ops.max(ops.where(valid, ops.arange(1, count + 1, dtype="int32"), 0), initial=0)
    return boxes, (last + CHUNK_SIZE - 1) // CHUNK_SIZE


def _boxes_of(chunk, chunks):
    """The columns `[batch, 1]` of each box of a chunk."""
    boxes = ops.take(chunks, chunk, axis=0)
    return [[boxes[box, number] for number in range(4)] for box in range(CHUNK_SIZE)]


@kernels.compiled
def _match(boxes, valid, anchors, *, low, high, allow_low_quality):
    chunks, num_chunks = _chunks_of(boxes, valid)
    shape = ops.shape(boxes)[0], ops.shape(anchors)[1]
    anchors = columns(anchors)

    def body(chunk, overlaps, best, index, forced):
        # Overlaps come from the iteration before: XLA then compares the very numbers it took the maximum of.
        for box, overlap in enumerate(overlaps):
            better = overlap > best
            best = ops.where(better, overlap, best)
            index = ops.where(better, chunk * CHUNK_SIZE + box, index)
            if allow_low_quality == "single":
                first = ops.cast(ops.argmax(overlap, axis=-1, keepdims=True), "int32")
                is_first = (ops.arange(overlap.shape[-1], dtype="int32") == first) & (overlap > 0)
                forced = ops.where(is_first & (forced == 0), chunk * CHUNK_SIZE + box + 1, forced)
            elif allow_low_quality:
                top = ops.max(overlap, axis=-1, keepdims=True)
                forced = ops.logical_or(forced, ops.logical_and(overlap == top, overlap > 0))
        ahead = tuple(iou_of_columns(box, anchors) for box in _boxes_of(chunk + 1, chunks))
        return chunk + 1, ahead, best, index, forced

    # The first iteration has no overlaps yet and matches nothing: those of its boxes are then compiled once, not twice.
    start = ops.convert_to_tensor(-1, "int32")
    overlaps = (ops.zeros(shape),) * CHUNK_SIZE
    of_single = allow_low_quality == "single"  # forced is then the number of the box, from 1; else whether
    nothing = (ops.zeros(shape, dtype) for dtype in ("float32", "int32", "int32" if of_single else "bool"))
    _, _, best, index, forced = ops.while_loop(lambda chunk, *_: chunk < num_chunks, body, (start, overlaps, *nothing))
    if of_single:
        index, forced = ops.where(forced > 0, forced - 1, index), forced > 0
    unmatched = ops.where(best < low, BACKGROUND, IGNORED)
    return ops.where(ops.logical_or(forced, best >= high), index, unmatched)


@kernels.compiled
def _ignore_crowds(matches, boxes, crowd, anchors):
    chunks, num_chunks = _chunks_of(boxes, crowd)
    anchors = columns(anchors)

    def body(chunk, covered):
        for box in _boxes_of(chunk, chunks):
            covered = ops.logical_or(covered, iof_of_columns(anchors, box) >= CROWD_FRACTION)
        return chunk + 1, covered

    start = ops.convert_to_tensor(0, "int32"), ops.zeros(ops.shape(matches), "bool")
    _, covered = ops.while_loop(lambda chunk, _: chunk < num_chunks, body, start)
    return ops.where(ops.logical_and(covered, matches == BACKGROUND), IGNORED, matches)
