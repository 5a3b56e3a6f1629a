"""The lecture's histograms: what vanishes, explodes, saturates and lives, in its network and in any other."""

import keras
import numpy as np
import pytest

from kvision.training import compare_initialisations
from tests.training.models import batch, compiled, convnet, everything, restless


@pytest.fixture(scope="module")
def lecture():
    return compare_initialisations(width=120, depth=8)


def test_every_configuration_is_there(lecture):
    assert len(lecture.statistics) == 5 * 2 * 2
    assert all(len(layers) == 8 for layers in lecture.statistics.values())
    assert lecture.ok


def test_the_lectures_verdicts(lecture):
    assert {"xavier, tanh", "he, relu"} <= set(lecture.healthy)
    assert not {"zero, tanh", "zero, relu", "0.01, tanh", "0.01, relu", "1, tanh", "1, relu"} & set(lecture.healthy)
    with_norm = {
        f"{scheme}, {activation}, batch norm"
        for scheme in ("0.01", "1", "xavier", "he")
        for activation in ("tanh", "relu")
    }
    assert with_norm <= set(lecture.healthy)


def test_the_numbers_of_theory(lecture):
    """The deviation before the first activation is 0.01 √120; He keeps the mean square of ReLUs; Xavier halves it."""
    small = lecture.statistics["0.01, tanh"][0]
    assert small.deviation == pytest.approx(0.01 * np.sqrt(120), rel=0.05)
    he = [layer.deviation for layer in lecture.statistics["he, relu"]]
    assert he[-1] / he[0] == pytest.approx(1, abs=0.5)
    xavier = [layer.deviation for layer in lecture.statistics["xavier, relu"]]
    assert xavier[-1] / he[-1] == pytest.approx(2 ** (-8 / 2), rel=0.1)
    assert lecture.statistics["1, tanh"][-1].saturated > 0.7
    assert lecture.statistics["he, relu"][3].zeros == pytest.approx(0.5, abs=0.1)
    assert sum(he_counts := lecture.statistics["he, relu"][0].counts) == 256 * 120
    assert len(he_counts) == len(lecture.statistics["he, relu"][0].edges) - 1


def test_a_plot_and_a_table_show_every_configuration(lecture):
    found = compare_initialisations(width=20, depth=3, schemes=("he",))
    assert len(found.plot().axes) == 4 * 3
    assert len(lecture.table().splitlines()) == 20


def deep(activation="relu", **options):
    layers = [keras.layers.Dense(30, activation=activation, **options) for _ in range(12)]
    return compiled(keras.Sequential([keras.Input((30,)), *layers, keras.layers.Dense(3, "softmax")]))


NORMAL = keras.initializers.RandomNormal
# name: (initializer of all kernels, activation, words)
FAULTS = {
    "zero": ("zeros", "relu", "dead"),
    "small": (NORMAL(stddev=0.01, seed=1), "relu", "vanish"),
    "large": (NORMAL(stddev=1.0, seed=1), "relu", "explode"),
    "large with tanh": (NORMAL(stddev=1.0, seed=1), "tanh", "saturate"),
    "not finite": (keras.initializers.Constant(1e30), "relu", "not finite"),
}
rows = np.random.default_rng(0).normal(size=(64, 30)).astype("float32")


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_named(name):
    initializer, activation, words = FAULTS[name]
    verdict = compare_initialisations(deep(activation, kernel_initializer=initializer), rows, schemes=("xavier", "he"))
    assert not verdict.ok
    assert words in verdict.sentence, verdict


def test_a_healthy_model_passes_and_stays_as_it_was():
    model = restless()
    before = everything(model)
    verdict = compare_initialisations(model, batch())
    assert verdict.ok, verdict
    assert everything(model) == before
    assert "call" not in {name for layer in model.layers for name in vars(layer)}
    assert len(verdict.statistics["as built"]) == 2  # the output is none of them


def test_models_inside_models_are_looked_into():
    outer = keras.Sequential([keras.Input((8, 8, 3)), convnet("relu"), keras.layers.Dense(2)])
    assert len(compare_initialisations(outer, batch()).statistics["he"]) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schemes": ("hee",)}, "Unknown initialisation"),
        ({"batch": np.zeros((2, 3, 3))}, r"rows \[n, width\]"),
        ({"model": convnet}, "needs a batch"),
        ({"model": convnet, "batch": batch, "activations": ("relu",)}, "takes activations"),
        ({"model": convnet, "batch": batch, "batch_norm": (True,)}, "norms from the model"),
    ],
)
def test_what_has_no_effect_is_refused(options, message):
    options = {name: value() if callable(value) else value for name, value in options.items()}
    with pytest.raises(ValueError, match=message):
        compare_initialisations(**options)
