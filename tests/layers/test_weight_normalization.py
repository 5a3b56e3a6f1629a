"""Weight normalisation: tensorflow-addons' numbers, the closed form, training."""

import json
import pathlib

import keras
import numpy as np
import pytest

from kvision.layers import DropConnect, WeightNormalization
from tests.support import assert_close

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "addons.json"
CASES = json.loads(GOLDEN.read_text())["weight_normalization"]
LAYERS = {
    "Dense": lambda: keras.layers.Dense(4),
    "Conv2D": lambda: keras.layers.Conv2D(3, 2, strides=2, padding="same"),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_tensorflow_addons(case):
    golden = {key: np.array(value, "float32") for key, value in CASES[case].items()}
    layer = WeightNormalization(LAYERS[case.split(",")[0]]())
    layer.layer.build(golden["inputs"].shape)
    layer.layer.set_weights([golden["kernel"], np.zeros_like(golden["bias"])])
    layer.build(golden["inputs"].shape)
    if case.endswith("True"):
        layer.adapt(golden["inputs"])
        # Its start from data leaves out the division by the length of v in t (section 3), so its g is short by it.
        length = np.sqrt((golden["kernel"] ** 2).sum(axis=tuple(range(golden["kernel"].ndim - 1))))
        assert_close(layer.g, golden["g"] * length)
        layer.g.assign(golden["g"])
    assert_close(layer.g, golden["g"])
    assert_close(layer.layer.bias, golden["bias"])
    assert_close(layer(golden["inputs"]), golden["outputs"])


def dense(**options):
    layer = WeightNormalization(keras.layers.Dense(3, bias_initializer="glorot_uniform"), **options)
    layer.build((None, 5))
    layer.g.assign([0.5, 1.0, 2.0])
    return layer


def test_length_and_direction_are_apart():
    layer, inputs = dense(), np.random.default_rng(0).normal(size=(6, 5)).astype("float32")
    v, bias = layer.layer.get_weights()
    want = inputs @ (v / np.linalg.norm(v, axis=0) * [0.5, 1.0, 2.0]) + bias
    assert_close(layer(inputs), want)
    layer.layer.set_weights([7 * v, bias])
    assert_close(layer(inputs), want)


@pytest.mark.parametrize("jit", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_training_moves_length_direction_and_bias(jit):
    inputs = np.random.default_rng(0).normal(size=(32, 5)).astype("float32")
    model = keras.Sequential([keras.Input((5,)), dense(name="wn")])
    before = model.get_weights()
    model.compile(keras.optimizers.SGD(0.05), "mse", jit_compile=jit)
    losses = model.fit(inputs, inputs[:, :3], epochs=40, verbose=0).history["loss"]
    assert losses[-1] < 0.2 * losses[0]
    assert all(not np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    v = model.get_layer("wn").layer.get_weights()[0]  # its gradient is orthogonal to v, so v only grows (section 2)
    start = next(w for w in before if w.shape == (5, 3))
    assert (np.linalg.norm(v, axis=0) >= np.linalg.norm(start, axis=0) - 1e-6).all()


def test_adapt_whitens_each_output():
    inputs = np.random.default_rng(1).normal(3, 2, size=(200, 5)).astype("float32")
    layer = dense()
    layer.adapt(inputs)
    outputs = keras.ops.convert_to_numpy(layer(inputs))
    assert_close(outputs.mean(axis=0), np.zeros(3), tolerance=(0, 1e-4))
    assert_close(outputs.std(axis=0), np.ones(3), tolerance=(1e-4, 0))


def test_state_of_the_wrapped_layer_is_kept():
    layer = WeightNormalization(DropConnect(3, rate=0.5, seed=1))
    inputs = np.ones((2, 5), "float32")
    draws = {keras.ops.convert_to_numpy(layer(inputs, training=True)).tobytes() for _ in range(4)}
    assert len(draws) == 4
    assert_close(layer(inputs), layer(inputs, training=False))


def test_losses_of_the_wrapped_layer_are_kept():
    layer = WeightNormalization(keras.layers.Dense(3, activity_regularizer="l2"))
    outputs = keras.ops.convert_to_numpy(layer(np.ones((2, 5), "float32")))
    assert_close(sum(layer.losses), 0.01 * (outputs**2).sum() / 2)


def test_a_channel_with_a_zero_kernel_stays_zero_and_finite():
    model = keras.Sequential([keras.Input((5,)), WeightNormalization(keras.layers.Dense(3, use_bias=False), name="wn")])
    kernel = np.ones((5, 3), "float32")
    kernel[:, 1] = 0
    model.get_layer("wn").layer.kernel.assign(kernel)
    model.get_layer("wn").g.assign([1.0, 0.0, 1.0])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(np.ones((4, 5), "float32"), np.zeros((4, 3), "float32"), verbose=0)
    assert all(np.isfinite(weight).all() for weight in model.get_weights())
    assert not model.get_layer("wn").layer.get_weights()[0][:, 1].any()


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_16_bit_stays_16_bit(policy):
    keras.mixed_precision.set_dtype_policy(policy)
    got = dense()(np.ones((2, 5), "float32"))
    assert keras.backend.standardize_dtype(got.dtype) == policy.removeprefix("mixed_")


def test_save_and_load(tmp_path):
    model = keras.Sequential([keras.Input((5,)), dense()])
    model.save(tmp_path / "model.keras")
    inputs = np.random.default_rng(0).normal(size=(6, 5)).astype("float32")
    assert_close(keras.saving.load_model(tmp_path / "model.keras")(inputs), model(inputs))


def test_a_layer_without_kernel_is_refused():
    with pytest.raises(ValueError, match="needs a layer with a kernel, got ReLU"):
        WeightNormalization(keras.layers.ReLU()).build((None, 5))
