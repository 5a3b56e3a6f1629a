"""What a box is trained towards: matching by overlap, and the sample of boxes that a step trains on."""

import typing

import keras
from keras import ops

from kvision.ops import BACKGROUND, IGNORED, area_xyxy, match, sample_balanced, take_rows
from kvision.ops.matching import check_low_quality
from kvision.part import Part


class Targets(typing.NamedTuple):
    """boxes [b, n, 4] float32, labels [b, n] int32, crowd [b, n] or None."""

    boxes: typing.Any
    labels: typing.Any
    crowd: typing.Any


def read_targets(targets):
    """The part of the data contract that every detector learns from; a box without area becomes padding."""
    boxes = ops.cast(targets["boxes"], "float32")
    labels = ops.where(area_xyxy(boxes) > 0, ops.cast(targets["labels"], "int32"), -1)
    return Targets(boxes, labels, targets.get("crowd"))


class Sample(typing.NamedTuple):
    """Boxes that a step trains on, of fixed number.

    boxes [b, s, 4]; matches [b, s]: the index of a target, or below 0; drawn [b, s]: whether the row counts.
    """

    boxes: typing.Any
    matches: typing.Any
    drawn: typing.Any

    @property
    def positive(self):
        """[b, s]: whether the row is drawn and matches a target."""
        return (self.matches > BACKGROUND) & self.drawn


@keras.saving.register_keras_serializable("kvision")
class Assigner(Part):
    """Matches boxes with targets, and draws a sample where not all of them are trained on.

    Args:
        matching_iou_threshold: Overlap from which on a box matches a target, in (0, 1].
        background_iou_threshold: Overlap with every target below which a box is background; between the two it is
            ignored. None: the same as `matching_iou_threshold`.
        low_quality_matches: Whether every target gets the boxes that overlap it most, however little that is: True,
            False or `"single"`, as `allow_low_quality` of `kvision.ops.match`.
        min_background_iou: Overlap with some object below which a box is no background either, in images that have
            objects: Fast R-CNN's ring around them; 0 uses all. A crowd is no object.
        num_samples: Boxes of an image that a step trains on; None: all.
        positive_fraction: Of the sample, at most, in [0, 1].

    ```python
    assigner = Assigner(0.7, 0.3, low_quality_matches=True, num_samples=256, positive_fraction=0.5)
    indices, sample = assigner.draw(anchors_xyxy, targets)
    ```
    """

    def __init__(
        self,
        matching_iou_threshold=0.5,
        background_iou_threshold=None,
        low_quality_matches=False,
        min_background_iou=0.0,
        num_samples=None,
        positive_fraction=0.25,
        **options,
    ):
        super().__init__(**options)
        low = matching_iou_threshold if background_iou_threshold is None else background_iou_threshold
        if not 0 <= min_background_iou < low <= matching_iou_threshold <= 1:
            raise ValueError(
                "Overlaps must rise from min_background_iou over background_iou_threshold to matching_iou_threshold, "
                f"within 0 to 1: got {min_background_iou}, {background_iou_threshold} and {matching_iou_threshold}."
            )
        check_low_quality(low_quality_matches)
        self.matching_iou_threshold = matching_iou_threshold
        self.background_iou_threshold = background_iou_threshold
        self.low_quality_matches = low_quality_matches
        self.min_background_iou = min_background_iou
        self.num_samples = num_samples
        self.positive_fraction = positive_fraction
        if num_samples is not None:
            self._seed_generator = keras.random.SeedGenerator(name=f"{self.name}_seed")
        self.complete()

    def match(self, boxes_xyxy, targets):
        """The target of each box [n, 4] or [b, n, 4], int32 [b, n], as `kvision.ops.match`.

        A box without area is ignored.
        """
        boxes, labels, crowd = read_targets(targets)
        high, low = self.matching_iou_threshold, self.background_iou_threshold
        low = high if low is None else low
        matches = match(boxes, labels, boxes_xyxy, low, high, self.low_quality_matches, crowd)
        if self.min_background_iou:
            ring = self.min_background_iou
            objects = labels if crowd is None else ops.where(ops.cast(crowd, "bool"), -1, labels)
            far = match(boxes, objects, boxes_xyxy, ring, ring) == BACKGROUND
            matches = ops.where(far & ops.any(objects >= 0, axis=1, keepdims=True), IGNORED, matches)
        return ops.where(area_xyxy(boxes_xyxy) > 0, matches, IGNORED)

    def draw(self, boxes_xyxy, targets):
        """Indices [b, num_samples] into the boxes, and the `Sample` of them."""
        matches = self.match(boxes_xyxy, targets)
        indices, drawn = sample_balanced(matches, self.num_samples, self.positive_fraction, seed=self._seed_generator)
        matches = take_rows(matches, indices)
        boxes = ops.take(boxes_xyxy, indices, axis=0) if len(boxes_xyxy.shape) == 2 else take_rows(boxes_xyxy, indices)
        return indices, Sample(boxes, matches, drawn)

    def draw_with_targets(self, proposals_xyxy, targets):
        """The `Sample` of proposals [b, m, 4] and the targets' own boxes; crowds and padding are left out."""
        boxes, labels, crowd = read_targets(targets)
        real = labels >= 0 if crowd is None else (labels >= 0) & ~ops.cast(crowd, "bool")
        boxes = ops.where(real[..., None], boxes, 0.0)
        return self.draw(ops.concatenate([proposals_xyxy, boxes], axis=1), targets)[1]


def matched(values, matches):
    """The rows of the targets' values [b, n] or [b, n, c] that boxes match; those without a match read the first."""
    return take_rows(values, ops.maximum(matches, 0))
