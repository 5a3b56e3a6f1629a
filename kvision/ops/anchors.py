"""Anchors: the fixed boxes that detectors classify and shift, computed by NumPy from static shapes.

They are constants of a network, not tensors: `anchors_xyxy` runs once, while a model is built or traced.
"""

import numpy as np

RATIOS = (0.5, 1.0, 2.0)

# Lin et al. 2017 (Feature Pyramid Networks), section 4.1: one size for each of P2…P6.
FPN_SIZES = ((32,), (64,), (128,), (256,), (512,))

# Lin et al. 2017 (Focal Loss), section 4: three sizes an octave apart in thirds for each of P3…P7, cut to whole pixels.
RETINANET_SIZES = tuple(tuple(int(size * 2 ** (third / 3)) for third in range(3)) for size in (32, 64, 128, 256, 512))


def cell_anchors_xyxy(sizes, ratios=RATIOS):
    """Anchors around the origin, rounded to whole pixels.

    Args:
        sizes: Square roots of the areas, in pixels.
        ratios: Height over width.

    Returns:
        NumPy array `[len(ratios) * len(sizes), 4]`, float32: all sizes of the first ratio, then of the second, …
    """
    stretch = np.sqrt(np.asarray(ratios, "float32"))[:, None]
    sizes = np.asarray(sizes, "float32")
    heights, widths = (stretch * sizes).ravel(), ((1 / stretch) * sizes).ravel()
    return np.round(np.stack([-widths, -heights, widths, heights], axis=-1) / 2)


def anchors_xyxy(image_size, feature_sizes, sizes=FPN_SIZES, ratios=RATIOS):
    """Anchors of every level of a feature pyramid.

    Args:
        image_size: Height and width of the network's input, in pixels.
        feature_sizes: Height and width of each level, in the order of `sizes`.
        sizes: For each level, the square roots of its anchors' areas, in pixels: `FPN_SIZES` for P2…P6,
            `RETINANET_SIZES` for P3…P7.
        ratios: Height over width, for all levels.

    Returns:
        A list with one NumPy array `[height * width * len(ratios) * len(level sizes), 4]`, float32, for each level.
        Rows run over the map from left to right, then from top to bottom, and over the anchors of a place first.

    Raises:
        ValueError: If levels and sizes differ in number, or if a size is not known or larger than the picture.

    Example:

    >>> levels = anchors_xyxy((800, 1344), [(200, 336), (100, 168), (50, 84), (25, 42), (13, 21)])
    >>> sum(len(level) for level in levels)
    268569
    """
    if len(feature_sizes) != len(sizes):
        raise ValueError(
            f"Anchors need sizes for every level: got {len(feature_sizes)} feature sizes, but sizes for {len(sizes)} "
            "levels. Pass one tuple of sizes for each level."
        )
    levels = []
    for feature_size, level_sizes in zip(feature_sizes, sizes, strict=True):
        (height, stride_y), (width, stride_x) = (
            (cells, _stride(pixels, cells, image_size, feature_size))
            for pixels, cells in zip(image_size, feature_size, strict=True)
        )
        y, x = np.meshgrid(np.arange(height) * stride_y, np.arange(width) * stride_x, indexing="ij")
        places = np.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4).astype("float32")
        levels.append((places + cell_anchors_xyxy(level_sizes, ratios)).reshape(-1, 4))
    return levels


def _stride(pixels, cells, image_size, feature_size):
    """Pixels from one cell of a map to the next."""
    if not pixels or not cells or cells > pixels:
        raise ValueError(
            f"Anchors are computed from static shapes: got the image size {tuple(image_size)} and the feature size "
            f"{tuple(feature_size)}. Give the model a fixed input_shape, and feature maps no larger than it."
        )
    return pixels // cells
