"""Squeeze and excitation against a NumPy twin and torchvision's layer."""

import keras
import numpy as np
import pytest

from kvision.layers import SqueezeExcite
from tests.support import assert_close

MAPS = np.random.default_rng(0).normal(size=(2, 5, 4, 6)).astype("float32")


def random_layer(**options):
    layer = SqueezeExcite(3, bias_initializer=keras.initializers.RandomNormal(stddev=1.0), **options)
    layer.build(MAPS.shape)
    return layer


@pytest.mark.parametrize(
    ("activation", "delta"), [("relu", lambda x: np.maximum(x, 0)), ("silu", lambda x: x / (1 + np.exp(-x)))]
)
def test_equals_the_twin(activation, delta):
    layer = random_layer(activation=activation)
    w1, b1, w2, b2 = (weight.astype("float64") for weight in layer.get_weights())
    squeezed = delta(MAPS.mean(axis=(1, 2)) @ w1[0, 0] + b1)
    excitation = 1 / (1 + np.exp(-(squeezed @ w2[0, 0] + b2)))
    assert_close(layer(MAPS), MAPS * excitation[:, None, None])


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_16_bit_stays_16_bit_and_close(policy):
    want = random_layer()
    layer = SqueezeExcite(3, dtype=policy)
    layer.build(MAPS.shape)
    layer.set_weights(want.get_weights())
    got = layer(MAPS)
    dtype = policy.removeprefix("mixed_")
    assert keras.backend.standardize_dtype(got.dtype) == dtype
    assert_close(keras.ops.cast(got, "float32"), want(MAPS), tolerance=(3e-2, 3e-2))  # a product of four roundings


@pytest.mark.parametrize("activation", ["relu", "prelu", "silu"])
def test_a_float32_layer_computes_in_float32_under_a_16_bit_policy(activation):
    want = random_layer(activation=activation)
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    layer = SqueezeExcite(3, activation, dtype="float32")
    layer.build(MAPS.shape)
    layer.set_weights(want.get_weights())
    assert_close(layer(MAPS), want(MAPS))


@pytest.mark.parametrize("activation", ["prelu", "maxout", "leaky"])
def test_save_and_load(activation, tmp_path):
    image = keras.Input(MAPS.shape[1:])
    model = keras.Model(image, SqueezeExcite(3, activation, name="se")(image))
    model.save(tmp_path / "model.keras")
    assert_close(keras.saving.load_model(tmp_path / "model.keras")(MAPS), model(MAPS))


@pytest.mark.parametrize(
    ("kernel", "bias"),
    [("normal_0.01", "small_positive"), (keras.initializers.Constant(0.5), keras.initializers.Ones())],
    ids=["names", "objects"],
)
def test_config_round_trip(kernel, bias):
    layer = SqueezeExcite(3, kernel_initializer=kernel, bias_initializer=bias)
    copy = SqueezeExcite.from_config(layer.get_config())
    for each in (layer, copy):
        each.build(MAPS.shape)
    for name in ("kernel_initializer", "bias_initializer"):
        assert getattr(copy.fc2, name).get_config() == getattr(layer.fc2, name).get_config()


def test_no_channels_are_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        SqueezeExcite(0)


@pytest.mark.parity
def test_equals_torchvision():
    import torch
    from torchvision.ops import SqueezeExcitation

    layer = random_layer()
    theirs = SqueezeExcitation(6, 3)
    w1, b1, w2, b2 = layer.get_weights()
    state = {"fc1.weight": w1, "fc1.bias": b1, "fc2.weight": w2, "fc2.bias": b2}
    state = {key: value.transpose(3, 2, 0, 1) if value.ndim == 4 else value for key, value in state.items()}
    theirs.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in state.items()})
    want = theirs(torch.from_numpy(MAPS.transpose(0, 3, 1, 2).copy())).detach().numpy()
    assert_close(layer(MAPS), want.transpose(0, 2, 3, 1))
