"""The exact GELU against the error function of the standard library, the SiLU against its exponential."""

import math

import keras
import numpy as np
import pytest

from kvision.layers.conventions import activation_layer
from kvision.ops.activations import gelu, silu
from tests.ops.differentiation import MODES, central_differences, value_and_gradients
from tests.support import TOLERANCES, assert_close

POINTS = np.concatenate([np.linspace(-6, 6, 25), [-40.0, 40.0, 0.0]]).reshape(4, 7).astype("float32")


def gelu_twin(x):
    return x * np.vectorize(lambda value: 0.5 * math.erfc(-value / math.sqrt(2)))(x)


def silu_twin(x):
    return x / np.vectorize(lambda value: 1 + math.exp(-value))(x)


PAIRS = pytest.mark.parametrize(("function", "twin"), [(gelu, gelu_twin), (silu, silu_twin)], ids=["gelu", "silu"])


@PAIRS
@pytest.mark.parametrize("mode", MODES)
def test_equals_the_twin_and_its_differences(function, twin, mode):
    upstream = np.random.default_rng(0).normal(size=POINTS.shape).astype("float32")
    y, (gradient,) = value_and_gradients(function, (POINTS,), upstream, mode)
    assert_close(y, twin(POINTS.astype("float64")))
    assert_close(gradient, central_differences(twin, (POINTS,), upstream)[0])


@pytest.mark.parametrize(
    ("function", "twin", "roundings"),
    [(gelu, gelu_twin, 1), (silu, silu_twin, 2)],  # Keras's SiLU rounds the sigmoid as well
    ids=["gelu", "silu"],
)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("mode", MODES)
def test_16_bit_input_is_rounded_at_the_end(function, twin, roundings, dtype, mode):
    x = keras.ops.cast(POINTS, dtype)
    y, (gradient,) = value_and_gradients(function, (x,), keras.ops.ones_like(x), mode)
    assert {keras.backend.standardize_dtype(tensor.dtype) for tensor in (y, gradient)} == {dtype}
    exact = keras.ops.convert_to_numpy(keras.ops.cast(x, "float32")).astype("float64")
    half_a_step = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    tolerance = (half_a_step * 1.01 * roundings, TOLERANCES["float32"][1])
    assert_close(keras.ops.cast(y, "float32"), twin(exact), tolerance=tolerance)
    slopes = central_differences(twin, (exact,), np.ones_like(exact))[0]
    assert_close(keras.ops.cast(gradient, "float32"), slopes, tolerance=(half_a_step * 1.01, 1e-4))


def test_gelu_is_not_the_tanh_approximation():
    x = np.float32(-2.0)
    approximation = 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    assert abs(float(gelu(x)) - gelu_twin(x)) < abs(approximation - gelu_twin(x)) / 100


def test_layers_save_and_load_them():
    for layer, function in ((keras.layers.Dense(3, activation=gelu), gelu), (activation_layer("silu"), silu)):
        assert type(layer).from_config(layer.get_config()).activation is function
