"""The branch that names regions and moves their boxes: Girshick, "Fast R-CNN" (2015), section 2."""

import keras
from keras import ops

from kvision.detection.assigner import matched, read_targets
from kvision.detection.dense_head import check_decoding
from kvision.detection.proposals import has_sides
from kvision.layers.conventions import conventions
from kvision.losses import smooth_l1_loss
from kvision.ops import area_xyxy, clip_xyxy, decode_deltas, encode_deltas, select_detections, take_rows
from kvision.ops._backend import kernels
from kvision.part import Part

# One over the deviations by which the author's code scales the targets: 0.1 for the centre, 0.2 for the sides.
DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)

SMALLEST_SIDE = 1e-2  # of a detection, in pixels


def dense_box_head(
    shape, classes, *, units=1024, norm=None, initializer="he", dropout_rate=0.0, shared=False, prefix="roi_heads"
):
    """A head of two dense layers or, with a norm, of four convolutions and one dense layer, and its two outputs.

    The second is the "4conv1fc" of He 2018, "Rethinking ImageNet Pre-training", section 3.

    Args:
        shape: (bins, bins, channels) of a region.
        classes: Number of classes, without the background.
        units: Of the dense layers.
        norm: `"group"`, `"batch"`, `"sync_batch"` or None.
        initializer: Of the kernels, but for the two outputs.
        dropout_rate: After each dense layer, in [0, 1).
        shared: One box for all classes instead of one a class.
        prefix: Of the layers' names.

    Returns:
        A `keras.Model` from [k, bins, bins, channels] to `{"class_logits", "box_deltas"}`.
    """
    c = conventions(norm=norm, initializer=initializer)
    x = inputs = keras.Input(shape)
    name = f"{prefix}.box_head"
    hidden = ("fc6", "fc7")
    if norm is not None:
        for index in range(4):
            x = c.norm(name=f"{name}.{index}.1")(c.conv(shape[-1], 3, name=f"{name}.{index}.0")(x))
            x = c.activation(name=f"{name}.{index}.2")(x)
        hidden = ("5",)
    x = keras.layers.Flatten(name=f"{name}.flatten")(x)
    for layer in hidden:
        x = c.activation(name=f"{name}.{layer}.relu")(c.dense(units, name=f"{name}.{layer}")(x))
        if dropout_rate:
            x = keras.layers.Dropout(dropout_rate, name=f"{name}.{layer}.dropout")(x)
    return keras.Model(inputs, _outputs(x, classes, shared, prefix), name=name)


def stage_box_head(stage, classes, *, shared=False, prefix="roi_heads"):
    """A head of a backbone's last stage, its mean over the map, and the two outputs (He 2015, appendix A)."""
    x = keras.layers.GlobalAveragePooling2D(name=f"{prefix}.avgpool")(stage.outputs[0])
    return keras.Model(stage.inputs[0], _outputs(x, classes, shared, prefix), name=f"{prefix}.box_head")


def _outputs(x, classes, shared, prefix):
    """Section 2.1, "two sibling output layers", initialised as section 2.3 says."""
    name = f"{prefix}.box_predictor"

    def output(units, deviation, name):
        initializer = keras.initializers.RandomNormal(stddev=deviation)
        return keras.layers.Dense(units, kernel_initializer=initializer, dtype="float32", name=name)(x)

    return {
        "class_logits": output(classes + 1, 0.01, f"{name}.cls_score"),
        "box_deltas": output(4 if shared else 4 * (classes + 1), 0.001, f"{name}.bbox_pred"),
    }


@keras.saving.register_keras_serializable("kvision")
class BoxBranch(Part):
    """Classifies regions and refines their boxes (Fast R-CNN, section 2).

    Args:
        classes: Number of classes, without the background.
        image_size: (height, width) of the network's input.
        levels: Names of the features that regions are read from: one map, or the levels of a pyramid.
        pooling: A `RoIPooling` or `RoIAlign` layer.
        box_head: A `keras.Model` from the bins of a region to `{"class_logits": [k, 1 + classes], "box_deltas":
            [k, 4 * (1 + classes)] or [k, 4]}`, the background first.
        assigner: An `Assigner`, with a sample in the first stage.
        delta_weights: See `kvision.ops.encode_deltas`.
        beta: Of the smooth L1 loss.
        score_threshold, num_candidates: At most `num_candidates` candidates with a score above the threshold go on to
            suppression.
        nms_threshold: Of the suppression, per class.
        num_detections: Given at most, and at fixed size, for an image.
    """

    def __init__(
        self,
        classes,
        image_size,
        levels,
        pooling,
        box_head,
        assigner,
        delta_weights=DELTA_WEIGHTS,
        beta=1 / 9,
        score_threshold=0.05,
        num_candidates=2000,
        nms_threshold=0.5,
        num_detections=100,
        **options,
    ):
        super().__init__(**options)
        self.classes = classes
        self.image_size = tuple(image_size)
        self.levels = tuple(levels)
        self.pooling = pooling
        self.box_head = box_head
        self.assigner = assigner
        self.delta_weights = tuple(delta_weights)
        self.beta = beta
        self.score_threshold = score_threshold
        self.num_candidates = num_candidates
        self.nms_threshold = nms_threshold
        self.num_detections = num_detections
        check_decoding(score_threshold, nms_threshold, num_candidates, num_detections)
        self.complete()

    @property
    def shares_box(self):
        """Whether all classes have one box."""
        return self.box_head.output["box_deltas"].shape[-1] == 4

    def predict(self, features, boxes_xyxy, training=False):
        """Of regions [b, n, 4]: logits [b, n, 1 + classes], and deltas [b, n, 1 + classes or 1, 4].

        In inference those of padding, rows without area behind all others, may be zeros instead.
        """

        def predict(boxes_xyxy):
            outputs = self.box_head(read_regions(self.pooling, features, self.levels, boxes_xyxy), training=training)
            count = ops.shape(boxes_xyxy)[1]
            deltas = outputs["box_deltas"]
            return (
                ops.reshape(outputs["class_logits"], (-1, count, self.classes + 1)),
                ops.reshape(deltas, (-1, count, deltas.shape[-1] // 4, 4)),
            )

        return predict(boxes_xyxy) if training else without_padding(predict, area_xyxy(boxes_xyxy) > 0, boxes_xyxy)

    def losses(self, logits, deltas, sample, targets):
        """Section 2.3: cross-entropy and smooth L1, both over all rows drawn in the batch."""
        return {
            "classification_loss": classification_loss(logits, sample_labels(sample, targets), sample.drawn),
            "box_loss": box_loss(deltas, sample, targets, self.delta_weights, self.beta),
        }

    def refine(self, deltas, boxes_xyxy, image_size=None):
        """Regions moved by this stage's deltas, the next stage's regions; padding stays without area.

        No gradient flows through them.
        """
        moved = decode_deltas(deltas[:, :, 0], boxes_xyxy, self.delta_weights)
        moved = clip_xyxy(moved, self.image_size if image_size is None else image_size)
        return ops.stop_gradient(ops.where((area_xyxy(boxes_xyxy) > 0)[..., None], moved, 0.0))

    def decode(self, scores, deltas, boxes_xyxy, image_size=None):
        """Decoded detections of fixed size: boxes xyxy in pixels, scores, labels; padding is 0, 0 and −1.

        Boxes are cut to `image_size` ([b, 2] or a pair; None: the network's input).
        """
        scores, count = scores[..., 1:], boxes_xyxy.shape[1]
        possible = (scores > self.score_threshold) & (area_xyxy(boxes_xyxy) > 0)[..., None]
        candidates = ops.reshape(ops.where(possible, scores, -float("inf")), (-1, count * self.classes))
        best, indices = ops.top_k(candidates, k=min(self.num_candidates, candidates.shape[1]))
        region, label = indices // self.classes, ops.cast(indices % self.classes, "int32")
        row = region if deltas.shape[2] == 1 else region * (self.classes + 1) + label + 1
        deltas = ops.reshape(deltas, (-1, count * deltas.shape[2], 4))
        deltas = take_rows(deltas, row)
        boxes = decode_deltas(deltas, take_rows(boxes_xyxy, region), self.delta_weights)
        boxes = clip_xyxy(boxes, self.image_size if image_size is None else image_size)
        best = ops.where(has_sides(boxes, SMALLEST_SIDE), best, -float("inf"))
        return select_detections(boxes, best, label, self.nms_threshold, self.num_detections)


def read_regions(pooling, features, levels, boxes_xyxy):
    """The bins of regions [b, n, 4] in a row, [b * n, bins, bins, channels]."""
    maps = {level: features[level] for level in levels}
    regions = pooling(maps if len(levels) > 1 else maps[levels[0]], boxes_xyxy)
    return ops.reshape(regions, (-1, *regions.shape[2:]))


def without_padding(function, is_real, *tensors):
    """`function` of tensors [b, n, …] → outputs [b, n, …]; rows behind the last real one [b, n] may become zeros."""
    number = ops.arange(1, is_real.shape[1] + 1, dtype="int32")
    return kernels.of_first_rows(function, ops.max(ops.where(is_real, number, 0), initial=0), *tensors)


def sample_labels(sample, targets):
    """What the rows of a sample are, [b, n]: 0 background, from 1 on the classes."""
    return ops.where(sample.positive, matched(read_targets(targets).labels, sample.matches) + 1, 0)


def classification_loss(logits, labels, drawn):
    """Cross-entropy of logits [b, n, 1 + classes] and labels [b, n], the mean over the rows drawn in the batch."""
    drawn = ops.cast(drawn, "float32")
    entropy = -ops.sum(ops.one_hot(labels, logits.shape[-1], dtype="float32") * ops.log_softmax(logits), axis=-1)
    return ops.sum(entropy * drawn) / ops.maximum(ops.sum(drawn), 1.0)


def box_loss(deltas, sample, targets, delta_weights, beta):
    """Smooth L1 of deltas [b, n, 1 + classes or 1, 4] of the positives, over the number of rows drawn in the batch."""
    target_deltas = encode_deltas(matched(read_targets(targets).boxes, sample.matches), sample.boxes, delta_weights)
    errors = smooth_l1_loss(target_deltas, deltas_of(deltas, sample_labels(sample, targets)), beta)
    number = ops.maximum(ops.sum(ops.cast(sample.drawn, "float32")), 1.0)
    return ops.sum(ops.where(sample.positive[..., None], errors, 0.0)) / number


def deltas_of(deltas, labels):
    """The deltas [b, n, 4] of each region's label [b, n]; of all classes the same, if there is one box for all."""
    if deltas.shape[2] == 1:
        return deltas[:, :, 0]
    return ops.einsum("bncd,bnc->bnd", deltas, ops.one_hot(labels, deltas.shape[2], dtype="float32"))
