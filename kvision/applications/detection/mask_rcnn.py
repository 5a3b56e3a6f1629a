"""Mask R-CNN: He, Gkioxari, Dollár, Girshick, "Mask R-CNN" (2017).

From scratch, with `norm="group"`, `"sync_batch"` or None: He, Girshick, Dollár, "Rethinking ImageNet Pre-training"
(2018). Equals torchvision's `maskrcnn_resnet50_fpn`, fed the same weights, in features, detections, masks and losses;
like it, it has a mask for the background too, which nothing uses.

How it trains (section 3.1): as Faster R-CNN on a pyramid, 16 images a batch, 160k steps at 0.02, divided by 10 at 120k.
From scratch (He 2018, section 3): warm-up, and up to 540k steps, divided by 10 at the last 60k and the last 20k.
"""

import keras
from keras import ops

from kvision.applications.building import finish_detector, inner_norm
from kvision.applications.detection import coco, faster_rcnn
from kvision.applications.detection.fast_rcnn import Assembly, read_regions, read_targets
from kvision.applications.detection.faster_rcnn import FasterRCNN, FasterRCNNHead
from kvision.detection.detector import Detector
from kvision.layers import RoIAlign
from kvision.layers.conventions import conventions
from kvision.ops import BACKGROUND
from kvision.ops.masks import crop_masks, paste_masks
from kvision.weights import published_names

# Of the detector as it is built by default.
WEIGHTS = {
    "coco": coco.torchvision_weights(
        "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
        37.9,
        (*faster_rcnn.WEIGHTS["coco"].head, "roi_heads.mask_predictor.mask_fcn_logits"),
        mask_ap=34.6,
    )
}

PROOF = "torchvision maskrcnn_resnet50_fpn, fed the same weights"

MASK_THRESHOLD = 0.5  # section 3.1, "Inference"


def MaskRCNN(
    *,
    classes=80,
    weights=None,
    norm="frozen_batch",
    channels=256,
    aligned=False,
    num_mask_samples=128,
    mask_channels=256,
    name="mask_rcnn",
    **options,
):
    """Build a Mask R-CNN on a feature pyramid.

    Args:
        classes, norm, channels, aligned, **options: Those of `FasterRCNN`, but for `neck`. The norms that train from
            scratch reach the mask head as well.
        weights: As those of `FasterRCNN`: None, `"coco"` (see `WEIGHTS`), or a path.
        num_mask_samples: Positives of an image that the mask head trains on, at most; the paper's 128 are all of them.
        mask_channels: Width of the mask head; fewer for small data sets, where it is most of the work.
        name: Of the model.

    Returns:
        A `kvision.detection.Detector` with the losses of `FasterRCNN` and `mask_loss`. Targets need `"masks"`
        [b, n, h, w] or `"box_masks"` [b, n, s, s]. Its detections have `"box_masks"` [b, k, 28, 28], scores in 0…1, and
        `"masks"` [b, k, h, w], the same pasted at full size and cut at 0.5, uint8.

    Raises:
        ValueError: as `FasterRCNN`.

    ```python
    detector = kvision.applications.MaskRCNN(input_shape=(256, 256, 3), classes=3, norm="group")
    detector.compile(keras.optimizers.SGD(0.01, momentum=0.9))
    ```
    """
    refuse_neck("MaskRCNN", options)
    faster = FasterRCNN(classes=classes, norm=norm, channels=channels, aligned=aligned, name=name, **options)
    mask_branch = MaskBranch(
        classes,
        faster.head.box_branch.levels,
        RoIAlign(14, aligned=aligned),
        mask_head(channels, inner_norm(norm), width=mask_channels),
        num_samples=num_mask_samples,
        name="mask_branch",
    )
    head = MaskRCNNHead(faster.head.proposals, faster.head.box_branch, mask_branch, name=f"{name}_head")
    detector = Detector(faster.trunk, head, name=name)
    return finish_detector(detector, weights, WEIGHTS if published_names(faster) and mask_channels == 256 else None)


def refuse_neck(family, options):
    """A ValueError for the one option of `FasterRCNN` that detectors with masks or stages don't take."""
    if "neck" in options:
        raise ValueError(f"{family} stands on a feature pyramid: got neck={options['neck']!r}. Leave `neck` out.")


def mask_head(channels, norm=None, prefix="roi_heads", width=256):
    """Figure 4, right: four convolutions and one that doubles the size, [k, 14, 14, channels] → [k, 28, 28, width]."""
    bound = conventions(norm=norm, initializer="he")
    conv, normalize, act = bound.conv, bound.norm, bound.activation
    x = inputs = keras.Input((14, 14, channels))
    name = f"{prefix}.mask_head"
    for index in range(4):
        x = normalize(name=f"{name}.{index}.1")(conv(width, 3, name=f"{name}.{index}.0")(x))
        x = act(name=f"{name}.{index}.2")(x)
    name = f"{prefix}.mask_predictor.conv5_mask"
    start = keras.initializers.HeNormal()
    x = keras.layers.Conv2DTranspose(width, 2, strides=2, kernel_initializer=start, name=name)(x)
    x = act(name=f"{prefix}.mask_predictor.relu")(x)
    return keras.Model(inputs, x, name=f"{prefix}.mask_head")


@keras.saving.register_keras_serializable("kvision")
class MaskBranch(Assembly):
    """The mask of a region, one for each class (sections 3 and 3.1).

    The last convolution, 1x1, is computed for the one class that counts: the same numbers for a fraction of the work.

    Args:
        classes: Number of classes, without the background.
        levels: Names of the features that regions are read from.
        pooling: A `RoIAlign` layer; its `aligned` holds for the targets too.
        mask_head: A `keras.Model` from the bins of a region to a map.
        background: Whether there is a mask for the background too, the first.
        num_samples: Positives of an image that a step trains on, at most.
        prefix: Of the names of the layers made here.
    """

    parts = ("pooling", "mask_head")

    def __init__(
        self,
        classes,
        levels,
        pooling,
        mask_head,
        background=True,
        num_samples=128,
        prefix="roi_heads",
        **options,
    ):
        super().__init__(**options)
        self.classes = classes
        self.levels = tuple(levels)
        self.pooling = pooling
        self.mask_head = mask_head
        self.background = background
        self.num_samples = num_samples
        self.prefix = prefix
        conv = conventions(norm=None, initializer="he").conv
        self.mask_predictor = conv(classes + background, 1, name=f"{prefix}.mask_predictor.mask_fcn_logits")
        self.mask_predictor.build(mask_head.output_shape)
        self.built = True

    def respond(self, features, boxes, labels, training=False):
        """Logits [b, n, size, size], float32: the mask of each box [b, n, 4] for its label [b, n], from 0."""
        maps = self.mask_head(read_regions(self.pooling, features, self.levels, boxes), training=training)
        size = maps.shape[1]
        channel = ops.reshape(labels, (-1,)) + int(self.background)
        kernel = ops.take(ops.transpose(self.mask_predictor.kernel[0, 0]), channel, axis=0)
        bias = ops.take(self.mask_predictor.bias, channel, axis=0)
        maps = ops.reshape(maps, (-1, size * size, maps.shape[-1]))
        logits = ops.matmul(maps, ops.cast(kernel, maps.dtype)[..., None])[..., 0]
        logits = ops.cast(logits, "float32") + ops.cast(bias, "float32")[:, None]
        return ops.reshape(logits, (-1, boxes.shape[1], size, size))

    def loss(self, features, sample, targets, training=None):
        """Section 3: binary cross-entropy of the class's own mask, the mean over the positives of the batch."""
        _, labels, _ = read_targets(targets)
        count = sample.boxes.shape[1]
        falling = ops.arange(count, 0, -1, dtype="float32")
        rank = ops.where((sample.matches > BACKGROUND) & sample.drawn, falling, 0.0)
        rank, place = ops.top_k(rank, k=min(self.num_samples, count))
        chosen = ops.cast(rank > 0, "float32")
        boxes = ops.take_along_axis(sample.boxes, place[..., None], axis=1)
        matches = ops.maximum(ops.take_along_axis(sample.matches, place, axis=1), 0)
        labels = ops.maximum(ops.take_along_axis(labels, matches, axis=1), 0)
        logits = self.respond(features, boxes, labels, training)
        wanted = self._targets(targets, matches, boxes, logits.shape[-1])
        entropy = ops.softplus(logits) - wanted * logits
        entropy = ops.sum(ops.mean(entropy, axis=(2, 3)) * chosen)
        return entropy / ops.maximum(ops.sum(chosen), 1.0)

    def _targets(self, targets, matches, boxes, size):
        """What the masks should be, [b, s, size, size] in 0…1."""
        if targets.get("masks") is not None:
            return crop_masks(targets["masks"], matches, boxes, size, aligned=self.pooling.aligned)
        if targets.get("box_masks") is None:
            raise ValueError(
                'Training masks needs targets with "masks" [b, n, h, w] or "box_masks" [b, n, s, s]: got '
                f"{sorted(targets)}. The readers of `kvision.data` deliver them for data that have outlines."
            )
        masks = targets["box_masks"]
        around = ops.take_along_axis(ops.cast(targets["boxes"], "float32"), matches[..., None], axis=1)
        corner, sides = around[..., :2], ops.maximum(around[..., 2:] - around[..., :2], 1e-3)
        corner, sides = ops.tile(corner, (1, 1, 2)), ops.tile(sides, (1, 1, 2))
        shift = 0.0 if self.pooling.aligned else 0.5  # of a pixel, which is not half a cell of these masks
        boxes = (boxes + shift - corner) / sides * float(masks.shape[-1])
        return crop_masks(masks, matches, boxes, size, aligned=True, furthest=2.0)

    def scores(self, features, boxes, labels):
        """Masks [b, k, size, size] of detections, scores in 0…1; zero for padding."""
        logits = self.respond(features, boxes, ops.maximum(labels, 0))
        return ops.where((labels >= 0)[..., None, None], ops.sigmoid(logits), 0.0)

    def get_config(self):
        return super().get_config() | {
            "classes": self.classes,
            "levels": self.levels,
            "background": self.background,
            "num_samples": self.num_samples,
            "prefix": self.prefix,
        }


def with_masks(found, box_masks, image_size):
    """Detections with their masks, and with the same pasted into the picture."""
    pasted = paste_masks(box_masks, found["boxes"], image_size)
    return found | {"box_masks": box_masks, "masks": ops.cast(pasted >= MASK_THRESHOLD, "uint8")}


@keras.saving.register_keras_serializable("kvision")
class MaskRCNNHead(FasterRCNNHead):
    """`FasterRCNNHead` with a `MaskBranch` on the same regions in training, and on the detections in inference.

    Args:
        proposals: A `RegionProposals`.
        box_branch: A `BoxBranch`.
        mask_branch: A `MaskBranch`.
    """

    parts = (*FasterRCNNHead.parts, "mask_branch")
    loss_names = (*FasterRCNNHead.loss_names, "mask_loss")

    def __init__(self, proposals, box_branch, mask_branch, **options):
        super().__init__(proposals, box_branch, **options)
        self.mask_branch = mask_branch

    def losses(self, features, targets, training=None):
        """`{name: scalar}`."""
        losses, sample = self._losses_and_sample(features, targets, training)
        return losses | {"mask_loss": self.mask_branch.loss(features, sample, targets, training)}

    def detect(self, features):
        """Boxes, scores, labels, and masks at the head's size and at the picture's."""
        found = super().detect(features)
        scores = self.mask_branch.scores(features, found["boxes"], found["labels"])
        return with_masks(found, scores, self.box_branch.image_size)
