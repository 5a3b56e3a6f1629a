"""SGD on a fused kernel against Keras's own: weights, velocities, files, and all that surrounds the rule."""

import keras
import numpy as np
import pytest

import kvision
from tests.support import assert_close

X = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
Y = np.random.default_rng(1).normal(size=(32, 2)).astype("float32")


def network(dtype="float32"):
    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(5, "tanh", dtype=dtype)
    return keras.Sequential([keras.Input((6,)), hidden, keras.layers.Dense(2, dtype=dtype)])


def trained(optimizer, dtype="float32", **compiling):
    model = network(dtype)
    model.compile(optimizer, "mse", **compiling)
    model.fit(X, Y, batch_size=8, epochs=3, shuffle=False, verbose=0)
    return model


def values(variables):
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


OPTIONS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "decay and clipping": {"momentum": 0.9, "weight_decay": 0.01, "global_clipnorm": 0.5},
    "accumulation": {"momentum": 0.5, "clipvalue": 0.02, "gradient_accumulation_steps": 2},
    "averaging": {"momentum": 0.9, "use_ema": True, "ema_overwrite_frequency": 3},
    "schedule": {"momentum": 0.9, "learning_rate": keras.optimizers.schedules.ExponentialDecay(0.2, 3, 0.5)},
}


# XLA for one of them; JAX compiles either way.
QUICK = [
    ("plain", False),
    ("nesterov", False),
    ("decay and clipping", False),
    ("accumulation", False),
    ("momentum", True),
]
ROWS = [
    pytest.param(name, jit, marks=[pytest.mark.slow] * ((name, jit) not in QUICK))
    for name in OPTIONS
    for jit in (False, True)
]


@pytest.mark.parametrize(("name", "jit_compile"), ROWS)
def test_twelve_steps_are_those_of_keras(name, jit_compile):
    options = {"learning_rate": 0.1} | OPTIONS[name]
    want = trained(keras.optimizers.SGD(**options), jit_compile=jit_compile)
    got = trained(kvision.optimizers.SGD(**options), jit_compile=jit_compile)
    for ours, theirs in zip(values(got.weights), values(want.weights), strict=True):
        assert_close(ours, theirs)
    for ours, theirs in zip(values(got.optimizer.variables), values(want.optimizer.variables), strict=True):
        assert_close(ours, theirs)
    assert int(got.optimizer.iterations) > 0


def test_one_step_is_the_rule_of_the_paper():
    weight = keras.Variable(np.array([1.0, -2.0], "float32"))
    optimizer = kvision.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build([weight])
    optimizer.momentums[0].assign([0.5, 0.0])
    optimizer.apply([keras.ops.array([2.0, 4.0])], [weight])
    assert_close(values([optimizer.momentums[0], weight]), [[0.25, -0.4], [1.25, -2.4]])


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    want, got = (trained(family.SGD(0.1, momentum=0.9), policy) for family in (keras.optimizers, kvision.optimizers))
    for ours, theirs in zip(values(got.weights), values(want.weights), strict=True):
        assert_close(ours, theirs, tolerance=(1e-3, 1e-3))


def test_sparse_gradients():
    def weights(family):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Embedding(7, 4), keras.layers.Flatten()])
        model.compile(family.SGD(0.1, momentum=0.9), "mse")
        model.fit(np.arange(12).reshape(4, 3) % 7, np.ones((4, 12)), batch_size=2, epochs=2, shuffle=False, verbose=0)
        return values(model.weights)

    assert_close(weights(kvision.optimizers), weights(keras.optimizers))


def test_a_state_of_either_loads_into_the_other(tmp_path):
    ours = trained(kvision.optimizers.SGD(0.1, momentum=0.9))
    ours.save(tmp_path / "ours.keras")
    again = keras.saving.load_model(tmp_path / "ours.keras")
    assert type(again.optimizer) is kvision.optimizers.SGD
    theirs = trained(keras.optimizers.SGD(0.1, momentum=0.9))
    store = {}
    ours.optimizer.save_own_variables(store)
    theirs.optimizer.load_own_variables(store)
    for model in (again, theirs):
        for copy, original in zip(values(model.optimizer.variables), values(ours.optimizer.variables), strict=True):
            np.testing.assert_array_equal(copy, original)
