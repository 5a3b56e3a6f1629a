"""Heads that predict at every anchor: convolutions shared by the levels, flattened outputs, decoding."""

import keras
from keras import ops

from kvision.layers.conventions import conventions
from kvision.ops import area_xyxy, clip_xyxy, decode_deltas, select_detections
from kvision.part import Part


def shared_convolutions(levels, *, depth, last, norm=None, initializer="normal_0.01", width=None, name="head"):
    """A stack of 3x3 convolutions, the same for every level, and the last one of each output.

    Statistics differ from level to level, so a batch norm is one for each level ("EfficientDet", Tan et al. 2020, and
    "RetinaNet" of Detectron2 do alike); a group norm is shared, as convolutions are.

    Args:
        levels: `{"P3": [b, h, w, c], …}`.
        depth: Convolutions before the last, each with norm and ReLU.
        last: `{output: (layer name, channels, kernel size, bias at the beginning)}`.
        norm: As in `kvision.layers.conventions`.
        initializer: Of all kernels.
        width: Channels of the convolutions; None: those of the levels.
        name: Layers are `{name}.{index}.0` (convolution), `.1` (norm) and `.relu`; a batch norm of one level ends in
            its name, `.P3`.

    Returns:
        `{output: {"P3": [b, h, w, channels], …}}`.
    """
    c = conventions(norm=norm, initializer=initializer)
    maps = dict(levels)
    width = width or next(iter(maps.values())).shape[-1]
    for index in range(depth):
        conv = c.conv(width, 3, name=f"{name}.{index}.0")
        normalize = _norms(c, norm, f"{name}.{index}.1", maps)
        activate = c.activation(name=f"{name}.{index}.relu")
        maps = {level: activate(normalize[level](conv(x))) for level, x in maps.items()}
    outputs = {}
    for output, (layer, channels, kernel_size, bias) in last.items():
        bias = keras.initializers.Constant(bias)
        conv = c.conv(channels, kernel_size, use_bias=True, bias_initializer=bias, name=layer)
        outputs[output] = {level: conv(x) for level, x in maps.items()}
    return outputs


def _norms(c, norm, name, maps):
    if norm in ("batch", "sync_batch"):
        return {level: c.norm(name=f"{name}.{level}") for level in maps}
    return dict.fromkeys(maps, c.norm(name=name))


def flatten_outputs(maps, size):
    """Outputs of all levels in the order of the anchors, float32: [b, anchors, size]; with `size=None` [b, anchors]."""
    shape = (-1,) if size is None else (-1, size)
    rows = [keras.layers.Reshape(shape)(level) for level in maps.values()]
    return ops.cast(ops.concatenate(rows, axis=1) if len(rows) > 1 else rows[0], "float32")


@keras.saving.register_keras_serializable("kvision")
class DenseDecoder(Part):
    """Detections out of logits and deltas of all anchors: the best of each level, decoded, suppressed by class.

    Args:
        score_threshold: Candidates with a score of at most this are left out, in [0, 1].
        num_candidates: Of each level go on to suppression, at most.
        nms_threshold: Overlap above which the lower score of the same class gives way, in [0, 1].
        num_detections: Given for an image, at most, and at fixed size.
        activation: From logits to scores: `"sigmoid"`, or `"softmax"` with the background as class 0 of the logits.
        delta_weights: See `kvision.ops.decode_deltas`.
    """

    def __init__(
        self,
        score_threshold=0.05,
        num_candidates=1000,
        nms_threshold=0.5,
        num_detections=300,
        activation="sigmoid",
        delta_weights=(1.0, 1.0, 1.0, 1.0),
        **options,
    ):
        super().__init__(**options)
        self.score_threshold = score_threshold
        self.num_candidates = num_candidates
        self.nms_threshold = nms_threshold
        self.num_detections = num_detections
        self.activation = activation
        self.delta_weights = tuple(delta_weights)
        check_decoding(score_threshold, nms_threshold, num_candidates, num_detections)
        if activation not in ("sigmoid", "softmax"):
            raise ValueError(f"The activation of a decoder is 'sigmoid' or 'softmax': got {activation!r}.")
        self.complete()

    def decode(self, logits, deltas, anchors_of_levels, image_size):
        """Detections: boxes xyxy in pixels [b, num_detections, 4], scores and labels; padding is 0, 0 and −1.

        Args:
            logits: [b, anchors, classes].
            deltas: [b, anchors, 4].
            anchors_of_levels: As `Anchors.boxes_xyxy` gives them.
            image_size: Height and width that boxes are cut to, a pair or [b, 2]. Without area a box is none.
        """
        levels, begin = [], 0
        for anchors in anchors_of_levels:
            rows = slice(begin, begin := begin + len(anchors))
            levels.append(self._candidates(logits[:, rows], deltas[:, rows], anchors, image_size))
        boxes, scores, labels = (ops.concatenate(parts, axis=1) for parts in zip(*levels, strict=True))
        return select_detections(boxes, scores, labels, self.nms_threshold, self.num_detections)

    def _candidates(self, logits, deltas, anchors, image_size):
        """Boxes, scores (−inf below the threshold) and labels of one level's best candidates."""
        if self.activation == "softmax":
            logits = ops.softmax(logits)[..., 1:]  # no logits any more, but of the same order
        classes = logits.shape[-1]
        candidates = ops.reshape(logits, (-1, len(anchors) * classes))
        best, indices = ops.top_k(candidates, k=min(self.num_candidates, candidates.shape[1]))
        scores = best if self.activation == "softmax" else ops.sigmoid(best)
        anchor = indices // classes
        deltas = ops.take_along_axis(deltas, anchor[..., None], axis=1)
        boxes = decode_deltas(deltas, ops.take(anchors, anchor, axis=0), self.delta_weights)
        boxes = clip_xyxy(boxes, image_size)
        scores = ops.where((scores > self.score_threshold) & (area_xyxy(boxes) > 0), scores, -float("inf"))
        return boxes, scores, ops.cast(indices % classes, "int32")


def check_decoding(score_threshold, nms_threshold, num_candidates, num_detections):
    """A ValueError for numbers that would fail, or select nothing, only when detections are decoded."""
    for name, value in (("score_threshold", score_threshold), ("nms_threshold", nms_threshold)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} lies in 0 to 1: got {value!r}.")
    for name, value in (("num_candidates", num_candidates), ("num_detections", num_detections)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1: got {value!r}.")
