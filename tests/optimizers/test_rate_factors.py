"""A rate for each group of weights, against two optimizers by hand: under XLA, 16 bits, schedules, clipping, files."""

import keras
import numpy as np
import pytest

import kvision
from tests.support import SLOW, assert_close

X = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
Y = np.random.default_rng(1).normal(size=(32, 2)).astype("float32")
FACTORS = {r"\bstem/": 0.1}
RULES = {
    "sgd": (kvision.optimizers.SGD, keras.optimizers.SGD, {"momentum": 0.9, "weight_decay": 0.05}, 0.1),
    "nesterov": (kvision.optimizers.SGD, keras.optimizers.SGD, {"momentum": 0.9, "nesterov": True}, 0.1),
    "adamw": (kvision.optimizers.AdamW, keras.optimizers.AdamW, {"weight_decay": 0.05}, 0.01),
    "accumulation": (kvision.optimizers.AdamW, keras.optimizers.AdamW, {"gradient_accumulation_steps": 2}, 0.01),
    "amsgrad": (kvision.optimizers.AdamW, keras.optimizers.AdamW, {"amsgrad": True}, 0.01),
    "averaging": (kvision.optimizers.AdamW, keras.optimizers.AdamW, {"use_ema": True}, 0.01),
}


def network(dtype="float32"):
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(dtype)  # of the model as well: it decides on loss scaling
    layers = [keras.layers.Dense(5, "tanh", name="stem"), keras.layers.Dense(2, name="top")]
    return keras.Sequential([keras.Input((6,)), *layers])


def trained(optimizer, dtype="float32", callbacks=(), **compiling):
    model = network(dtype)
    model.compile(optimizer, "mse", **compiling)
    model.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=list(callbacks))
    return model


def values(variables):
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


def two_by_hand(kind, rates, **options):
    stem, top = (kind(rate, **options) for rate in rates)
    return keras.optimizers.MultiOptimizer(lambda weight: stem if "stem/" in weight.path else top)


CASES = [
    ("sgd", False, "float32"),
    ("adamw", False, "float32"),
    pytest.param("nesterov", False, "float32", marks=SLOW),
    pytest.param("accumulation", False, "float32", marks=SLOW),
    pytest.param("amsgrad", False, "float32", marks=SLOW),
    pytest.param("averaging", False, "float32", marks=SLOW),
    pytest.param("sgd", True, "float32", marks=SLOW),
    pytest.param("adamw", True, "float32", marks=SLOW),
    pytest.param("adamw", False, "mixed_bfloat16", marks=SLOW),
]


@pytest.mark.parametrize(("rule", "jit_compile", "dtype"), CASES)
def test_equals_two_optimizers(rule, jit_compile, dtype):
    ours, theirs, options, rate = RULES[rule]
    got = trained(ours(rate, rate_factors=FACTORS, **options), dtype, jit_compile=jit_compile)
    want = trained(two_by_hand(theirs, (rate / 10, rate), **options), dtype, jit_compile=jit_compile)
    one = trained(theirs(rate, **options), dtype)
    for mine, two in zip(values(got.weights), values(want.weights), strict=True):
        assert_close(mine, two)
    assert np.abs(values(got.weights)[0] - values(one.weights)[0]).max() > 1e-3


def test_gradients_are_clipped_to_the_norm_over_all_weights():
    """Two optimizers would clip each group by itself: gradients clipped by hand go to two optimizers by hand."""
    got, want = network(), network()
    ours = kvision.optimizers.AdamW(0.01, weight_decay=0.05, global_clipnorm=0.1, rate_factors=FACTORS)
    pair = [keras.optimizers.AdamW(rate, weight_decay=0.05, epsilon=1e-7) for rate in (0.001, 0.01)]
    rng = np.random.default_rng(2)
    groups = [slice(0, 2), slice(2, 4)]
    for _ in range(4):
        gradients = [rng.normal(size=weight.shape).astype("float32") for weight in got.trainable_weights]
        ours.apply([keras.ops.convert_to_tensor(g) for g in gradients], got.trainable_weights)
        norm = np.sqrt(sum((g**2).sum() for g in gradients))
        clipped = [keras.ops.convert_to_tensor(g * min(1, 0.1 / norm)) for g in gradients]
        for optimizer, group in zip(pair, groups, strict=True):
            optimizer.apply(clipped[group], want.trainable_weights[group])
    for mine, two in zip(values(got.weights), values(want.weights), strict=True):
        assert_close(mine, two)


@SLOW
def test_loss_scaling_of_float16():
    got = trained(kvision.optimizers.SGD(0.1, momentum=0.9, rate_factors=FACTORS), "mixed_float16")
    assert isinstance(got.optimizer, keras.optimizers.LossScaleOptimizer)
    want = trained(kvision.optimizers.SGD(0.1, momentum=0.9, rate_factors=FACTORS))
    for mine, exact in zip(values(got.weights), values(want.weights), strict=True):
        assert_close(mine, exact, tolerance=(2e-2, 2e-3))  # twenty gradients in float16


def test_a_factor_of_zero_leaves_weights_alone():
    first = values(network().weights)
    stem_kernel, _, top_kernel, _ = values(
        trained(kvision.optimizers.AdamW(0.01, weight_decay=0.5, rate_factors={"stem": 0})).weights
    )
    np.testing.assert_array_equal(stem_kernel, first[0])
    assert np.abs(top_kernel - first[2]).max() > 0.01


def test_the_first_pattern_that_is_found_counts():
    model = network()
    optimizer = kvision.optimizers.SGD(0.1, rate_factors={"bias": 0.5, "stem": 0.1})
    optimizer.build(model.trainable_weights)
    assert [optimizer.rate_factor(weight) for weight in model.trainable_weights] == [0.1, 0.5, 1.0, 0.5]


def test_schedules_and_the_callback_set_the_rate_that_is_multiplied():
    schedule = kvision.optimizers.MultiStep(0.1, boundaries=(3,))
    inside = trained(kvision.optimizers.SGD(schedule, rate_factors=FACTORS))
    callback = kvision.callbacks.LearningRate(schedule)
    outside = trained(kvision.optimizers.SGD(0.7, rate_factors=FACTORS), callbacks=[callback])
    by_hand = [kvision.optimizers.MultiStep(rate, boundaries=(3,)) for rate in (0.01, 0.1)]
    want = trained(two_by_hand(keras.optimizers.SGD, by_hand))
    for one, other, two in zip(*(values(model.weights) for model in (inside, outside, want)), strict=True):
        assert_close(one, two)
        assert_close(other, two)


def test_it_is_saved_with_the_model_and_goes_on(tmp_path):
    model = trained(kvision.optimizers.AdamW(0.01, rate_factors=FACTORS))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert type(again.optimizer) is kvision.optimizers.AdamW
    assert dict(again.optimizer.rate_factors) == FACTORS
    for each in (model, again):
        each.fit(X, Y, batch_size=8, epochs=1, shuffle=False, verbose=0)
    for mine, other in zip(values(model.weights), values(again.weights), strict=True):
        assert_close(mine, other)
    assert "rate_factors" not in kvision.optimizers.SGD(0.1).get_config()  # files that Keras's class reads


def test_vitals_see_the_update_of_each_group():
    vital = kvision.callbacks.UpdateRatio(every=1)
    seen = []
    vital.on_norms = seen.append
    trained(kvision.optimizers.SGD(0.1, rate_factors=FACTORS), callbacks=[vital])
    norms = seen[0]
    for path, factor in (("stem", 0.1), ("top", 1.0)):
        (kernel,) = [name for name in norms.updates if path in name and "kernel" in name]
        assert_close(norms.updates[kernel], 0.1 * factor * norms.gradients[kernel], tolerance=(1e-4, 1e-6))


BAD = {
    "no pattern": ({}, "a dict of patterns and factors"),
    "no dict": ([("stem", 0.1)], "a dict of patterns and factors"),
    "negative": ({"stem": -0.1}, r"at least 0: got -0\.1 for 'stem'"),
    "not finite": ({"stem": float("nan")}, "a finite number"),
    "no number": ({"stem": "0.1"}, "a finite number"),
    "no expression": ({"stem(": 0.1}, r"regular expressions: got 'stem\('"),
}


@pytest.mark.parametrize(("factors", "message"), BAD.values(), ids=list(BAD))
def test_refuses_what_is_no_factor(factors, message):
    with pytest.raises(ValueError, match=message):
        kvision.optimizers.AdamW(0.1, rate_factors=factors)


def test_refuses_a_pattern_without_a_weight_before_the_first_step():
    optimizer = kvision.optimizers.AdamW(0.1, rate_factors={"stem": 0.1, "backbone": 0.1})
    with pytest.raises(ValueError, match=r"'backbone', .* none of the 4 trainable weights .*stem/kernel"):
        optimizer.build(network().trainable_weights)
