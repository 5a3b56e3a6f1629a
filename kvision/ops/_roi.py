"""What all forms of RoIAlign share: the sample positions, and the form in `keras.ops` alone, the fastest under XLA."""

import numpy as np
from keras import ops


def sample_points(low, high, scale, count, aligned):
    """Positions of `count` samples between two box edges, in cells whose centres are integers: [...] → [..., count].

    `scale` is cells per pixel: one number, or one for every box.
    """
    shift = 0.5 if aligned else 0.0
    low, high = low * scale - shift, high * scale - shift
    if not aligned:
        high = ops.maximum(high, low + 1.0)
    steps = np.arange(count, dtype="float32") + 0.5
    return low[..., None] + steps * ((high - low) / count)[..., None]


def clip_points(points, size):
    """Points clipped to the map, and 1.0 where they count: up to one cell outside, the edge cell is repeated."""
    inside = ops.cast((points >= -1.0) & (points <= size), "float32")
    return ops.minimum(ops.maximum(points, 0.0), size - 1.0), inside


def align_by_gather(features, boxes, level, scales, output_size, sampling_ratio, aligned):
    """RoIAlign that gathers four cells per sample from one table of all cells of all levels.

    `features` is a tuple of [b, h, w, c]; `level` [b, n] says which of them each box takes, None when there is one.
    """
    batch, channels = ops.shape(features[0])[0], features[0].shape[-1]
    sizes = np.array([feature.shape[1:3] for feature in features])
    cells = sizes.prod(axis=1)
    table = ops.concatenate([ops.reshape(feature, (batch, -1, channels)) for feature in features], axis=1)
    table = ops.reshape(ops.cast(table, "float32"), (-1, channels))

    def of_level(values, dtype):
        """The value of each box's level, [b, n] or [1, 1]."""
        values = ops.convert_to_tensor(np.array(values), dtype)
        return ops.reshape(values, (1, 1)) if level is None else ops.take(values, level)

    height, width = of_level(sizes[:, 0], "float32")[..., None], of_level(sizes[:, 1], "float32")[..., None]
    scale = of_level(scales, "float32")
    image = ops.arange(batch, dtype="int32")[:, None] * int(cells.sum())
    first = (image + of_level(np.cumsum(cells) - cells, "int32"))[:, :, None, None]

    count = output_size * sampling_ratio
    x1, y1, x2, y2 = (boxes[..., side] for side in range(4))
    rows = _corners(sample_points(y1, y2, scale, count, aligned), height)
    columns = _corners(sample_points(x1, x2, scale, count, aligned), width)
    stride = ops.cast(width, "int32")[..., None]
    samples = 0.0
    for row, row_weight in rows:
        for column, column_weight in columns:
            values = ops.take(table, first + row[..., :, None] * stride + column[..., None, :], axis=0)
            samples = samples + values * (row_weight[..., :, None] * column_weight[..., None, :])[..., None]
    for axis in (2, 3):  # one axis at a time: LiteRT means over one axis alone
        sizes = [batch, boxes.shape[1], *samples.shape[2:]]
        samples = ops.mean(
            ops.reshape(samples, (*sizes[:axis], output_size, sampling_ratio, *sizes[axis + 1 :])), axis + 1
        )
    return ops.cast(samples, features[0].dtype)


def _corners(points, size):
    """The two cells beside each point with their weights."""
    points, inside = clip_points(points, size)
    low = ops.floor(points)
    fraction = points - low
    high = ops.minimum(low + 1.0, size - 1.0)
    return (ops.cast(low, "int32"), (1.0 - fraction) * inside), (ops.cast(high, "int32"), fraction * inside)
