"""Features of regions: RoIAlign (He 2017), RoI max pooling (Girshick 2015), RoI warping (Dai 2016), levels (Lin 2017).

The first two equal `torchvision.ops` in values and in gradients to the features. Only warping has one for the boxes.
"""

import numpy as np
from keras import ops

from kvision.ops._backend import kernels
from kvision.ops._roi import align_by_gather

_EXACT_SIZES = 4096


def roi_align(features, boxes_xyxy, output_size, spatial_scale, sampling_ratio=2, aligned=True):
    """The features inside each box, sampled bilinearly: "Mask R-CNN" (He et al. 2017), section 3.

    Each box is cut into `output_size`² bins and each bin is the mean of `sampling_ratio`² bilinear samples. A sample up
    to one cell outside the map takes the nearest cell, one farther out is zero.

    Args:
        features: [b, h, w, c] with static h, w and c.
        boxes_xyxy: [b, n, 4] in pixels of the image, n static; n = 0 is allowed. Receives no gradient.
        output_size: Bins along each side.
        spatial_scale: Cells per pixel, 1/stride of the map.
        sampling_ratio: Samples along each side of a bin, ≥ 1.
        aligned: True puts the centre of the first cell at half a cell, as detectron2 does; False shifts every box by
            half a cell and makes it at least one cell wide and high, as torchvision's detectors do.

    Returns:
        [b, n, output_size, output_size, c] in the dtype of `features`; computed in float32.

    Raises:
        ValueError: on a wrong rank, a size that is not static or a sampling ratio below one.

    >>> features = keras.ops.ones((2, 32, 32, 8))
    >>> boxes = [[[0.0, 0.0, 64.0, 64.0]]] * 2
    >>> tuple(kvision.ops.roi_align(features, boxes, output_size=7, spatial_scale=1 / 16).shape)
    (2, 1, 7, 7, 8)
    """
    features, boxes = ops.convert_to_tensor(features), _boxes(boxes_xyxy)
    _check_map(features)
    _check_sampling(sampling_ratio)
    return kernels.roi_align((features,), boxes, None, (spatial_scale,), output_size, sampling_ratio, aligned)


def multilevel_roi_align(
    features,
    boxes_xyxy,
    output_size,
    sampling_ratio=2,
    aligned=True,
    canonical_size=224,
    canonical_level=4,
):
    """RoIAlign on a feature pyramid; every box takes its features from the level that `assign_levels` gives it.

    Lin et al. 2017 ("Feature Pyramid Networks"), section 4.2.

    Args:
        features: `{"P2": [b, h, w, c], "P3": …}`, consecutive levels; Pk has stride 2^k. The cost does not grow with
            the number of levels.
        boxes_xyxy, output_size, sampling_ratio, aligned: As in `roi_align`.
        canonical_size, canonical_level: As in `assign_levels`.

    Returns:
        [b, n, output_size, output_size, c], in the order of the boxes.

    Raises:
        ValueError: as `roi_align`, and on names that are not consecutive levels.

    >>> features = {"P2": keras.ops.ones((1, 32, 32, 8)), "P3": keras.ops.ones((1, 16, 16, 8))}
    >>> tuple(kvision.ops.multilevel_roi_align(features, [[[0.0, 0.0, 64.0, 64.0]]], output_size=7).shape)
    (1, 1, 7, 7, 8)
    """
    levels = pyramid_levels(features)
    maps = tuple(ops.convert_to_tensor(features[f"P{level}"]) for level in levels)
    for feature in maps:
        _check_map(feature)
    _check_sampling(sampling_ratio)
    boxes = _boxes(boxes_xyxy)
    level = assign_levels(boxes, levels[0], levels[-1], canonical_size, canonical_level) - levels[0]
    scales = tuple(2.0**-level for level in levels)
    return kernels.roi_align(maps, boxes, level, scales, output_size, sampling_ratio, aligned)


def pyramid_levels(maps, letter="P"):
    """The level numbers of a dict with the keys P2, P3, …, ascending; a ValueError if they are not consecutive."""
    numbers = sorted(int(name[1:]) if name[:1] == letter and name[1:].isdigit() else -1 for name in maps)
    if not numbers or numbers != list(range(max(numbers[0], 0), numbers[-1] + 1)):
        example = ", ".join(f'"{letter}{level}"' for level in (3, 4, 5))
        raise ValueError(f"Expected a dict of consecutive levels such as {example}, got the names {list(maps)}.")
    return numbers


def assign_levels(boxes_xyxy, lowest=2, highest=5, canonical_size=224, canonical_level=4):
    """The pyramid level of each box, by its area: "Feature Pyramid Networks" (Lin et al. 2017), equation 1.

    k = ⌊k₀ + log₂(√(wh) / canonical_size)⌋, clipped to the given levels. A box without area goes to the lowest.

    Args:
        boxes_xyxy: [..., 4] in pixels of the image.
        lowest, highest: The levels of the pyramid.
        canonical_size: Side of the square that belongs to `canonical_level`, in pixels.
        canonical_level: k₀.

    Returns:
        int32 [...].

    >>> levels = kvision.ops.assign_levels([[0.0, 0.0, 112.0, 112.0], [0.0, 0.0, 448.0, 448.0]])
    >>> keras.ops.convert_to_numpy(levels).tolist()
    [3, 5]
    """
    boxes = _boxes(boxes_xyxy, rank=None)
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    size = ops.sqrt(ops.maximum(width, 0.0) * ops.maximum(height, 0.0))
    octaves = ops.log2(ops.maximum(size, 1e-6) / canonical_size) + 1e-6  # rounding must not lower an integer
    return ops.cast(ops.clip(ops.floor(canonical_level + octaves), lowest, highest), "int32")


def roi_pool(features, boxes_xyxy, output_size, spatial_scale):
    """The largest feature of every bin of each box, edges rounded to cells: "Fast R-CNN" (Girshick 2015), section 2.1.

    A bin outside the map gives zero. The gradient goes to the largest cell of a bin; cells that tie may share it.

    Args:
        features: [b, h, w, c] with static h, w and c. Working memory is about log₂(h)·log₂(w) copies of it.
        boxes_xyxy: [b, n, 4] in pixels of the image, n static; n = 0 is allowed. Receives no gradient.
        output_size: Bins along each side.
        spatial_scale: Cells per pixel, 1/stride of the map.

    Returns:
        [b, n, output_size, output_size, c] in the dtype of `features`.

    Raises:
        ValueError: on a wrong rank or a size that is not static.

    >>> tuple(kvision.ops.roi_pool(keras.ops.ones((1, 16, 16, 8)), [[[0.0, 0.0, 64.0, 64.0]]], 7, 1 / 16).shape)
    (1, 1, 7, 7, 8)
    """
    features, boxes = ops.convert_to_tensor(features), _boxes(boxes_xyxy)
    _check_map(features)
    height, width = features.shape[1:3]
    x1, y1, x2, y2 = (boxes[..., side] for side in range(4))
    rows = _bins(y1, y2, spatial_scale, height, output_size)
    columns = _bins(x1, x2, spatial_scale, width, output_size)
    pooled = _pool(ops.cast(features, "float32"), *rows, *columns)
    return ops.cast(pooled, features.dtype)


def roi_warp(features, boxes_xyxy, output_size, spatial_scale):
    """The features inside each box, warped to a fixed size, with a gradient for the box too.

    Dai et al. 2016 ("Instance-Aware Semantic Segmentation via Multi-task Network Cascades"), section 4, "RoI warping":
    one bilinear sample for each cell of the output. Here a sample lies in the middle of its cell, so that the values
    are those of `roi_align` with `sampling_ratio=1`, its rule beyond the border of the map included; there the sides of
    a box have no gradient.

    Args:
        features: [b, h, w, c] with static h, w and c.
        boxes_xyxy: [b, n, 4] in pixels of the image, n static; n = 0 is allowed.
        output_size: Cells along each side.
        spatial_scale: Cells per pixel, 1/stride of the map.

    Returns:
        [b, n, output_size, output_size, c] in the dtype of `features`; computed in float32.

    Raises:
        ValueError: on a wrong rank or a size that is not static.

    >>> tuple(kvision.ops.roi_warp(keras.ops.ones((1, 16, 16, 8)), [[[0.0, 0.0, 64.0, 64.0]]], 14, 1 / 16).shape)
    (1, 1, 14, 14, 8)
    """
    features, boxes = ops.convert_to_tensor(features), _boxes(boxes_xyxy, has_gradient=True)
    _check_map(features)
    return align_by_gather((features,), boxes, None, (spatial_scale,), output_size, sampling_ratio=1, aligned=True)


def _bins(low, high, scale, size, count):
    """First cell and end (exclusive) of each bin along one axis, int32 [b, n, count], rounded as in float32."""
    first, last = _round(low * scale), _round(high * scale)
    extent = ops.maximum(last - first + 1.0, 1.0)
    # XLA turns a division by a constant into a product, which rounds differently and moves edges: look the quotient up.
    quotients = np.arange(_EXACT_SIZES, dtype="float32") / np.float32(count)
    known = ops.cast(ops.minimum(extent, _EXACT_SIZES - 1.0), "int32")
    bin_size = ops.where(extent < _EXACT_SIZES, ops.take(quotients, known), extent / count)[..., None]
    index, first = np.arange(count, dtype="float32"), first[..., None]
    start, end = ops.floor(index * bin_size) + first, ops.ceil((index + 1.0) * bin_size) + first
    return tuple(ops.cast(ops.clip(edge, 0, size), "int32") for edge in (start, end))


def _round(x):
    """To the nearest integer, halves away from zero."""
    whole = ops.floor(ops.abs(x))
    return ops.sign(x) * (whole + ops.cast(ops.abs(x) - whole >= 0.5, x.dtype))


@kernels.fuse
def _pool(features, row_start, row_end, column_start, column_end):
    """Maximum over rectangles of cells: each is the maximum of four windows whose sides are powers of two."""
    batch, height, width, channels = ops.shape(features)[0], *features.shape[1:]
    tables = _window_maxima(_window_maxima(features, axis=1), axis=3)  # [b, powers, h, powers, w, c]
    row_powers, _, column_powers = tables.shape[1:4]
    cells = ops.reshape(tables, (-1, channels))
    image = ops.arange(batch, dtype="int32")[:, None, None] * (row_powers * height)
    largest = None
    for row in _two_windows(row_start, row_end, height):
        for column in _two_windows(column_start, column_end, width):
            index = (image + row)[..., :, None] * (column_powers * width) + column[..., None, :]
            values = ops.take(cells, index, axis=0)
            largest = values if largest is None else ops.maximum(largest, values)
    filled = (row_end > row_start)[..., :, None] & (column_end > column_start)[..., None, :]
    return ops.where(filled[..., None], largest, ops.zeros((), largest.dtype))


def _window_maxima(x, axis):
    """A new axis before `axis`: index j holds the maximum of the 2^j cells from each cell on (fewer at the end)."""
    size, windows, length = x.shape[axis], [x], 1
    while 2 * length <= size:
        here, rest = ops.split(windows[-1], [size - length], axis=axis)
        _, there = ops.split(windows[-1], [length], axis=axis)
        windows.append(ops.concatenate([ops.maximum(here, there), rest], axis=axis))
        length *= 2
    return ops.stack(windows, axis=axis)


def _two_windows(start, end, size):
    """The two indices into the table of window maxima that together cover start…end."""
    powers = np.array([0] + [length.bit_length() - 1 for length in range(1, size + 1)], "int32")
    power = ops.take(powers, ops.maximum(end - start, 0))
    second = end - ops.take(2 ** np.arange(powers.max() + 1, dtype="int32"), power)
    return tuple(power * size + ops.clip(index, 0, size - 1) for index in (start, second))


def _boxes(boxes_xyxy, rank=3, has_gradient=False):
    boxes = ops.cast(boxes_xyxy, "float32")
    boxes = boxes if has_gradient else ops.stop_gradient(boxes)
    if boxes.shape[-1] != 4 or (rank is not None and len(boxes.shape) != rank):
        raise ValueError(f"Expected boxes of shape [{'b, n' if rank else '...'}, 4], got {tuple(boxes.shape)}.")
    return boxes


def _check_map(features):
    if len(features.shape) != 4 or None in features.shape[1:]:
        raise ValueError(
            f"Expected features of shape [b, h, w, c] with static h, w and c, got {tuple(features.shape)}. "
            "Give the model an input shape without None."
        )


def _check_sampling(sampling_ratio):
    if sampling_ratio < 1:
        raise ValueError(
            f"sampling_ratio must be at least 1, got {sampling_ratio}: the number of samples is fixed here, "
            "it does not adapt to each box."
        )
