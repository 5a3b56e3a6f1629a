"""Batch and group normalisation, channels last.

Ioffe and Szegedy 2015, "Batch Normalization", algorithms 1 and 2; Wu and He 2018, "Group Normalization", section 3.
Statistics, gamma and beta are float32 under 16-bit inputs; the output has the input's dtype. Rounding errors grow with
|mean| / deviation and not with its square, as those of E[x^2] - E[x]^2 do.
"""

import math

import keras
from keras import ops

from kvision.ops._backend import kernels


def batch_normalize_train(x, gamma, beta, epsilon):
    """Normalise by the statistics of the batch.

    Ioffe and Szegedy 2015, algorithm 1.

    Args:
        x: `[batch, ..., channels]`.
        gamma, beta: `[channels]`.
        epsilon: Added to the variance, > 0.

    Returns:
        The output, shaped as `x`, and the mean and biased variance `[channels]` of the batch. No gradient flows
        through these two, which feed the moving averages.

    >>> x = keras.ops.convert_to_tensor([[1.0], [3.0]])
    >>> y, mean, variance = batch_normalize_train(x, keras.ops.ones(1), keras.ops.zeros(1), epsilon=1e-3)
    >>> float(mean[0]), float(variance[0])
    (2.0, 1.0)
    """
    x, gamma, beta = _tensors(x, gamma, beta)
    fused = kernels.fused_batch_normalize(x, gamma, beta, epsilon)
    if fused is None:
        x_wide = ops.cast(x, gamma.dtype)
        mean, variance = kernels.channel_moments(ops.reshape(x_wide, (1, -1, x.shape[-1])))
        mean, variance = mean[0], variance[0]
        y = (x_wide - mean) * ops.rsqrt(variance + epsilon) * gamma + beta
        fused = ops.cast(y, x.dtype), mean, variance
    y, mean, variance = fused
    return y, ops.stop_gradient(mean), ops.stop_gradient(variance)


def batch_normalize(x, gamma, beta, mean, variance, epsilon):
    """Normalise by given statistics, as one multiplication and one addition.

    Ioffe and Szegedy 2015, algorithm 2, step 11. Gradients flow to every argument but `epsilon`.

    Args:
        x: `[batch, ..., channels]`.
        gamma, beta: `[channels]`.
        mean, variance: `[channels]`.
        epsilon: Added to the variance, > 0.

    Returns:
        The output, shaped as `x`.

    >>> one, zero = keras.ops.ones(1), keras.ops.zeros(1)
    >>> float(batch_normalize([[5.0]], one, zero, mean=2 * one, variance=one, epsilon=0.0)[0, 0])
    3.0
    """
    x, gamma, beta, mean, variance = _tensors(x, gamma, beta, mean, variance)
    return kernels.multiply_add(x, *_as_affine(gamma, beta, mean, variance, epsilon=epsilon))


@kernels.reuse
def _as_affine(gamma, beta, mean, variance, *, epsilon):
    scale = gamma * ops.rsqrt(variance + epsilon)
    return scale, beta - mean * scale


@kernels.reuse
def moving_average(average, value, *, momentum):
    """`average` moved towards `value` by 1 − momentum."""
    return average * momentum + value * (1.0 - momentum)


def group_normalize(x, gamma, beta, groups, epsilon):
    """Normalise every group of channels of every sample by its own statistics; the gradient is written by hand.

    Wu and He 2018, section 3.1.

    Args:
        x: `[batch, ..., channels]`.
        gamma, beta: `[channels]`.
        groups: How many groups of neighbouring channels; divides the channels.
        epsilon: Added to the variance, > 0.

    Returns:
        The output, shaped as `x`.

    Raises:
        ValueError: When `groups` does not divide the channels.

    >>> y = group_normalize([[1.0, 3.0]], keras.ops.ones(2), keras.ops.zeros(2), groups=1, epsilon=1e-5)
    >>> keras.ops.convert_to_numpy(y).round(2).tolist()
    [[-1.0, 1.0]]
    """
    x, gamma, beta = _tensors(x, gamma, beta)
    channels = x.shape[-1]
    check_groups(groups, channels)

    @ops.custom_gradient
    def normalize(x, gamma, beta):
        y, mean, inverse_deviation = _group_normalize(x, gamma, beta, groups=groups, epsilon=epsilon)
        return y, lambda upstream: _group_gradient(upstream, x, gamma, mean, inverse_deviation)

    shape = reshapable(x)
    flat = ops.reshape(x, (shape[0], math.prod(shape[1:-1]), channels))
    return ops.reshape(normalize(flat, gamma, beta), shape)


def reshapable(x):
    """The shape of `x`, whose first size may be left to `reshape`, as -1; a tensor holds it where others vary too."""
    if None in x.shape[1:]:
        return ops.shape(x)
    return tuple(-1 if size is None else size for size in x.shape)


def check_groups(groups, channels):
    """Raise a ValueError unless `groups` divides `channels`."""
    if groups < 1 or channels % groups:
        divisors = [count for count in range(1, channels + 1) if channels % count == 0]
        raise ValueError(
            f"groups must divide the {channels} channels: got groups={groups}, expected one of {divisors}. "
            "Change either, or leave out groups= in GroupNormalization."
        )


@kernels.reuse
def _group_normalize(x, gamma, beta, *, groups, epsilon):
    """Of x `[batch, positions, channels]`: output, and mean and inverse deviation `[batch, groups, 1]`."""
    wide = ops.cast(x, gamma.dtype)
    channel_mean, channel_variance = (_by_group(values, groups) for values in kernels.channel_moments(wide))
    mean = _mean(channel_mean)
    inverse_deviation = ops.rsqrt(_mean(channel_variance + ops.square(channel_mean - mean)) + epsilon)
    scale = inverse_deviation * _by_group(gamma, groups)
    offset = _by_group(beta, groups) - mean * scale
    scale, offset = (ops.reshape(values, (-1, 1, x.shape[-1])) for values in (scale, offset))
    return ops.cast(wide * scale + offset, x.dtype), mean, inverse_deviation


@kernels.reuse
def _group_gradient(upstream, x, gamma, mean, inverse_deviation):
    """Gradients for x `[batch, positions, channels]`, gamma and beta; statistics are `[batch, groups, 1]`."""
    groups, channels = mean.shape[1], x.shape[-1]
    ones = ops.ones((groups, channels // groups), gamma.dtype)

    def by_channel(values):
        return ops.reshape(values * ones, (-1, channels))

    positions = ops.cast(ops.shape(x)[1] if x.shape[1] is None else x.shape[1], gamma.dtype)
    mean, inverse_deviation = by_channel(mean), by_channel(inverse_deviation)
    beta_sums = kernels.channel_sums(ops.cast(upstream, gamma.dtype))
    gamma_sums = kernels.channel_sums(_gamma_terms(upstream, x, mean, inverse_deviation))
    shift, slope = (by_channel(_mean(_by_group(sums * gamma, groups)) / positions) for sums in (beta_sums, gamma_sums))
    dx = _input_gradient(upstream, x, gamma, mean, inverse_deviation, shift, slope)
    return dx, ops.sum(gamma_sums, 0), ops.sum(beta_sums, 0)


@kernels.fuse
def _gamma_terms(upstream, x, mean, inverse_deviation):
    return ops.cast(upstream, mean.dtype) * _normalized(x, mean, inverse_deviation)


@kernels.fuse
def _input_gradient(upstream, x, gamma, mean, inverse_deviation, shift, slope):
    correction = shift[:, None] + _normalized(x, mean, inverse_deviation) * slope[:, None]
    dx = (ops.cast(upstream, mean.dtype) * gamma - correction) * inverse_deviation[:, None]
    return ops.cast(dx, x.dtype)


def _normalized(x, mean, inverse_deviation):
    return (ops.cast(x, mean.dtype) - mean[:, None]) * inverse_deviation[:, None]


def _by_group(values, groups):
    """`[batch, channels]`, or `[channels]` of a batch of 1 → `[batch, groups, channels of a group]`."""
    return ops.reshape(values, (-1, groups, values.shape[-1] // groups))


def _mean(values):
    return ops.mean(values, -1, keepdims=True)


def _tensors(x, *parameters):
    """`x` as a float tensor, the parameters in the dtype that statistics have: float32, or float64 as `x`."""
    x = ops.convert_to_tensor(x)
    dtype = keras.backend.result_type(x.dtype, "float32")
    if not keras.backend.is_float_dtype(x.dtype):
        x = ops.cast(x, dtype)
    return x, *(ops.cast(parameter, dtype) for parameter in parameters)
