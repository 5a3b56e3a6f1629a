"""Statistics of activations and saturated units, against NumPy on the same batches."""

import keras
import numpy as np
import pytest
from keras import layers

from kvision.callbacks import Saturation, Vitals
from kvision.callbacks.vitals.saturating import bounds_of
from tests.callbacks.vitals.vital_runs import Record, fit

NARROW = 0.1  # of the largest derivative


def network(scale):
    """Weights that do not move: what is measured can be computed afterwards."""
    keras.utils.set_random_seed(0)
    kernel = keras.initializers.RandomNormal(stddev=scale, seed=1)
    inputs = keras.Input((4,))
    x = layers.Dense(16, activation="tanh", kernel_initializer=kernel, name="tanh")(inputs)
    x = layers.Activation("sigmoid", name="sigmoid")(layers.Dense(8, kernel_initializer=kernel, name="linear")(x))
    x = layers.Dense(8, activation="relu", name="relu")(x)
    return keras.Model(inputs, layers.Dense(1, activation="sigmoid", kernel_initializer=kernel, name="out")(x))


def measured(scale, callback, compile_options=None, policy="float32"):
    keras.mixed_precision.set_dtype_policy(policy)
    model = network(scale)
    optimizer = keras.optimizers.SGD(0.0)
    if policy == "mixed_float16":  # nothing may overflow: a step that is skipped moves the windows
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=1.0)
    model.compile(optimizer, "binary_crossentropy", **(compile_options or {}))
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    history = fit(model, callback, x, np.arange(64) % 2).history
    inner = keras.Model(model.input, {name: model.get_layer(name).output for name in ("tanh", "sigmoid", "relu")})
    return {name: np.asarray(value, "float64") for name, value in inner.predict(x, verbose=0).items()}, history


MODES = {
    "plain": {},
    "jit": {"compile_options": {"jit_compile": True}},
    "several steps a call": {"compile_options": {"steps_per_execution": 4}},
    "float16": {"policy": "mixed_float16"},
}


@pytest.mark.parametrize("scale", [pytest.param(0.1, marks=pytest.mark.slow), 3.0])
@pytest.mark.parametrize(
    "mode", [pytest.param(name, marks=() if name == "plain" else pytest.mark.slow) for name in MODES]
)
def test_means_deviations_and_saturation_are_those_of_numpy(mode, scale):
    saturation, record = Saturation(every=4), Record()
    outputs, history = measured(scale, [saturation, record], **MODES[mode])
    close = {"rel": 2e-2, "abs": 5e-3} if mode == "float16" else {"rel": 1e-3, "abs": 1e-5}
    assert set(saturation.means) == set(saturation.deviations) == {*outputs, "out"}
    means = {name: [] for name in outputs}
    for event in record.events:
        for name in outputs if event.name == "activation_mean" else ():
            means[name].append(event.values[name])
    for name, values in outputs.items():
        groups = values.reshape(2, 32, -1)  # the windows of 4 batches of 8
        assert means[name][-1] == pytest.approx(groups[1].mean(), **close)
        assert saturation.deviations[name] == pytest.approx(groups[1].std(), **close)
    last = {name: values[32:] for name, values in outputs.items()}
    wanted = {
        "tanh": (1 - last["tanh"] ** 2 < NARROW).mean(),
        "sigmoid": (last["sigmoid"] * (1 - last["sigmoid"]) < NARROW / 4).mean(),
    }
    assert saturation.saturated == pytest.approx(wanted, **close)
    assert history["saturation"] == [pytest.approx(np.mean(list(wanted.values())), **close)]
    assert (min(wanted.values()) > 0.4) if scale > 1 else (max(wanted.values()) == 0)


@pytest.mark.parametrize(
    ("function", "bounds"),
    [
        (keras.activations.tanh, (-1, 1)),
        (keras.activations.sigmoid, (0, 1)),
        (lambda x: 1 / (1 + keras.ops.exp(-x)), (0, 1)),
        (keras.activations.hard_sigmoid, None),
        (keras.activations.relu, None),
        (keras.activations.softmax, None),
        (keras.activations.gelu, None),
        (lambda x: x["no tensor"], None),
    ],
)
def test_sigmoids_and_tanhs_are_known_by_what_they_do(function, bounds):
    assert bounds_of(function) == bounds


def test_a_network_without_sigmoids_has_no_entry_and_vitals_have_one_with():
    relu = keras.Sequential([keras.Input((4,)), layers.Dense(4, activation="relu"), layers.Dense(1, activation="tanh")])
    relu.compile("sgd", "mse")
    x = np.zeros((16, 4), "float32")
    assert not {"saturation"} & set(fit(relu, [Vitals()], x, x[:, :1]).history)
    vitals = Vitals(every=2)
    _, history = measured(0.1, [vitals])
    assert history["saturation"] == [0.0] and set(vitals.saturation.saturated) == {"tanh", "sigmoid"}
