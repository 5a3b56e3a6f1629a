"""The means of maps over regions of any form, such as superpixels."""

from keras import ops


def pool_regions(maps, regions, num_regions):
    """The mean of a map over each region: Farabet et al. 2013, section 4.1.

    Args:
        maps: `[b, h, w, c]`, such as the scores of classes; static c.
        regions: `[b, h, w]` integers, the region of each cell, from 0. Cells of other numbers belong to none.
        num_regions: Of an image, static.

    Returns:
        `[b, num_regions, c]`, float32; zeros of a region without a cell.

    Raises:
        ValueError: on regions of another shape than the maps, or fewer than one.

    >>> means = pool_regions(np.reshape([1.0, 3.0, 8.0], (1, 1, 3, 1)), [[[0, 0, 1]]], num_regions=3)
    >>> [float(mean) for mean in means[0, :, 0]]
    [2.0, 8.0, 0.0]
    """
    maps = ops.cast(maps, "float32")
    regions = ops.cast(regions, "int32")
    pairs = list(zip(maps.shape[:3], regions.shape, strict=False))
    differs = any(None not in pair and pair[0] != pair[1] for pair in pairs)
    if num_regions < 1 or len(maps.shape) != 4 or len(regions.shape) != 3 or differs:
        raise ValueError(
            "pool_regions needs maps [b, h, w, c], regions [b, h, w] and num_regions of at least 1: got maps "
            f"{tuple(maps.shape)}, regions {tuple(regions.shape)} and num_regions={num_regions}."
        )
    batch, channels = ops.shape(maps)[0], maps.shape[-1]
    belongs = ops.logical_and(regions >= 0, regions < num_regions)
    slot = ops.where(belongs, regions, num_regions)  # the last of an image takes what belongs to none
    slot = slot + ops.arange(batch, dtype="int32")[:, None, None] * (num_regions + 1)
    with_ones = ops.concatenate([maps, ops.ones_like(maps[..., :1])], axis=-1)
    sums = ops.segment_sum(
        ops.reshape(with_ones, (-1, channels + 1)), ops.reshape(slot, (-1,)), num_segments=batch * (num_regions + 1)
    )
    sums = ops.reshape(sums, (-1, num_regions + 1, channels + 1))[:, :num_regions]
    return sums[..., :-1] / ops.maximum(sums[..., -1:], 1.0)
