"""The anchors of a detector, as an object that is saved with it."""

import keras

from kvision.ops.anchors import RATIOS, anchors_xyxy
from kvision.part import FromSignature

TORCHVISION = "torchvision"


@keras.saving.register_keras_serializable("kvision")
class Anchors(FromSignature):
    """Boxes of fixed sizes and ratios around every cell of every level.

    Args:
        strides: Of each level, in pixels: 2^k for level k, whatever the size of the image; the centre of cell i lies at
            (i + 0.5) * stride, where RoIAlign with `aligned=True` reads it. Or `"torchvision"`: pixels // cells, with
            centres at i * stride, to which torchvision's published weights are trained. It falls short of 2^k at sizes
            that the stride does not divide: at 500 pixels P3's is 7, and the last centre lies 62 pixels off.
        sizes: For each level, the square roots of its anchors' areas, in pixels.
        ratios: Height over width; or pairs (height, width) of factors.
        rounded: Sides to whole pixels.

    >>> anchors = Anchors(strides=(8, 16), sizes=((32, 40, 50), (64, 80, 101)))
    >>> anchors.num_per_cell, [len(level) for level in anchors.boxes_xyxy((500, 500), [(63, 63), (32, 32)])]
    (9, [35721, 9216])
    """

    def __init__(self, strides, sizes, ratios=RATIOS, rounded=True):
        self.strides = strides if isinstance(strides, str) else tuple(strides)
        self.sizes = tuple(tuple(level) for level in sizes)
        self.ratios = tuple(ratios)
        self.rounded = rounded
        counts = {len(level) for level in self.sizes}
        if len(counts) != 1 or 0 in counts or not self.ratios:
            raise ValueError(
                f"Heads are shared by the levels, so each needs as many anchor sizes, and at least one ratio: got "
                f"sizes {self.sizes} and ratios {self.ratios}."
            )
        if any(size <= 0 for level in self.sizes for size in level):
            raise ValueError(f"Anchor sizes are in pixels, above 0: got {self.sizes}.")

    @property
    def num_per_cell(self):
        return len(self.sizes[0]) * len(self.ratios)

    def boxes_xyxy(self, image_size, feature_sizes):
        """One NumPy array [cells * num_per_cell, 4], float32, for each level; see `kvision.ops.anchors_xyxy`."""
        offset = 0.0 if self.strides == TORCHVISION else 0.5
        return anchors_xyxy(image_size, feature_sizes, self.sizes, self.ratios, self.strides, offset, self.rounded)


def level_strides(levels):
    """`("P3", "P4")` → `(8, 16)`: level k has stride 2^k."""
    return tuple(2 ** int(level[1:]) for level in levels)
