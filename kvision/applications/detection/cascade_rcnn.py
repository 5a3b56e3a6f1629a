"""Cascade R-CNN: Cai, Vasconcelos, "Cascade R-CNN: Delving into High Quality Object Detection" (2018).

Three stages: each trains on the boxes of the one before, at a higher overlap. With masks, as in its longer version
(2019), "Instance Segmentation": a mask head in every stage, the mean of the three in inference. Each stage's scores
come from its own regions and are averaged, as in detectron2. Masks are one a class, without a background.

How it trains (section 5.1): as Faster R-CNN on a pyramid, 16 images a batch. The losses of the later stages count one
half and one quarter, as in the authors' code.
"""

import keras
from keras import ops

from kvision.applications.building import finish_detector, inner_norm
from kvision.applications.detection.fast_rcnn import Assembly, BoxBranch, Sample, dense_box_head
from kvision.applications.detection.faster_rcnn import FasterRCNN, RegionProposals
from kvision.applications.detection.mask_rcnn import MaskBranch, mask_head, refuse_neck, with_masks
from kvision.detection.detector import Detector
from kvision.layers import RoIAlign
from kvision.ops import area_xyxy, clip_xyxy, decode_deltas

# Section 4.1: the overlaps of the stages; and how box targets are scaled, one over the deviations of each stage's.
IOU_THRESHOLDS = (0.5, 0.6, 0.7)
DELTA_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
STAGE_WEIGHTS = (1.0, 0.5, 0.25)

PROOF = "torchvision's parts stage by stage, and a NumPy twin: tests/applications/detection/test_cascade_rcnn.py"


def CascadeRCNN(
    *,
    classes=80,
    weights=None,
    norm="frozen_batch",
    channels=256,
    aligned=False,
    masks=False,
    num_mask_samples=128,
    mask_channels=256,
    name="cascade_rcnn",
    **options,
):
    """Build a Cascade R-CNN of three stages on a feature pyramid.

    Args:
        classes, norm, channels, aligned, **options: Those of `FasterRCNN`, but for `neck`, `iou_threshold` and
            `shared_box`: boxes are shared by all classes here.
        weights: None, or the path of weights of the whole detector.
        masks: Whether every stage has a mask head; see `MaskRCNN` for targets and detections.
        num_mask_samples: Positives of an image that each mask head trains on, at most.
        mask_channels: Width of each mask head.
        name: Of the model.

    Returns:
        A `kvision.detection.Detector` with the losses `rpn_objectness_loss`, `rpn_box_loss` and, for the stages 1 to 3,
        `classification_loss_1`, `box_loss_1` and, with masks, `mask_loss_1`, …

    Raises:
        ValueError: as `FasterRCNN`.

    ```python
    detector = kvision.applications.CascadeRCNN(input_shape=(256, 256, 3), classes=3, norm="group")
    detector.compile(keras.optimizers.SGD(0.01, momentum=0.9))
    ```
    """
    refuse_neck("CascadeRCNN", options)
    shared = {"classes": classes, "norm": norm, "channels": channels, "aligned": aligned, "shared_box": True}
    faster = FasterRCNN(**shared, iou_threshold=IOU_THRESHOLDS[0], name=name, **options)
    first = faster.head.box_branch
    inner = inner_norm(norm)
    branches = [first]
    for stage, (threshold, delta_weights) in enumerate(zip(IOU_THRESHOLDS[1:], DELTA_WEIGHTS[1:], strict=True), 2):
        prefix = f"roi_heads.stage{stage}"
        branch = BoxBranch(
            classes,
            first.image_size,
            first.levels,
            RoIAlign(7, aligned=aligned),
            dense_box_head((7, 7, channels), classes, norm=inner, shared=True, prefix=prefix),
            iou_threshold=threshold,
            delta_weights=delta_weights,
            score_threshold=first.score_threshold,
            nms_threshold=first.nms_threshold,
            num_detections=first.num_detections,
            name=f"box_branch_{stage}",
        )
        branches.append(branch)
    mask_branches = []
    for stage in range(1, len(branches) + 1) if masks else ():
        prefix = "roi_heads" if stage == 1 else f"roi_heads.stage{stage}"
        branch = MaskBranch(
            classes,
            first.levels,
            RoIAlign(14, aligned=aligned),
            mask_head(channels, inner, prefix, mask_channels),
            background=False,
            num_samples=num_mask_samples,
            prefix=prefix,
            name=f"mask_branch_{stage}",
        )
        mask_branches.append(branch)
    head = CascadeRCNNHead(faster.head.proposals, branches, mask_branches, name=f"{name}_head")
    detector = Detector(faster.trunk, head, name=name)
    return finish_detector(detector, weights)


@keras.saving.register_keras_serializable("kvision")
class CascadeRCNNHead(Assembly):
    """Trains and applies several `BoxBranch`es, each on the boxes of the one before.

    Args:
        proposals: A `RegionProposals`.
        box_branches: A `BoxBranch` for each stage, all with one box for all classes.
        mask_branches: A `MaskBranch` for each stage, or none.
        stage_weights: Factors of the stages' losses.

    Features: those of the parts.
    """

    parts = ("proposals", "box_branches", "mask_branches")

    def __init__(self, proposals, box_branches, mask_branches=(), stage_weights=STAGE_WEIGHTS, **options):
        super().__init__(**options)
        self.proposals = proposals
        self.box_branches = list(box_branches)
        self.mask_branches = list(mask_branches)
        self.stage_weights = tuple(stage_weights)
        self.built = True

    @property
    def loss_names(self):
        kinds = ("classification_loss", "box_loss", "mask_loss")[: 3 if self.mask_branches else 2]
        stages = range(1, len(self.box_branches) + 1)
        return (*RegionProposals.loss_names, *(f"{kind}_{stage}" for stage in stages for kind in kinds))

    @property
    def classes(self):
        return self.box_branches[0].classes

    def losses(self, features, targets, training=None):
        """`{name: scalar}`; the sample of the first stage goes through all (section 4.2)."""
        losses = self.proposals.losses(features, targets)
        image_size = targets.get("image_size", self.box_branches[0].image_size)
        proposals = self.proposals.propose(features, training, image_size)
        sample = self.box_branches[0].sample(proposals, targets)
        for stage, (branch, weight) in enumerate(zip(self.box_branches, self.stage_weights, strict=True)):
            logits, deltas = branch.respond(features, sample.boxes, training)
            parts = branch.losses(logits, deltas, sample, targets)
            if self.mask_branches:
                parts["mask_loss"] = self.mask_branches[stage].loss(features, sample, targets, training)
            losses |= {f"{name}_{stage + 1}": weight * loss for name, loss in parts.items()}
            if stage + 1 < len(self.box_branches):
                boxes = _refine(branch, deltas, sample.boxes, image_size)
                matches = self.box_branches[stage + 1].match(boxes, targets)
                sample = Sample(boxes, matches, sample.drawn & (area_xyxy(boxes) > 0))
        return losses

    def detect(self, features):
        """The boxes of the last stage with the mean of all stages' scores; masks the mean of all stages'."""
        boxes = self.proposals.propose(features)
        *before, last = self.box_branches
        scores = 0.0
        for branch in before:
            logits, deltas = branch.respond(features, boxes)
            scores = scores + ops.softmax(logits)
            boxes = _refine(branch, deltas, boxes, branch.image_size)
        logits, deltas = last.respond(features, boxes)
        scores = (scores + ops.softmax(logits)) / len(self.box_branches)
        found = last.detect(scores, deltas, boxes)
        if not self.mask_branches:
            return found
        masks = [branch.scores(features, found["boxes"], found["labels"]) for branch in self.mask_branches]
        return with_masks(found, sum(masks) / len(masks), last.image_size)

    def get_config(self):
        return super().get_config() | {"stage_weights": self.stage_weights}


def _refine(branch, deltas, boxes, image_size):
    """A stage's boxes as regions of the next; padding stays without area. No gradient flows through them."""
    refined = clip_xyxy(decode_deltas(deltas[:, :, 0], boxes, branch.delta_weights), image_size)
    return ops.stop_gradient(ops.where((area_xyxy(boxes) > 0)[..., None], refined, 0.0))
