"""TensorFlow's own kernels behind `kvision.ops`; `_jax.py` holds functions of the same names."""

import contextlib
import contextvars
import functools

import tensorflow as tf

# TensorFlow has no public way to ask whether the graph under construction is compiled by XLA.
from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext as in_xla_context

from kvision.ops._roi import align_by_gather, clip_points, sample_points

_FUSED_DTYPES = (tf.float16, tf.bfloat16, tf.float32)  # what the fused batch normalisation kernel takes
_LARGE_SAMPLE = 2**15  # elements per sample from which fusing pays
_runtime = contextvars.ContextVar("runtime", default=None)  # other than TensorFlow, for which is traced


@contextlib.contextmanager
def portable(runtime):
    """What is traced within uses only operations that another runtime knows, `"onnx"` or `"litert"`, however slow."""
    token = _runtime.set(runtime)
    try:
        yield
    finally:
        _runtime.reset(token)


def _in_xla():
    return not tf.executing_eagerly() and in_xla_context(tf.compat.v1.get_default_graph())


def on_cpu():
    """Whether this process computes on the CPU alone."""
    return not tf.config.list_logical_devices("GPU")


def value_outside(variable):
    """The value of a variable as a NumPy array, also while a graph is built, which then holds it as a constant."""
    with tf.init_scope():
        return variable.numpy()


def fuse(function):
    """`function` of tensors, compiled by XLA into one pass over memory where that is faster and safe.

    That is in a graph on the CPU with every size known but the first, on large maps or on matrices with an unknown
    number of rows: there each elementwise operation is a pass of its own over memory. Compiling takes about a quarter
    of a second per shape, which small maps never earn back. Eager calls would compile for every new shape; on a GPU
    `fit` compiles the whole step.
    """
    compiled = tf.function(function, jit_compile=True, autograph=False)

    @functools.wraps(function)
    def call(*arguments):
        tensors = [argument for argument in arguments if tf.is_tensor(argument)]
        known = all(None not in tensor.shape[1:] for tensor in tensors)
        sample = max((tensor.shape for tensor in tensors), key=len)[1:]
        large = known and (len(sample) < 2 or sample.num_elements() >= _LARGE_SAMPLE)
        pays = large and not tf.executing_eagerly() and not _in_xla() and on_cpu() and _runtime.get() is None
        return (compiled if pays else function)(*arguments)

    return call


def channel_sums(x):
    """Sums over axis 1 of `[batch, positions, channels]`."""
    if _in_xla() or not on_cpu():
        return tf.reduce_sum(x, 1)
    shape = tf.shape(x)  # on the CPU a product with ones beats the reduction, in speed and in rounding
    return tf.matmul(tf.ones([shape[0], 1, shape[1]], x.dtype), x)[:, 0]


def channel_moments(x):
    """Means and biased variances over axis 1 of `[batch, positions, channels]`, right when |mean| >> deviation."""
    positions = tf.cast(tf.shape(x)[1], x.dtype)
    mean = channel_sums(x) / positions
    if on_cpu() and not _in_xla():
        return mean, channel_sums(tf.math.squared_difference(x, mean[:, None])) / positions
    shift = tf.stop_gradient(mean)
    centred = x - shift[:, None]
    rest = tf.reduce_mean(centred, 1)  # the rounding error of the first mean
    return shift + rest, tf.maximum(tf.reduce_mean(tf.square(centred), 1) - tf.square(rest), 0)


def fused_batch_normalize(x, gamma, beta, epsilon):
    """`(y, mean, biased variance)` of the batch from the fused kernel, or None where it is missing or inexact.

    XLA replaces the kernel by E[x^2] - E[x]^2, which loses the variance when |mean| >> deviation.
    """
    if x.dtype not in _FUSED_DTYPES or _in_xla():
        return None
    y, mean, variance = tf.compat.v1.nn.fused_batch_norm(_images(x), gamma, beta, epsilon=epsilon)
    count = tf.cast(tf.size(x) // x.shape[-1], tf.float32)
    return tf.reshape(y, tf.shape(x)), mean, variance * ((count - 1) / count)  # the kernel's variance is unbiased


def multiply_add(x, scale, offset):
    """`x * scale + offset` by channel, computed in the dtype of `scale`, returned in that of `x`."""
    if x.dtype not in _FUSED_DTYPES or _in_xla():
        return tf.cast(tf.cast(x, scale.dtype) * scale + offset, x.dtype)
    return _fused_multiply_add(x, scale, offset)


@tf.custom_gradient
def _fused_multiply_add(x, scale, offset):
    """The inference kernel of batch normalisation: one pass, and grappler merges it into a convolution before it."""
    y, _, _ = tf.compat.v1.nn.fused_batch_norm(
        _images(x), scale, offset, tf.zeros_like(scale), tf.ones_like(scale), epsilon=0.0, is_training=False
    )

    def gradient(upstream):
        rows = tf.reshape(tf.cast(upstream, scale.dtype), [1, -1, x.shape[-1]])
        products = rows * tf.reshape(tf.cast(x, scale.dtype), [1, -1, x.shape[-1]])
        return (
            _fused_multiply_add(upstream, scale, tf.zeros_like(offset)),
            channel_sums(products)[0],
            channel_sums(rows)[0],
        )

    return tf.reshape(y, tf.shape(x)), gradient


def _images(x):
    """`x` as a batch of four axes, which is what the fused kernel takes."""
    return x if len(x.shape) == 4 else tf.reshape(x, [-1, 1, 1, x.shape[-1]])


def compiled(function):
    """`function` of tensors compiled by XLA wherever it is called, once per shape; keyword arguments are constants.

    For loops over tensors, which otherwise cost a dispatch for every operation of every iteration.
    """
    by_xla = tf.function(function, jit_compile=True, autograph=False)

    @functools.wraps(function)
    def call(*tensors, **constants):
        return (function if _runtime.get() else by_xla)(*tensors, **constants)

    return call


class _Function:
    """TensorFlow counts how often the source of a function is traced, and warns; that of an object is its own."""

    def __init__(self, function):
        self._function = function

    def __call__(self, *arguments):
        return self._function(*arguments)


def traced(function):
    """`function` of structures of tensors as a graph, traced again for each new shape."""
    return tf.function(_Function(function), autograph=False)


def value_and_gradients(function):
    """`function(values, *arguments)` → (scalar, more), as a graph that gives ((scalar, more), gradients by values)."""

    @traced
    def both(values, *arguments):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            value, more = function(values, *arguments)
        return (value, more), tape.gradient(value, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    return both


def bincount(x, size):
    """How often each of 0 … size − 1 occurs in integers, which are in that range: int32 [size]."""
    return tf.raw_ops.DenseBincount(
        input=tf.reshape(x, [-1]), size=size, weights=tf.zeros([0], tf.int32), binary_output=False
    )


def is_known(tensor):
    """Whether a tensor has a value now, and is no step of a graph."""
    return tf.executing_eagerly()


def roll(x, shift, axis):
    """`x` with its elements shifted cyclically along two axes."""
    if not _runtime.get():
        return tf.roll(x, shift, axis)
    for steps, dimension in zip(shift, axis, strict=True):
        first, second = tf.split(x, [-steps % x.shape[dimension], -1], dimension)
        x = tf.concat([second, first], dimension)
    return x


def gelu(x):
    """x·Φ(x) in the operations that LiteRT knows as one, or for ONNX in those that its converter knows."""
    if _runtime.get() == "onnx":
        return 0.5 * x * (1 + tf.math.erf(x * 0.7071067811865476))  # 1/√2
    return tf.nn.gelu(x, approximate=False)


def fuse_and_recompute(function):
    """`fuse`, with a fused gradient that computes `function` again instead of keeping intermediate tensors."""
    forward = fuse(function)

    @fuse
    def backward(upstream, *arguments):
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            result = function(*arguments)
        return tape.gradient(result, arguments, upstream, tf.UnconnectedGradients.ZERO)

    @tf.custom_gradient
    def call(*arguments):
        return forward(*arguments), lambda upstream: backward(upstream, *arguments)

    return call


def apply_momentum(variable, velocity, gradient, rate, momentum, nesterov):
    """Update weight and velocity in place by one kernel; True: done."""
    velocity = velocity.value
    tf.raw_ops.ResourceApplyKerasMomentum(
        var=variable.handle,
        accum=velocity.handle,
        lr=tf.cast(rate, variable.dtype),
        grad=tf.cast(gradient, variable.dtype),
        momentum=tf.cast(momentum, variable.dtype),
        use_nesterov=nesterov,
    )
    return True


def apply_adam(variable, momentum, velocity, gradient, rate, step, betas, epsilon):
    """Update weight and both moments in place by one kernel; True: done."""
    if isinstance(gradient, tf.IndexedSlices):
        return False
    dtype = variable.dtype
    step = tf.cast(step, dtype)
    beta1, beta2 = (tf.cast(beta, dtype) for beta in betas)
    tf.raw_ops.ResourceApplyAdam(
        var=variable.handle,
        m=momentum.value.handle,
        v=velocity.value.handle,
        beta1_power=tf.pow(beta1, step),
        beta2_power=tf.pow(beta2, step),
        lr=tf.cast(rate, dtype),
        beta1=beta1,
        beta2=beta2,
        epsilon=tf.cast(epsilon, dtype),
        grad=tf.cast(gradient, dtype),
    )
    return True


def roi_align(features, boxes, level, scales, output_size, sampling_ratio, aligned):
    """RoIAlign of boxes [b, n, 4] on one map or, by `level` [b, n], on several; see `align_by_gather`."""
    if _in_xla() or not on_cpu() or _runtime.get():
        return align_by_gather(features, boxes, level, scales, output_size, sampling_ratio, aligned)
    batch, count = tf.shape(boxes)[0], boxes.shape[1]
    images = tf.repeat(tf.range(batch), count)
    boxes = tf.reshape(boxes, [-1, 4])

    def align(feature, boxes, images, scale):
        rows, columns = (
            sample_points(boxes[:, axis], boxes[:, axis + 2], scale, output_size * sampling_ratio, aligned)
            for axis in (1, 0)
        )
        return _align_on_one_map(tf.cast(feature, tf.float32), rows, columns, images, sampling_ratio)

    if level is None:
        regions = align(features[0], boxes, images, scales[0])
    else:
        members = tf.dynamic_partition(tf.range(batch * count), tf.reshape(level, [-1]), len(features))
        parts = [
            align(feature, tf.gather(boxes, member), tf.gather(images, member), scale)
            for feature, member, scale in zip(features, members, scales, strict=True)
        ]
        regions = tf.dynamic_stitch(members, parts)
    regions = tf.reshape(regions, [batch, count, output_size, output_size, features[0].shape[-1]])
    return tf.cast(regions, features[0].dtype)


_TILE = 24  # cells; the fastest of 16…64 on maps of 50 and 200 cells
_CHUNK_SIZE = 64  # regions whose samples, several times the bins, are held at once


def _align_on_one_map(feature, rows, columns, images, sampling_ratio):
    """Regions of one map [b, h, w, c], from their sample positions [k, samples] on both axes and their image [k]."""
    height, width = feature.shape[1:3]

    @tf.custom_gradient
    def align(feature):
        # Two copies of the edge cells: up to one cell outside a sample takes the edge, and the kernel, which rounds
        # positions, must not be the one to decide where that ends.
        padded = feature
        for _ in range(2):
            padded = tf.pad(padded, [[0, 0], [1, 1], [1, 1], [0, 0]], "SYMMETRIC")
        ends = [
            (points[:, end] + 2) / (size + 3) for end in (0, -1) for points, size in ((rows, height), (columns, width))
        ]
        ends = tf.stack(ends, 1)
        samples = [rows.shape[1], columns.shape[1]]
        inside = [clip_points(points, size)[1] for points, size in ((rows, height), (columns, width))]
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
        shape = [None, *(size // sampling_ratio for size in samples), feature.shape[-1]]
        parts = tf.TensorArray(tf.float32, count, element_shape=shape, infer_shape=False)
        _, parts = tf.while_loop(lambda index, _: index < count, add_part, (0, parts), parallel_iterations=1)

        def gradient(upstream):  # the kernel's own gradient to the map races on several cores
            return _spread_regions(upstream, rows, columns, images, tf.shape(feature)[0], (height, width))

        return parts.concat(), gradient

    return align(feature)


def _masked(samples, row_inside, column_inside):
    """Samples [k, rows, columns, c], zero where the row or the column is outside."""
    return samples * (row_inside[:, :, None, None] * column_inside[:, None, :, None])


def _spread_regions(regions, rows, columns, images, batch, size):
    """The transpose of RoIAlign: regions [k, s, s, c] summed into maps [b, h, w, c].

    RoIAlign is a product with a matrix of bilinear weights along either axis, and so is its transpose. It is computed
    tile by tile, so that a region costs the tiles it touches instead of the whole map.
    """
    bins, channels = regions.shape[1], regions.shape[3]
    tiles = [-(-cells // _TILE) for cells in size]
    tile = [-(-cells // number) for cells, number in zip(size, tiles, strict=True)]
    axes, touches = [], []
    for points, cells, number, length in zip((rows, columns), size, tiles, tile, strict=True):
        points, inside = clip_points(points, cells)
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
    maps = tf.TensorArray(tf.float32, count, element_shape=[*tile, channels])
    _, maps = tf.while_loop(lambda index, _: index < count, add_tile, (0, maps), parallel_iterations=1)
    maps = tf.transpose(tf.reshape(maps.stack(), [batch, *tiles, *tile, channels]), [0, 1, 3, 2, 4, 5])
    maps = tf.reshape(maps, [batch, tiles[0] * tile[0], tiles[1] * tile[1], channels])
    return maps[:, : size[0], : size[1]]
