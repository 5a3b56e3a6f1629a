"""Filter response normalisation and its threshold: tensorflow-addons' numbers, invariances, 16-bit overflow."""

import json
import pathlib

import keras
import numpy as np
import pytest

from kvision.layers import FilterResponseNormalization, ThresholdedLinearUnit
from tests.support import assert_close

GOLDEN = {
    key: np.array(value, "float32")
    for key, value in json.loads((pathlib.Path(__file__).parent.parent / "golden" / "addons.json").read_text())[
        "filter_response_normalization"
    ].items()
}


def test_equals_tensorflow_addons():
    layer, unit = FilterResponseNormalization(epsilon=float(GOLDEN["epsilon"])), ThresholdedLinearUnit()
    layer.build(GOLDEN["inputs"].shape)
    unit.build(GOLDEN["inputs"].shape)
    layer.set_weights([GOLDEN["gamma"], GOLDEN["beta"]])
    unit.set_weights([GOLDEN["tau"]])
    outputs = layer(GOLDEN["inputs"])
    assert_close(outputs, GOLDEN["outputs"])
    assert_close(unit(outputs), GOLDEN["outputs_thresholded"])


def test_the_scale_of_a_channel_does_not_matter_and_images_are_apart():
    layer = FilterResponseNormalization(epsilon=1e-12)
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype("float32")
    want = keras.ops.convert_to_numpy(layer(x))
    assert_close(layer(x * np.array([2.0, 30.0, 0.1], "float32")), want)
    assert_close(layer(x[:1]), want[:1])


def test_an_untrained_threshold_is_relu():
    x = np.linspace(-2, 2, 12, dtype="float32").reshape(1, 2, 2, 3)
    assert_close(ThresholdedLinearUnit()(x), np.maximum(x, 0))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_squares_do_not_overflow_in_16_bit(policy):
    got = FilterResponseNormalization(dtype=policy)(np.full((1, 4, 4, 2), 3000.0, "float32"))
    dtype = policy.removeprefix("mixed_")
    assert keras.backend.standardize_dtype(got.dtype) == dtype
    assert_close(keras.ops.cast(got, "float32"), np.ones((1, 4, 4, 2)), dtype=dtype)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_gamma_and_beta_keep_their_bits_under_16_bit(policy):
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype("float16")
    layer = FilterResponseNormalization(dtype=policy)
    layer.build(x.shape)
    layer.set_weights([np.array([1.001, 0.999, 257.0]), np.array([0.001, 1.001, 0.0])])
    exact = FilterResponseNormalization()
    exact.build(x.shape)
    exact.set_weights(layer.get_weights())
    x = keras.ops.cast(x, layer.compute_dtype)
    want = keras.ops.cast(exact(keras.ops.cast(x, "float32")), layer.compute_dtype)
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(keras.ops.cast(layer(x), "float32")),
        keras.ops.convert_to_numpy(keras.ops.cast(want, "float32")),
    )


def test_save_and_load(tmp_path):
    image = keras.Input((4, 5, 3))
    model = keras.Model(image, ThresholdedLinearUnit()(FilterResponseNormalization(1e-3)(image)))
    model.save(tmp_path / "model.keras")
    x = GOLDEN["inputs"]
    assert_close(keras.saving.load_model(tmp_path / "model.keras")(x), model(x))
