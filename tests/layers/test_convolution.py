"""Padding in pixels: equal to padding by hand; Keras's own forms unchanged; weight files interchangeable."""

import json

import keras
import numpy as np
import pytest

from kvision import layers
from tests.support import assert_close

IMAGES = np.random.default_rng(0).normal(size=(2, 9, 8, 3)).astype("float32")


def pad(x, rows, columns, value=0.0):
    return np.pad(x, ((0, 0), (rows, rows), (columns, columns), (0, 0)), constant_values=value)


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize(("kernel_size", "padding"), [(3, 1), (3, 2), (5, (2, 1)), (7, 3), (1, 0)])
@pytest.mark.parametrize("dilation_rate", [1, 2])
def test_convolution_with_padding_in_pixels(kernel_size, padding, strides, dilation_rate):
    if strides > 1 and dilation_rate > 1:
        dilation_rate = 1  # Keras has no convolution with both
    rows, columns = (padding, padding) if isinstance(padding, int) else padding
    if 9 + 2 * min(rows, columns) <= dilation_rate * (kernel_size - 1):
        rows = columns = padding = 3
    ours = layers.Conv2D(4, kernel_size, strides=strides, padding=padding, dilation_rate=dilation_rate)
    keras_own = keras.layers.Conv2D(4, kernel_size, strides=strides, padding="valid", dilation_rate=dilation_rate)
    want_input = pad(IMAGES, rows, columns)
    ours.build(IMAGES.shape)
    keras_own.build(want_input.shape)
    keras_own.set_weights(ours.get_weights())
    got = ours(IMAGES)
    assert_close(got, keras_own(want_input))
    assert ours.compute_output_shape(IMAGES.shape) == tuple(got.shape)


@pytest.mark.parametrize("options", [{"strides": 1}, {"strides": 2}, {"dilation_rate": 2}], ids=str)
def test_depthwise_convolution_with_padding_in_pixels(options):
    ours, keras_own = layers.DepthwiseConv2D(3, padding=1, **options), keras.layers.DepthwiseConv2D(3, **options)
    ours.build(IMAGES.shape)
    keras_own.build(pad(IMAGES, 1, 1).shape)
    keras_own.set_weights(ours.get_weights())
    assert_close(ours(IMAGES), keras_own(pad(IMAGES, 1, 1)))


@pytest.mark.parametrize("images", [IMAGES, IMAGES - 100.0], ids=["mixed", "all negative"])
def test_the_padding_of_max_pooling_never_wins(images):
    want = keras.layers.MaxPooling2D(3, strides=2)(pad(images, 1, 1, value=-np.inf))
    assert_close(layers.MaxPooling2D(3, strides=2, padding=1)(images), want)


@pytest.mark.parametrize(
    "layer",
    [
        layers.Conv2D(4, 3, strides=2, padding=1),
        layers.MaxPooling2D(3, strides=2, padding=1),
        layers.DepthwiseConv2D(3, padding="same"),
        layers.Conv2D(4, 3, padding=1),
        layers.Conv2D(np.int64(4), np.int64(3), strides=np.int64(2), padding=np.int64(1), groups=np.int64(1)),
        layers.DepthwiseConv2D((np.int32(3), np.int32(5)), padding=(np.int64(1), np.int64(2)), strides=2),
        layers.MaxPooling2D(np.int64(3), strides=np.int64(2), padding=np.int64(1)),
    ],
)
def test_config_round_trip(layer):
    copy = type(layer).from_config(json.loads(json.dumps(layer.get_config())))
    layer(IMAGES)
    copy.build(IMAGES.shape)
    copy.set_weights(layer.get_weights())
    assert_close(copy(IMAGES), layer(IMAGES))


@pytest.mark.parametrize("size", [(9, 9), (8, 8), (9, 8), (7, 5)])
@pytest.mark.parametrize(("pool_size", "strides"), [(3, 2), (2, 2), (5, 2), (3, 3), (4, 3)])
def test_ceil_pooling_loses_no_pixel(size, pool_size, strides):
    images = np.random.default_rng(0).normal(size=(2, *size, 3)).astype("float32") - 5.0
    rows, columns = (-(-(n - pool_size) // strides) + 1 for n in size)
    want = [
        [images[:, i : i + pool_size, j : j + pool_size].max(axis=(1, 2)) for j in range(0, columns * strides, strides)]
        for i in range(0, rows * strides, strides)
    ]
    layer = layers.MaxPooling2D(pool_size, strides=strides, padding="ceil")
    assert_close(layer(images), np.moveaxis(np.array(want), 2, 0))
    assert layer.compute_output_shape(images.shape) == (2, rows, columns, 3)
    assert_close(type(layer).from_config(layer.get_config())(images), layer(images))


@pytest.mark.parametrize("strides", [1, 2])
def test_grouped_convolution_is_one_convolution_a_group(strides):
    layer = layers.Conv2D(6, 3, groups=2, strides=strides, padding=1, bias_initializer="glorot_uniform")
    images = np.random.default_rng(0).normal(size=(2, 9, 8, 4)).astype("float32")
    layer.build(images.shape)
    kernel, bias = layer.get_weights()
    assert kernel.shape == (3, 3, 2, 6)
    halves = []
    for group in range(2):
        half = keras.layers.Conv2D(3, 3, strides=strides)
        half.build((None, 11, 10, 2))
        half.set_weights([kernel[..., 3 * group : 3 * group + 3], bias[3 * group : 3 * group + 3]])
        halves.append(half(pad(images, 1, 1)[..., 2 * group : 2 * group + 2]))
    assert_close(layer(images), np.concatenate(halves, axis=-1))


def test_centered_padding_at_stride_one_copies_no_map():
    assert layers.Conv2D(4, 3, padding=1).pixels is None
    assert layers.Conv2D(4, (1, 7), padding=(0, 3)).pixels is None
    assert layers.Conv2D(4, 3, padding=2, dilation_rate=2).pixels is None
    assert layers.Conv2D(4, 4, padding=1).pixels == (1, 1)


def test_keras_weight_files_load_into_ours(tmp_path):
    def net(conv):
        return keras.Sequential([keras.Input((9, 8, 3)), conv(4, 3, padding="same"), conv(2, 3, padding="same")])

    theirs, ours = net(keras.layers.Conv2D), net(layers.Conv2D)
    theirs.save_weights(tmp_path / "theirs.weights.h5")
    ours.load_weights(tmp_path / "theirs.weights.h5")
    assert_close(ours(IMAGES), theirs(IMAGES))


def test_negative_padding_is_refused():
    with pytest.raises(ValueError, match="must not be negative"):
        layers.Conv2D(4, 3, padding=-1)


def test_whole_numbers_only():
    with pytest.raises(TypeError):
        layers.Conv2D(4.0, 3)


CHANNELS_FIRST = {
    "Conv2D": lambda **options: layers.Conv2D(4, 3, padding=1, **options),
    "DepthwiseConv2D": lambda **options: layers.DepthwiseConv2D(3, **options),
    "MaxPooling2D": lambda **options: layers.MaxPooling2D(3, padding=1, **options),
}


@pytest.mark.parametrize("name", CHANNELS_FIRST)
def test_channels_first_is_refused_in_a_sentence(name):
    with pytest.raises(ValueError, match=f"^{name}: kvision's images and maps are .* got data_format=\"channels_first"):
        CHANNELS_FIRST[name](data_format="channels_first")
    assert CHANNELS_FIRST[name](data_format="channels_last").data_format == "channels_last"


@pytest.mark.parametrize("name", [*CHANNELS_FIRST, "DeformableConv2D"])
def test_a_channels_first_configuration_is_refused_in_a_sentence(name):
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(ValueError, match=f"^{name}: kvision's images and maps are"):
            CHANNELS_FIRST.get(name, lambda: layers.DeformableConv2D(4, 3))()
    finally:
        keras.config.set_image_data_format("channels_last")
