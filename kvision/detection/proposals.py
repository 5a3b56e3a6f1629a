"""Proposals: the boxes that a second stage looks at, the network's own or given ones, behind one interface.

`loss_names`; `check(x, y)`; `losses(features, targets)` → `{name: scalar}`; `propose(features, training, image_size)` →
boxes [b, n, 4], padded with zeros. Cut to the image; without gradient, unless they are asked for one.
"""

import keras
import numpy as np
from keras import ops

from kvision.detection.assigner import matched, read_targets
from kvision.detection.dense_head import flatten_outputs, shared_convolutions
from kvision.losses import smooth_l1_loss
from kvision.ops import area_xyxy, clip_xyxy, decode_deltas, encode_deltas, nms, take_rows
from kvision.part import Part

SMALLEST_SIDE = 1e-3  # of a proposal, in pixels


def proposal_network(levels, num_per_cell, name="rpn.head"):
    """The network of proposals (Ren 2015, section 3.1), shared by the levels: features for `RegionProposals`."""
    last = {
        "objectness": (f"{name}.cls_logits", num_per_cell, 1, 0.0),
        "deltas": (f"{name}.bbox_pred", 4 * num_per_cell, 1, 0.0),
    }
    outputs = shared_convolutions(levels, depth=1, last=last, name=f"{name}.conv")
    return {
        "objectness_logits": flatten_outputs(outputs["objectness"], None),
        "anchor_deltas": flatten_outputs(outputs["deltas"], 4),
    }


@keras.saving.register_keras_serializable("kvision")
class RegionProposals(Part):
    """The losses of the region proposal network and the proposals it makes (Ren 2015, section 3). It has no weights.

    Args:
        anchors: An `Anchors`.
        assigner: An `Assigner` with a sample.
        image_size: (height, width) of the network's input.
        feature_sizes: (height, width) of each level.
        num_candidates: Of each level go on to suppression, in training and in inference.
        num_proposals: Of an image are given, in training and in inference.
        nms_threshold: Of the suppression, per level.
        beta: Of the smooth L1 loss.
        box_gradient: Whether a gradient flows from the proposals to the deltas that made them (Dai 2016, "Multi-task
            Network Cascades", section 4). A number: it does, each at most this over the number of images. Beyond that
            of the proposals' own loss, it moves boxes to where they are easy to classify, away from the objects.

    Features: `"objectness_logits"` [b, anchors] and `"anchor_deltas"` [b, anchors, 4], float32, finest level first.
    """

    loss_names = ("rpn_objectness_loss", "rpn_box_loss")

    def __init__(
        self,
        anchors,
        assigner,
        image_size,
        feature_sizes,
        num_candidates=(2000, 1000),
        num_proposals=(2000, 1000),
        nms_threshold=0.7,
        beta=1 / 9,
        box_gradient=False,
        **options,
    ):
        super().__init__(**options)
        self.anchors = anchors
        self.assigner = assigner
        self.image_size = tuple(image_size)
        self.feature_sizes = tuple(tuple(size) for size in feature_sizes)
        self.num_candidates = tuple(num_candidates)
        self.num_proposals = tuple(num_proposals)
        self.nms_threshold = nms_threshold
        self.beta = beta
        self.box_gradient = box_gradient
        self._anchors = anchors.boxes_xyxy(self.image_size, self.feature_sizes)
        self.complete()

    def check(self, x, y):
        """Nothing beyond the data contract."""

    def losses(self, features, targets):
        """Section 3.1.2: cross-entropy of the objectness and smooth L1, both over all anchors drawn in the batch."""
        indices, sample = self.assigner.draw(ops.concatenate(self._anchors), targets)
        logits, deltas = (take_rows(features[name], indices) for name in ("objectness_logits", "anchor_deltas"))
        drawn = ops.cast(sample.drawn, "float32")
        number = ops.maximum(ops.sum(drawn), 1.0)
        entropy = ops.softplus(ops.where(sample.positive, -logits, logits))
        target_deltas = encode_deltas(matched(read_targets(targets).boxes, sample.matches), sample.boxes)
        errors = ops.where(sample.positive[..., None], smooth_l1_loss(target_deltas, deltas, self.beta), 0.0)
        return {
            "rpn_objectness_loss": ops.sum(entropy * drawn) / number,
            "rpn_box_loss": ops.sum(errors) / number,
        }

    def propose(self, features, training=False, image_size=None):
        """Boxes [b, n, 4] by falling objectness, cut to `image_size` ([b, 2] or a pair), padded with zeros."""
        num_candidates, num_proposals = (
            numbers[0 if training else 1] for numbers in (self.num_candidates, self.num_proposals)
        )
        image_size = self.image_size if image_size is None else image_size
        boxes, logits = self._candidates(features, num_candidates, image_size)
        keep, _ = nms(boxes, logits, self.nms_threshold, min(num_proposals, boxes.shape[2]))
        indices = ops.maximum(keep, 0)
        logits = ops.where(keep >= 0, take_rows(logits, indices), -float("inf"))
        boxes = take_rows(boxes, indices)
        total = boxes.shape[1] * boxes.shape[2]
        best, indices = ops.top_k(ops.reshape(logits, (-1, total)), k=min(num_proposals, total))
        boxes = take_rows(ops.reshape(boxes, (-1, total, 4)), indices)
        return ops.where((best > -float("inf"))[..., None], boxes, 0.0)

    def _candidates(self, features, number, image_size):
        """Boxes [b, levels, n, 4] and logits of each level's best anchors, as many of each; padding has −inf."""
        logits, deltas = ops.stop_gradient(features["objectness_logits"]), features["anchor_deltas"]
        deltas = with_box_gradient(deltas, self.box_gradient)
        number = min(number, max(len(anchors) for anchors in self._anchors))
        levels, begin = [], 0
        for anchors in self._anchors:
            best, indices = ops.top_k(logits[:, begin : begin + len(anchors)], k=min(number, len(anchors)))
            padding = [(0, 0), (0, max(0, number - len(anchors)))]
            levels.append((ops.pad(best, padding, constant_values=-float("inf")), ops.pad(indices + begin, padding)))
            begin += len(anchors)
        best, indices = (ops.concatenate(parts, axis=1) for parts in zip(*levels, strict=True))
        anchors = ops.take(np.concatenate(self._anchors), indices, axis=0)
        boxes = clip_xyxy(decode_deltas(take_rows(deltas, indices), anchors), image_size)
        best = ops.where(has_sides(boxes, SMALLEST_SIDE), best, -float("inf"))
        shape = (-1, len(self._anchors), number)
        return ops.reshape(boxes, (*shape, 4)), ops.reshape(best, shape)


@keras.saving.register_keras_serializable("kvision")
class GivenProposals(Part):
    """Proposals that come with the images, as `x = {"images": …, "proposals": [b, m, 4]}`.

    Args:
        image_size: (height, width) of the network's input.

    Features: `"proposals"` [b, m, 4], xyxy in pixels of the padded image, padded with rows of zeros.
    """

    loss_names = ()

    def __init__(self, image_size, **options):
        super().__init__(**options)
        self.image_size = tuple(image_size)
        self.complete()

    def check(self, x, y):
        """Raises unless proposals [b, m, 4] of the batch's images come along."""
        is_dict = hasattr(x, "keys")
        self._check(x.get("proposals") if is_dict else None, sorted(x) if is_dict else "images alone")

    def _check(self, proposals, got):
        shape = None if proposals is None else tuple(proposals.shape)
        if shape is None or len(shape) != 3 or shape[-1] != 4 or shape[1] == 0:
            raise ValueError(
                'This detector looks at given regions: x must be {"images": [b, h, w, 3], "proposals": [b, m, 4]} with '
                f"a fixed m of at least 1; got {got if shape is None else f'proposals of shape {shape}'}."
            )

    def losses(self, features, targets):
        """None: nothing is trained."""
        return {}

    def propose(self, features, training=False, image_size=None):
        """Boxes [b, m, 4], cut to `image_size` ([b, 2] or a pair); no gradient flows through them."""
        self._check(features.get("proposals"), "no proposals")
        boxes = ops.stop_gradient(ops.cast(features["proposals"], "float32"))
        boxes = clip_xyxy(boxes, self.image_size if image_size is None else image_size)
        return ops.where((area_xyxy(boxes) > 0)[..., None], boxes, 0.0)


def has_sides(boxes_xyxy, smallest):
    """Whether both sides of a box measure at least `smallest` pixels, [..., 4] → [...]."""
    return ops.all(boxes_xyxy[..., 2:] - boxes_xyxy[..., :2] >= smallest, axis=-1)


def with_box_gradient(deltas, box_gradient):
    """Deltas [b, n, 4] with the gradient that `RegionProposals` says, limited over the number of images."""
    if box_gradient is False:
        return ops.stop_gradient(deltas)
    if box_gradient is True:
        return deltas
    return limit_gradient(deltas, box_gradient / ops.cast(ops.shape(deltas)[0], "float32"))


def limit_gradient(x, limit):
    """`x`, whose gradient is cut to −limit…limit."""

    @ops.custom_gradient
    def identity(x):
        def gradient(*arguments, upstream=None):
            return ops.clip(arguments[0] if upstream is None else upstream, -limit, limit)

        return x * 1.0, gradient

    return identity(x)
