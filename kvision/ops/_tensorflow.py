"""TensorFlow's own kernels behind `kvision.ops`; `_jax.py` holds functions of the same names."""

import contextlib
import functools

import tensorflow as tf
from keras import ops

# TensorFlow has no public way to make a variable past the function that is being traced.
from tensorflow.python.ops.resource_variable_ops import default_variable_creator_v2

from kvision.ops._roi import align_by_gather, sample_points
from kvision.ops._roi_tensorflow import align_on_one_map
from kvision.ops._tracing_tensorflow import in_xla, reuse, runtime
from kvision.ops._tracing_tensorflow import portable as portable

_FUSED_DTYPES = (tf.float16, tf.bfloat16, tf.float32)  # what the fused batch normalisation kernel takes
_LARGE_SAMPLE = 2**15  # elements per sample from which fusing pays


def on_cpu():
    """Whether this process computes on the CPU alone."""
    return not tf.config.list_logical_devices("GPU")


@contextlib.contextmanager
def outside_graph():
    """A context in which variables are made outside the function that is being traced, which would be traced anew."""
    with tf.init_scope(), tf.variable_creator_scope(lambda _, **options: default_variable_creator_v2(**options)):
        yield


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
        pays = large and not tf.executing_eagerly() and not in_xla() and on_cpu() and runtime() is None
        return (compiled if pays else function)(*arguments)

    return call


def channel_sums(x):
    """Sums over axis 1 of `[batch, positions, channels]`."""
    if in_xla() or not on_cpu():
        return tf.reduce_sum(x, 1)
    shape = tf.shape(x)  # on the CPU a product with ones beats the reduction, in speed and in rounding
    return tf.matmul(tf.ones([shape[0], 1, shape[1]], x.dtype), x)[:, 0]


def channel_moments(x):
    """Means and biased variances over axis 1 of `[batch, positions, channels]`, right when |mean| >> deviation."""
    positions = tf.cast(tf.shape(x)[1] if x.shape[1] is None else x.shape[1], x.dtype)
    mean = channel_sums(x) / positions
    if on_cpu() and not in_xla():
        return mean, channel_sums(tf.math.squared_difference(x, mean[:, None])) / positions
    shift = tf.stop_gradient(mean)
    centred = x - shift[:, None]
    rest = tf.reduce_mean(centred, 1)  # the rounding error of the first mean
    return shift + rest, tf.maximum(tf.reduce_mean(tf.square(centred), 1) - tf.square(rest), 0)


def fused_batch_normalize(x, gamma, beta, epsilon):
    """`(y, mean, biased variance)` of the batch from the fused kernel, or None where it is missing or inexact.

    XLA replaces the kernel by E[x^2] - E[x]^2, which loses the variance when |mean| >> deviation.
    """
    if x.dtype not in _FUSED_DTYPES or in_xla():
        return None
    y, mean, variance = tf.compat.v1.nn.fused_batch_norm(_images(x), gamma, beta, epsilon=epsilon)
    return _shaped_as(y, x), mean, _biased(tf.stop_gradient(variance), tf.shape(x))


@reuse
def _biased(variance, shape):
    """The kernel's variance is the unbiased one of as many values as `shape` has in a channel."""
    count = tf.cast(tf.reduce_prod(shape[:-1]), variance.dtype)
    return variance * ((count - 1) / count)


def multiply_add(x, scale, offset):
    """`x * scale + offset` by channel, computed in the dtype of `scale`, returned in that of `x`."""
    if x.dtype not in _FUSED_DTYPES or in_xla():
        return tf.cast(tf.cast(x, scale.dtype) * scale + offset, x.dtype)
    return _fused_multiply_add(x, scale, offset)


@tf.custom_gradient
def _fused_multiply_add(x, scale, offset):
    def gradient(upstream):
        return _affine(upstream, scale, tf.zeros_like(offset)), *_parameter_gradients(upstream, x, dtype=scale.dtype)

    return _affine(x, scale, offset), gradient


@reuse
def _affine(x, scale, offset):
    """The inference kernel of batch normalisation: one pass, and grappler merges it into a convolution before it."""
    y, _, _ = tf.compat.v1.nn.fused_batch_norm(
        _images(x), scale, offset, tf.zeros_like(scale), tf.ones_like(scale), epsilon=0.0, is_training=False
    )
    return _shaped_as(y, x)


@reuse
def _parameter_gradients(upstream, x, *, dtype):
    """Those of scale and offset; where these are frozen, as in most detectors, the call is pruned."""
    rows = tf.reshape(tf.cast(upstream, dtype), [1, -1, x.shape[-1]])
    products = rows * tf.reshape(tf.cast(x, dtype), [1, -1, x.shape[-1]])
    return channel_sums(products)[0], channel_sums(rows)[0]


def _images(x):
    """`x` as a batch of four axes, which is what the fused kernel takes."""
    return x if len(x.shape) == 4 else tf.reshape(x, [-1, 1, 1, x.shape[-1]])


def _shaped_as(images, x):
    """What the fused kernel gives of `_images(x)`, in the shape of `x`."""
    return images if len(x.shape) == 4 else tf.reshape(images, tf.shape(x))


def compiled(function):
    """`function` of tensors compiled by XLA wherever it is called, once per shape; keyword arguments are constants.

    For loops over tensors, which otherwise cost a dispatch for every operation of every iteration.
    """
    by_xla = tf.function(function, jit_compile=True, autograph=False)

    @functools.wraps(function)
    def call(*tensors, **constants):
        return (function if runtime() else by_xla)(*tensors, **constants)

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


def take_rows(values, indices):
    """Of values `[b…, n, …]` the rows at indices `[b…, k]`: `[b…, k, …]`."""
    axis = len(indices.shape) - 1
    if runtime():
        for _ in values.shape[axis + 1 :]:
            indices = indices[..., None]
        return ops.take_along_axis(values, indices, axis=axis)
    return tf.gather(values, indices, axis=axis, batch_dims=axis)


def is_known(tensor):
    """Whether a tensor has a value now, and is no step of a graph."""
    return tf.executing_eagerly()


def roll(x, shift, axis):
    """`x` with its elements shifted cyclically along two axes."""
    if not runtime():
        return tf.roll(x, shift, axis)
    for steps, dimension in zip(shift, axis, strict=True):
        first, second = tf.split(x, [-steps % x.shape[dimension], -1], dimension)
        x = tf.concat([second, first], dimension)
    return x


def gelu(x):
    """x·Φ(x) in the operations that LiteRT knows as one, or for ONNX in those that its converter knows."""
    if runtime() == "onnx":
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


def of_first_rows(function, count, *tensors):
    """`function` of tensors [b, n, …] → outputs [b, n, …], computed for the first `count` rows, at least one.

    The other rows are zeros. XLA knows no such sizes: there all rows are computed.
    """
    if in_xla() or not on_cpu() or runtime():
        return function(*tensors)
    size, count = tensors[0].shape[1], tf.maximum(count, 1)

    def padded(output):
        rows = tf.pad(output, [[0, size - count if axis == 1 else 0] for axis in range(len(output.shape))])
        rows.set_shape([output.shape[0], size, *output.shape[2:]])
        return rows

    return tf.nest.map_structure(padded, function(*(tensor[:, :count] for tensor in tensors)))


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
    if in_xla() or not on_cpu() or runtime():
        return align_by_gather(features, boxes, level, scales, output_size, sampling_ratio, aligned)
    batch = tf.shape(boxes)[0]
    count = tf.shape(boxes)[1] if boxes.shape[1] is None else boxes.shape[1]
    images = tf.repeat(tf.range(batch), count)
    boxes = tf.reshape(boxes, [-1, 4])

    def align(feature, boxes, images, scale):
        rows, columns = (
            sample_points(boxes[:, axis], boxes[:, axis + 2], scale, output_size * sampling_ratio, aligned)
            for axis in (1, 0)
        )
        return align_on_one_map(tf.cast(feature, tf.float32), rows, columns, images, sampling_ratio)

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
