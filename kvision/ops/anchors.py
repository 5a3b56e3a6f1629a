"""Anchors: the fixed boxes that detectors classify and shift, computed by NumPy from static shapes.

They are constants of a network, not tensors: `anchors_xyxy` runs once, while a model is built or traced.
"""

import numpy as np

RATIOS = (0.5, 1.0, 2.0)

# Lin et al. 2017 (Feature Pyramid Networks), section 4.1: one size for each of P2…P6.
FPN_SIZES = ((32,), (64,), (128,), (256,), (512,))

# Lin et al. 2017 (Focal Loss), section 4: three sizes an octave apart in thirds for each of P3…P7, cut to whole pixels.
RETINANET_SIZES = tuple(tuple(int(size * 2 ** (third / 3)) for third in range(3)) for size in (32, 64, 128, 256, 512))


def cell_anchors_xyxy(sizes, ratios=RATIOS, rounded=True):
    """Anchors around the origin.

    Args:
        sizes: Square roots of the areas, in pixels.
        ratios: Height over width; or pairs (height, width) of factors, as EfficientDet's.
        rounded: To whole pixels, as torchvision's.

    Returns:
        NumPy array `[len(ratios) * len(sizes), 4]`, float32: all sizes of the first ratio, then of the second, …
    """
    sizes = np.asarray(sizes, "float32")
    factors = np.array([_factors(ratio) for ratio in ratios], "float32")
    heights, widths = (factors[:, axis, None] * sizes for axis in (0, 1))
    corners = np.stack([-widths.ravel(), -heights.ravel(), widths.ravel(), heights.ravel()], axis=-1) / 2
    return np.round(corners) if rounded else corners


def _factors(ratio):
    if isinstance(ratio, list | tuple):
        return tuple(ratio)
    root = np.sqrt(np.float32(ratio))
    return root, 1 / root


def anchors_xyxy(image_size, feature_sizes, sizes=FPN_SIZES, ratios=RATIOS, strides=None, offset=0.5, rounded=True):
    """Anchors of every level of a feature pyramid.

    The centre of cell i lies at `(i + offset) * stride`.

    Args:
        image_size: Height and width of the network's input, in pixels.
        feature_sizes: Height and width of each level, in the order of `sizes`.
        sizes: For each level, the square roots of its anchors' areas, in pixels: `FPN_SIZES` for P2…P6,
            `RETINANET_SIZES` for P3…P7.
        ratios: As in `cell_anchors_xyxy`, for all levels.
        strides: Pixels between neighbouring cells of each level. None: the power of two nearest to pixels per cell,
            which is 2^k for level k. `"torchvision"`: pixels // cells of each axis, torchvision's rule, which falls
            short of 2^k wherever a size is not divisible.
        offset: Of the centre of a cell, in strides; torchvision's is 0.
        rounded: Sides to whole pixels.

    Returns:
        A list with one NumPy array `[height * width * len(ratios) * len(level sizes), 4]`, float32, for each level.
        Rows run over the map from left to right, then from top to bottom, and over the anchors of a cell first.

    Raises:
        ValueError: If levels, strides and sizes differ in number, or if a size is not known or larger than the image.

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
    if strides is None or isinstance(strides, str):
        strides = _strides(image_size, feature_sizes, strides)
    elif len(strides) != len(sizes):
        raise ValueError(f"Anchors need a stride for every level: got {len(strides)} for {len(sizes)} levels.")
    levels = []
    for feature_size, level_sizes, stride in zip(feature_sizes, sizes, strides, strict=True):
        for pixels, cells in zip(image_size, feature_size, strict=True):
            _check_static(pixels, cells, image_size, feature_size)
        stride_y, stride_x = stride if isinstance(stride, tuple | list) else (stride, stride)
        y, x = (
            (np.arange(cells) + offset) * step for cells, step in zip(feature_size, (stride_y, stride_x), strict=True)
        )
        y, x = np.meshgrid(y, x, indexing="ij")
        centres = np.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4).astype("float32")
        levels.append((centres + cell_anchors_xyxy(level_sizes, ratios, rounded)).reshape(-1, 4))
    return levels


def _strides(image_size, feature_sizes, rule):
    """Of each level a pair: by torchvision's rule, or the nearest power of two."""
    if rule not in (None, "torchvision"):
        raise ValueError(f"The strides of anchors are numbers, None or 'torchvision': got {rule!r}.")
    strides = []
    for feature_size in feature_sizes:
        for pixels, cells in zip(image_size, feature_size, strict=True):
            _check_static(pixels, cells, image_size, feature_size)
        pairs = zip(image_size, feature_size, strict=True)
        if rule == "torchvision":
            strides.append(tuple(pixels // cells for pixels, cells in pairs))
        else:
            strides.append(tuple(2 ** round(float(np.log2(pixels / cells))) for pixels, cells in pairs))
    return strides


def _check_static(pixels, cells, image_size, feature_size):
    if not pixels or not cells or cells > pixels:
        raise ValueError(
            f"Anchors are computed from static shapes: got the image size {tuple(image_size)} and the feature size "
            f"{tuple(feature_size)}. Give the model a fixed input_shape, and feature maps no larger than it."
        )
