"""Faster R-CNN: Ren, He, Girshick, Sun, "Faster R-CNN: Towards Real-Time Object Detection with RPNs" (2015).

On a feature pyramid: Lin et al., "Feature Pyramid Networks for Object Detection" (2017), section 4; on C4, with the
last stage as the head: He et al., "Deep Residual Learning" (2015), appendix A. Equals torchvision's
`fasterrcnn_resnet50_fpn`, fed the same weights, in features, proposals, detections and losses; numbers of proposals and
samples are torchvision's, and so is RoIAlign without the half-pixel shift, which `aligned=True` brings.

How it trains (Lin 2017, section 5): SGD with momentum 0.9 and weight decay 1e-4, 16 images a batch, 60k steps at 0.02
and 20k at 0.002. All parts train together.
"""

import keras
from keras import ops

from kvision.applications.building import (
    feature_pyramid,
    finish_detector,
    image_input,
    inner_norm,
    pyramid_backbone,
)
from kvision.applications.classification import imagenet
from kvision.applications.classification.resnet import ResNet50
from kvision.applications.detection import coco
from kvision.applications.detection.fast_rcnn import (
    Assembly,
    BoxBranch,
    dense_box_head,
    has_sides,
    read_targets,
    split_at_c4,
    stage_box_head,
)
from kvision.detection.detector import Detector
from kvision.errors import choose
from kvision.layers import RoIAlign
from kvision.layers.conventions import conventions
from kvision.losses import smooth_l1_loss
from kvision.ops import (
    BACKGROUND,
    FPN_SIZES,
    anchors_xyxy,
    clip_xyxy,
    decode_deltas,
    encode_deltas,
    match,
    nms,
    sample_balanced,
)
from kvision.ops.anchors import RATIOS

C4_SIZES = (tuple(size for level in FPN_SIZES for size in level),)  # all sizes on the one map

SMALLEST_SIDE = 1e-3  # of a proposal, in pixels

# Of the detector as it is built by default.
WEIGHTS = {
    "coco": coco.torchvision_weights(
        "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
        37.0,
        ("roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"),
    )
}

PROOF = "torchvision fasterrcnn_resnet50_fpn, fed the same weights"


def FasterRCNN(
    *,
    input_shape=(512, 512, 3),
    classes=80,
    backbone=None,
    weights=None,
    norm="frozen_batch",
    neck="fpn",
    channels=256,
    aligned=False,
    num_candidates=(2000, 1000),
    num_proposals=(2000, 1000),
    num_anchor_samples=256,
    num_samples=512,
    iou_threshold=0.5,
    shared_box=False,
    score_threshold=0.05,
    nms_threshold=0.5,
    num_detections=100,
    preprocess=imagenet.preprocess_input,
    name="faster_rcnn",
):
    """Build a Faster R-CNN.

    Args:
        input_shape: (height, width, channels), at least 32 pixels a side.
        classes: Number of classes, without a background.
        backbone: A `keras.Model` from images of `input_shape` to `{"C2": map, …, "C5": map}`, for `neck="c4"` with
            `"C4"` and `"C5"`, such as `ResNet50(include_top=False, features=("C2", "C3", "C4", "C5"), norm=…, …)` or
            `cut(model, {...})`. None is a fresh ResNet-50 with `norm`.
        weights: None; or `"coco"` (see `WEIGHTS`), for `backbone`, `norm`, `neck`, `channels` and `shared_box` as they
            are by default: with `classes=90` the labels are those of `coco.class_names()`, with another number the last
            layers start fresh. Or the path of weights of the whole detector; see `kvision.weights.set_epsilon`.
        norm: Of the backbone built here. `"group"` and `"sync_batch"`, for training from scratch, reach the pyramid
            and the box head as well, which then has four convolutions and one dense layer instead of two dense ones.
            None: no norm anywhere, for a backbone that has none. With these three the pyramid starts by He's law.
        neck: `"fpn"`, a feature pyramid; or `"c4"`: proposals and regions come from C4, and the backbone's stage
            between C4 and C5 is the head.
        channels: Of the pyramid.
        aligned: Half-pixel alignment of RoIAlign; False is that of torchvision's weights, True is detectron2's.
        num_candidates: Proposals of each level that go on to suppression, in training and in inference.
        num_proposals: Proposals of an image that go on to the box head, in training and in inference.
        num_anchor_samples: Anchors of an image that a step trains on, at most half of them positives.
        num_samples: Regions of an image that a step trains on, at most a quarter of them positives.
        iou_threshold: Overlap with a box from which on a region is a positive.
        shared_box: One box for all classes instead of one a class.
        score_threshold, nms_threshold, num_detections: Of the detections.
        preprocess: A function applied to the images, RGB 0…255, before the backbone; None for a backbone that brings
            its own.
        name: Of the model.

    Returns:
        A `kvision.detection.Detector` with the losses `rpn_objectness_loss`, `rpn_box_loss`, `classification_loss` and
        `box_loss`.

    Raises:
        ValueError: on a wrong shape, an unknown norm or neck, or a backbone without the levels needed.

    ```python
    detector = kvision.applications.FasterRCNN(input_shape=(256, 256, 3), classes=3, norm="group")
    detector.compile(keras.optimizers.SGD(0.01, momentum=0.9))
    ```
    """
    images = image_input("FasterRCNN", input_shape, stride=32, classes=classes)
    levels = choose("neck", {"fpn": ("C2", "C3", "C4", "C5"), "c4": ("C4", "C5")}, neck)
    by_default = backbone is None and (norm, neck, channels, shared_box) == ("frozen_batch", "fpn", 256, False)
    if backbone is None:
        backbone = ResNet50(include_top=False, input_shape=input_shape, norm=norm, features=levels)
    if neck == "fpn":
        maps = pyramid_backbone("FasterRCNN", backbone, levels, images, preprocess)
        maps = feature_pyramid(channels, "pool", norm)(maps)
        read, sizes = tuple(maps)[:-1], FPN_SIZES
        pooling = RoIAlign(7, aligned=aligned)
        box_head = dense_box_head((7, 7, channels), classes, norm=inner_norm(norm), shared=shared_box)
    else:
        lower, stage = split_at_c4("FasterRCNN", backbone, 14)
        maps = pyramid_backbone("FasterRCNN", lower, ("C4",), images, preprocess)
        read, sizes = ("C4",), C4_SIZES
        pooling = RoIAlign(14, spatial_scale=1 / 16, aligned=aligned)
        box_head = stage_box_head(stage, classes, shared=shared_box)

    width = next(iter(maps.values())).shape[-1]
    trunk = keras.Model(
        images,
        {level: maps[level] for level in read} | _propose(maps, width, len(sizes[0]) * len(RATIOS)),
        name=f"{name}_trunk",
    )
    proposals = RegionProposals(
        input_shape[:2],
        [tuple(level.shape[1:3]) for level in maps.values()],
        sizes,
        num_candidates=num_candidates,
        num_proposals=num_proposals,
        num_samples=num_anchor_samples,
        name="rpn",
    )
    branch = BoxBranch(
        classes,
        input_shape[:2],
        read,
        pooling,
        box_head,
        iou_threshold=iou_threshold,
        num_samples=num_samples,
        score_threshold=score_threshold,
        nms_threshold=nms_threshold,
        num_detections=num_detections,
        name="box_branch",
    )
    detector = Detector(trunk, FasterRCNNHead(proposals, branch, name=f"{name}_head"), name=name)
    return finish_detector(detector, weights, WEIGHTS if by_default else None)


def _propose(maps, channels, anchors_a_cell):
    """Section 3.1: what the shared network of proposals says of the anchors of all maps, in float32."""
    bound = conventions(norm=None, initializer="normal_0.01")
    conv, act = bound.conv, bound.activation
    inputs = keras.Input((None, None, channels))
    x = act(name="rpn.head.conv.0.1")(conv(channels, 3, name="rpn.head.conv.0.0")(inputs))
    answers = [
        conv(anchors_a_cell, 1, name="rpn.head.cls_logits")(x),
        conv(4 * anchors_a_cell, 1, name="rpn.head.bbox_pred")(x),
    ]
    head = keras.Model(inputs, answers, name="rpn.head")
    logits, deltas = zip(*(head(level) for level in maps.values()), strict=True)
    logits = [keras.layers.Reshape((-1,))(level) for level in logits]
    deltas = [keras.layers.Reshape((-1, 4))(level) for level in deltas]
    join = ops.concatenate if len(maps) > 1 else lambda parts, axis: parts[0]
    return {
        "objectness_logits": ops.cast(join(logits, axis=1), "float32"),
        "anchor_deltas": ops.cast(join(deltas, axis=1), "float32"),
    }


@keras.saving.register_keras_serializable("kvision")
class RegionProposals(keras.layers.Layer):
    """The losses of the region proposal network and the proposals it makes (section 3). It has no weights.

    Args:
        image_size: (height, width) of the network's input.
        feature_sizes: (height, width) of each level.
        anchor_sizes: Of each level, the square roots of its anchors' areas, in pixels.
        num_candidates: Of each level go on to suppression, in training and in inference.
        num_proposals: Of an image are given, in training and in inference.
        nms_threshold: Of the suppression, per level.
        low, high: Overlap below which an anchor is background, and from which on it is a positive.
        num_samples, positive_fraction: The sample of an image, and the largest share of positives in it.
        beta: Of the smooth L1 loss.

    Features: `"objectness_logits"` [b, anchors] and `"anchor_deltas"` [b, anchors, 4], float32, finest level first.
    """

    loss_names = ("rpn_objectness_loss", "rpn_box_loss")

    def __init__(
        self,
        image_size,
        feature_sizes,
        anchor_sizes=FPN_SIZES,
        num_candidates=(2000, 1000),
        num_proposals=(2000, 1000),
        nms_threshold=0.7,
        low=0.3,
        high=0.7,
        num_samples=256,
        positive_fraction=0.5,
        beta=1 / 9,
        **options,
    ):
        super().__init__(**options)
        self.image_size = tuple(image_size)
        self.feature_sizes = [tuple(size) for size in feature_sizes]
        self.anchor_sizes = [tuple(sizes) for sizes in anchor_sizes]
        self.num_candidates = tuple(num_candidates)
        self.num_proposals = tuple(num_proposals)
        self.nms_threshold = nms_threshold
        self.low = low
        self.high = high
        self.num_samples = num_samples
        self.positive_fraction = positive_fraction
        self.beta = beta
        self._anchors = anchors_xyxy(self.image_size, self.feature_sizes, self.anchor_sizes)
        self._seed_generator = keras.random.SeedGenerator(name=f"{self.name}_sampling")
        self.built = True

    def losses(self, features, targets):
        """Section 3.1.2: cross-entropy of the objectness and smooth L1, both over all anchors drawn in the batch."""
        boxes, labels, crowd = read_targets(targets)
        anchors = ops.concatenate(self._anchors)
        matches = match(boxes, labels, anchors, self.low, self.high, allow_low_quality=True, crowd=crowd)
        place, drawn = sample_balanced(matches, self.num_samples, self.positive_fraction, seed=self._seed_generator)
        matches = ops.take_along_axis(matches, place, axis=1)
        logits = ops.take_along_axis(features["objectness_logits"], place, axis=1)
        deltas = ops.take_along_axis(features["anchor_deltas"], place[..., None], axis=1)
        matched = ops.take_along_axis(boxes, ops.maximum(matches, 0)[..., None], axis=1)

        counted = ops.cast(drawn, "float32")
        number = ops.maximum(ops.sum(counted), 1.0)
        positive = (matches > BACKGROUND) & drawn
        entropy = ops.softplus(ops.where(positive, -logits, logits))
        errors = smooth_l1_loss(encode_deltas(matched, ops.take(anchors, place, axis=0)), deltas, self.beta)
        return {
            "rpn_objectness_loss": ops.sum(entropy * counted) / number,
            "rpn_box_loss": ops.sum(ops.where(positive[..., None], errors, 0.0)) / number,
        }

    def propose(self, features, training=False, image_size=None):
        """Boxes [b, n, 4] by falling objectness, cut to `image_size` ([b, 2] or a pair), padded with zeros.

        No gradient flows through them.
        """
        num_candidates, num_proposals = (
            numbers[0 if training else 1] for numbers in (self.num_candidates, self.num_proposals)
        )
        image_size = self.image_size if image_size is None else image_size
        levels = zip(*self._candidates(features, num_candidates, image_size), strict=True)
        boxes, logits = (ops.stack(level, axis=1) for level in levels)
        keep, _ = nms(boxes, logits, self.nms_threshold, min(num_proposals, boxes.shape[2]))
        place = ops.maximum(keep, 0)
        logits = ops.where(keep >= 0, ops.take_along_axis(logits, place, axis=2), -float("inf"))
        boxes = ops.take_along_axis(boxes, place[..., None], axis=2)
        total = boxes.shape[1] * boxes.shape[2]
        best, place = ops.top_k(ops.reshape(logits, (-1, total)), k=min(num_proposals, total))
        boxes = ops.take_along_axis(ops.reshape(boxes, (-1, total, 4)), place[..., None], axis=1)
        return ops.where((best > -float("inf"))[..., None], boxes, 0.0)

    def _candidates(self, features, number, image_size):
        """Boxes and logits of each level's best anchors, as many of each level, padded with the logit −inf."""
        logits, deltas = (ops.stop_gradient(features[name]) for name in ("objectness_logits", "anchor_deltas"))
        number = min(number, max(len(anchors) for anchors in self._anchors))
        start = 0
        for anchors in self._anchors:
            end = start + len(anchors)
            best, place = ops.top_k(logits[:, start:end], k=min(number, len(anchors)))
            moves = ops.take_along_axis(deltas[:, start:end], place[..., None], axis=1)
            boxes = clip_xyxy(decode_deltas(moves, ops.take(anchors, place, axis=0)), image_size)
            best = ops.where(has_sides(boxes, SMALLEST_SIDE), best, -float("inf"))
            padding = (0, max(0, number - len(anchors)))
            yield (
                ops.pad(boxes, [(0, 0), padding, (0, 0)]),
                ops.pad(best, [(0, 0), padding], constant_values=-float("inf")),
            )
            start = end

    def get_config(self):
        return super().get_config() | {
            "image_size": self.image_size,
            "feature_sizes": self.feature_sizes,
            "anchor_sizes": self.anchor_sizes,
            "num_candidates": self.num_candidates,
            "num_proposals": self.num_proposals,
            "nms_threshold": self.nms_threshold,
            "low": self.low,
            "high": self.high,
            "num_samples": self.num_samples,
            "positive_fraction": self.positive_fraction,
            "beta": self.beta,
        }


@keras.saving.register_keras_serializable("kvision")
class FasterRCNNHead(Assembly):
    """Trains and applies a `BoxBranch` on the network's own proposals.

    Args:
        proposals: A `RegionProposals`.
        box_branch: A `BoxBranch`.

    Features: those of the two parts.
    """

    parts = ("proposals", "box_branch")
    loss_names = (*RegionProposals.loss_names, "classification_loss", "box_loss")

    def __init__(self, proposals, box_branch, **options):
        super().__init__(**options)
        self.proposals = proposals
        self.box_branch = box_branch
        self.built = True

    @property
    def classes(self):
        return self.box_branch.classes

    def losses(self, features, targets, training=None):
        """`{name: scalar}`; proposals are cut to the targets' `image_size`, if it is there."""
        return self._losses_and_sample(features, targets, training)[0]

    def _losses_and_sample(self, features, targets, training):
        losses = self.proposals.losses(features, targets)
        proposals = self.proposals.propose(features, training, targets.get("image_size"))
        sample = self.box_branch.sample(proposals, targets)
        answer = self.box_branch.respond(features, sample.boxes, training)
        return losses | self.box_branch.losses(*answer, sample, targets), sample

    def detect(self, features):
        """See `BoxBranch.detect`."""
        proposals = self.proposals.propose(features)
        logits, deltas = self.box_branch.respond(features, proposals)
        return self.box_branch.detect(ops.softmax(logits), deltas, proposals)
