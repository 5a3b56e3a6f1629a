"""RetinaNet: Lin, Goyal, Girshick, He, Dollár, "Focal Loss for Dense Object Detection" (2017).

Equals torchvision's `retinanet_resnet50_fpn`, fed the same weights. Two choices are torchvision's, not the paper's: P6
is computed from P5 (the paper: from C5), and boxes are trained by the absolute error (the paper: smooth L1).

How it trains (section 4.1): SGD with momentum 0.9 and weight decay 1e-4, 16 images a batch, 90k steps at 0.01, divided
by 10 at 60k and 80k.
"""

import math

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
from kvision.detection.detector import Detector
from kvision.layers.conventions import conventions
from kvision.losses import sigmoid_focal_loss, smooth_l1_loss
from kvision.ops import (
    BACKGROUND,
    IGNORED,
    RETINANET_SIZES,
    anchors_xyxy,
    clip_xyxy,
    decode_deltas,
    encode_deltas,
    match,
    select_detections,
)

LEVELS = ("C3", "C4", "C5")
ANCHORS_A_CELL = 9  # section 4, "Anchors": three sizes and three ratios

# Section 4.1: the bias that lets every anchor start at a foreground probability of 0.01.
PRIOR = 0.01

# Of the detector as it is built by default.
WEIGHTS = {
    "coco": coco.torchvision_weights(
        "retinanet_resnet50_fpn_coco-eeacb38b.pth", 36.4, ("head.classification_head.cls_logits",)
    )
}

PROOF = "torchvision retinanet_resnet50_fpn, fed the same weights"


def RetinaNet(
    *,
    input_shape=(512, 512, 3),
    classes=80,
    backbone=None,
    weights=None,
    norm="frozen_batch",
    channels=256,
    preprocess=imagenet.preprocess_input,
    name="retinanet",
):
    """Build a RetinaNet.

    Args:
        input_shape: (height, width, channels), at least 128 pixels a side for P7 to have one cell of stride 128.
        classes: Number of classes, without a background.
        backbone: A `keras.Model` from images of `input_shape` to `{"C3": map, "C4": map, "C5": map}`, such as
            `ResNet50(include_top=False, features=("C3", "C4", "C5"), weights="imagenet", norm="frozen_batch", …)` or
            `cut(model, {...})`. None is a fresh ResNet-50 with `norm`.
        weights: None; or `"coco"` (see `WEIGHTS`), for `backbone`, `norm` and `channels` as they are by default. These
            have 91 classes: with `classes=91` the label is the category's id, label 0 is nothing, and the names are
            `coco.class_names(91)`, one place further than those of `FasterRCNN`; with another number the last layer
            starts fresh. Or the path of weights of the whole detector; see `kvision.weights.set_epsilon`.
        norm: Of the backbone built here. `"group"` and `"sync_batch"`, for training from scratch, reach the pyramid
            and the heads as well. With these and None the pyramid starts by He's law.
        channels: Of the pyramid and the heads.
        preprocess: A function applied to the images, RGB 0…255, before the backbone; None for a backbone that brings
            its own.
        name: Of the model.

    Returns:
        A `kvision.detection.Detector`. Its losses are `classification_loss` and `box_loss`; `predict` gives 300
        detections an image, those of score 0.05 and more.

    Raises:
        ValueError: on a wrong shape, an unknown norm, or a backbone without the levels C3 to C5.

    ```python
    detector = kvision.applications.RetinaNet(input_shape=(256, 256, 3), classes=3, norm="group")
    detector.compile(keras.optimizers.SGD(0.01, momentum=0.9))
    ```
    """
    images = image_input("RetinaNet", input_shape, stride=32, classes=classes)
    by_default = backbone is None and (norm, channels) == ("frozen_batch", 256)
    if backbone is None:
        backbone = ResNet50(include_top=False, input_shape=input_shape, norm=norm, features=LEVELS)
    maps = pyramid_backbone("RetinaNet", backbone, LEVELS, images, preprocess)
    inner = inner_norm(norm)
    levels = feature_pyramid(channels, "conv_output", norm)(maps)

    head = "head.classification_head", "cls_logits", classes, -math.log((1 - PRIOR) / PRIOR)
    classify = _dense_head(channels, inner, *head)
    regress = _dense_head(channels, inner, "head.regression_head", "bbox_reg", 4, 0.0)
    features = {
        "class_logits": _rows(levels, classify, classes),
        "box_deltas": _rows(levels, regress, 4),
    }
    trunk = keras.Model(images, features, name=f"{name}_trunk")
    sizes = [tuple(level.shape[1:3]) for level in levels.values()]
    detector = Detector(trunk, RetinaNetHead(classes, input_shape[:2], sizes, name=f"{name}_head"), name=name)
    return finish_detector(detector, weights, WEIGHTS if by_default else None)


def _dense_head(channels, norm, name, last, outputs, prior):
    """Section 4, "Classification Subnet" and "Box Regression Subnet": four 3x3 convolutions and the answer, shared."""
    bound = conventions(norm=norm, initializer="normal_0.01")
    conv, norm, act = bound.conv, bound.norm, bound.activation
    x = inputs = keras.Input((None, None, channels))
    for index in range(4):
        x = norm(name=f"{name}.conv.{index}.1")(conv(channels, 3, name=f"{name}.conv.{index}.0")(x))
        x = act(name=f"{name}.conv.{index}.relu")(x)
    bias = keras.initializers.Constant(prior)
    outputs *= ANCHORS_A_CELL
    x = conv(outputs, 3, use_bias=True, bias_initializer=bias, name=f"{name}.{last}")(x)
    return keras.Model(inputs, x, name=name)


def _rows(levels, head, size):
    """What one head says of the anchors of all levels, [b, anchors, size], float32."""
    rows = [keras.layers.Reshape((-1, size))(head(level)) for level in levels.values()]
    return ops.cast(ops.concatenate(rows, axis=1), "float32")


@keras.saving.register_keras_serializable("kvision")
class RetinaNetHead(keras.layers.Layer):
    """RetinaNet's losses and its decoding (section 4, "Inference" and "Training"). It has no weights.

    Args:
        classes: Number of classes, without a background.
        image_size: (height, width) of the network's input.
        feature_sizes: (height, width) of P3…P7.
        score_threshold, num_candidates: Of each level go on to suppression at most `num_candidates` of the decisions
            with a score above the threshold.
        iou_threshold: Of the suppression, per class.
        num_detections: Given at most, and at fixed size, for an image.

    Features: `"class_logits"` [b, anchors, classes] and `"box_deltas"` [b, anchors, 4], float32, finest level first.
    """

    loss_names = ("classification_loss", "box_loss")

    def __init__(
        self,
        classes,
        image_size,
        feature_sizes,
        score_threshold=0.05,
        num_candidates=1000,
        iou_threshold=0.5,
        num_detections=300,
        **options,
    ):
        super().__init__(**options)
        self.classes = classes
        self.image_size = tuple(image_size)
        self.feature_sizes = [tuple(size) for size in feature_sizes]
        self.score_threshold = score_threshold
        self.num_candidates = num_candidates
        self.iou_threshold = iou_threshold
        self.num_detections = num_detections
        self._anchors = anchors_xyxy(self.image_size, self.feature_sizes, RETINANET_SIZES)

    def losses(self, features, targets, training=None):
        """`{name: scalar}`: focal loss and absolute error, each over the image's positive anchors, at least one."""
        logits, deltas = features["class_logits"], features["box_deltas"]
        boxes, labels = ops.cast(targets["boxes"], "float32"), ops.cast(targets["labels"], "int32")
        anchors = ops.concatenate(self._anchors)
        matches = match(boxes, labels, anchors, low=0.4, high=0.5, allow_low_quality=True, crowd=targets.get("crowd"))
        positive = ops.cast(matches > BACKGROUND, "float32")
        num_positives = ops.maximum(ops.sum(positive, axis=1), 1.0)

        place = ops.maximum(matches, 0)
        label = ops.where(matches > BACKGROUND, ops.take_along_axis(labels, place, axis=1), -1)
        wanted = ops.one_hot(label, self.classes, dtype="float32")  # background is a row of zeros
        counted = ops.cast(matches != IGNORED, "float32")
        focal = ops.sum(sigmoid_focal_loss(wanted, logits), axis=-1) * counted

        matched = ops.take_along_axis(boxes, place[..., None], axis=1)
        errors = smooth_l1_loss(encode_deltas(matched, anchors), deltas, beta=0)
        errors = ops.where(positive[..., None] > 0, errors, 0.0)
        return {
            "classification_loss": ops.mean(ops.sum(focal, axis=1) / num_positives),
            "box_loss": ops.mean(ops.sum(errors, axis=(1, 2)) / num_positives),
        }

    def detect(self, features):
        """Decoded detections of fixed size: boxes xyxy in pixels, scores, labels; padding is 0, 0 and −1."""
        boxes, scores, labels = (
            ops.concatenate(parts, axis=1) for parts in zip(*self._candidates(features), strict=True)
        )
        return select_detections(boxes, scores, labels, self.iou_threshold, self.num_detections)

    def _candidates(self, features):
        """Boxes, scores (−inf below the threshold) and labels of each level's best decisions."""
        start = 0
        for anchors in self._anchors:
            end = start + len(anchors)
            logits, deltas = features["class_logits"][:, start:end], features["box_deltas"][:, start:end]
            start = end
            decisions = ops.reshape(logits, (-1, len(anchors) * self.classes))
            best, place = ops.top_k(decisions, k=min(self.num_candidates, decisions.shape[1]))
            scores = ops.sigmoid(best)
            anchor = place // self.classes
            deltas = ops.take_along_axis(deltas, anchor[..., None], axis=1)
            boxes = decode_deltas(deltas, ops.take(anchors, anchor, axis=0))
            scores = ops.where(scores > self.score_threshold, scores, -float("inf"))
            yield clip_xyxy(boxes, self.image_size), scores, ops.cast(place % self.classes, "int32")

    def get_config(self):
        return super().get_config() | {
            "classes": self.classes,
            "image_size": self.image_size,
            "feature_sizes": self.feature_sizes,
            "score_threshold": self.score_threshold,
            "num_candidates": self.num_candidates,
            "iou_threshold": self.iou_threshold,
            "num_detections": self.num_detections,
        }
