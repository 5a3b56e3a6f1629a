"""RetinaNet: Lin, Goyal, Girshick, He, Dollár, "Focal Loss for Dense Object Detection" (2017).

Equals torchvision's `retinanet_resnet50_fpn`, fed the same weights. Two choices are torchvision's, not the paper's: P6
is computed from P5 (the paper: from C5), and boxes are trained by the absolute error (the paper: smooth L1).

How it trains (section 4.1): SGD with momentum 0.9 and weight decay 1e-4, 16 images a batch, 90k steps at 0.01, divided
by 10 at 60k and 80k.
"""

import keras

from kvision.applications.building import image_input
from kvision.applications.classification import imagenet
from kvision.applications.classification.resnet import ResNet50
from kvision.applications.detection import coco
from kvision.detection.anchors import Anchors, level_strides
from kvision.detection.assigner import Assigner
from kvision.detection.backbone import (
    backbone_maps,
    backbone_preprocessing,
    choose_norms,
    feature_pyramid,
    sizes_of,
)
from kvision.detection.dense_head import PRIOR_BIAS, DenseDecoder, DenseHead, flatten_outputs, shared_convolutions
from kvision.detection.detector import Detector
from kvision.ops import RETINANET_SIZES
from kvision.ops.anchors import RATIOS

LEVELS = ("C3", "C4", "C5")

# Of the form that `weights="coco"` builds.
WEIGHTS = {
    "coco": coco.torchvision_weights(
        "retinanet_resnet50_fpn_coco-eeacb38b.pth",
        36.4,
        {"head.classification_head.cls_logits": 1},
        background=False,
    )
}

PROOF = "torchvision retinanet_resnet50_fpn, fed the same weights"


def RetinaNet(
    *,
    input_shape=(512, 512, 3),
    classes=None,
    backbone=None,
    weights=None,
    backbone_norm="auto",
    norm="auto",
    initializer="auto",
    channels=256,
    anchor_sizes=RETINANET_SIZES,
    anchor_ratios=RATIOS,
    anchor_strides="auto",
    matching_iou_threshold=0.5,
    background_iou_threshold=0.4,
    focal_alpha=0.25,
    focal_gamma=2.0,
    score_threshold=0.05,
    num_candidates=1000,
    nms_threshold=0.5,
    num_detections=300,
    preprocess="auto",
    name="retinanet",
):
    """Build a RetinaNet.

    Args:
        input_shape: (height, width, channels), at least 32 pixels a side.
        classes: Number of classes, without a background. None is COCO's 80.
        backbone: A `keras.Model` from images of `input_shape` to `{"C3": map, "C4": map, "C5": map}`, such as
            `ResNet50(include_top=False, features=("C3", "C4", "C5"), weights="imagenet", norm="frozen_batch", …)` or
            `cut(model, {...})`. None is a ResNet-50 of `backbone_norm`.
        weights: None; or `"coco"` (see `WEIGHTS`), for the arguments of the network as they are by default. Their 80
            labels are those of `coco.class_names()`, which the detector then carries; with another number of `classes`
            the last layer starts fresh, and says so. Or the path of weights of the whole detector: a file of Keras says
            which norms it was trained with, and other classes start a fresh last layer; for torchvision's, pass
            `anchor_strides="torchvision"`, and see `kvision.weights.set_epsilon`.
        backbone_norm: Of the backbone built here: `"frozen_batch"`, `"group"`, `"batch"`, `"sync_batch"` or None.
            `"auto"`: what the file of `weights` was trained with, batch norm frozen; else group norm, which trains from
            scratch. Frozen without weights is for loading some afterwards: `fit` refuses it before.
        norm: Of the pyramid and the heads: `"group"`, `"batch"`, `"sync_batch"` or None. `"auto"`: that in the file of
            `weights`, None with other weights, a `backbone` or a frozen norm, else group norm. A batch norm in the
            heads is one for each level.
        initializer: Of the pyramid's kernels; `"auto"`: `"lecun_uniform"` (Caffe2's, torchvision's) where `norm="auto"`
            is None, else `"he"` (He 2018, "Rethinking ImageNet Pre-training").
        channels: Of the pyramid and the heads.
        anchor_sizes: For each of P3 to P7, the square roots of the anchors' areas in pixels.
        anchor_ratios: Height over width.
        anchor_strides: `"level"`: 2^k for level k at any image size; `"torchvision"`: pixels // cells, centres half a
            stride further up and left, to which torchvision's weights are trained; `"auto"`: the latter with
            `weights="coco"`. See `kvision.detection.anchors.Anchors`.
        matching_iou_threshold: Overlap with a box from which on an anchor is positive.
        background_iou_threshold: Overlap with all boxes below which it is background; ignored in between.
        focal_alpha, focal_gamma: Of the focal loss: weight of the positives in [0, 1], and exponent of at least 0.
        score_threshold, num_candidates: Of each level go on to suppression at most `num_candidates` candidates with a
            score above the threshold.
        nms_threshold: Overlap in [0, 1] above which the lower score of the same class gives way.
        num_detections: Given for an image, at most, and at fixed size.
        preprocess: A function applied to the images, RGB 0…255, before the backbone, or None. `"auto"`: what the
            backbone carries as `preprocessing`; ImageNet's for the one built here.
        name: Of the model.

    Returns:
        A `kvision.detection.Detector`. Its losses are `classification_loss` and `box_loss`.

    Raises:
        ValueError: on a wrong shape, an unknown norm, a backbone without the levels C3 to C5 or with a level of another
            stride, thresholds out of order.

    From scratch, a batch of few images needs its gradient clipped, or a warm-up: without either the loss rises first.

    ```python
    detector = kvision.applications.RetinaNet(input_shape=(256, 256, 3), classes=3)
    detector.compile(keras.optimizers.SGD(0.01, momentum=0.9, global_clipnorm=1.0))
    ```
    """
    classes = coco.num_classes("RetinaNet", classes, weights, WEIGHTS)
    images = image_input("RetinaNet", input_shape, stride=32, classes=classes)
    norms = choose_norms(
        "RetinaNet", backbone=backbone, weights=weights, backbone_norm=backbone_norm, norm=norm, initializer=initializer
    )
    strides, _ = coco.torchvision_geometry(weights, WEIGHTS, anchor_strides)
    changed = coco.changed(
        backbone=(backbone, (None,)),
        backbone_norm=(backbone_norm, ("auto", "frozen_batch")),
        norm=(norm, ("auto", None)),
        channels=(channels, (256,)),
        anchor_sizes=(anchor_sizes, (RETINANET_SIZES,)),
        anchor_ratios=(anchor_ratios, (RATIOS,)),
    )
    preprocess = backbone_preprocessing("RetinaNet", backbone, preprocess, imagenet.preprocess_input)
    if backbone is None:
        backbone = ResNet50(include_top=False, input_shape=input_shape, norm=norms.backbone, features=LEVELS)
    maps = backbone_maps("RetinaNet", backbone, LEVELS, images, preprocess)
    levels = feature_pyramid(maps, channels, "conv_output", norms)
    anchors = Anchors(level_strides(levels) if strides == "level" else strides, anchor_sizes, anchor_ratios)
    trunk = keras.Model(
        images, _dense_outputs(levels, anchors.num_per_cell, classes, norms.inner), name=f"{name}_trunk"
    )
    head = DenseHead(
        classes,
        input_shape[:2],
        sizes_of(levels),
        anchors,
        Assigner(matching_iou_threshold, background_iou_threshold, low_quality_matches=True, name="assigner"),
        DenseDecoder(score_threshold, num_candidates, nms_threshold, num_detections, name="decoder"),
        focal_alpha=focal_alpha,
        focal_gamma=focal_gamma,
        name=f"{name}_head",
    )
    return coco.finish(Detector(trunk, head, name=name), weights, WEIGHTS, changed)


def _dense_outputs(levels, num_per_cell, classes, norm):
    """Section 4, "Classification Subnet" and "Box Regression Subnet": four 3x3 convolutions and the last, shared."""
    heads = {
        "class_logits": ("head.classification_head", "cls_logits", classes, PRIOR_BIAS),
        "box_deltas": ("head.regression_head", "bbox_reg", 4, 0.0),
    }
    features = {}
    for output, (head, layer, size, bias) in heads.items():
        last = {output: (f"{head}.{layer}", num_per_cell * size, 3, bias)}
        maps = shared_convolutions(levels, depth=4, last=last, norm=norm, name=f"{head}.conv")
        features[output] = flatten_outputs(maps[output], size)
    return features
