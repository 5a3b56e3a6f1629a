"""MNC: Dai, He, Sun, "Instance-Aware Semantic Segmentation via Multi-task Network Cascades" (2016).

Layers carry the names of the authors' code (github.com/daijifeng001/MNC), whose 5-stage VGG-16 this has, layer by
layer, but for the objectness of an anchor, one sigmoid instead of a softmax of two. Deviations: the dense layers start
by He initialization (the authors: with VGG's ImageNet weights), background regions are drawn from all below the
threshold (the authors: most from an overlap of 0.1 on). As in their code the gradient from the classes and masks to the
deltas of an anchor is cut to 1/512, over the number of images: without it the boxes flee from the objects.

How it trains (the authors' code, VOC 2012): SGD with momentum 0.9 and weight decay 5e-4, images of 600 pixels on the
short side, 20k steps at 0.001 and 5k at 0.0001, from ImageNet weights; the loss of masks counts double there:
`loss_weights={"mask_loss": 2.0}`.
"""

from kvision.applications.building import finish, image_input
from kvision.applications.classification import imagenet
from kvision.applications.classification.vgg import VGG16
from kvision.applications.detection.faster_rcnn import region_proposals
from kvision.detection.assigner import Assigner
from kvision.detection.backbone import backbone_maps, backbone_preprocessing, choose_norms
from kvision.detection.detector import Detector
from kvision.detection.network_cascade import NetworkCascadeHead, check_stages, dense_mask_head, joint_class_head
from kvision.errors import choose
from kvision.layers import RoIWarp
from kvision.ops.anchors import RATIOS

ANCHOR_SIZES = ((128, 256, 512),)
BOX_GRADIENT = 1 / 512  # at most, of an anchor's deltas from the later stages: the authors' code
BINS = 14  # section 3.2; 7 after the pooling of stage 3
TOP = ("seg_cls_score", "cls_score", "bbox_pred")

PROOF = "NumPy and torch twins of warping, losses, masked features and voting, and the authors' layer table"


def MNC(
    *,
    input_shape=(512, 512, 3),
    classes=20,
    backbone=None,
    level="C4",
    weights=None,
    backbone_norm="auto",
    stages=3,
    mask_size=28,
    mask_units=256,
    units=4096,
    anchor_sizes=ANCHOR_SIZES,
    anchor_ratios=RATIOS,
    num_candidates=(2000, 1000),
    num_proposals=(300, 300),
    num_anchor_samples=256,
    num_samples=64,
    matching_iou_threshold=0.5,
    matching_mask_iou=0.5,
    score_threshold=0.05,
    nms_threshold=0.3,
    voting_iou_threshold=0.5,
    num_detections=100,
    preprocess="auto",
    name="mnc",
):
    """Build a multi-task network cascade: boxes, then a mask in each, then its class.

    Args:
        input_shape: (height, width, channels), at least 32 pixels a side.
        classes: Number of classes, without a background; the paper's VOC has 20.
        backbone: A `keras.Model` from images to a dict with the map `level`. None is the paper's VGG-16, whose C4 is
            conv5_3, of `backbone_norm`; of a ResNet, C4 has 1024 channels and the dense layers twice the weights.
        level: The map that all stages share: `"C4"`, the paper's of stride 16, where objects of 40 pixels are 3 cells
            wide; for smaller ones enlarge the images as the paper does, or take `"C3"` or `"C2"`.
        weights: None, or the path of weights of the whole detector.
        backbone_norm: Of the backbone built here: `"frozen_batch"`, `"group"`, `"batch"`, `"sync_batch"` or None, the
            paper's. `"auto"`: that in the file of `weights`, else group norm, which trains from scratch.
        stages: 3, or 5: stage 3 moves the boxes as well, stages 4 and 5 are stages 2 and 3 on these, with the same
            weights (section 5).
        mask_size: Cells along each side of a mask: the paper's 28, or the 21 of the authors' code.
        mask_units: Of the dense layer before the mask.
        units: Of each of the four dense layers before the class.
        anchor_sizes: For that map, the square roots of the anchors' areas in pixels, `((128, 256, 512),)`; smaller ones
            for smaller objects.
        anchor_ratios: Height over width of the anchors.
        num_candidates: Anchors that go on to suppression, in training and in inference; the authors' 12000 and 6000
            take longer.
        num_proposals: Of an image, in training and in inference.
        num_anchor_samples: Anchors of an image that a step trains on.
        num_samples: Regions of an image that a step trains on, at most three tenths of them positives.
        matching_iou_threshold: Overlap with a box from which on a region is a positive.
        matching_mask_iou: Overlap of the masks from which on a positive has a class for the scores of detections.
        score_threshold: Detections with a score of at most this are left out.
        nms_threshold: Overlap in [0, 1] above which the lower score of the same class gives way.
        voting_iou_threshold: Overlap of the boxes in (0, 1] from which on all regions share in the mask of a detection,
            weighed by their scores for its class (section 6). None: each mask is that of its own region.
        num_detections: Given for an image, at most, and at fixed size.
        preprocess: A function applied to the images, RGB 0…255, before the backbone, or None. `"auto"`: what the
            backbone carries as `preprocessing`; ImageNet's for the one built here.
        name: Of the model.

    Returns:
        A `kvision.detection.Detector` with the losses of `kvision.detection.NetworkCascadeHead`. Targets need `"masks"`
        [b, n, h, w] or `"box_masks"` [b, n, s, s]. Its detections have `"box_masks"` [b, k, mask_size, mask_size],
        scores in 0…1; masks as large as the image take `detect(…, masks=True)`.

    Raises:
        ValueError: on a wrong shape, another number of stages, an unknown norm or level, a number below 1, or a
            backbone without the level or with one of another stride.

    ```python
    detector = kvision.applications.MNC(input_shape=(256, 256, 3), classes=3, units=512, anchor_sizes=((32, 64, 128),))
    detector.compile(keras.optimizers.SGD(0.001, momentum=0.9, global_clipnorm=1.0))
    ```
    """
    images = image_input("MNC", input_shape, stride=32, classes=classes)
    check_stages("MNC", stages)
    stride = choose("level of MNC", {f"C{power}": 2**power for power in range(2, 6)}, level)
    for argument, value in {"mask_size": mask_size, "mask_units": mask_units, "units": units}.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"MNC: {argument} must be a whole number of at least 1, got {value!r}.")
    norms = choose_norms("MNC", backbone=backbone, weights=weights, backbone_norm=backbone_norm, norm="auto")
    preprocess = backbone_preprocessing("MNC", backbone, preprocess, imagenet.preprocess_input)
    if backbone is None:
        backbone = VGG16(include_top=False, input_shape=input_shape, features=(level,), norm=norms.backbone)
    maps = backbone_maps("MNC", backbone, (level,), images, preprocess)
    trunk, proposals = region_proposals(
        images,
        maps,
        (level,),
        anchor_sizes,
        anchor_ratios,
        "level",
        f"{name}_trunk",
        num_candidates=num_candidates,
        num_proposals=num_proposals,
        num_samples=num_anchor_samples,
        box_gradient=BOX_GRADIENT,
    )
    shape = (BINS, BINS, maps[level].shape[-1])
    head = NetworkCascadeHead(
        proposals,
        Assigner(matching_iou_threshold, num_samples=num_samples, positive_fraction=0.3, name="region_assigner"),
        classes,
        input_shape[:2],
        level,
        RoIWarp(BINS, spatial_scale=1 / stride, name="roi_warp"),
        dense_mask_head(shape, mask_size, units=mask_units),
        joint_class_head(shape, classes, units=units, box=stages == 5),
        stages=stages,
        matching_mask_iou=matching_mask_iou,
        score_threshold=score_threshold,
        nms_threshold=nms_threshold,
        voting_iou_threshold=voting_iou_threshold,
        num_detections=num_detections,
        box_gradient=BOX_GRADIENT,
        name=f"{name}_head",
    )
    return finish(Detector(trunk, head, name=name), weights, top=TOP)
