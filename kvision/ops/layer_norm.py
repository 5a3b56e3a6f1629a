"""Layer normalisation: Ba, Kiros and Hinton 2016, "Layer Normalization", section 3.

The gradient is written by hand: it keeps the input and two numbers per row, not the intermediate maps. Statistics and
affine are float32 under 16-bit inputs; the output has the input's dtype.
"""

import keras
from keras import ops

from kvision.ops._backend import kernels
from kvision.ops.normalization import reshapable


def layer_normalize(x, gamma, beta, epsilon):
    """Normalise every position by the mean and standard deviation of its channels.

    Args:
        x: `[..., channels]`, float.
        gamma, beta: `[channels]`.
        epsilon: Added to the variance, > 0.

    Returns:
        The output, shaped as `x`.

    >>> y = layer_normalize([[1.0, 3.0]], keras.ops.ones(2), keras.ops.zeros(2), epsilon=1e-6)
    >>> keras.ops.convert_to_numpy(y).round(3).tolist()
    [[-1.0, 1.0]]
    """
    x = ops.convert_to_tensor(x)
    dtype = keras.backend.result_type(x.dtype, "float32")
    gamma, beta = ops.cast(gamma, dtype), ops.cast(beta, dtype)

    @ops.custom_gradient
    def normalize(x, gamma, beta):
        y, mean, inverse_deviation = _normalize(x, gamma, beta, epsilon=epsilon)
        return y, lambda upstream: _gradient(upstream, x, gamma, mean, inverse_deviation)

    return ops.reshape(normalize(ops.reshape(x, (-1, x.shape[-1])), gamma, beta), reshapable(x))


@kernels.reuse
def _normalize(x, gamma, beta, *, epsilon):
    """Output `[rows, channels]`, and mean and inverse deviation of each row `[rows, 1]`."""
    wide = ops.cast(x, gamma.dtype)
    mean = ops.mean(wide, -1, keepdims=True)
    centred = wide - mean
    inverse_deviation = ops.rsqrt(ops.mean(ops.square(centred), -1, keepdims=True) + epsilon)
    return ops.cast(centred * inverse_deviation * gamma + beta, x.dtype), mean, inverse_deviation


@kernels.reuse
@kernels.fuse
def _gradient(upstream, x, gamma, mean, inverse_deviation):
    """Gradients for x `[rows, channels]`, gamma and beta `[channels]`."""
    dy = ops.cast(upstream, gamma.dtype)
    normalized = (ops.cast(x, gamma.dtype) - mean) * inverse_deviation
    scaled = dy * gamma
    shift = ops.mean(scaled, -1, keepdims=True)
    slope = ops.mean(scaled * normalized, -1, keepdims=True)
    dx = (scaled - shift - normalized * slope) * inverse_deviation
    return ops.cast(dx, x.dtype), ops.sum(dy * normalized, 0), ops.sum(dy, 0)
