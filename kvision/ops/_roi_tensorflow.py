"""RoIAlign of TensorFlow's own kernels on the CPU, and its transpose: what `_tensorflow.py` joins by level."""

import functools

import tensorflow as tf

from kvision.ops._roi import clip_points
from kvision.ops._tracing_tensorflow import reuse_for_any_size

_TILE = 24  # cells; the fastest of 16…64 on maps of 50 and 200 cells
_CHUNK_SIZE = 64  # regions whose samples, several times the bins, are held at once


def align_on_one_map(feature, rows, columns, images, sampling_ratio):
    """Regions of one map [b, h, w, c], from their sample positions [k, samples] on both axes and their image [k]."""

    @tf.custom_gradient
    def align(feature):
        shape = tf.shape(feature)

        def gradient(upstream):  # the kernel's own gradient to the map races on several cores
            maps = _spread_regions(upstream, rows, columns, images, shape, bins=upstream.shape[1])
            return tf.ensure_shape(maps, feature.shape)

        regions = _align(feature, rows, columns, images, sampling_ratio=sampling_ratio)
        bins = [points.shape[1] // sampling_ratio for points in (rows, columns)]
        return tf.ensure_shape(regions, [None, *bins, feature.shape[-1]]), gradient

    return align(feature)


# The maps of a pyramid have each their size.
@reuse_for_any_size
def _align(feature, rows, columns, images, *, sampling_ratio):
    size = [tf.cast(tf.shape(feature)[axis], tf.float32) for axis in (1, 2)]
    # Two copies of the edge cells: up to one cell outside a sample takes the edge, and the kernel, which rounds
    # positions, must not be the one to decide where that ends.
    padded = feature
    for _ in range(2):
        padded = tf.pad(padded, [[0, 0], [1, 1], [1, 1], [0, 0]], "SYMMETRIC")
    axes = list(zip((rows, columns), size, strict=True))
    ends = tf.stack([(points[:, end] + 2) / (cells + 3) for end in (0, -1) for points, cells in axes], 1)
    samples = [rows.shape[1], columns.shape[1]]
    inside = [clip_points(points, cells)[1] for points, cells in axes]
    all_inside = tf.reduce_all(inside[0] > 0) & tf.reduce_all(inside[1] > 0)  # as where boxes are clipped

    def add_part(index, parts):
        members = slice(index * _CHUNK_SIZE, (index + 1) * _CHUNK_SIZE)
        part = tf.image.crop_and_resize(padded, ends[members], images[members], samples)
        row_inside, column_inside = (values[members] for values in inside)
        masked = functools.partial(_masked, part, row_inside, column_inside)
        part = tf.cond(all_inside, lambda: part, masked)
        return index + 1, parts.write(index, tf.nn.avg_pool2d(part, sampling_ratio, sampling_ratio, "VALID"))

    # At least one part, or the shape would be unknown in eager mode.
    count = tf.maximum(1, -(-tf.shape(images)[0] // _CHUNK_SIZE))
    shape = [None, *(number // sampling_ratio for number in samples), feature.shape[-1]]
    parts = tf.TensorArray(tf.float32, count, element_shape=shape, infer_shape=False)
    _, parts = tf.while_loop(lambda index, _: index < count, add_part, (0, parts), parallel_iterations=1)
    return parts.concat()


def _masked(samples, row_inside, column_inside):
    """Samples [k, rows, columns, c], zero where the row or the column is outside."""
    return samples * (row_inside[:, :, None, None] * column_inside[:, None, :, None])


@reuse_for_any_size
def _spread_regions(regions, rows, columns, images, shape, *, bins):
    """The transpose of RoIAlign: regions [k, bins, bins, c] summed into maps of a shape [b, h, w, c].

    RoIAlign is a product with a matrix of bilinear weights along either axis, and so is its transpose. It is computed
    tile by tile, so that a region costs the tiles it touches instead of the whole map.
    """
    channels, batch, size = regions.shape[3], shape[0], (shape[1], shape[2])
    tiles = [-(-cells // _TILE) for cells in size]
    tile = [-(-cells // number) for cells, number in zip(size, tiles, strict=True)]
    axes, touches = [], []
    for points, cells, number, length in zip((rows, columns), size, tiles, tile, strict=True):
        points, inside = clip_points(points, tf.cast(cells, tf.float32))
        ends = tf.cast(tf.stack([tf.reduce_min(points, 1), tf.reduce_max(points, 1) + 1]), tf.int32) // length
        axes.append((points, inside * bins / points.shape[1]))
        index = tf.range(number)[:, None]
        touches.append((index >= ends[0]) & (index <= ends[1]))
    pairs = (tf.range(batch)[:, None] == images)[:, None, None] & touches[0][:, None] & touches[1]
    last = tf.cumsum(tf.reshape(tf.math.count_nonzero(pairs, -1, tf.int32), [-1]))
    pairs = tf.cast(tf.where(pairs), tf.int32)  # (image, tile row, tile column, region), in the order of the tiles
    region = pairs[:, 3]

    def weights(axis):
        """[pairs, bins, cells of the tile]: the weight of each cell in each bin."""
        points, inside = (tf.gather(values, region)[..., None] for values in axes[axis])
        cells = tf.range(tile[axis]) + pairs[:, 1 + axis, None, None] * tile[axis]
        tent = tf.nn.relu(1 - tf.abs(points - tf.cast(cells, tf.float32))) * inside
        return tf.reduce_sum(tf.reshape(tent, [-1, bins, points.shape[1] // bins, tile[axis]]), 2)

    row_weights, column_weights = weights(0), weights(1)

    def add_tile(index, maps):
        members = slice(tf.where(index > 0, last[index - 1], 0), last[index])
        part = tf.matmul(column_weights[members][:, None], tf.gather(regions, region[members]), transpose_a=True)
        part = tf.reshape(part, [-1, tile[1] * channels])
        part = tf.matmul(tf.reshape(row_weights[members], [-1, tile[0]]), part, transpose_a=True)
        return index + 1, maps.write(index, tf.reshape(part, [*tile, channels]))

    count = batch * tiles[0] * tiles[1]
    maps = tf.TensorArray(tf.float32, count, element_shape=[None, None, channels])
    _, maps = tf.while_loop(lambda index, _: index < count, add_tile, (0, maps), parallel_iterations=1)
    maps = tf.transpose(tf.reshape(maps.stack(), [batch, *tiles, *tile, channels]), [0, 1, 3, 2, 4, 5])
    maps = tf.reshape(maps, [batch, tiles[0] * tile[0], tiles[1] * tile[1], channels])
    return maps[:, : size[0], : size[1]]
