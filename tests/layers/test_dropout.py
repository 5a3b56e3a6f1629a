"""Dropout scaled at test and DropConnect: masks, the mean over masks, one inference."""

import keras
import numpy as np
import pytest

from kvision.layers import DropConnect, DropoutScaledAtTest
from tests.support import assert_close

ONES = np.ones((400, 50), "float32")
INPUTS = np.random.default_rng(0).normal(size=(5, 7)).astype("float32")


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def test_training_drops_and_scales_nothing():
    got = numpy(DropoutScaledAtTest(0.3, seed=1)(ONES, training=True))
    assert set(np.unique(got)) == {0.0, 1.0}
    assert abs(got.mean() - 0.7) < 4 * np.sqrt(0.3 * 0.7 / ONES.size)


def test_both_forms_agree_at_test_up_to_the_scale():
    inverted, first = keras.layers.Dropout(0.3), DropoutScaledAtTest(0.3)
    assert_close(first(ONES), 0.7 * numpy(inverted(ONES)))
    kept = numpy(inverted(ONES, training=True)) > 0  # the masks differ, the two values do not
    assert_close(numpy(inverted(ONES, training=True)).max(), 1 / 0.7)
    assert 0 < kept.mean() < 1


@pytest.mark.parametrize("use_bias", [True, False])
def test_drop_connect_without_dropping_is_a_dense_layer(use_bias):
    layer = DropConnect(4, rate=0.0, activation="relu", use_bias=use_bias, bias_initializer="glorot_uniform")
    dense = keras.layers.Dense(4, activation="relu", use_bias=use_bias)
    layer.build(INPUTS.shape)
    dense.build(INPUTS.shape)
    dense.set_weights(layer.get_weights())
    assert_close(layer(INPUTS, training=True), dense(INPUTS))
    assert_close(layer(INPUTS), dense(INPUTS))


def test_every_example_has_its_own_mask_of_single_weights():
    layer = DropConnect(3, rate=0.5, seed=3, kernel_initializer="ones", bias_initializer="zeros")
    kept = numpy(layer(np.eye(8, dtype="float32"), training=True))  # example i sees row i of its own kernel
    assert set(np.unique(kept)) == {0.0, 2.0}
    same = np.ones((64, 1), "float32")
    rows = numpy(DropConnect(6, rate=0.5, seed=4, kernel_initializer="ones")(same, training=True))
    assert len(np.unique(rows, axis=0)) > 20


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_the_mean_over_masks_is_the_inference_before_the_activation(rate):
    layer = DropConnect(4, rate=rate, seed=5, bias_initializer="glorot_uniform")
    layer.build((None, 7))
    draws = 20_000
    outputs = numpy(layer(np.repeat(INPUTS[:1], draws, axis=0), training=True)).astype("float64")
    error = outputs.std(axis=0) / np.sqrt(draws)
    assert (np.abs(outputs.mean(axis=0) - numpy(layer(INPUTS[:1]))[0]) < 4 * error).all()
    kernel, bias = (w.astype("float64") for w in layer.get_weights())
    terms = np.concatenate([kernel * INPUTS[0][:, None], bias[None]])
    assert_close(outputs.var(axis=0), rate / (1 - rate) * (terms**2).sum(axis=0), tolerance=(0.1, 0))  # closed form


def test_drop_connect_scales_before_the_activation():
    linear, bent = (DropConnect(4, rate=0.5, seed=6, activation=activation) for activation in (None, "tanh"))
    for layer in (linear, bent):
        layer.build(INPUTS.shape)
    bent.set_weights(linear.get_weights())
    assert_close(bent(INPUTS, training=True), np.tanh(numpy(linear(INPUTS, training=True))))


@pytest.mark.parametrize("layer", [DropConnect(3, rate=0.4, seed=7), DropoutScaledAtTest(0.4, seed=7)])
def test_config_round_trip(layer):
    copy = type(layer).from_config(layer.get_config())
    layer.build(INPUTS.shape)
    copy.build(INPUTS.shape)
    copy.set_weights(layer.get_weights())
    assert_close(copy(INPUTS, training=True), layer(INPUTS, training=True))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("make", [lambda **o: DropConnect(3, **o), lambda **o: DropoutScaledAtTest(0.5, **o)])
def test_16_bit_stays_16_bit(make, policy):
    for training in (True, False):
        got = make(dtype=policy)(INPUTS, training=training)
        assert keras.backend.standardize_dtype(got.dtype) == policy.removeprefix("mixed_")


@pytest.mark.parametrize("jit", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_drop_connect_learns(jit):
    model = keras.Sequential([keras.Input((7,)), DropConnect(8, activation="relu"), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.03), "mse", jit_compile=jit)
    x = np.random.default_rng(1).normal(size=(64, 7)).astype("float32")
    losses = model.fit(x, x[:, :1], epochs=10, batch_size=16, verbose=0).history["loss"]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("make", [lambda rate: DropConnect(3, rate=rate), DropoutScaledAtTest])
def test_a_rate_that_is_no_probability_is_refused(make):
    with pytest.raises(ValueError, match=r"in \[0, 1\), got 1.0"):
        make(1.0)
