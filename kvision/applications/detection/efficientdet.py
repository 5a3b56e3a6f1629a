"""EfficientDet: Tan, Pang, Le, "EfficientDet: Scalable and Efficient Object Detection" (2020).

Equals effdet's `tf_efficientdet_d0…d7x`, the authors' networks in torch, fed the same weights. Where the authors' code
and the paper part: anchors follow the strides of the levels, 2^k, at any size (the code: pixels / cells, the same at
all published sizes); a box that no anchor touches is left out (the code gives it the first anchor of all); every
component of a box is trained (the code leaves out those whose target is 0: `skip_zero_targets`); suppression
is plain, as in effdet (the paper's APs: soft-NMS).

How it trains (section 5.1 and the authors' code): SGD with momentum 0.9 and weight decay 4e-5, 128 images a batch, 300
epochs, rate 0 to 0.16 in the first and then a cosine, synchronized batch norm, scale jitter 0.1 to 2.0 and flips,
gradients clipped to a norm of 10, an exponential average of the weights with 0.9998 (Keras: `use_ema=True`).
"""

import keras
from keras import ops

from kvision.applications.building import image_input, variant_of, variant_row
from kvision.applications.classification import efficientnet, imagenet
from kvision.applications.classification.efficientnet import EfficientNet
from kvision.applications.detection import coco
from kvision.detection.anchors import Anchors, level_strides
from kvision.detection.assigner import Assigner
from kvision.detection.backbone import backbone_maps, backbone_preprocessing, choose_norms, sizes_of
from kvision.detection.dense_head import PRIOR_BIAS, DenseDecoder, DenseHead, flatten_outputs, shared_convolutions
from kvision.detection.detector import Detector
from kvision.layers import BiFPN
from kvision.weights import Published

LEVELS = ("C3", "C4", "C5")

# The authors' code: (width, height) as factors of an anchor's size, near the square roots of 1, 2 and 1/2.
RATIOS = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))

NORM = {"epsilon": 1e-3, "momentum": 0.99}  # section 5.1


def _scaled(backbone, resolution, channels, cells, depth, fusion="fast", anchor_scale=4.0, num_levels=5):
    return {
        "backbone": backbone,
        "resolution": resolution,
        "channels": channels,
        "cells": cells,
        "depth": depth,
        "fusion": fusion,
        "anchor_scale": anchor_scale,
        "num_levels": num_levels,
    }


# Table 1: backbone, input size, channels and cells of the BiFPN, depth of the class and box nets. Resolutions are the
# table's: equation 3, 512 + 128·phi, differs from it for D5 and D7. Sums from D6 on: section 5.1; the anchors' scale of
# D7 and P8 of D7x: the authors' code.
VARIANTS = {
    "d0": _scaled("b0", 512, 64, 3, 3),
    "d1": _scaled("b1", 640, 88, 4, 3),
    "d2": _scaled("b2", 768, 112, 5, 3),
    "d3": _scaled("b3", 896, 160, 6, 4),
    "d4": _scaled("b4", 1024, 224, 7, 4),
    "d5": _scaled("b5", 1280, 288, 7, 4),
    "d6": _scaled("b6", 1280, 384, 8, 5, fusion="sum"),
    "d7": _scaled("b6", 1536, 384, 8, 5, fusion="sum", anchor_scale=5.0),
    "d7x": _scaled("b7", 1536, 384, 8, 5, fusion="sum", num_levels=6),
    "tiny": _scaled("tiny", 64, 24, 1, 1),
}

# The backbone's names are timm's; in the nets the levels are counted from 0.
RENAMES = {
    "effdet": [
        *efficientnet.RENAMES["timm"],
        (r"^(conv_stem|bn1|blocks)\b", r"backbone.\1"),
        (r"^(class_net|box_net)\.(\d+)\.0\.", r"\1.conv_rep.\2."),
        *((rf"^(class_net|box_net)\.(\d+)\.1\.P{3 + n}\.", rf"\1.bn_rep.\2.{n}.bn.") for n in range(6)),
    ]
}

TOP = ("class_net.predict.conv_pw",)  # what depends on the number of classes

# The files of effdet's table, and their AP there.
_FILES = {
    "d0": ("tf_efficientdet_d0_34-f153e0cf.pth", 34.2),
    "d1": ("tf_efficientdet_d1_40-a30f94af.pth", 40.1),
    "d2": ("tf_efficientdet_d2_43-8107aa99.pth", 43.4),
    "d3": ("tf_efficientdet_d3_47-0b525f35.pth", 47.1),
    "d4": ("tf_efficientdet_d4_49-f56376d9.pth", 49.2),
    "d5": ("tf_efficientdet_d5_51-c79f9be6.pth", 51.2),
    "d6": ("tf_efficientdet_d6_52-4eda3773.pth", 52.0),
    "d7": ("tf_efficientdet_d7_53-6d1d7a95.pth", 53.1),
    "d7x": ("tf_efficientdet_d7x-f390b87c.pth", 54.3),
}
WEIGHTS = {
    variant: {
        "coco": Published(
            "https://github.com/rwightman/efficientdet-pytorch/releases/download/v0.1",
            file,
            "effdet",
            "Apache-2.0",
            box_ap,
            f"long side to {VARIANTS[variant]['resolution']} (bilinear), the rest of the square in the mean colour; "
            "0…255, the detector prepares them",
            adapt=coco.CategoryRows({"class_net.predict.conv_pw": 1}, background=False, first_id=1),
        )
    }
    for variant, (file, box_ap) in _FILES.items()
}

PROOF = "effdet tf_efficientdet_d0 and d6, fed the same weights"


def EfficientDet(
    variant,
    *,
    input_shape=None,
    classes=None,
    backbone=None,
    weights=None,
    backbone_norm="auto",
    norm="auto",
    channels=None,
    cells=None,
    depth=None,
    fusion=None,
    num_levels=None,
    anchor_scale=None,
    anchor_octaves=3,
    anchor_ratios=RATIOS,
    matching_iou_threshold=0.5,
    focal_alpha=0.25,
    focal_gamma=1.5,
    huber_delta=0.1,
    box_weight=50.0,
    skip_zero_targets=False,
    score_threshold=0.0,
    num_candidates=5000,
    nms_threshold=0.5,
    num_detections=100,
    preprocess="auto",
    name=None,
):
    """Build an EfficientDet.

    Args:
        variant: A row of `VARIANTS`: `"d0"` to `"d7"`, `"d7x"`.
        input_shape: (height, width, channels), at least 32 pixels a side; None is the row's resolution squared, in
            colour. From 256 on every level has several cells: of one cell, a group norm of 64 channels learns nothing.
        classes: Number of classes, without a background. None is COCO's 80.
        backbone: A `keras.Model` from images of `input_shape` to `{"C3": map, "C4": map, "C5": map}`, such as
            `EfficientNetB0(include_top=False, features=("C3", "C4", "C5"), weights="imagenet", norm="frozen_batch", …)`
            or `cut(model, {...})`. None is the row's EfficientNet with the authors' padding, of `backbone_norm`.
        weights: None; or `"coco"` (see `WEIGHTS`), for the arguments of the network as they are by default. Their 80
            labels are those of `coco.class_names()`, which the detector then carries; with another number of `classes`
            the last layer starts fresh, and says so. Or the path of weights of the whole detector: Keras's, or effdet's
            of the same number of classes.
        backbone_norm: Of the backbone built here: `"frozen_batch"`, `"group"`, `"batch"`, `"sync_batch"` or None.
            `"auto"`: batch norm, frozen, where `weights` are loaded that have it; else group norm, which trains from
            scratch. Frozen without weights is for loading some afterwards: `fit` refuses it before.
        norm: Of the BiFPN and the nets, likewise; `"auto"` is group norm with a `backbone` too. In the nets each level
            has a batch norm of its own at each depth. A live batch norm needs about 16 images a replica, or
            `"sync_batch"`: at batch 1 its statistics are those of one image (of one cell, at the coarsest level), and
            what was trained does not hold in `predict`.
        channels, cells, fusion, num_levels: Of the BiFPN, see `kvision.layers.BiFPN`: `repeats` is `cells`, and levels
            count from P3. None takes the row's.
        depth: Convolutions of the class and box nets before the last; None takes the row's.
        anchor_scale: Size of a level's smallest anchors in strides; None takes the row's 4 (D7: 5).
        anchor_octaves: Sizes of anchors a level, an octave apart in as many steps.
        anchor_ratios: (width, height) of anchors as factors of their size.
        matching_iou_threshold: Overlap with a box from which on an anchor is positive; all others are background. Of
            every box the first of its best anchors is positive too.
        focal_alpha, focal_gamma: Of the focal loss: weight of the positives in [0, 1], and exponent of at least 0.
        huber_delta: Where the parabola of the box loss ends, > 0.
        box_weight: Factor of the box loss, which is the mean over the four components.
        skip_zero_targets: Leave out components of box targets that are 0, as the authors' code does: an anchor with the
            very centre of its box then learns nothing about the centre.
        score_threshold, num_candidates: At most `num_candidates` of all levels together, with a score above the
            threshold, go on to suppression. The published APs are counted without a threshold; 0.3 suits the eye.
        nms_threshold: Overlap in [0, 1] above which the lower score of the same class gives way.
        num_detections: Given for an image, at most, and at fixed size.
        preprocess: A function applied to the images, RGB 0…255, before the backbone, or None. `"auto"`: what the
            backbone carries as `preprocessing`; ImageNet's for the one built here.
        name: Of the model.

    Returns:
        A `kvision.detection.Detector`. Its losses, `classification_loss` and `box_loss`, are divided by the positive
        anchors of the whole batch plus one.

    Raises:
        ValueError: on an unknown variant or name, a wrong shape, a backbone without the levels C3 to C5 or with a level
            of another stride, numbers out of range.

    From scratch, a batch of few images needs its gradient clipped, or a warm-up: without either the loss rises first.

    ```python
    detector = kvision.applications.EfficientDetD0(input_shape=(256, 256, 3), classes=3)
    detector.compile(keras.optimizers.SGD(0.01, momentum=0.9, global_clipnorm=10.0, use_ema=True, ema_momentum=0.998))
    ```
    """
    row = variant_row(
        "EfficientDet",
        VARIANTS,
        variant,
        channels=channels,
        cells=cells,
        depth=depth,
        fusion=fusion,
        num_levels=num_levels,
        anchor_scale=anchor_scale,
    )
    published = WEIGHTS.get(variant, {})
    name = name or f"efficientdet_{variant}"
    input_shape = input_shape or (row["resolution"], row["resolution"], 3)
    classes = coco.num_classes("EfficientDet", classes, weights, published)
    images = image_input("EfficientDet", input_shape, stride=32, classes=classes)
    norms = choose_norms(
        "EfficientDet",
        backbone=backbone,
        weights=weights,
        backbone_norm=backbone_norm,
        norm=norm,
        batch_norms=True,
    )
    if not huber_delta > 0:
        raise ValueError(f"EfficientDet: huber_delta lies above 0: got {huber_delta!r}.")
    batch_norms = ("auto", "frozen_batch", "batch", "sync_batch")
    changed = coco.changed(
        backbone=(backbone, (None,)),
        backbone_norm=(backbone_norm, batch_norms),
        norm=(norm, batch_norms),
        anchor_octaves=(anchor_octaves, (3,)),
        anchor_ratios=(anchor_ratios, (RATIOS,)),
        **{key: (row[key], (VARIANTS[variant][key],)) for key in row if key != "backbone"},
    )
    preprocess = backbone_preprocessing("EfficientDet", backbone, preprocess, imagenet.preprocess_input)
    if backbone is None:
        backbone = EfficientNet(
            row["backbone"],
            include_top=False,
            input_shape=input_shape,
            norm=norms.backbone,
            features=LEVELS,
            padding="same",
            **NORM,
        )
    maps = backbone_maps("EfficientDet", backbone, LEVELS, images, preprocess)
    pyramid = BiFPN(row["channels"], row["cells"], row["num_levels"], row["fusion"], norms.inner, **NORM, name="fpn")
    levels = pyramid(maps)
    anchors = _anchors(levels, row["anchor_scale"], anchor_octaves, anchor_ratios)
    outputs = _dense_outputs(levels, row["depth"], anchors.num_per_cell, classes, norms.inner)
    trunk = keras.Model(images, outputs, name=f"{name}_trunk")
    head = DenseHead(
        classes,
        input_shape[:2],
        sizes_of(levels),
        anchors,
        Assigner(matching_iou_threshold, low_quality_matches="single", name="assigner"),
        DenseDecoder(
            score_threshold, num_candidates, nms_threshold, num_detections, candidates_of="image", name="decoder"
        ),
        focal_alpha=focal_alpha,
        focal_gamma=focal_gamma,
        box_beta=huber_delta,
        box_weight=box_weight * huber_delta / 4,  # Huber's loss is delta times smooth L1; the mean of 4 components
        positives_of="batch",
        skip_zero_targets=skip_zero_targets,
        name=f"{name}_head",
    )
    return coco.finish(Detector(trunk, head, name=name), weights, published, changed, RENAMES, {}, TOP)


def _anchors(levels, scale, octaves, ratios):
    """All ratios of the first size, then of the next: the order of the nets' channels."""
    strides = level_strides(levels)
    factors = [2 ** (step / octaves) for step in range(octaves)]
    ratios = [(factor * height, factor * width) for factor in factors for width, height in ratios]
    return Anchors(strides, [(scale * stride,) for stride in strides], ratios, rounded=False)


def _dense_outputs(levels, depth, num_per_cell, classes, norm):
    """Section 3.1: class and box net, separable convolutions shared by the levels."""
    nets = {"class_logits": ("class_net", classes, PRIOR_BIAS), "box_deltas": ("box_net", 4, 0.0)}
    features = {}
    for output, (net, size, bias) in nets.items():
        maps = shared_convolutions(
            levels,
            depth=depth,
            last={output: (f"{net}.predict", num_per_cell * size, 3, bias)},
            norm=norm,
            activation="silu",
            initializer="lecun_normal",
            separable=True,
            **NORM,
            name=net,
        )
        features[output] = flatten_outputs(maps[output], size)
    deltas = ops.reshape(features["box_deltas"], (-1, features["box_deltas"].shape[1], 2, 2))
    features["box_deltas"] = ops.reshape(ops.flip(deltas, -1), (-1, *features["box_deltas"].shape[1:]))  # y came first
    return features


def _variant(variant, parameters):
    name, pixels = f"D{variant[1:]}", VARIANTS[variant]["resolution"]
    summary = f"EfficientDet-{name}, {pixels} pixels: {parameters} parameters with batch norm."
    return variant_of(EfficientDet, variant, f"EfficientDet{name}", summary)


EfficientDetD0 = _variant("d0", "3,874,217")
EfficientDetD1 = _variant("d1", "6,617,888")
EfficientDetD2 = _variant("d2", "8,086,869")
EfficientDetD3 = _variant("d3", "12,017,806")
EfficientDetD4 = _variant("d4", "20,703,425")
EfficientDetD5 = _variant("d5", "33,627,305")
EfficientDetD6 = _variant("d6", "51,837,132")
EfficientDetD7 = _variant("d7", "51,837,132")
EfficientDetD7x = _variant("d7x", "77,112,516")
