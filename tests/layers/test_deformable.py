"""DeformableConv2D: a plain convolution at the start, the operation fed by its own offsets later."""

import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
from keras import ops

from kvision.layers import Conv2D, DeformableConv2D
from kvision.ops import deform_conv2d
from tests.support import SLOW, assert_close

IMAGES = np.random.default_rng(0).normal(size=(2, 9, 10, 4)).astype("float32")
VERSIONS = pytest.mark.parametrize("modulated", [True, False], ids=["v2", "v1"])


def with_offsets(layer, images=IMAGES, seed=1):
    """The layer, built, with offsets and factors that are not those of the plain convolution."""
    if not layer.built:
        layer.build(images.shape)
    rng = np.random.default_rng(seed)
    for weight in layer.conv_offset.weights:
        weight.assign(rng.normal(scale=0.2, size=weight.shape))
    return layer


@VERSIONS
@pytest.mark.parametrize(
    "options",
    [
        {"padding": "same"},
        {"padding": "valid", "strides": 2},
        {"padding": 1, "strides": 2, "use_bias": False},
        {"padding": (2, 4), "dilation_rate": (2, 4), "activation": "relu"},
        {"offset_groups": 2},
        {"padding": np.int64(1), "strides": np.int64(2), "offset_groups": np.int64(1)},
    ],
)
def test_starts_as_the_plain_convolution(options, modulated):
    layer = DeformableConv2D(5, (3, 3), modulated=modulated, bias_initializer="ones", **options)
    options = {name: value for name, value in options.items() if name != "offset_groups"}
    plain = Conv2D(5, (3, 3), **{"padding": "same", **options})
    got = layer(IMAGES)
    plain.build(IMAGES.shape)
    plain.set_weights(layer.get_weights()[: len(plain.weights)])
    assert_close(got, plain(IMAGES))
    assert layer.compute_output_shape(IMAGES.shape) == tuple(got.shape)


@VERSIONS
def test_equals_the_operation_fed_by_its_own_convolution(modulated):
    layer = with_offsets(DeformableConv2D(5, 3, strides=2, padding=1, offset_groups=2, modulated=modulated))
    raw = ops.conv(np.pad(IMAGES, ((0, 0), (1, 1), (1, 1), (0, 0))), layer.conv_offset.kernel, strides=2)
    raw = ops.convert_to_numpy(raw + layer.conv_offset.bias)
    mask = 2 / (1 + np.exp(-raw[..., 36:])) if modulated else None
    want = deform_conv2d(
        IMAGES, raw[..., :36], layer.kernel, layer.bias, mask=mask, strides=2, padding=1, offset_groups=2
    )
    assert_close(layer(IMAGES), want)


# ResNet-50's 3x3 convolutions: four of width 128 in C3, six of 256 in C4, three of 512 in C5.
@pytest.mark.parametrize(
    ("widths", "modulated", "count"),
    [
        ([128] * 4 + [256] * 6 + [512] * 3, False, 580_842),
        ([128] * 4 + [256] * 6 + [512] * 3, True, 871_263),
        ([512] * 3, False, 248_886),
        ([512] * 3, True, 373_329),
    ],
)
def test_published_number_of_offset_parameters(widths, modulated, count):
    total = 0
    with keras.StatelessScope():
        for width in widths:
            layer = DeformableConv2D(width, 3, modulated=modulated, use_bias=False)
            layer.build((None, 14, 14, width))
            total += layer.count_params() - 9 * width * width
    assert total == count


def test_weight_paths():
    layer = DeformableConv2D(5, 3, name="conv2")
    layer.build(IMAGES.shape)
    names = ["kernel", "bias", "conv_offset/kernel", "conv_offset/bias"]
    assert [weight.path for weight in layer.weights] == [f"conv2/{name}" for name in names]


def model_of(layer):
    inputs = keras.Input(IMAGES.shape[1:])
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(layer(inputs)))


@VERSIONS
@pytest.mark.parametrize("padding", [1, (1, 2), "valid"])
def test_saves_and_loads(modulated, padding, tmp_path):
    layer = DeformableConv2D(
        5, (3, 2), strides=2, padding=padding, offset_groups=2, modulated=modulated, activation="relu",
        kernel_initializer=keras.initializers.HeNormal(), use_bias=False,
    )  # fmt: skip
    model = model_of(layer)
    with_offsets(layer)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_close(loaded(IMAGES), model(IMAGES))
    assert loaded.layers[1].get_config() == keras.saving.load_model(tmp_path / "model.keras").layers[1].get_config()


@pytest.mark.parametrize("jit", [False, pytest.param(True, marks=SLOW)])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", pytest.param("mixed_float16", marks=SLOW)])
def test_trains(policy, jit):
    keras.mixed_precision.set_dtype_policy(policy)
    layer = DeformableConv2D(5, 3)
    model = model_of(layer)
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=jit)
    before = [ops.convert_to_numpy(weight) for weight in layer.weights]
    model.fit(IMAGES, np.ones((2, 5), "float32"), batch_size=2, epochs=2, verbose=0)
    for weight, old in zip(layer.weights, before, strict=True):
        new = ops.convert_to_numpy(weight)
        assert np.isfinite(new).all()
        assert not np.array_equal(new, old), weight.path


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_16_bit_is_near_float32(policy):
    want = with_offsets(DeformableConv2D(5, 3))
    layer = DeformableConv2D(5, 3, dtype=policy)
    layer.build(IMAGES.shape)
    layer.set_weights(want.get_weights())
    got = layer(IMAGES)
    dtype = policy.removeprefix("mixed_")
    assert keras.backend.standardize_dtype(got.dtype) == dtype
    largest = float(ops.max(ops.abs(want(IMAGES))))
    # Offsets come from a 16-bit convolution: an error of one part in 256 in a position shows as one in the value.
    tolerance = {"bfloat16": (0.03, 0.03), "float16": (0.004, 0.004)}[dtype]
    assert_close(ops.cast(got, "float32") / largest, want(IMAGES) / largest, tolerance=tolerance)


def test_groups_that_do_not_divide_the_channels():
    with pytest.raises(ValueError, match="divide the 4 input channels, got 3"):
        DeformableConv2D(5, 3, offset_groups=3).build(IMAGES.shape)


REPLICAS = """
    import keras
    import numpy as np
    import tensorflow as tf

    from kvision.layers import DeformableConv2D, RoIAlign, RoIPooling

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, 9, 10, 4)).astype("float32")
    boxes = np.repeat(rng.uniform(0, 8, (4, 5, 1)), 4, axis=-1).astype("float32") + [0, 0, 4, 5]


    def train():
        keras.utils.set_random_seed(0)
        x, corners = keras.Input((9, 10, 4)), keras.Input((5, 4))
        features = DeformableConv2D(5, 3)(x)
        regions = RoIAlign(3, 1.0)(features, corners) + RoIPooling(3, 1.0)(features, corners)
        model = keras.Model([x, corners], keras.layers.Dense(1)(keras.layers.Flatten()(regions)))
        model.compile(keras.optimizers.SGD(0.001), "mse", jit_compile=False)
        model.fit([images, boxes], np.ones((4, 1)), batch_size=4, epochs=3, verbose=0)
        return [np.asarray(weight) for weight in model.weights]


    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        replicas = train()
    print(max(np.abs(a - b).max() for a, b in zip(replicas, train(), strict=True)))
"""


@pytest.mark.slow
@pytest.mark.tensorflow_only
def test_two_replicas_equal_one():
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(REPLICAS)], capture_output=True, text=True, check=False, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert float(run.stdout) < 1e-5


@pytest.mark.parity
def test_equal_to_torchvision_with_half_the_kernel():
    import torch
    from torchvision.ops import deform_conv2d as theirs

    layer = with_offsets(DeformableConv2D(5, 3, strides=2, padding=1))

    def first(array):
        return torch.from_numpy(ops.convert_to_numpy(array).transpose(0, 3, 1, 2).copy())

    def outward(array):
        return torch.from_numpy(ops.convert_to_numpy(array).transpose(3, 2, 0, 1).copy())

    bias = torch.from_numpy(ops.convert_to_numpy(layer.conv_offset.bias))
    raw = torch.nn.functional.conv2d(first(IMAGES), outward(layer.conv_offset.kernel), bias, stride=2, padding=1)
    want = theirs(
        first(IMAGES), raw[:, :18], 2 * outward(layer.kernel), stride=2, padding=1, mask=torch.sigmoid(raw[:, 18:])
    )
    assert_close(layer(IMAGES), want.numpy().transpose(0, 2, 3, 1))
