"""Local response normalisation: a slow twin, its gradient by differences, torch's layer, 16-bit overflow."""

import keras
import numpy as np
import pytest

from kvision.layers import LocalResponseNormalization
from tests.support import assert_close

MAP = np.random.default_rng(0).normal(0, 3, size=(2, 3, 2, 11)).astype("float32")

CONSTANTS = pytest.mark.parametrize(
    ("size", "alpha", "beta", "k"), [(5, 1e-4, 0.75, 2.0), (3, 0.5, 0.75, 1.0), (4, 0.2, 0.5, 2.0), (1, 1.0, 1.3, 0.5)]
)


def twin(x, size, alpha, beta, k):
    """The formula of section 3.3, value by value."""
    x = np.asarray(x, "float64")
    out = np.empty_like(x)
    channels = x.shape[-1]
    for i in range(channels):
        first, last = max(0, i - size // 2), min(channels - 1, i + (size - 1) // 2)
        out[..., i] = x[..., i] / (k + alpha * (x[..., first : last + 1] ** 2).sum(axis=-1)) ** beta
    return out


def gradient(layer, x, upstream):
    """The gradient of Σ layer(x)·upstream, on either backend."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.grad(lambda x: keras.ops.sum(layer(x) * upstream))(x)
    import tensorflow as tf

    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = keras.ops.sum(layer(x) * upstream)
    return tape.gradient(loss, x)


@CONSTANTS
def test_equals_the_twin(size, alpha, beta, k):
    assert_close(LocalResponseNormalization(size, alpha, beta, k)(MAP), twin(MAP, size, alpha, beta, k))


@CONSTANTS
def test_gradient_equals_differences(size, alpha, beta, k):
    upstream = np.random.default_rng(1).normal(size=MAP.shape).astype("float32")
    got = gradient(LocalResponseNormalization(size, alpha, beta, k), MAP, upstream)
    want = np.zeros(MAP.shape)
    for index in np.ndindex(*MAP.shape):
        step = np.zeros(MAP.shape)
        step[index] = 1e-5
        difference = twin(MAP + step, size, alpha, beta, k) - twin(MAP - step, size, alpha, beta, k)
        want[index] = (difference * upstream).sum() / 2e-5
    assert_close(got, want, tolerance=(1e-4, 1e-5))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_squares_do_not_overflow_in_16_bit(policy):
    layer = LocalResponseNormalization(dtype=policy)
    large = np.full((1, 1, 1, 8), 1000.0, "float32")  # its square is beyond float16
    got = layer(large)
    assert keras.backend.standardize_dtype(got.dtype) == policy.removeprefix("mixed_")
    assert_close(keras.ops.cast(got, "float32"), twin(large, 5, 1e-4, 0.75, 2.0), dtype=policy.removeprefix("mixed_"))


def test_config_round_trip():
    layer = LocalResponseNormalization(3, 0.5, 0.6, 1.5)
    assert_close(LocalResponseNormalization.from_config(layer.get_config())(MAP), layer(MAP))


def test_an_empty_window_is_refused():
    with pytest.raises(ValueError, match="at least 1 channel, got size=0"):
        LocalResponseNormalization(0)


@pytest.mark.parity
@CONSTANTS
def test_equals_torch_whose_alpha_is_divided_by_the_window(size, alpha, beta, k):
    import torch

    theirs = torch.nn.LocalResponseNorm(size, alpha=alpha * size, beta=beta, k=k)
    want = theirs(torch.from_numpy(MAP.transpose(0, 3, 1, 2).copy())).numpy().transpose(0, 2, 3, 1)
    assert_close(LocalResponseNormalization(size, alpha, beta, k)(MAP), want)
