"""Heads that predict at every anchor: convolutions shared by the levels, flattened outputs, losses, decoding."""

import math

import keras
import numpy as np
from keras import ops

from kvision.detection.assigner import matched, read_targets
from kvision.errors import choose
from kvision.layers.conventions import conventions
from kvision.losses import sigmoid_focal_loss, smooth_l1_loss
from kvision.ops import (
    BACKGROUND,
    IGNORED,
    area_xyxy,
    clip_xyxy,
    decode_deltas,
    encode_deltas,
    select_detections,
    take_rows,
)
from kvision.part import Part, option_of

# Lin et al. 2017 ("Focal Loss"), section 4.1: the foreground probability at which every anchor starts.
PRIOR = 0.01
PRIOR_BIAS = -math.log((1 - PRIOR) / PRIOR)

ZERO = 1e-6  # box targets this small are 0 but for rounding, which is the compiler's


def shared_convolutions(
    levels,
    *,
    depth,
    last,
    norm=None,
    activation="relu",
    initializer="normal_0.01",
    separable=False,
    width=None,
    epsilon=1e-5,
    momentum=0.9,
    name="head",
):
    """A stack of 3x3 convolutions, the same for every level, and the last one of each output.

    Statistics differ from level to level, so a batch norm is one for each level ("EfficientDet", Tan et al. 2020, and
    "RetinaNet" of Detectron2 do alike); a group norm is shared, as convolutions are.

    Args:
        levels: `{"P3": [b, h, w, c], …}`.
        depth: Convolutions before the last, each with norm and activation.
        last: `{output: (layer name, channels, kernel size, bias at the beginning)}`.
        norm, activation, epsilon, momentum: As in `kvision.layers.conventions`.
        initializer: Of all kernels.
        separable: Each convolution, the last too, is one in each channel and a 1x1 with a bias, norm or not.
        width: Channels of the convolutions; None: those of the levels.
        name: Layers are `{name}.{index}.0` (convolution; of a separable one `.0.conv_dw` and `.0.conv_pw`), `.1` (norm)
            and `.{activation}`; a batch norm of one level ends in its name, `.P3`.

    Returns:
        `{output: {"P3": [b, h, w, channels], …}}`.
    """
    c = conventions(norm, activation, initializer, epsilon=epsilon, momentum=momentum)
    convolution = _separable(c) if separable else c.conv
    maps = dict(levels)
    width = width or next(iter(maps.values())).shape[-1]
    for index in range(depth):
        conv = convolution(width, 3, name=f"{name}.{index}.0")
        normalize = _norms(c, norm, f"{name}.{index}.1", maps)
        activate = c.activation(name=f"{name}.{index}.{activation}")
        maps = {level: activate(normalize[level](conv(x))) for level, x in maps.items()}
    outputs = {}
    for output, (layer, channels, kernel_size, bias) in last.items():
        bias = keras.initializers.Constant(bias)
        conv = convolution(channels, kernel_size, use_bias=True, bias_initializer=bias, name=layer)
        outputs[output] = {level: conv(x) for level, x in maps.items()}
    return outputs


def _separable(c):
    """A factory of separable convolutions, called as `c.conv`."""

    def convolution(filters, kernel_size, *, name, **options):
        depthwise = c.depthwise(kernel_size, use_bias=False, name=f"{name}.conv_dw")
        pointwise = c.conv(filters, 1, **{"use_bias": True} | options, name=f"{name}.conv_pw")
        return lambda x: pointwise(depthwise(x))

    return convolution


def _norms(c, norm, name, maps):
    if norm in ("batch", "sync_batch", "frozen_batch"):
        return {level: c.norm(name=f"{name}.{level}") for level in maps}
    return dict.fromkeys(maps, c.norm(name=name))


def flatten_outputs(maps, size):
    """Outputs of all levels in the order of the anchors, float32: [b, anchors, size]; with `size=None` [b, anchors]."""
    shape = (-1,) if size is None else (-1, size)
    rows = [keras.layers.Reshape(shape)(level) for level in maps.values()]
    return ops.cast(ops.concatenate(rows, axis=1) if len(rows) > 1 else rows[0], "float32")


@keras.saving.register_keras_serializable("kvision")
class DenseDecoder(Part):
    """Detections out of logits and deltas of all anchors: the best candidates, decoded, suppressed by class.

    Args:
        score_threshold: Candidates with a score of at most this are left out, in [0, 1].
        num_candidates: Go on to suppression, at most.
        candidates_of: `"level"`: as many of each level; `"image"`: of all levels together.
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
        candidates_of="level",
        **options,
    ):
        super().__init__(**options)
        self.candidates_of = choose("candidates_of", {name: name for name in ("level", "image")}, candidates_of)
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
        if self.candidates_of == "image":
            anchors_of_levels = [np.concatenate(anchors_of_levels)]
        levels, begin = [], 0
        for anchors in anchors_of_levels:
            rows = slice(begin, begin + len(anchors))
            begin = rows.stop
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
        deltas = take_rows(deltas, anchor)
        boxes = decode_deltas(deltas, ops.take(anchors, anchor, axis=0), self.delta_weights)
        boxes = clip_xyxy(boxes, image_size)
        scores = ops.where((scores > self.score_threshold) & (area_xyxy(boxes) > 0), scores, -float("inf"))
        return boxes, scores, ops.cast(indices % classes, "int32")


@keras.saving.register_keras_serializable("kvision")
class DenseHead(Part):
    """The losses of a detector that classifies and shifts every anchor, and its decoding. It has no weights.

    Focal loss of all anchors that are not ignored and smooth L1 of the positive ones ("Focal Loss for Dense Object
    Detection", Lin et al. 2017, section 4), divided by the number of positives.

    Args:
        classes: Number of classes, without a background.
        image_size: (height, width) of the network's input.
        feature_sizes: (height, width) of each level.
        anchors: An `Anchors`.
        assigner: An `Assigner` without a sample.
        decoder: A `DenseDecoder`.
        focal_alpha, focal_gamma: Of the focal loss: weight of the positives in [0, 1], and exponent of at least 0.
        box_beta: Of the smooth L1, at least 0; 0 is the absolute error.
        box_weight: Factor of the box loss, > 0.
        positives_of: What the losses are divided by: `"image"`: each image's by its own positives, at least one, then
            the mean over images; `"batch"`: the sum of all by the positives of the batch plus one.
        skip_zero_targets: Leave out the components of box targets that are 0 (within 1e-6).

    Features: `"class_logits"` [b, anchors, classes] and `"box_deltas"` [b, anchors, 4], float32, finest level first.
    """

    loss_names = ("classification_loss", "box_loss")

    def __init__(
        self,
        classes,
        image_size,
        feature_sizes,
        anchors,
        assigner,
        decoder,
        focal_alpha=0.25,
        focal_gamma=2.0,
        box_beta=0.0,
        box_weight=1.0,
        positives_of="image",
        skip_zero_targets=False,
        **options,
    ):
        super().__init__(**options)
        if not 0 <= focal_alpha <= 1 or not focal_gamma >= 0:
            raise ValueError(
                f"The focal loss needs focal_alpha in 0 to 1 and focal_gamma of at least 0: got {focal_alpha!r} and "
                f"{focal_gamma!r}."
            )
        if not box_beta >= 0 or not box_weight > 0:
            raise ValueError(
                f"The box loss needs a beta of at least 0 and a weight above 0: got {box_beta!r} and {box_weight!r}."
            )
        self.classes = classes
        self.image_size = tuple(image_size)
        self.feature_sizes = tuple(tuple(size) for size in feature_sizes)
        self.anchors = anchors
        self.assigner = assigner
        self.decoder = decoder
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.box_beta = box_beta
        self.box_weight = box_weight
        self.positives_of = choose("positives_of", {name: name for name in ("image", "batch")}, positives_of)
        self.skip_zero_targets = skip_zero_targets
        self._anchors = anchors.boxes_xyxy(self.image_size, self.feature_sizes)
        self.complete()

    score_threshold, nms_threshold, num_candidates, num_detections = (
        option_of(lambda head: head.decoder, name)
        for name in ("score_threshold", "nms_threshold", "num_candidates", "num_detections")
    )

    def check(self, x, y):
        """Nothing beyond the data contract."""

    def losses(self, features, targets, training=None):
        """`{name: scalar}`: focal loss and smooth L1, each over the positive anchors."""
        logits, deltas = features["class_logits"], features["box_deltas"]
        boxes, labels, _ = read_targets(targets)
        anchors = ops.concatenate(self._anchors)
        matches = self.assigner.match(anchors, targets)
        positive = matches > BACKGROUND

        label = ops.where(positive, matched(labels, matches), -1)
        one_hot = ops.one_hot(label, self.classes, dtype="float32")  # background is a row of zeros
        counted = ops.cast(matches != IGNORED, "float32")
        focal = sigmoid_focal_loss(one_hot, logits, self.focal_alpha, self.focal_gamma)
        focal = ops.sum(focal, axis=-1) * counted

        target_deltas = encode_deltas(matched(boxes, matches), anchors)
        errors = smooth_l1_loss(target_deltas, deltas, self.box_beta)
        trained = positive[..., None]
        if self.skip_zero_targets:
            trained = trained & (ops.abs(target_deltas) > ZERO)
        errors = ops.where(trained, errors, 0.0)
        return {
            "classification_loss": self._over_positives(ops.sum(focal, axis=1), positive),
            "box_loss": self.box_weight * self._over_positives(ops.sum(errors, axis=(1, 2)), positive),
        }

    def _over_positives(self, losses, positive):
        """The losses [b] of a batch as one number."""
        num_positives = ops.sum(ops.cast(positive, "float32"), axis=1)
        if self.positives_of == "batch":
            return ops.sum(losses) / (ops.sum(num_positives) + 1.0)
        return ops.mean(losses / ops.maximum(num_positives, 1.0))

    def chance_losses(self, targets):
        """`{name: float}` of a network that gives every anchor the probability `PRIOR`, as training begins."""
        shape = (len(targets["labels"]), sum(map(len, self._anchors)))
        logits = ops.full((*shape, self.classes), PRIOR_BIAS)
        losses = self.losses({"class_logits": logits, "box_deltas": ops.zeros((*shape, 4))}, targets)
        return {"classification_loss": float(losses["classification_loss"])}

    def decode(self, features):
        """See `DenseDecoder.decode`; boxes are cut to the features' `image_size`, if it is there."""
        image_size = features.get("image_size", self.image_size)
        return self.decoder.decode(features["class_logits"], features["box_deltas"], self._anchors, image_size)


def check_decoding(score_threshold, nms_threshold, num_candidates, num_detections):
    """A ValueError for numbers that would fail, or select nothing, only when detections are decoded."""
    for name, value in (("score_threshold", score_threshold), ("nms_threshold", nms_threshold)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} lies in 0 to 1: got {value!r}.")
    for name, value in (("num_candidates", num_candidates), ("num_detections", num_detections)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1: got {value!r}.")
