"""Fast R-CNN: Girshick, "Fast R-CNN" (2015).

What the later R-CNNs take over stands here: the sample of regions that is trained on, the head that names a region and
moves its box, its losses and its decoding. Class 0 of the head is the background, as in the author's code and in
torchvision; the labels of targets and detections count no background.

How it trains (section 2.3): SGD with momentum 0.9 and weight decay 5e-4, 2 images a batch with 64 regions each, 30k
steps at 0.001 and 10k at 0.0001. The 2,000 regions of an image came from selective search. Deviations: the dense layers
start fresh by He's law (the paper: with VGG's ImageNet weights), and box targets are scaled by 10 and 5 as in the
author's code (the paper: to unit variance).
"""

import typing

import keras
from keras import ops

from kvision import weights as weight_files
from kvision.applications.building import image_input, load_weights, pyramid_backbone
from kvision.applications.classification import imagenet
from kvision.applications.classification.resnet import ResNet50
from kvision.applications.classification.vgg import VGG16
from kvision.detection.detector import Detector
from kvision.errors import choose
from kvision.layers import RoIPooling
from kvision.layers.conventions import conventions
from kvision.losses import smooth_l1_loss
from kvision.ops import (
    BACKGROUND,
    IGNORED,
    area_xyxy,
    clip_xyxy,
    decode_deltas,
    encode_deltas,
    match,
    sample_balanced,
    select_detections,
)

# One over the deviations by which the author's code scales the targets: 0.1 for the centre, 0.2 for the sides.
DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)

SMALLEST_SIDE = 1e-2  # of a detection, in pixels

PROOF = "torchvision's box head, losses and decoding, by tests/applications/detection/test_detector_parity.py"


def FastRCNN(
    *,
    input_shape=(512, 512, 3),
    classes=20,
    backbone=None,
    weights=None,
    norm="frozen_batch",
    head="fc",
    units=4096,
    dropout_rate=0.5,
    num_samples=64,
    iou_threshold=0.5,
    background_threshold=0.1,
    score_threshold=0.05,
    nms_threshold=0.3,
    num_detections=100,
    preprocess=imagenet.preprocess_input,
    name="fast_rcnn",
):
    """Build a Fast R-CNN, which takes `x = {"images": [b, h, w, 3], "proposals": [b, m, 4]}`.

    Proposals are boxes xyxy in pixels of the padded picture, m fixed, padded with rows of zeros.

    Args:
        input_shape: (height, width, channels), at least 32 pixels a side.
        classes: Number of classes, without a background; the paper's VOC has 20.
        backbone: A `keras.Model` from images to a dict of maps with `"C4"` and, for `head="conv5"`, `"C5"`. None is a
            fresh VGG-16 without norm, or for `head="conv5"` a ResNet-50.
        weights: None, or the path of weights of the whole detector.
        norm: Of a ResNet-50 built here.
        head: `"fc"`: two dense layers on 7x7 bins (VGG). `"conv5"`: what lies between the backbone's C4 and C5, on
            14x14 bins, and the mean over the places (He 2015, "Deep Residual Learning", appendix A).
        units: Of the dense layers.
        dropout_rate: Of the dense layers, in [0, 1).
        num_samples: Regions of an image that a step trains on, at most a quarter of them positives.
        iou_threshold: Overlap with a box from which on a region is a positive.
        background_threshold: Overlap with some box below which a region is not used as background, in an image that has
            boxes; 0 uses all.
        score_threshold, nms_threshold, num_detections: Of the detections.
        preprocess: A function applied to the images, RGB 0…255, before the backbone, or None.
        name: Of the model.

    Returns:
        A `kvision.detection.Detector` with the losses `classification_loss` and `box_loss`.

    Raises:
        ValueError: on a wrong shape, an unknown head or norm, or a backbone without the levels needed.

    ```python
    detector = kvision.applications.FastRCNN(input_shape=(256, 256, 3), classes=3)
    detector.compile(keras.optimizers.SGD(0.001, momentum=0.9))
    detector.fit({"images": images, "proposals": proposals}, targets)
    ```
    """
    images = image_input("FastRCNN", input_shape, stride=32, classes=classes)
    bins, levels = choose("head of FastRCNN", {"fc": (7, ("C4",)), "conv5": (14, ("C4", "C5"))}, head)
    if backbone is None:
        shared = {"include_top": False, "input_shape": input_shape, "features": levels}
        backbone = VGG16(**shared) if head == "fc" else ResNet50(norm=norm, **shared)
    if head == "fc":
        maps = pyramid_backbone("FastRCNN", backbone, levels, images, preprocess)
        shape = (bins, bins, maps["C4"].shape[-1])
        box_head = dense_box_head(shape, classes, units=units, dropout_rate=dropout_rate)
    else:
        lower, stage = split_at_c4("FastRCNN", backbone, bins)
        maps = pyramid_backbone("FastRCNN", lower, ("C4",), images, preprocess)
        box_head = stage_box_head(stage, classes)
    branch = BoxBranch(
        classes,
        input_shape[:2],
        ("C4",),
        RoIPooling(bins, spatial_scale=1 / 16),
        box_head,
        iou_threshold=iou_threshold,
        background_threshold=background_threshold,
        num_samples=num_samples,
        beta=1.0,
        score_threshold=score_threshold,
        nms_threshold=nms_threshold,
        num_detections=num_detections,
        name="box_branch",
    )
    trunk = keras.Model(images, {"C4": maps["C4"]}, name=f"{name}_trunk")
    detector = Detector(trunk, FastRCNNHead(branch, name=f"{name}_head"), name=name)
    weight_files.remember(detector)
    return load_weights(detector, weights)


def dense_box_head(shape, classes, *, units=1024, norm=None, dropout_rate=0.0, shared=False, prefix="roi_heads"):
    """A head of two dense layers or, with a norm, of four convolutions and one dense layer, and its two answers.

    The second is the "4conv1fc" of He 2018, "Rethinking ImageNet Pre-training", section 3.

    Args:
        shape: (bins, bins, channels) of a region.
        classes: Number of classes, without the background.
        units: Of the dense layers.
        norm: `"group"`, `"sync_batch"` or None.
        dropout_rate: After each dense layer, in [0, 1).
        shared: One box for all classes instead of one a class.
        prefix: Of the layers' names.

    Returns:
        A `keras.Model` from [k, bins, bins, channels] to `{"class_logits", "box_deltas"}`.
    """
    bound = conventions(norm=norm, initializer="he")
    conv, dense, normalize, act = bound.conv, bound.dense, bound.norm, bound.activation
    x = inputs = keras.Input(shape)
    name = f"{prefix}.box_head"
    hidden = ("fc6", "fc7")
    if norm is not None:
        for index in range(4):
            x = normalize(name=f"{name}.{index}.1")(conv(shape[-1], 3, name=f"{name}.{index}.0")(x))
            x = act(name=f"{name}.{index}.2")(x)
        hidden = ("5",)
    x = keras.layers.Flatten(name=f"{name}.flatten")(x)
    for layer in hidden:
        x = act(name=f"{name}.{layer}.relu")(dense(units, name=f"{name}.{layer}")(x))
        if dropout_rate:
            x = keras.layers.Dropout(dropout_rate, name=f"{name}.{layer}.dropout")(x)
    return keras.Model(inputs, _predict(x, classes, shared, prefix), name=name)


def stage_box_head(stage, classes, *, shared=False, prefix="roi_heads"):
    """A head of a backbone's last stage, the mean over its places, and the two answers (He 2015, appendix A)."""
    x = keras.layers.GlobalAveragePooling2D(name=f"{prefix}.avgpool")(stage.outputs[0])
    return keras.Model(stage.inputs[0], _predict(x, classes, shared, prefix), name=f"{prefix}.box_head")


def _predict(x, classes, shared, prefix):
    """Section 2.1, "two sibling output layers", initialised as section 2.3 says."""

    name = f"{prefix}.box_predictor"

    def answer(units, deviation, name):
        start = keras.initializers.RandomNormal(stddev=deviation)
        return keras.layers.Dense(units, kernel_initializer=start, dtype="float32", name=name)(x)

    return {
        "class_logits": answer(classes + 1, 0.01, f"{name}.cls_score"),
        "box_deltas": answer(4 if shared else 4 * (classes + 1), 0.001, f"{name}.bbox_pred"),
    }


def split_at_c4(family, backbone, bins):
    """A backbone up to C4, and a copy of what lies between C4 and C5, weights included, for `bins` x `bins` regions."""
    returned = getattr(backbone, "output", None)
    if not isinstance(returned, dict) or not {"C4", "C5"} <= set(returned):
        got = sorted(returned) if isinstance(returned, dict) else type(backbone).__name__
        raise ValueError(
            f"{family} needs a backbone that returns C4 and C5, of which the last stage becomes the head: got {got}. "
            'Build ours with include_top=False, features=("C4", "C5").'
        )
    lower = keras.Model(backbone.inputs[0], {"C4": returned["C4"]}, name=backbone.name)
    stage = keras.Model(returned["C4"], returned["C5"])
    copy = keras.models.clone_model(stage, input_tensors=keras.Input((bins, bins, returned["C4"].shape[-1])))
    for ours, theirs in zip(copy.weights, stage.weights, strict=True):
        ours.assign(theirs)
    return lower, copy


class Sample(typing.NamedTuple):
    """Regions that a step trains on, of fixed number.

    boxes [b, s, 4]; matches [b, s]: the index of a target, or below 0; drawn [b, s]: whether the row counts.
    """

    boxes: typing.Any
    matches: typing.Any
    drawn: typing.Any


class Assembly(keras.layers.Layer):
    """A layer out of parts, given at construction and saved with it.

    Subclasses name them in `parts`.
    """

    parts = ()

    def get_config(self):
        parts = {part: keras.saving.serialize_keras_object(getattr(self, part)) for part in self.parts}
        return super().get_config() | parts

    @classmethod
    def from_config(cls, config):
        return cls(**config | {part: keras.saving.deserialize_keras_object(config[part]) for part in cls.parts})


@keras.saving.register_keras_serializable("kvision")
class BoxBranch(Assembly):
    """Names regions and moves their boxes (Fast R-CNN, section 2).

    Args:
        classes: Number of classes, without the background.
        image_size: (height, width) of the network's input.
        levels: Names of the features that regions are read from: one map, or the levels of a pyramid.
        pooling: A `RoIPooling` or `RoIAlign` layer.
        box_head: A `keras.Model` from the bins of a region to `{"class_logits": [k, 1 + classes], "box_deltas":
            [k, 4 * (1 + classes)] or [k, 4]}`, the background first.
        iou_threshold: Overlap from which on a region matches a target; below, it is background.
        background_threshold: Overlap below which a region is no background either, in images with targets.
        num_samples, positive_fraction: The sample of an image, and the largest share of positives in it.
        delta_weights: See `kvision.ops.encode_deltas`.
        beta: Of the smooth L1 loss.
        score_threshold, num_candidates: At most `num_candidates` decisions with a score above the threshold go on to
            suppression.
        nms_threshold: Of the suppression, per class.
        num_detections: Given at most, and at fixed size, for an image.
    """

    parts = ("pooling", "box_head")

    def __init__(
        self,
        classes,
        image_size,
        levels,
        pooling,
        box_head,
        iou_threshold=0.5,
        background_threshold=0.0,
        num_samples=512,
        positive_fraction=0.25,
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
        self.iou_threshold = iou_threshold
        self.background_threshold = background_threshold
        self.num_samples = num_samples
        self.positive_fraction = positive_fraction
        self.delta_weights = tuple(delta_weights)
        self.beta = beta
        self.score_threshold = score_threshold
        self.num_candidates = num_candidates
        self.nms_threshold = nms_threshold
        self.num_detections = num_detections
        self._seed_generator = keras.random.SeedGenerator(name=f"{self.name}_sampling")
        self.built = True

    def sample(self, proposals, targets):
        """Positives and background out of the proposals and the targets' own boxes; a box without area is padding."""
        boxes, labels, crowd = read_targets(targets)
        real = labels >= 0 if crowd is None else (labels >= 0) & ~ops.cast(crowd, "bool")
        regions = ops.concatenate([proposals, ops.where(real[..., None], boxes, 0.0)], axis=1)
        matches = self.match(regions, targets)
        place, drawn = sample_balanced(matches, self.num_samples, self.positive_fraction, seed=self._seed_generator)
        regions = ops.take_along_axis(regions, place[..., None], axis=1)
        return Sample(regions, ops.take_along_axis(matches, place, axis=1), drawn)

    def match(self, regions, targets):
        """The target of each region, as `kvision.ops.match`; what has no area is ignored."""
        boxes, labels, crowd = read_targets(targets)
        matches = match(boxes, labels, regions, self.iou_threshold, self.iou_threshold, crowd=crowd)
        if self.background_threshold:
            low = self.background_threshold
            far = match(boxes, labels, regions, low, low) == BACKGROUND
            matches = ops.where(far & ops.any(labels >= 0, axis=1, keepdims=True), IGNORED, matches)
        return ops.where(area_xyxy(regions) > 0, matches, IGNORED)

    def respond(self, features, boxes, training=False):
        """What the head says of regions: logits [b, n, 1 + classes], and deltas [b, n, 1 + classes or 1, 4]."""
        answer = self.box_head(read_regions(self.pooling, features, self.levels, boxes), training=training)
        count = boxes.shape[1]
        deltas = answer["box_deltas"]
        return (
            ops.reshape(answer["class_logits"], (-1, count, self.classes + 1)),
            ops.reshape(deltas, (-1, count, deltas.shape[-1] // 4, 4)),
        )

    def losses(self, logits, deltas, sample, targets):
        """Section 2.3: cross-entropy and smooth L1, both over all rows drawn in the batch."""
        boxes, labels, _ = read_targets(targets)
        drawn = ops.cast(sample.drawn, "float32")
        number = ops.maximum(ops.sum(drawn), 1.0)
        positive = (sample.matches > BACKGROUND) & sample.drawn
        place = ops.maximum(sample.matches, 0)
        label = ops.where(positive, ops.take_along_axis(labels, place, axis=1) + 1, 0)
        label = ops.one_hot(label, self.classes + 1, dtype="float32")
        entropy = -ops.sum(label * ops.log_softmax(logits), axis=-1)

        matched = ops.take_along_axis(boxes, place[..., None], axis=1)
        wanted = encode_deltas(matched, sample.boxes, self.delta_weights)
        given = deltas[:, :, 0] if deltas.shape[2] == 1 else ops.einsum("bncd,bnc->bnd", deltas, label)
        errors = ops.where(positive[..., None], smooth_l1_loss(wanted, given, self.beta), 0.0)
        return {
            "classification_loss": ops.sum(entropy * drawn) / number,
            "box_loss": ops.sum(errors) / number,
        }

    def detect(self, scores, deltas, boxes):
        """Decoded detections of fixed size: boxes xyxy in pixels, scores, labels; padding is 0, 0 and −1."""
        decisions = scores[..., 1:]
        possible = (decisions > self.score_threshold) & (area_xyxy(boxes) > 0)[..., None]
        decisions = ops.reshape(ops.where(possible, decisions, -float("inf")), (-1, boxes.shape[1] * self.classes))
        best, place = ops.top_k(decisions, k=min(self.num_candidates, decisions.shape[1]))
        region, label = place // self.classes, ops.cast(place % self.classes, "int32")
        row = region if deltas.shape[2] == 1 else region * (self.classes + 1) + label + 1
        deltas = ops.reshape(deltas, (-1, boxes.shape[1] * deltas.shape[2], 4))
        deltas = ops.take_along_axis(deltas, row[..., None], axis=1)
        boxes = decode_deltas(deltas, ops.take_along_axis(boxes, region[..., None], axis=1), self.delta_weights)
        boxes = clip_xyxy(boxes, self.image_size)
        best = ops.where(has_sides(boxes, SMALLEST_SIDE), best, -float("inf"))
        return select_detections(boxes, best, label, self.nms_threshold, self.num_detections)

    def get_config(self):
        return super().get_config() | {
            "classes": self.classes,
            "image_size": self.image_size,
            "levels": self.levels,
            "iou_threshold": self.iou_threshold,
            "background_threshold": self.background_threshold,
            "num_samples": self.num_samples,
            "positive_fraction": self.positive_fraction,
            "delta_weights": self.delta_weights,
            "beta": self.beta,
            "score_threshold": self.score_threshold,
            "num_candidates": self.num_candidates,
            "nms_threshold": self.nms_threshold,
            "num_detections": self.num_detections,
        }


def read_targets(targets):
    """Boxes float32, labels int32, and crowd or None."""
    return ops.cast(targets["boxes"], "float32"), ops.cast(targets["labels"], "int32"), targets.get("crowd")


def read_regions(pooling, features, levels, boxes):
    """The bins of regions [b, n, 4] in a row, [b * n, bins, bins, channels]."""
    maps = {level: features[level] for level in levels}
    regions = pooling(maps if len(levels) > 1 else maps[levels[0]], boxes)
    return ops.reshape(regions, (-1, *regions.shape[2:]))


def has_sides(boxes, smallest):
    """Whether both sides of a box measure at least `smallest` pixels, [..., 4] → [...]."""
    return ops.all(boxes[..., 2:] - boxes[..., :2] >= smallest, axis=-1)


@keras.saving.register_keras_serializable("kvision")
class FastRCNNHead(Assembly):
    """Trains and applies a `BoxBranch` on proposals that come with the images.

    Args:
        box_branch: A `BoxBranch`.

    Features: the maps of the branch's `levels`, and `"proposals"` [b, m, 4].
    """

    parts = ("box_branch",)
    loss_names = ("classification_loss", "box_loss")

    def __init__(self, box_branch, **options):
        super().__init__(**options)
        self.box_branch = box_branch
        self.built = True

    @property
    def classes(self):
        return self.box_branch.classes

    def losses(self, features, targets, training=None):
        """`{name: scalar}`."""
        proposals = self._proposals(features, targets.get("image_size", self.box_branch.image_size))
        sample = self.box_branch.sample(proposals, targets)
        answer = self.box_branch.respond(features, sample.boxes, training)
        return self.box_branch.losses(*answer, sample, targets)

    def detect(self, features):
        """See `BoxBranch.detect`."""
        proposals = self._proposals(features, self.box_branch.image_size)
        logits, deltas = self.box_branch.respond(features, proposals)
        return self.box_branch.detect(ops.softmax(logits), deltas, proposals)

    @staticmethod
    def _proposals(features, image_size):
        return clip_xyxy(ops.stop_gradient(features["proposals"]), image_size)
