"""Right gradients pass in every form of model; each planted fault is found, at the weight it stands at."""

import keras
import numpy as np
import pytest

from kvision.training import check_gradients
from tests.training.models import batch, compiled, convnet
from tests.training.test_initial_loss import boxes


@keras.ops.custom_gradient
def _halved(x):
    def gradient(*upstream_args, upstream=None):
        return 0.5 * (upstream_args[0] if upstream is None else upstream)

    return x * 1.0, gradient


class HalfGradient(keras.layers.Layer):
    """The identity, with half of the gradient."""

    def call(self, inputs):
        return _halved(inputs)


class StoppedGradient(keras.layers.Layer):
    """The identity, without a gradient; the branch beside it keeps the loss connected."""

    def call(self, inputs):
        return inputs + keras.ops.stop_gradient(inputs)


def planted(layer):
    """A fault between two dense layers."""
    layers = [keras.layers.Dense(6, "tanh", name="below"), layer, keras.layers.Dense(4, "softmax", name="above")]
    return keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), *layers])


# What Keras computes in on JAX, and the error that is left.
PRECISION, ERROR = ("float32", 0.1) if keras.backend.backend() == "jax" else ("float64", 1e-5)
PRECISIONS = pytest.mark.parametrize("precision", sorted({PRECISION, "float32"}))

HEALTHY = {
    "ReLU": lambda: compiled(convnet()),
    "batch norm, dropout, regularization": lambda: compiled(
        convnet(dropout=0.5, norm=True, kernel_regularizer=keras.regularizers.L2(0.1))
    ),
    "logits": lambda: compiled(convnet(None), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)),
    "a model inside": lambda: compiled(keras.Sequential([keras.Input((8, 8, 3)), convnet()])),
    "kinks everywhere": lambda: compiled(convnet(hidden="relu6")),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_right_gradients_pass(name):
    model = HEALTHY[name]()
    verdict = check_gradients(model, batch())
    assert verdict.ok, verdict
    assert verdict.precision == PRECISION
    assert verdict.worst < ERROR
    assert {probe.weight for probe in verdict.probes} == {weight.path for weight in model.trainable_variables}


@pytest.mark.parametrize("policy", ["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.slow)])
def test_a_model_of_16_bits_is_checked_in_more(policy):
    keras.mixed_precision.set_dtype_policy(policy)
    verdict = check_gradients(compiled(convnet(norm=True)), batch(), coordinates=0)
    assert verdict.ok, verdict
    assert verdict.precision == PRECISION
    assert verdict.worst < ERROR
    assert keras.config.floatx() == "float32"


@PRECISIONS
@pytest.mark.parametrize("fault", [HalfGradient, StoppedGradient])
def test_a_wrong_gradient_is_found_where_it_stands(fault, precision):
    verdict = check_gradients(compiled(planted(fault())), batch(), precision=precision)
    assert not verdict.ok
    wrong = {probe.weight.split("/")[-2] for probe in verdict.probes if not probe.ok}
    assert wrong == {"below"}
    assert "below" in verdict.sentence
    errors = [probe.error for probe in verdict.probes if not probe.ok and probe.kind == "direction"]
    assert errors == pytest.approx([0.5, 0.5], rel=0.1)


@PRECISIONS
def test_the_same_without_the_fault_passes(precision):
    verdict = check_gradients(compiled(planted(keras.layers.Identity())), batch(), precision=precision)
    assert verdict.ok, verdict
    assert verdict.excused <= 1


def _sum_of_magnitudes(y, outputs):
    return keras.ops.sum(keras.ops.abs(outputs))


@pytest.mark.tensorflow_only  # coordinates are for float64
def test_a_kink_is_excused():
    """|w| at w = 3e-7 has the slope 1; differences that reach beyond 0 have less."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2, use_bias=False)])
    model.compile("sgd", _sum_of_magnitudes)
    model.layers[0].kernel.assign([[1.0, 3e-7]])
    data = np.ones((1, 1), "float32"), np.ones((1, 2), "float32")
    verdict = check_gradients(model, data, directions=0, coordinates=20)
    excused = [probe for probe in verdict.probes if not probe.settled]
    assert 0 < len(excused) == verdict.excused
    assert min(probe.error for probe in excused) > 0.1
    assert all(probe.ok for probe in verdict.probes)


def test_a_weight_that_is_frozen_is_left_out():
    model = convnet()
    model.layers[0].trainable = False
    verdict = check_gradients(compiled(model), batch())
    assert verdict.ok, verdict
    assert not [probe for probe in verdict.probes if probe.weight == model.layers[0].kernel.path]


def test_some_weights_from_the_first_to_the_last():
    model = compiled(convnet())
    probed = {probe.weight for probe in check_gradients(model, batch(), weights=2).probes}
    assert probed == {model.trainable_weights[0].path, model.trainable_weights[-1].path}


def test_two_outputs_and_loss_weights():
    image = keras.Input((8,))
    outputs = {"a": keras.layers.Dense(1, "sigmoid", name="a")(image), "b": keras.layers.Dense(3, name="b")(image)}
    model = keras.Model(image, outputs)
    model.compile("sgd", {"a": "binary_crossentropy", "b": "mse"}, loss_weights={"a": 3.0, "b": 0.5})
    rng = np.random.default_rng(0)
    y = {"a": (np.arange(12)[:, None] % 2).astype("float32"), "b": rng.normal(size=(12, 3)).astype("float32")}
    verdict = check_gradients(model, (rng.normal(size=(12, 8)).astype("float32"), y))
    assert verdict.ok, verdict


def test_a_model_with_a_step_of_its_own_is_checked_in_float32():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(3, "softmax")

        def call(self, inputs):
            return self.dense(inputs)

    model = Own()
    x = np.random.default_rng(0).normal(size=(4, 8)).astype("float32")
    model.compile("sgd", "sparse_categorical_crossentropy")
    model(x)
    verdict = check_gradients(model, (x, np.arange(4) % 3))
    assert verdict.ok, verdict
    assert verdict.precision == "float32"
    with pytest.raises(ValueError, match="functional or sequential"):
        check_gradients(model, (x, np.arange(4) % 3), precision="float64")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet", "cascade_rcnn"])
def test_detectors(name):
    from tests.applications.detection import rows

    if name == "retinanet":
        (detector,) = (row.tiny() for row in rows.ROWS if row.name == name)
    else:
        detector = rows.tiny_two_stage(rows.A.CascadeRCNN, norm="group")
    detector.compile("sgd")
    verdict = check_gradients(detector, boxes())
    assert verdict.ok, verdict
    assert {probe.weight for probe in verdict.probes} == {weight.path for weight in detector.trainable_variables}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"samples": 0}, "at least one sample"),
        ({"directions": 0, "coordinates": 0}, "one direction or coordinate"),
        ({"precision": "float16"}, "precision"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"weights": 0}, "how many to probe"),
        ({"precision": "float32", "directions": 0}, "Coordinates alone"),
    ],
)
def test_numbers_out_of_range(wrong, message):
    with pytest.raises(ValueError, match=message):
        check_gradients(compiled(convnet()), batch(), **wrong)


def test_nothing_to_train_is_refused():
    model = convnet()
    model.trainable = False
    with pytest.raises(ValueError, match="no trainable weights"):
        check_gradients(compiled(model), batch())
