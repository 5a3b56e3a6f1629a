"""What a detector has been shown in training, counted inside the step."""

import math

import keras
from keras import ops

from kvision.contract import images_of
from kvision.ops import area_xyxy

BASE = 2**24  # where a count is carried over: an int32, all that JAX has, holds the rest and a batch of 127 times this


@keras.saving.register_keras_serializable("kvision")
class ExposureCount(keras.metrics.Metric):
    """Counts images, object instances and pixels, exactly, for as long as it lives.

    The accounting of He, Girshick, Dollár, *Rethinking ImageNet Pre-training* (arXiv 1811.08883), Figure 2.
    `kvision.callbacks.Exposure` lets one observe the training steps of a `TaskModel`, and follows any model that holds
    one as an attribute and updates it in `compute_loss` when training. Its numbers are no part of the logs: `result()`
    is empty, and `reset_state()`, which Keras calls at every epoch and evaluation, changes nothing.

    - An instance is a row whose label is not −1, whose box has an area and which is not `"crowd"`: a crowd stands for
      many objects and trains none. The paper's 7 instances an image hold with and without COCO's crowds. Targets
      without `"labels"` count one instance an image.
    - Pixels are those of the valid part, `"image_size"`, or of the padded image if targets have none; 0 where only
      features are given.

    Example:

    >>> count = ExposureCount()
    >>> targets = {"labels": ops.convert_to_tensor([[2, 0, -1]]), "image_size": ops.convert_to_tensor([[480, 640]])}
    >>> count.update_state(ops.zeros((1, 512, 640, 3)), targets)
    >>> count.totals()
    (1, 2, 307200)
    """

    def __init__(self, name="exposure", dtype=None):
        super().__init__(name=name, dtype=dtype)
        self._parts = self.add_variable((2, 3), "zeros", dtype="int", name="parts")  # carried over, and the rest

    def update_state(self, images, targets):
        """Count one batch.

        Args:
            images: [b, h, w, c], or a dict that holds them as `"images"`.
            targets: The dict of the data contract (`kvision.contract`), or what another task learns from.
        """
        is_cached = hasattr(images, "keys") and "images" not in images
        first = keras.tree.flatten(images)[0] if is_cached else images_of(images)
        sides = [ops.cast(side, "int") for side in ops.shape(first)[:3]]
        targets = targets if hasattr(targets, "keys") else {}
        instances = sides[0]
        if "labels" in targets:
            counted = targets["labels"] >= 0
            if "boxes" in targets:
                counted = ops.logical_and(counted, area_xyxy(targets["boxes"]) > 0)
            if "crowd" in targets:
                counted = ops.logical_and(counted, ops.logical_not(ops.cast(targets["crowd"], "bool")))
            instances = ops.sum(ops.cast(counted, "int"))
        if "image_size" in targets:
            pixels = ops.sum(ops.prod(ops.cast(targets["image_size"], "int"), axis=-1))
        else:
            pixels = ops.zeros((), "int") if is_cached else math.prod(sides)
        counts = ops.stack([sides[0], instances, pixels])
        carried, rest = ops.unstack(ops.convert_to_tensor(self._parts))
        rest = rest + counts
        carry = rest // BASE
        self._parts.assign(ops.stack([carried + carry, rest - carry * BASE]))

    def totals(self):
        """Images, instances and pixels so far, as Python integers."""
        carried, rest = ops.convert_to_numpy(self._parts).tolist()
        return tuple(many * BASE + few for many, few in zip(carried, rest, strict=True))

    def reset_state(self):
        """Nothing: a run goes on when an epoch ends."""

    def result(self):
        """Nothing: a number for the logs would have to be a float32, which counts to 16,777,216 only."""
        return {}
