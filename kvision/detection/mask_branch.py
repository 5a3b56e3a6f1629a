"""The branch that draws masks of regions: He, Gkioxari, Dollár, Girshick, "Mask R-CNN" (2017), section 3."""

import functools

import keras
import numpy as np
from keras import ops

from kvision._keras import layers_of
from kvision.detection.assigner import matched, read_targets
from kvision.detection.box_branch import read_regions, without_padding
from kvision.layers.conventions import conventions, kernel_initializer
from kvision.ops import take_rows
from kvision.ops.masks import crop_masks
from kvision.part import Part


def mask_head(channels, *, width=256, norm=None, initializer="he", prefix="roi_heads"):
    """Figure 4, right: four convolutions and one that doubles the size, [k, 14, 14, channels] → [k, 28, 28, width]."""
    c = conventions(norm=norm, initializer=initializer)
    x = inputs = keras.Input((14, 14, channels))
    name = f"{prefix}.mask_head"
    for index in range(4):
        x = c.norm(name=f"{name}.{index}.1")(c.conv(width, 3, name=f"{name}.{index}.0")(x))
        x = c.activation(name=f"{name}.{index}.2")(x)
    name = f"{prefix}.mask_predictor.conv5_mask"
    kernel = kernel_initializer(initializer)
    x = keras.layers.Conv2DTranspose(width, 2, strides=2, kernel_initializer=kernel, name=name)(x)
    x = c.activation(name=f"{prefix}.mask_predictor.relu")(x)
    return keras.Model(inputs, x, name=f"{prefix}.mask_head")


@keras.saving.register_keras_serializable("kvision")
class MaskBranch(Part):
    """Draws the mask of each region, one for each class (sections 3 and 3.1).

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

    _mixes_rows = False  # whether a region's mask depends on the other regions of a step

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
        norms = [layer for layer in layers_of(mask_head) if isinstance(layer, keras.layers.BatchNormalization)]
        self._mixes_rows = not all(getattr(norm, "frozen", False) for norm in norms)
        self.complete()

    def check(self, x, y):
        """Raises on targets without masks, or whose masks show nothing."""
        check_masks(y)

    def predict(self, features, boxes_xyxy, labels, training=False):
        """Logits [b, n, size, size], float32: the mask of each box [b, n, 4] for its label [b, n], from 0."""
        regions = read_regions(self.pooling, features, self.levels, boxes_xyxy)
        maps = self.mask_head(regions, training=training)
        size = maps.shape[1]
        channel = ops.reshape(labels, (-1,)) + int(self.background)
        kernel = ops.take(ops.transpose(self.mask_predictor.kernel[0, 0]), channel, axis=0)
        bias = ops.take(self.mask_predictor.bias, channel, axis=0)
        maps = ops.reshape(maps, (-1, size * size, maps.shape[-1]))
        logits = ops.matmul(maps, ops.cast(kernel, maps.dtype)[..., None])[..., 0]
        logits = ops.cast(logits, "float32") + ops.cast(bias, "float32")[:, None]
        return ops.reshape(logits, (-1, ops.shape(boxes_xyxy)[1], size, size))

    def loss(self, features, sample, targets, training=None):
        """Section 3: binary cross-entropy of the class's own mask, the mean over the positives of the batch."""
        labels = read_targets(targets).labels
        count = sample.boxes.shape[1]
        falling = ops.arange(count, 0, -1, dtype="float32")
        rank, indices = ops.top_k(ops.where(sample.positive, falling, 0.0), k=min(self.num_samples, count))
        counted = ops.cast(rank > 0, "float32")
        boxes = take_rows(sample.boxes, indices)
        matches = ops.maximum(take_rows(sample.matches, indices), 0)
        rows = boxes, ops.maximum(matched(labels, matches), 0)
        predict = functools.partial(self.predict, features, training=training)
        logits = predict(*rows) if self._mixes_rows else without_padding(predict, rank > 0, *rows)
        masks = self._targets(targets, matches, boxes, logits.shape[-1])
        entropy = ops.softplus(logits) - masks * logits
        entropy = ops.sum(ops.mean(entropy, axis=(2, 3)) * counted)
        return entropy / ops.maximum(ops.sum(counted), 1.0)

    def _targets(self, targets, matches, boxes, size):
        return mask_targets(targets, matches, boxes, size, self.pooling.aligned)

    def scores(self, features, boxes_xyxy, labels):
        """Masks [b, k, size, size] of detections, scores in 0…1; zero for padding."""
        logits = without_padding(
            lambda *rows: self.predict(features, *rows), labels >= 0, boxes_xyxy, ops.maximum(labels, 0)
        )
        return ops.where((labels >= 0)[..., None, None], ops.sigmoid(logits), 0.0)


def check_masks(targets):
    """Raises on targets without masks, and on a batch in which no object's mask has a pixel or is of 0…1."""
    name = _name_of_masks(targets)
    labels = np.asarray(ops.convert_to_numpy(targets["labels"]))
    highest = []
    for masks, present in zip(targets[name], labels >= 0, strict=True):  # one image at a time: all may be large
        if present.any():
            highest.append(float(np.max(np.asarray(ops.convert_to_numpy(masks))[present], initial=0)))
            if highest[-1] > 0:
                break
    if highest and not 0 < highest[-1] <= 1:
        found = f"one has the value {highest[-1]:g}" if highest[-1] else "none of an object has a pixel"
        raise ValueError(
            f"Masks of targets are 0 or 1, and 1 where the object is: in {name!r} {found}. Masks of 0 and 255 become "
            "such by `masks > 0`."
        )


def _name_of_masks(targets):
    for name in ("masks", "box_masks"):
        if targets.get(name) is not None:
            return name
    raise ValueError(
        'Training masks needs targets with "masks" [b, n, h, w] or "box_masks" [b, n, s, s]: got '
        f"{sorted(targets)}. Pass masks=True to the reader (`kvision.data.coco`, `kvision.data.shapes`, …)."
    )


def mask_targets(targets, matches, boxes_xyxy, size, aligned=True):
    """What the masks of boxes [b, s, 4] should be, [b, s, size, size] in 0…1: what of the matched one lies inside.

    Args:
        targets: Those of the data contract, with `"masks"` or `"box_masks"`.
        matches: [b, s], indices of the targets, from 0.
        boxes_xyxy: In pixels.
        size: Bins along each side.
        aligned: Half-pixel alignment, as that of the regions.
    """
    name = _name_of_masks(targets)
    masks = targets[name]
    if name == "masks":
        return crop_masks(masks, matches, boxes_xyxy, size, aligned=aligned)
    around = matched(read_targets(targets).boxes, matches)
    corner, sides = around[..., :2], ops.maximum(around[..., 2:] - around[..., :2], 1e-3)
    corner, sides = ops.tile(corner, (1, 1, 2)), ops.tile(sides, (1, 1, 2))
    shift = 0.0 if aligned else 0.5  # of a pixel, which is not half a cell of these masks
    boxes = (boxes_xyxy + shift - corner) / sides * float(masks.shape[-1])
    return crop_masks(masks, matches, boxes, size, aligned=True, furthest=2.0)
