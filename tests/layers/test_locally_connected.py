"""The locally connected layer against a loop over its windows."""

import keras
import numpy as np
import pytest

from kvision import layers
from tests.support import assert_close


def twin(x, kernel, bias, rows, columns):
    """One window after another, each times the kernel of its own position."""
    batch, height, width, _ = x.shape
    out = np.array(np.broadcast_to(bias, (batch, *bias.shape)))
    for image in range(batch):
        for y in range(height):
            for x_ in range(width):
                weights = kernel[y * width + x_].reshape(rows, columns, x.shape[-1], -1)
                for i in range(rows):
                    for j in range(columns):
                        top, left = y + i - rows // 2, x_ + j - columns // 2
                        if 0 <= top < height and 0 <= left < width:
                            out[image, y, x_] += x[image, top, left] @ weights[i, j]
    return out


@pytest.mark.parametrize("kernel_size", [3, (1, 5)])
def test_equals_the_twin(kernel_size):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 4, 5, 3)).astype("float32")
    layer = layers.LocallyConnected2D(6, kernel_size, bias_initializer="random_normal")
    got = layer(x)
    kernel, bias = map(keras.ops.convert_to_numpy, layer.weights)
    assert_close(got, twin(x, kernel, bias, *layer.kernel_size))
    assert layer.compute_output_shape(x.shape) == got.shape


def test_equals_a_convolution_where_all_kernels_are_one():
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 3)).astype("float32")
    local, shared = layers.LocallyConnected2D(6, 3), layers.Conv2D(6, 3, padding=1)
    local.build(x.shape)
    want = shared(x)
    kernel, _ = map(keras.ops.convert_to_numpy, shared.weights)
    local.kernel.assign(np.broadcast_to(kernel.reshape(27, 6), (20, 27, 6)))
    assert_close(local(x), want)


def test_kernels_start_at_the_deviation_of_one_window():
    layer = layers.LocallyConnected2D(64, 3, kernel_initializer="he_normal")
    layer.build((None, 4, 4, 8))
    assert_close(keras.ops.convert_to_numpy(layer.kernel).std(), np.sqrt(2 / 72), tolerance=(0.03, 0))
    first, second = keras.ops.convert_to_numpy(layer.kernel)[:2]
    assert not np.array_equal(first, second)


def test_config_round_trip():
    layer = layers.LocallyConnected2D(4, (3, 1), kernel_initializer="he_normal", name="local")
    again = layers.LocallyConnected2D.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()


@pytest.mark.parametrize(("filters", "kernel_size"), [(0, 3), (4, 2), (4, (3, 4))])
def test_windows_that_would_change_the_size_are_refused(filters, kernel_size):
    with pytest.raises(ValueError, match="at least 1 filter and a window of odd sizes.*got filters="):
        layers.LocallyConnected2D(filters, kernel_size)


def test_a_map_of_another_size_is_refused():
    layer = layers.LocallyConnected2D(4, 3)
    layer(keras.ops.ones((2, 9, 9, 3)))
    with pytest.raises(ValueError, match="incompatible with the layer: expected shape"):
        layer(keras.ops.ones((1, 12, 12, 3)))


def test_a_map_of_unknown_size_is_refused():
    with pytest.raises(ValueError, match=r"every position of the map: got the shape \(None, None, 7, 3\)"):
        layers.LocallyConnected2D(4, 3).build((None, None, 7, 3))
