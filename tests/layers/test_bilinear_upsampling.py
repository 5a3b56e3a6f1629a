"""Bilinear upsampling against interpolation written as a loop, and as the gradient of a convolution."""

import keras
import numpy as np
import pytest

from kvision import layers
from tests.ops.differentiation import value_and_gradients
from tests.support import assert_close


def interpolated(row, factor):
    """One axis at half-pixel centres, edge cells repeated: a loop over the output."""
    out = []
    for index in range(len(row) * factor):
        position = min(max((index + 0.5) / factor - 0.5, 0.0), len(row) - 1.0)
        left = int(position)
        right = min(left + 1, len(row) - 1)
        out.append(row[left] + (position - left) * (row[right] - row[left]))
    return np.stack(out)


def maps_of(height, width, channels=3):
    return np.random.default_rng(0).normal(size=(2, height, width, channels)).astype("float32")


FORMS = pytest.mark.parametrize("learned", [True, False], ids=["learned", "fixed"])


@FORMS
@pytest.mark.parametrize("factor", [2, 3, 8, 32])
def test_initially_is_exact_interpolation(factor, learned):
    x = maps_of(3, 4)
    layer = layers.BilinearUpsampling(factor, learned=learned)
    columns = np.moveaxis(interpolated(np.moveaxis(x, 2, 0), factor), 0, 2)
    want = np.moveaxis(interpolated(np.moveaxis(columns, 1, 0), factor), 0, 1)
    assert_close(layer(x), want)
    assert layer.compute_output_shape(x.shape) == want.shape


# Of the reference's kernel, along one axis.
TENTS = {
    2: np.array([1, 3, 3, 1]) / 4,
    3: np.array([1, 2, 3, 2, 1]) / 3,
    8: np.array([1, 3, 5, 7, 9, 11, 13, 15, 15, 13, 11, 9, 7, 5, 3, 1]) / 16,
}


@FORMS
@pytest.mark.parametrize("factor", TENTS)
def test_valid_is_the_whole_transposed_convolution(factor, learned):
    x, tent = maps_of(3, 2), TENTS[factor]
    size = len(tent)
    want = np.zeros((2, 2 * factor + size, factor + size, 3))
    for row in range(3):
        for column in range(2):
            spread = x[:, row, column][:, None, None, :] * np.outer(tent, tent)[:, :, None]
            want[:, row * factor :, column * factor :][:, :size, :size] += spread
    layer = layers.BilinearUpsampling(factor, learned=learned, padding="valid")
    assert_close(layer(x), want)
    assert layer.compute_output_shape(x.shape) == want.shape


def test_only_a_learned_one_has_weights_and_they_lie_on_the_diagonal():
    learned, fixed = layers.BilinearUpsampling(4), layers.BilinearUpsampling(4, learned=False)
    for layer in (learned, fixed):
        layer.build((None, 5, 5, 3))
    assert fixed.weights == []
    (kernel,) = learned.trainable_weights
    assert tuple(kernel.shape) == (8, 8, 3, 3)
    assert_close(keras.ops.sum(kernel, axis=(0, 1)), 16 * np.eye(3))


def test_is_the_gradient_of_a_convolution_and_the_reverse():
    """<conv(y), x> = <y, convT(x)> for any kernel: forward and backward of section 3.3 change places."""
    rng = np.random.default_rng(0)
    layer = layers.BilinearUpsampling(3, padding="valid")
    x = maps_of(4, 5)
    layer.build(x.shape)
    kernel = rng.normal(size=layer.kernel.shape).astype("float32")
    layer.kernel.assign(kernel)
    y = rng.normal(size=layer.compute_output_shape(x.shape)).astype("float32")
    down = keras.ops.conv(y, kernel, strides=3, padding="valid")
    assert down.shape == x.shape
    products = [float(keras.ops.sum(a * b)) for a, b in ((down, x), (y, layer(x)))]
    assert_close(products[0], products[1], tolerance=(1e-5, 1e-3))  # sums of thousands of products of both signs

    def conv(maps):
        return keras.ops.conv(maps, kernel, strides=3, padding="valid")

    for forward, start, other, result in ((layer, x, conv, y), (conv, y, layer, x)):  # each is the other's gradient
        _, (gradient,) = value_and_gradients(forward, (start,), result)
        assert_close(gradient, other(result), tolerance=(1e-4, 1e-4))


@FORMS
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_config_round_trip(learned, padding):
    layer = layers.BilinearUpsampling(5, learned=learned, padding=padding, name="up")
    assert layers.BilinearUpsampling.from_config(layer.get_config()).get_config() == layer.get_config()
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert (copy.factor, copy.learned, copy.padding) == (5, learned, padding)


def test_a_learned_one_takes_maps_of_any_size():
    inputs = keras.Input((None, None, 2))
    outputs = layers.BilinearUpsampling(2)(inputs)
    assert outputs.shape == (None, None, None, 2)
    x = maps_of(3, 4, 2)
    assert_close(keras.Model(inputs, outputs).predict(x, verbose=0), layers.BilinearUpsampling(2)(x))


@pytest.mark.parametrize("factor", [1, 0, 2.0, True, None])
def test_factors_that_enlarge_nothing_are_refused(factor):
    with pytest.raises(ValueError, match="factor must be a whole number of at least 2"):
        layers.BilinearUpsampling(factor)


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="Unknown padding of BilinearUpsampling: got 'full'"):
        layers.BilinearUpsampling(2, padding="full")
    with pytest.raises(ValueError, match="learned=False. needs a static height and width"):
        layers.BilinearUpsampling(2, learned=False)(keras.Input((None, None, 2)))
