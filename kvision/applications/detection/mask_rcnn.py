"""Mask R-CNN: He, Gkioxari, Dollár, Girshick, "Mask R-CNN" (2017).

From scratch, as it is by default: He, Girshick, Dollár, "Rethinking ImageNet Pre-training" (2018). Equals torchvision's
`maskrcnn_resnet50_fpn`, fed the same weights, in features, detections, masks and losses; like it, it has a mask for the
background too, which nothing uses.

How it trains (section 3.1): as Faster R-CNN on a pyramid, 16 images a batch, 160k steps at 0.02, divided by 10 at 120k.
From scratch (He 2018, section 3): warm-up, and up to 540k steps, divided by 10 at the last 60k and the last 20k.
"""

from kvision.applications.detection import coco, faster_rcnn
from kvision.applications.detection.faster_rcnn import pyramid_base
from kvision.detection.detector import Detector
from kvision.detection.mask_branch import MaskBranch, mask_head
from kvision.detection.two_stage import TwoStageHead
from kvision.layers import RoIAlign
from kvision.ops.anchors import RATIOS

# Of the form that `weights="coco"` builds.
WEIGHTS = {
    "coco": coco.torchvision_weights(
        "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
        37.9,
        faster_rcnn.LAST_LAYERS | {"roi_heads.mask_predictor.mask_fcn_logits": 1},
        mask_ap=34.6,
    )
}

PROOF = "torchvision maskrcnn_resnet50_fpn, fed the same weights"


def MaskRCNN(
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
    anchor_strides="auto",
    aligned="auto",
    num_candidates=(2000, 1000),
    num_proposals=(2000, 1000),
    num_anchor_samples=256,
    num_samples=512,
    matching_iou_threshold=0.5,
    shared_box=False,
    num_mask_samples=128,
    mask_channels=256,
    score_threshold=0.05,
    nms_threshold=0.5,
    num_detections=100,
    preprocess="auto",
    name="mask_rcnn",
):
    """Build a Mask R-CNN on a feature pyramid.

    Args:
        input_shape, classes, backbone, backbone_norm, initializer, channels, anchor_sizes, anchor_ratios,
            anchor_strides, aligned, num_candidates, num_proposals, num_anchor_samples, num_samples,
            matching_iou_threshold, shared_box, score_threshold, nms_threshold, num_detections, preprocess: As those of
            `FasterRCNN`.
        weights: As those of `FasterRCNN`: None, `"coco"` (see `WEIGHTS`), or a path.
        norm: As that of `FasterRCNN`; it reaches the mask head as well.
        num_mask_samples: Positives of an image that the mask head trains on, at most; the paper's 128 are all of them.
        mask_channels: Width of the mask head; fewer for small data sets, where it is most of the work.
        name: Of the model.

    Returns:
        A `kvision.detection.Detector` with the losses of `FasterRCNN` and `mask_loss`. Targets need `"masks"`
        [b, n, h, w] or `"box_masks"` [b, n, s, s]. Its detections have `"box_masks"` [b, k, 28, 28], scores in 0…1;
        masks as large as the image take `detect(…, masks=True)`, or `kvision.contract.paste_mask_scores`.

    Raises:
        ValueError: as `FasterRCNN`.

    ```python
    detector = kvision.applications.MaskRCNN(input_shape=(256, 256, 3), classes=3)
    detector.compile(keras.optimizers.SGD(0.01, momentum=0.9, global_clipnorm=1.0))
    ```
    """
    base = pyramid_base(
        "MaskRCNN",
        name,
        input_shape=input_shape,
        classes=coco.num_classes("MaskRCNN", classes, weights, WEIGHTS),
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
    masks = mask_stage(base, num_samples=num_mask_samples, width=mask_channels)
    detector = Detector(base.trunk, TwoStageHead(base.proposals, [stage], [masks], name=f"{name}_head"), name=name)
    changed = coco.changed(shared_box=(shared_box, (False,)), mask_channels=(mask_channels, (256,)))
    return coco.finish(detector, weights, WEIGHTS, base.changed + changed)


def mask_stage(base, *, num_samples, width, background=True, number=None):
    """A `MaskBranch` on the maps of a `Base`; `number` counts the stages of a cascade."""
    prefix = "roi_heads" if number in (None, 1) else f"roi_heads.stage{number}"
    return MaskBranch(
        base.classes,
        base.levels,
        RoIAlign(14, aligned=base.aligned),
        mask_head(base.channels, width=width, norm=base.norms.inner, prefix=prefix),
        background=background,
        num_samples=num_samples,
        prefix=prefix,
        name="mask_branch" if number is None else f"mask_branch_{number}",
    )
