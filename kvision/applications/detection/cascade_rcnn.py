"""Cascade R-CNN: Cai, Vasconcelos, "Cascade R-CNN: Delving into High Quality Object Detection" (2018).

Three stages: each trains on the boxes of the one before, at a higher overlap. With masks, as in its longer version
(2019), "Instance Segmentation": a mask head in every stage, the mean of the three in inference. Each stage's scores
come from its own regions and are averaged, as in detectron2. Masks are one a class, without a background.

How it trains (section 5.1): as Faster R-CNN on a pyramid, 16 images a batch. The losses of the later stages count one
half and one quarter, as in the authors' code.
"""

from kvision.applications.detection import coco
from kvision.applications.detection.faster_rcnn import pyramid_base
from kvision.applications.detection.mask_rcnn import mask_stage
from kvision.detection.detector import Detector
from kvision.detection.two_stage import TwoStageHead
from kvision.ops.anchors import RATIOS

# Section 4.1: the overlaps of the stages; and how box targets are scaled, one over the deviations of each stage's.
MATCHING_IOU_THRESHOLDS = (0.5, 0.6, 0.7)
DELTA_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
STAGE_WEIGHTS = (1.0, 0.5, 0.25)

PROOF = "torchvision's parts stage by stage, and a NumPy twin: tests/applications/detection/test_cascade_rcnn.py"


def CascadeRCNN(
    *,
    input_shape=(512, 512, 3),
    classes=None,
    backbone=None,
    weights=None,
    backbone_norm="auto",
    norm="auto",
    initializer="auto",
    channels=None,
    anchor_sizes=None,
    anchor_ratios=RATIOS,
    anchor_strides="level",
    aligned=True,
    num_candidates=(2000, 1000),
    num_proposals=(2000, 1000),
    num_anchor_samples=256,
    num_samples=512,
    masks=False,
    num_mask_samples=None,
    mask_channels=None,
    score_threshold=0.05,
    nms_threshold=0.5,
    num_detections=100,
    preprocess="auto",
    name="cascade_rcnn",
):
    """Build a Cascade R-CNN of three stages on a feature pyramid; boxes are shared by all classes.

    Args:
        input_shape, backbone, backbone_norm, initializer, channels, anchor_sizes, anchor_ratios, anchor_strides,
            aligned, num_candidates, num_proposals, num_anchor_samples, num_samples, score_threshold, nms_threshold,
            num_detections, preprocess: As those of `FasterRCNN`.
        classes: Number of classes, without a background; None is COCO's 80.
        weights: None, or the path of weights of the whole detector.
        norm: As that of `FasterRCNN`, of all three stages; it reaches the mask heads as well.
        masks: Whether every stage has a mask head; see `MaskRCNN` for targets and detections.
        num_mask_samples: Positives of an image that each mask head trains on, at most; None is 128.
        mask_channels: Width of each mask head; None is 256.
        name: Of the model.

    Returns:
        A `kvision.detection.Detector` with the losses `rpn_objectness_loss`, `rpn_box_loss` and, for the stages 1 to 3,
        `classification_loss_1`, `box_loss_1` and, with masks, `mask_loss_1`, …

    Raises:
        ValueError: as `FasterRCNN`, and on numbers of a mask head without `masks`.

    ```python
    detector = kvision.applications.CascadeRCNN(input_shape=(256, 256, 3), classes=3)
    detector.compile(keras.optimizers.SGD(0.01, momentum=0.9, global_clipnorm=1.0))
    ```
    """
    for argument, value in (("num_mask_samples", num_mask_samples), ("mask_channels", mask_channels)):
        if value is not None and not masks:
            raise ValueError(f"CascadeRCNN: {argument}={value!r} is of mask heads: pass masks=True as well.")
    base = pyramid_base(
        "CascadeRCNN",
        name,
        input_shape=input_shape,
        classes=coco.num_classes("CascadeRCNN", classes, weights),
        backbone=backbone,
        weights=weights,
        backbone_norm=backbone_norm,
        norm=norm,
        initializer=initializer,
        channels=channels,
        anchor_sizes=anchor_sizes,
        anchor_ratios=anchor_ratios,
        geometry=coco.torchvision_geometry(weights, {}, anchor_strides, aligned),
        num_candidates=num_candidates,
        num_proposals=num_proposals,
        num_anchor_samples=num_anchor_samples,
        preprocess=preprocess,
    )
    stages = [
        base.box_stage(
            shared_box=True,
            matching_iou_threshold=threshold,
            num_samples=num_samples if number == 1 else None,
            delta_weights=delta_weights,
            number=number,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            num_detections=num_detections,
        )
        for number, (threshold, delta_weights) in enumerate(
            zip(MATCHING_IOU_THRESHOLDS, DELTA_WEIGHTS, strict=True), start=1
        )
    ]
    mask_stages = [
        mask_stage(
            base, num_samples=num_mask_samples or 128, width=mask_channels or 256, background=False, number=stage
        )
        for stage in range(1, len(stages) + 1 if masks else 1)
    ]
    head = TwoStageHead(base.proposals, stages, mask_stages, STAGE_WEIGHTS, name=f"{name}_head")
    return coco.finish(Detector(base.trunk, head, name=name), weights)
