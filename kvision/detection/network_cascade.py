"""The head of a multi-task network cascade: Dai, He, Sun, "Instance-Aware Semantic Segmentation via MNCs" (2016)."""

import math

import keras
from keras import ops

from kvision.detection.assigner import Sample, matched, read_targets
from kvision.detection.box_branch import (
    DELTA_WEIGHTS,
    SMALLEST_SIDE,
    box_loss,
    classification_loss,
    deltas_of,
    read_regions,
    sample_labels,
)
from kvision.detection.dense_head import check_decoding
from kvision.detection.mask_branch import check_masks, mask_targets
from kvision.detection.proposals import has_sides, with_box_gradient
from kvision.layers.conventions import conventions
from kvision.ops import area_xyxy, batched_nms, clip_xyxy, decode_deltas, resize_bilinear, vote_masks
from kvision.ops.nms import LOWEST
from kvision.part import Part

MASK_THRESHOLD = 0.4  # a cell belongs to an estimated mask from this score on: the authors' code
SMALLEST_AREA = 1e-6  # in square pixels


def dense_mask_head(shape, size, *, units=256, initializer="he"):
    """Section 3.2: a dense layer of 256 with ReLU, and one with an output for each of size x size cells of the mask.

    A `keras.Model` from regions `shape`, (bins, bins, channels), to logits [k, size, size], float32. The layers carry
    the names of the authors' code.
    """
    c = conventions(norm=None, initializer=initializer)
    inputs = keras.Input(shape)
    x = keras.layers.Flatten(name="maskest_flatten")(inputs)
    x = c.activation(name="relu6_maskest")(c.dense(units, name="fc6_maskest")(x))
    x = _output(size * size, 0.01, "mask_pred")(x)
    return keras.Model(
        inputs, keras.layers.Reshape((size, size), dtype="float32", name="mask_reshape")(x), name="mask_head"
    )


def joint_class_head(shape, classes, *, units=4096, box=False, initializer="he"):
    """Section 3.3: masked and unmasked regions, each pooled by 2x2 maxima and seen by two dense layers, joined.

    A `keras.Model` from two inputs of `shape`, (bins, bins, channels), the masked one first, to a dict, all float32:
    `"class_logits"` and `"box_class_logits"` [k, 1 + classes], the background first, and with `box` also `"box_deltas"`
    [k, 1 + classes, 4]. The layers carry the names of the authors' code.
    """
    c = conventions(norm=None, initializer=initializer)
    inputs, paths = [keras.Input(shape), keras.Input(shape)], []
    for x, path in zip(inputs, ("_mask", ""), strict=True):
        x = keras.layers.MaxPooling2D(2, name=f"pool{path}")(x)
        x = keras.layers.Flatten(name=f"flatten{path}")(x)
        for layer in (6, 7):
            x = c.activation(name=f"relu{layer}{path}")(c.dense(units, name=f"fc{layer}{path}")(x))
        paths.append(x)
    x = keras.layers.Concatenate(name="join_box_mask")(paths)
    outputs = {
        "class_logits": _output(classes + 1, 0.01, "seg_cls_score")(x),
        "box_class_logits": _output(classes + 1, 0.01, "cls_score")(x),
    }
    if box:
        deltas = _output(4 * (classes + 1), 0.001, "bbox_pred")(x)
        outputs["box_deltas"] = keras.layers.Reshape((classes + 1, 4), dtype="float32", name="bbox_reshape")(deltas)
    return keras.Model(inputs, outputs, name="class_head")


def _output(units, deviation, name):
    initializer = keras.initializers.RandomNormal(stddev=deviation)
    return keras.layers.Dense(units, kernel_initializer=initializer, dtype="float32", name=name)


def masked_features(regions, mask_scores):
    """Section 3.3: regions [k, s, s, c] times their masks [k, m, m] in 0…1, resized to s x s; the type of the regions.

    >>> masked = masked_features(keras.ops.ones((1, 2, 2, 3)), keras.ops.reshape([1.0, 0.0, 0.5, 1.0], (1, 2, 2)))
    >>> masked[0, :, :, 0].numpy().tolist()
    [[1.0, 0.0], [0.5, 1.0]]
    """
    masks = resize_bilinear(mask_scores[..., None], regions.shape[1:3])
    return regions * ops.cast(masks, regions.dtype)


def mask_overlaps(mask_scores, inside, boxes_xyxy, areas):
    """Intersection over union of estimated masks and the masks they are trained towards, [b, n].

    Args:
        mask_scores: [b, n, m, m] in 0…1, relative to their boxes.
        inside: [b, n, m, m], what of each true mask lies in each cell, in 0…1.
        boxes_xyxy: [b, n, 4] in pixels.
        areas: [b, n], pixels of the whole true masks, which may reach out of the boxes.
    """
    estimated = ops.cast(mask_scores >= MASK_THRESHOLD, "float32")
    cell = area_xyxy(boxes_xyxy) / math.prod(inside.shape[2:])
    common = ops.sum(estimated * inside, axis=(2, 3)) * cell
    union = ops.sum(estimated, axis=(2, 3)) * cell + areas - common
    return ops.where(union > SMALLEST_AREA, common / ops.maximum(union, SMALLEST_AREA), 0.0)


@keras.saving.register_keras_serializable("kvision")
class NetworkCascadeHead(Part):
    """Trains and applies stages that each see what the one before estimated: boxes, masks, classes (sections 3 to 5).

    Stage 1 proposes boxes, stage 2 estimates a mask in each, of no class, stage 3 names what the mask shows. With five
    stages, stage 3 also moves the boxes, and stages 4 and 5 are stages 2 and 3 on these, with the same weights. The
    loss is one: its gradient reaches what the earlier stages estimated, boxes included, where `proposals` let it.

    Args:
        proposals: A `RegionProposals`, with `box_gradient`.
        assigner: An `Assigner` with a sample.
        classes: Number of classes, without the background.
        image_size: (height, width) of the network's input.
        level: Name of the map that regions are read from.
        pooling: A `RoIWarp` layer.
        mask_head: A `keras.Model` from regions to mask logits, see `dense_mask_head`.
        class_head: A `keras.Model` from masked and unmasked regions to logits, with box deltas for five stages; see
            `joint_class_head`.
        stages: 3 or 5.
        matching_mask_iou: Overlap of the masks from which on a region whose box is a positive is one for
            `classification_loss`, in (0, 1].
        delta_weights: See `kvision.ops.encode_deltas`.
        beta: Of the smooth L1 loss.
        score_threshold, num_candidates: At most `num_candidates` candidates with a score above the threshold go on to
            suppression.
        nms_threshold: Of the suppression by boxes, per class.
        voting_iou_threshold: Overlap of the boxes from which on regions, suppressed or not, share in the mask of a
            detection, in (0, 1]; see `kvision.ops.vote_masks`. None: each mask is that of its own region.
        num_detections: Given at most, and at fixed size, for an image.
        box_gradient: Of the deltas that move the boxes for stages 4 and 5, see `RegionProposals`.

    Losses: those of the proposals; `mask_loss`; `classification_loss`, of masks, whose scores detections have; and
    `box_classification_loss`, of boxes, which trains while masks are poor (section 6). With five stages also
    `box_loss`, and all but those of the proposals end in `_1` for stages 2 and 3 and in `_2` for stages 4 and 5.

    Raises:
        ValueError: on another number of stages, an assigner without a sample, a class head that does not fit.
    """

    def __init__(
        self,
        proposals,
        assigner,
        classes,
        image_size,
        level,
        pooling,
        mask_head,
        class_head,
        stages=3,
        matching_mask_iou=0.5,
        delta_weights=DELTA_WEIGHTS,
        beta=1.0,
        score_threshold=0.05,
        num_candidates=2000,
        nms_threshold=0.3,
        voting_iou_threshold=0.5,
        num_detections=100,
        box_gradient=True,
        **options,
    ):
        super().__init__(**options)
        self.proposals = proposals
        self.assigner = assigner
        self.classes = classes
        self.image_size = tuple(image_size)
        self.level = level
        self.pooling = pooling
        self.mask_head = mask_head
        self.class_head = class_head
        self.stages = stages
        self.matching_mask_iou = matching_mask_iou
        self.delta_weights = tuple(delta_weights)
        self.beta = beta
        self.score_threshold = score_threshold
        self.num_candidates = num_candidates
        self.nms_threshold = nms_threshold
        self.voting_iou_threshold = voting_iou_threshold
        self.num_detections = num_detections
        self.box_gradient = box_gradient
        self._check_parts()
        check_decoding(score_threshold, nms_threshold, num_candidates, num_detections)
        self.complete()

    def _check_parts(self):
        check_stages(self.name, self.stages)
        if self.assigner.num_samples is None:
            raise ValueError(f"{self.name} needs an Assigner with num_samples, as it draws the sample of its regions.")
        if ("box_deltas" in self.class_head.output) != (self.stages == 5):
            raise ValueError(
                f"{self.name}: with stages=5 the class head gives box deltas, which move the boxes, and with 3 it does "
                f"not: got stages={self.stages} and the outputs {sorted(self.class_head.output)}. Build it "
                "with joint_class_head(…, box=stages == 5)."
            )
        if not 0 < self.matching_mask_iou <= 1:
            raise ValueError(f"{self.name}: matching_mask_iou lies in (0, 1]: got {self.matching_mask_iou!r}.")
        if self.voting_iou_threshold is not None and not 0 < self.voting_iou_threshold <= 1:
            raise ValueError(
                f"{self.name}: voting_iou_threshold lies in (0, 1], or is None for no voting: got "
                f"{self.voting_iou_threshold!r}."
            )

    @property
    def num_passes(self):
        """How often stages 2 and 3 are applied."""
        return self.stages // 2

    @property
    def loss_names(self):
        kinds = ("mask_loss", "classification_loss", "box_classification_loss")
        kinds = kinds if self.stages == 3 else (*kinds, "box_loss")
        names = (self._name(kind, index) for index in range(self.num_passes) for kind in kinds)
        return (*self.proposals.loss_names, *names)

    def _name(self, kind, index):
        return kind if self.stages == 3 else f"{kind}_{index + 1}"

    def check(self, x, y):
        """Raises on targets without masks, or whose masks show nothing."""
        self.proposals.check(x, y)
        check_masks(y)

    def predict(self, features, boxes_xyxy, training=False):
        """Stages 2 and 3 on boxes [b, n, 4]: `"mask_logits"` [b, n, m, m], and what the class head gives [b, n, …]."""
        regions = read_regions(self.pooling, features, (self.level,), boxes_xyxy)
        logits = self.mask_head(regions, training=training)
        masked = masked_features(regions, ops.sigmoid(logits))
        outputs = self.class_head([masked, regions], training=training) | {"mask_logits": logits}
        count = boxes_xyxy.shape[1]
        return {name: ops.reshape(values, (-1, count, *values.shape[1:])) for name, values in outputs.items()}

    def losses(self, features, targets, training=None):
        """`{name: scalar}`; boxes are cut to the targets' `image_size`, if it is there."""
        losses = self.proposals.losses(features, targets)
        image_size = targets.get("image_size")
        proposals = self.proposals.propose(features, training, image_size)
        areas = self._mask_areas(targets)
        sample = self.assigner.draw_with_targets(proposals, targets)
        for index in range(self.num_passes):
            boxes = sample.boxes  # what is estimated in them has a gradient to them, what it is compared with has none
            outputs = self.predict(features, boxes, training)
            sample = Sample(ops.stop_gradient(boxes), sample.matches, sample.drawn)
            parts = self._pass_losses(outputs, sample, targets, areas)
            losses |= {self._name(kind, index): loss for kind, loss in parts.items()}
            if index + 1 < self.num_passes:
                boxes = self.refine(outputs, boxes, image_size)
                matches = self.assigner.match(boxes, targets)
                sample = Sample(boxes, matches, sample.drawn & (area_xyxy(boxes) > 0))
        return losses

    def _pass_losses(self, outputs, sample, targets, areas):
        """The losses of stages 2 and 3 on the boxes of a sample."""
        logits = outputs["mask_logits"]
        matches = ops.maximum(sample.matches, 0)
        inside = mask_targets(targets, matches, sample.boxes, logits.shape[-1])
        overlaps = mask_overlaps(ops.sigmoid(logits), inside, sample.boxes, matched(areas, matches))
        labels = sample_labels(sample, targets)
        mask_labels = ops.where(overlaps >= self.matching_mask_iou, labels, 0)
        losses = {
            "mask_loss": mask_loss(logits, inside, sample.positive),
            "classification_loss": classification_loss(outputs["class_logits"], mask_labels, sample.drawn),
            "box_classification_loss": classification_loss(outputs["box_class_logits"], labels, sample.drawn),
        }
        if self.stages == 5:
            losses["box_loss"] = box_loss(outputs["box_deltas"], sample, targets, self.delta_weights, self.beta)
        return losses

    def _mask_areas(self, targets):
        """Pixels of the targets' masks, [b, n]: what their boxes hold."""
        boxes = read_targets(targets).boxes
        rows = ops.broadcast_to(ops.arange(boxes.shape[1], dtype="int32"), ops.shape(boxes)[:2])
        masks = mask_targets(targets, rows, boxes, self.mask_head.output_shape[-1])
        return ops.mean(masks, axis=(2, 3)) * area_xyxy(boxes)

    def refine(self, outputs, boxes_xyxy, image_size=None):
        """Boxes [b, n, 4] moved by the deltas of their best class (section 5); padding has no area.

        The deltas have the gradient that `box_gradient` says.
        """
        # `ops.argmax` looks at bits, of which ONNX knows nothing
        best = ops.top_k(outputs["class_logits"][..., 1:], k=1)[1][..., 0] + 1
        deltas = with_box_gradient(deltas_of(outputs["box_deltas"], best), self.box_gradient)
        moved = decode_deltas(deltas, boxes_xyxy, self.delta_weights)
        moved = clip_xyxy(moved, self.image_size if image_size is None else image_size)
        return ops.where((area_xyxy(boxes_xyxy) > 0)[..., None], moved, 0.0)

    def chance_losses(self, targets):
        """`{name: float}` of a network that knows nothing: every class is as likely."""
        losses = dict.fromkeys(set(self.proposals.loss_names) & {"rpn_objectness_loss"}, math.log(2))
        for index in range(self.num_passes):
            for kind in ("classification_loss", "box_classification_loss"):
                losses[self._name(kind, index)] = math.log(self.classes + 1)
        return losses

    def decode(self, features):
        """Detections by falling score, with `"box_masks"` [b, k, m, m] in 0…1; padding is 0, 0, −1 and masks of 0.

        Of five stages the regions of both passes are candidates. Boxes are cut to the features' `image_size`, if it is
        there.
        """
        image_size = features.get("image_size")
        boxes, passes = self.proposals.propose(features, image_size=image_size), []
        for index in range(self.num_passes):
            outputs = self.predict(features, boxes)
            passes.append((boxes, ops.softmax(outputs["class_logits"])[..., 1:], ops.sigmoid(outputs["mask_logits"])))
            if index + 1 < self.num_passes:
                boxes = self.refine(outputs, boxes, image_size)
        boxes, scores, masks = (ops.concatenate(parts, axis=1) for parts in zip(*passes, strict=True))
        return self.select(boxes, scores, masks)

    def select(self, boxes_xyxy, scores, masks):
        """The detections among regions: boxes [b, n, 4], scores [b, n, classes], masks [b, n, m, m]."""
        possible = (scores > self.score_threshold) & has_sides(boxes_xyxy, SMALLEST_SIDE)[..., None]
        candidates = ops.reshape(ops.where(possible, scores, -float("inf")), (-1, scores.shape[1] * self.classes))
        best, indices = ops.top_k(candidates, k=min(self.num_candidates, candidates.shape[1]))
        region, label = indices // self.classes, ops.cast(indices % self.classes, "int32")
        boxes = ops.take_along_axis(boxes_xyxy, region[..., None], axis=1)
        keep, _ = batched_nms(boxes, best, label, self.nms_threshold, self.num_detections)
        found, index = keep >= 0, ops.maximum(keep, 0)
        best = ops.take_along_axis(ops.maximum(best, LOWEST), index, axis=1)  # as `select_detections`
        detections = {
            "boxes": ops.where(found[..., None], ops.take_along_axis(boxes, index[..., None], axis=1), 0.0),
            "scores": ops.where(found, best, 0.0),
            "labels": ops.where(found, ops.take_along_axis(label, index, axis=1), -1),
        }
        if self.voting_iou_threshold is None:
            region = ops.take_along_axis(region, index, axis=1)
            masks = ops.take_along_axis(masks, region[..., None, None], axis=1)
            masks = ops.where(found[..., None, None], masks, 0.0)
        else:
            detected = (detections["boxes"], detections["labels"])
            masks = vote_masks(*detected, boxes_xyxy, masks, scores, self.voting_iou_threshold)
        return detections | {"box_masks": masks}


def mask_loss(logits, inside, positive):
    """Section 3.2: binary cross-entropy of masks [b, n, m, m], the mean over the positives [b, n] of the batch."""
    entropy = ops.mean(ops.softplus(logits) - inside * logits, axis=(2, 3))
    return ops.sum(ops.where(positive, entropy, 0.0)) / ops.maximum(ops.sum(ops.cast(positive, "float32")), 1.0)


def check_stages(who, stages):
    """Raises unless a cascade of so many stages is known."""
    if stages not in (3, 5):
        raise ValueError(
            f"{who}: stages is 3 (boxes, masks, classes) or 5 (masks and classes once more): got {stages!r}."
        )
