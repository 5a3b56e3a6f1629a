"""Faster R-CNN: Ren, He, Girshick, Sun, "Faster R-CNN: Towards Real-Time Object Detection with RPNs" (2015).

On a feature pyramid: Lin et al., "Feature Pyramid Networks for Object Detection" (2017), section 4; on C4, with the
last stage as the head: He et al., "Deep Residual Learning" (2015), appendix A. Equals torchvision's
`fasterrcnn_resnet50_fpn`, fed the same weights, in features, proposals, detections and losses; numbers of proposals and
samples are torchvision's.

How it trains (Lin 2017, section 5): SGD with momentum 0.9 and weight decay 1e-4, 16 images a batch, 60k steps at 0.02
and 20k at 0.002. All parts train together.
"""

import dataclasses

import keras

from kvision.applications.building import image_input
from kvision.applications.classification import imagenet
from kvision.applications.classification.resnet import ResNet50
from kvision.applications.detection import coco
from kvision.detection.anchors import Anchors, level_strides
from kvision.detection.assigner import Assigner
from kvision.detection.backbone import (
    Norms,
    backbone_maps,
    backbone_preprocessing,
    choose_norms,
    feature_pyramid,
    sizes_of,
    split_at_c4,
)
from kvision.detection.box_branch import DELTA_WEIGHTS, BoxBranch, dense_box_head, stage_box_head
from kvision.detection.detector import Detector
from kvision.detection.proposals import RegionProposals, proposal_network
from kvision.detection.two_stage import TwoStageHead
from kvision.errors import choose
from kvision.layers import RoIAlign
from kvision.ops import FPN_SIZES
from kvision.ops.anchors import RATIOS

LEVELS = ("C2", "C3", "C4", "C5")
CHANNELS = 256
C4_SIZES = (tuple(size for level in FPN_SIZES for size in level),)  # all sizes on the one map

LAST_LAYERS = {"roi_heads.box_predictor.cls_score": 1, "roi_heads.box_predictor.bbox_pred": 4}  # numbers a class

# Of the form that `weights="coco"` builds.
WEIGHTS = {
    "coco": coco.torchvision_weights(
        "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
        37.0,
        LAST_LAYERS,
    )
}

PROOF = "torchvision fasterrcnn_resnet50_fpn, fed the same weights"


def FasterRCNN(
    *,
    input_shape=(512, 512, 3),
    classes=None,
    backbone=None,
    weights=None,
    backbone_norm="auto",
    norm="auto",
    initializer="auto",
    neck="fpn",
    channels=None,
    anchor_sizes=None,
    anchor_ratios=RATIOS,
    anchor_strides="auto",
    aligned="auto",
    num_candidates=(2000, 1000),
    num_proposals=(2000, 1000),
    num_anchor_samples=256,
    num_samples=512,
    matching_iou_threshold=0.5,
    shared_box=False,
    score_threshold=0.05,
    nms_threshold=0.5,
    num_detections=100,
    preprocess="auto",
    name="faster_rcnn",
):
    """Build a Faster R-CNN.

    Args:
        input_shape: (height, width, channels), at least 32 pixels a side.
        classes: Number of classes, without a background. None is COCO's 80.
        backbone: A `keras.Model` from images of `input_shape` to `{"C2": map, …, "C5": map}`, for `neck="c4"` with
            `"C4"` and `"C5"`, such as `ResNet50(include_top=False, features=("C2", "C3", "C4", "C5"), norm=…, …)` or
            `cut(model, {...})`. None is a ResNet-50 of `backbone_norm`.
        weights: None; or `"coco"` (see `WEIGHTS`), for the arguments of the network as they are by default: its 80
            labels are those of `coco.class_names()`, which the detector then carries; with another number of `classes`
            the last layers start fresh, and say so. Or the path of weights of the whole detector: a file of Keras says
            which norms it was trained with, and other classes start fresh last layers; for torchvision's, pass
            `anchor_strides="torchvision"` and `aligned=False`, and see `kvision.weights.set_epsilon`.
        backbone_norm: Of the backbone built here: `"frozen_batch"`, `"group"`, `"batch"`, `"sync_batch"` or None.
            `"auto"`: what the file of `weights` was trained with, batch norm frozen; else group norm, which trains from
            scratch. Frozen without weights is for loading some afterwards: `fit` refuses it before.
        norm: Of the pyramid and the box head: `"group"`, `"batch"`, `"sync_batch"` or None. `"auto"`: that in the
            file of `weights`, None with other weights, a `backbone` or a frozen norm, else group norm. With a norm the
            box head has four convolutions and one dense layer (He 2018, "Rethinking ImageNet Pre-training"), without
            two dense ones.
        initializer: Of the pyramid's kernels; `"auto"`: `"lecun_uniform"` (Caffe2's, torchvision's) where `norm="auto"`
            is None, else `"he"`.
        neck: `"fpn"`, a feature pyramid; or `"c4"`: proposals and regions come from C4, and the backbone's stage
            between C4 and C5 is the head. It has neither `norm`, `initializer` nor `channels`.
        channels: Of the pyramid; None is 256.
        anchor_sizes: For each of P2 to P6, the square roots of the anchors' areas in pixels; for `neck="c4"` of the one
            level. None is the paper's, 32 to 512.
        anchor_ratios: Height over width.
        anchor_strides: `"level"`: 2^k for level k at any image size; `"torchvision"`: pixels // cells, centres half a
            stride further up and left, to which torchvision's weights are trained; `"auto"`: the latter with
            `weights="coco"`. See `kvision.detection.anchors.Anchors`.
        aligned: Half-pixel alignment of RoIAlign: True is detectron2's, False that of torchvision's weights; `"auto"`:
            False with `weights="coco"`.
        num_candidates: Proposals of each level that go on to suppression, in training and in inference.
        num_proposals: Proposals of an image that go on to the box head, in training and in inference.
        num_anchor_samples: Anchors of an image that a step trains on, at most half of them positives.
        num_samples: Regions of an image that a step trains on, at most a quarter of them positives.
        matching_iou_threshold: Overlap with a box from which on a region is a positive.
        shared_box: One box for all classes instead of one a class.
        score_threshold: Detections with a score of at most this are left out.
        nms_threshold: Overlap in [0, 1] above which the lower score of the same class gives way.
        num_detections: Given for an image, at most, and at fixed size.
        preprocess: A function applied to the images, RGB 0…255, before the backbone, or None. `"auto"`: what the
            backbone carries as `preprocessing`; ImageNet's for the one built here.
        name: Of the model.

    Returns:
        A `kvision.detection.Detector` with the losses `rpn_objectness_loss`, `rpn_box_loss`, `classification_loss` and
        `box_loss`.

    Raises:
        ValueError: on a wrong shape, an unknown norm or neck, a backbone without the levels needed or with a level of
            another stride, or an argument that the neck has no use for.

    From scratch, a batch of few images needs its gradient clipped, or a warm-up: without either the loss rises first.

    ```python
    detector = kvision.applications.FasterRCNN(input_shape=(256, 256, 3), classes=3)
    detector.compile(keras.optimizers.SGD(0.01, momentum=0.9, global_clipnorm=1.0))
    ```
    """
    build = choose("neck of FasterRCNN", {"fpn": pyramid_base, "c4": _c4_base}, neck)
    base = build(
        "FasterRCNN",
        name,
        input_shape=input_shape,
        classes=coco.num_classes("FasterRCNN", classes, weights, WEIGHTS),
        backbone=backbone,
        weights=weights,
        backbone_norm=backbone_norm,
        norm=norm,
        initializer=initializer,
        channels=channels,
        anchor_sizes=anchor_sizes,
        anchor_ratios=anchor_ratios,
        geometry=coco.torchvision_geometry(weights, WEIGHTS, anchor_strides, aligned),
        num_candidates=num_candidates,
        num_proposals=num_proposals,
        num_anchor_samples=num_anchor_samples,
        preprocess=preprocess,
    )
    stage = base.box_stage(
        shared_box=shared_box,
        matching_iou_threshold=matching_iou_threshold,
        num_samples=num_samples,
        score_threshold=score_threshold,
        nms_threshold=nms_threshold,
        num_detections=num_detections,
    )
    detector = Detector(base.trunk, TwoStageHead(base.proposals, [stage], name=f"{name}_head"), name=name)
    return coco.finish(detector, weights, WEIGHTS, base.changed + coco.changed(shared_box=(shared_box, (False,))))


@dataclasses.dataclass(frozen=True)
class Base:
    """What R-CNNs with a network of proposals share: everything before their stages.

    trunk: images → the maps that regions are read from, and what the proposals need; proposals: a `RegionProposals`;
    levels: names of the maps; stage: for C4, the backbone's last stage as a model; changed: arguments that
    torchvision's weights do not allow.
    """

    trunk: keras.Model
    proposals: RegionProposals
    levels: tuple
    classes: int
    image_size: tuple
    norms: Norms
    aligned: bool
    changed: tuple = ("neck",)
    channels: int | None = None
    stage: keras.Model | None = None

    def box_stage(
        self, *, shared_box, matching_iou_threshold, num_samples=None, delta_weights=DELTA_WEIGHTS, number=1, **decoding
    ):
        """A `BoxBranch` on these maps; `number` counts the stages of a cascade."""
        suffix, prefix = ("", "roi_heads") if number == 1 else (f"_{number}", f"roi_heads.stage{number}")
        if self.stage is not None:
            pooling = RoIAlign(14, spatial_scale=1 / 16, aligned=self.aligned)
            box_head = stage_box_head(self.stage, self.classes, shared=shared_box)
        else:
            pooling = RoIAlign(7, aligned=self.aligned)
            shape = (7, 7, self.channels)
            box_head = dense_box_head(shape, self.classes, norm=self.norms.inner, shared=shared_box, prefix=prefix)
        return BoxBranch(
            self.classes,
            self.image_size,
            self.levels,
            pooling,
            box_head,
            Assigner(matching_iou_threshold, num_samples=num_samples, name=f"box_assigner{suffix}"),
            delta_weights=delta_weights,
            name=f"box_branch{suffix}",
            **decoding,
        )


def pyramid_base(
    family,
    name,
    *,
    input_shape,
    classes,
    backbone,
    weights,
    backbone_norm,
    norm,
    initializer,
    channels,
    anchor_sizes,
    anchor_ratios,
    geometry,
    num_candidates,
    num_proposals,
    num_anchor_samples,
    preprocess,
):
    """The `Base` on a feature pyramid; arguments as those of `FasterRCNN`, `family` speaks in messages."""
    images = image_input(family, input_shape, stride=32, classes=classes)
    norms = choose_norms(
        family, backbone=backbone, weights=weights, backbone_norm=backbone_norm, norm=norm, initializer=initializer
    )
    channels = CHANNELS if channels is None else channels
    if not isinstance(channels, int) or channels < 1:
        raise ValueError(f"{family}: channels must be a whole number of at least 1, got {channels!r}.")
    changed = coco.changed(
        backbone=(backbone, (None,)),
        backbone_norm=(backbone_norm, ("auto", "frozen_batch")),
        norm=(norm, ("auto", None)),
        channels=(channels, (CHANNELS,)),
        anchor_sizes=(anchor_sizes, (None,)),
        anchor_ratios=(anchor_ratios, (RATIOS,)),
    )
    preprocess = backbone_preprocessing(family, backbone, preprocess, imagenet.preprocess_input)
    if backbone is None:
        backbone = ResNet50(include_top=False, input_shape=input_shape, norm=norms.backbone, features=LEVELS)
    maps = backbone_maps(family, backbone, LEVELS, images, preprocess)
    levels = feature_pyramid(maps, channels, "pool", norms)
    trunk, proposals = region_proposals(
        images,
        levels,
        tuple(levels)[:-1],
        FPN_SIZES if anchor_sizes is None else anchor_sizes,
        anchor_ratios,
        geometry[0],
        f"{name}_trunk",
        num_candidates=num_candidates,
        num_proposals=num_proposals,
        num_samples=num_anchor_samples,
    )
    read, image_size = tuple(levels)[:-1], tuple(input_shape[:2])
    return Base(trunk, proposals, read, classes, image_size, norms, geometry[1], changed, channels=channels)


def _c4_base(
    family,
    name,
    *,
    input_shape,
    classes,
    backbone,
    weights,
    backbone_norm,
    norm,
    initializer,
    channels,
    anchor_sizes,
    anchor_ratios,
    geometry,
    num_candidates,
    num_proposals,
    num_anchor_samples,
    preprocess,
):
    """The `Base` on C4, with the last stage of the backbone as the head."""
    for argument, value, default in (("norm", norm, "auto"), ("initializer", initializer, "auto")):
        if value != default:
            raise ValueError(
                f'{family}: {argument}={value!r} has no use with neck="c4", which has no pyramid and no head but the '
                "backbone's last stage. Leave it out; the backbone's own norm is backbone_norm=."
            )
    if channels is not None:
        raise ValueError(
            f'{family}: channels={channels!r} has no use with neck="c4", which has no pyramid: leave it out.'
        )
    images = image_input(family, input_shape, stride=32, classes=classes)
    norms = choose_norms(
        family, backbone=backbone, weights=weights, backbone_norm=backbone_norm, norm=norm, initializer=initializer
    )
    preprocess = backbone_preprocessing(family, backbone, preprocess, imagenet.preprocess_input)
    if backbone is None:
        backbone = ResNet50(include_top=False, input_shape=input_shape, norm=norms.backbone, features=("C4", "C5"))
    lower, stage = split_at_c4(family, backbone, 14)
    levels = backbone_maps(family, lower, ("C4",), images, preprocess)
    trunk, proposals = region_proposals(
        images,
        levels,
        ("C4",),
        C4_SIZES if anchor_sizes is None else anchor_sizes,
        anchor_ratios,
        geometry[0],
        f"{name}_trunk",
        num_candidates=num_candidates,
        num_proposals=num_proposals,
        num_samples=num_anchor_samples,
    )
    return Base(trunk, proposals, ("C4",), classes, tuple(input_shape[:2]), norms, geometry[1], stage=stage)


def region_proposals(images, levels, read, sizes, ratios, strides, name, *, num_samples, **numbers):
    """The trunk, and the `RegionProposals` on all its levels."""
    anchors = Anchors(level_strides(levels) if strides == "level" else strides, sizes, ratios)
    features = {level: levels[level] for level in read} | proposal_network(levels, anchors.num_per_cell)
    assigner = Assigner(
        0.7, 0.3, low_quality_matches=True, num_samples=num_samples, positive_fraction=0.5, name="anchor_assigner"
    )
    image_size = tuple(images.shape[1:3])
    proposals = RegionProposals(anchors, assigner, image_size, sizes_of(levels), name="rpn", **numbers)
    return keras.Model(images, features, name=name), proposals
