"""The head of every detector that looks twice: proposals, then one or several stages on their regions."""

import math

import keras
from keras import ops

from kvision.detection.assigner import Sample
from kvision.ops import area_xyxy
from kvision.part import Part, option_of


@keras.saving.register_keras_serializable("kvision")
class TwoStageHead(Part):
    """Trains and applies `BoxBranch`es on proposals, each on the boxes of the one before, with masks or without.

    Fast R-CNN: given proposals and one stage. Faster R-CNN: the network's own. Mask R-CNN: a mask stage beside the box
    stage. Cascade R-CNN (Cai 2018, section 4): several stages; the sample of the first goes through all, each stage
    matches it anew. In inference the boxes are the last stage's; scores and masks are the mean of all stages', each of
    its own regions, as in detectron2.

    Args:
        proposals: A `RegionProposals` or a `GivenProposals`.
        box_stages: A `BoxBranch` for each stage, the first with a sample; several must have one box for all classes.
        mask_stages: A `MaskBranch` for each stage, or none.
        stage_weights: Factors of the stages' losses; None: 1 each.

    Losses: those of the proposals, `classification_loss`, `box_loss` and, with masks, `mask_loss`; with several stages
    they end in `_1`, `_2`, …

    Raises:
        ValueError: on numbers of stages that differ, a first stage without a sample, or stages of a cascade with a box
            a class.
    """

    def __init__(self, proposals, box_stages, mask_stages=(), stage_weights=None, **options):
        super().__init__(**options)
        self.proposals = proposals
        self.box_stages = list(box_stages)
        self.mask_stages = list(mask_stages)
        self.stage_weights = None if stage_weights is None else tuple(stage_weights)
        self._check_stages()
        self.complete()

    score_threshold, nms_threshold, num_candidates, num_detections = (
        option_of(lambda head: head.box_stages[-1], name)
        for name in ("score_threshold", "nms_threshold", "num_candidates", "num_detections")
    )

    def _check_stages(self):
        number = len(self.box_stages)
        for what, given in (("mask_stages", self.mask_stages), ("stage_weights", self.stage_weights)):
            if given and len(given) != number:
                raise ValueError(f"TwoStageHead has {number} box stages, but {len(given)} {what}: give one for each.")
        if number == 0 or self.box_stages[0].assigner.num_samples is None:
            raise ValueError(
                "The first stage of TwoStageHead needs an Assigner with num_samples, as it draws the sample."
            )
        if number > 1 and not all(stage.shares_box for stage in self.box_stages):
            raise ValueError(
                "In a cascade a stage hands one box of each region to the next: build the box heads with shared=True."
            )

    @property
    def loss_names(self):
        kinds = ("classification_loss", "box_loss", "mask_loss")[: 3 if self.mask_stages else 2]
        stages = range(len(self.box_stages))
        return (*self.proposals.loss_names, *(self._name(kind, stage) for stage in stages for kind in kinds))

    def _name(self, kind, stage):
        return kind if len(self.box_stages) == 1 else f"{kind}_{stage + 1}"

    @property
    def classes(self):
        return self.box_stages[0].classes

    def check(self, x, y):
        """Raises on inputs without proposals and targets without masks, where they are needed."""
        self.proposals.check(x, y)
        for stage in self.mask_stages[:1]:
            stage.check(x, y)

    def losses(self, features, targets, training=None):
        """`{name: scalar}`; proposals are cut to the targets' `image_size`, if it is there."""
        losses = self.proposals.losses(features, targets)
        image_size = targets.get("image_size")
        proposals = self.proposals.propose(features, training, image_size)
        sample = self.box_stages[0].assigner.draw_with_targets(proposals, targets)
        for index, stage in enumerate(self.box_stages):
            logits, deltas = stage.predict(features, sample.boxes, training)
            parts = stage.losses(logits, deltas, sample, targets)
            if self.mask_stages:
                parts["mask_loss"] = self.mask_stages[index].loss(features, sample, targets, training)
            weight = 1.0 if self.stage_weights is None else self.stage_weights[index]
            losses |= {self._name(kind, index): weight * loss for kind, loss in parts.items()}
            if index + 1 < len(self.box_stages):
                boxes = stage.refine(deltas, sample.boxes, image_size)
                matches = self.box_stages[index + 1].assigner.match(boxes, targets)
                sample = Sample(boxes, matches, sample.drawn & (area_xyxy(boxes) > 0))
        return losses

    def chance_losses(self, targets):
        """`{name: float}` of a network that knows nothing: every class, and every cell of a mask, is as likely."""
        losses = dict.fromkeys(set(self.proposals.loss_names) & {"rpn_objectness_loss"}, math.log(2))
        for index in range(len(self.box_stages)):
            weight = 1.0 if self.stage_weights is None else self.stage_weights[index]
            losses[self._name("classification_loss", index)] = weight * math.log(self.classes + 1)
        return losses

    def decode(self, features):
        """See `BoxBranch.decode`; with masks also `"box_masks"` [b, k, 28, 28], scores in 0…1.

        Boxes are cut to the features' `image_size`, if it is there.
        """
        image_size = features.get("image_size")
        boxes = self.proposals.propose(features, image_size=image_size)
        *before, last = self.box_stages
        scores = 0.0
        for stage in before:
            logits, deltas = stage.predict(features, boxes)
            scores = scores + ops.softmax(logits)
            boxes = stage.refine(deltas, boxes, image_size)
        logits, deltas = last.predict(features, boxes)
        scores = (scores + ops.softmax(logits)) / len(self.box_stages)
        detections = last.decode(scores, deltas, boxes, image_size)
        if not self.mask_stages:
            return detections
        masks = [stage.scores(features, detections["boxes"], detections["labels"]) for stage in self.mask_stages]
        return detections | {"box_masks": sum(masks) / len(masks)}
