"""Layer normalisation against a NumPy twin, its central differences, and Keras's own."""

import keras
import numpy as np
import pytest

from kvision.ops.layer_norm import layer_normalize
from tests.ops.differentiation import MODES, central_differences, value_and_gradients
from tests.support import assert_close


def twin(x, gamma, beta, epsilon):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * gamma + beta


def example(shape, mean=0.0, dtype="float32"):
    rng = np.random.default_rng(0)
    x, upstream = (keras.ops.convert_to_numpy(keras.ops.cast(rng.normal(at, 1.0, shape), dtype)) for at in (mean, 0.0))
    gamma, beta = rng.normal(1.0, 1.0, (2, shape[-1])).astype("float32")
    return x, gamma, beta, upstream


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 5), (1, 2, 3, 7)])
@pytest.mark.parametrize("mode", MODES)
def test_equals_the_twin_and_its_differences(shape, mode):
    x, gamma, beta, upstream = example(shape, mean=3.0)
    y, gradients = value_and_gradients(
        lambda *tensors: layer_normalize(*tensors, 0.1), (x, gamma, beta), upstream, mode
    )
    assert_close(y, twin(x.astype("float64"), gamma, beta, 0.1))
    want = central_differences(lambda *arrays: twin(*arrays, 0.1), (x, gamma, beta), upstream)
    for got, gradient in zip(gradients, want, strict=True):
        assert_close(got, gradient)


@pytest.mark.parametrize("mode", MODES)
def test_a_mean_far_from_zero_costs_no_more_than_its_rounding(mode):
    x, gamma, beta, upstream = example((64, 32), mean=1e4)
    y, _ = value_and_gradients(lambda *tensors: layer_normalize(*tensors, 1e-6), (x, gamma, beta), upstream, mode)
    # x itself is rounded to 1e-3 of a deviation; E[x²] - E[x]² would leave nothing
    assert_close(y, twin(x.astype("float64"), gamma, beta, 1e-6), tolerance=(1e-2, 1e-2))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("mode", MODES)
def test_16_bit_input_has_float32_statistics(dtype, mode):
    x, gamma, beta, upstream = example((8, 64), mean=300.0, dtype=dtype)  # squares leave float16
    y, gradients = value_and_gradients(
        lambda *tensors: layer_normalize(*tensors, 1e-6), (x, gamma, beta), upstream, mode
    )
    dtypes = [keras.backend.standardize_dtype(tensor.dtype) for tensor in (y, *gradients)]
    assert dtypes == [dtype, dtype, "float32", "float32"]
    assert_close(keras.ops.cast(y, "float32"), twin(x.astype("float64"), gamma, beta, 1e-6), dtype)


@pytest.mark.parametrize("mode", MODES)
def test_second_derivative(mode):
    x, gamma, beta, weights = example((3, 4))

    def gradient(x):
        return central_differences(lambda x: twin(x, gamma, beta, 0.1), (x,), weights)[0]

    def ours(x):
        if keras.backend.backend() == "jax":
            import jax

            return jax.grad(lambda x: keras.ops.sum(weights * layer_normalize(x, gamma, beta, 0.1)))(x)
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer_normalize(x, gamma, beta, 0.1)
        return tape.gradient(y, x, tf.constant(weights))

    upstream = np.random.default_rng(1).normal(size=x.shape).astype("float32")
    _, (got,) = value_and_gradients(ours, (x,), upstream, mode)
    (want,) = central_differences(gradient, (x,), upstream, step=1e-3)
    assert_close(got, want, tolerance=(1e-4, 1e-4))  # differences of differences
