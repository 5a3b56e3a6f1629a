"""The units that are dead are found, and none other, whatever kind of ReLU they are and in every mode."""

import keras
import numpy as np
import pytest
from keras import layers

from kvision.callbacks import DeadReLU
from kvision.relus import is_relu
from tests.callbacks.vitals.vital_runs import MODES, ROWS, Record, compiled, dense_model, fit, to_numpy
from tests.support import SLOW

QUICK = ("plain", "several steps a call")  # the network is large: the others are slow
BATCH, BATCHES = 32, 8  # 256 examples an epoch: the fewest that a verdict rests on


def images(examples=BATCH * BATCHES):
    numbers = np.random.default_rng(0)
    return numbers.normal(size=(examples, 8, 8, 2)).astype("float32"), numbers.integers(0, 3, examples)


def network():
    """One of each kind of ReLU; `inner` is a model in the model, with a layer of the same name as one outside."""
    inputs = keras.Input((4, 4, 5))
    x = layers.Conv2D(5, 1, activation="relu6", name="conv")(inputs)
    inner = keras.Model(inputs, layers.Conv2D(5, 1, activation="leaky_relu", name="leaky")(x), name="inner")
    inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(6, 3, activation="relu", name="conv")(inputs)
    x = layers.ReLU(max_value=6, name="relu")(layers.Conv2D(5, 3, name="before_relu")(x))
    x = layers.Flatten()(inner(x))
    x = layers.LeakyReLU(negative_slope=0.0, name="no_slope")(layers.Dense(6, name="before_no_slope")(x))
    x = layers.Activation(keras.ops.relu, name="activation")(layers.Dense(7, name="before_activation")(x))
    x = layers.PReLU(name="prelu")(layers.Dense(7, name="before_prelu")(x))
    model = keras.Model(inputs, layers.Dense(3, name="logits", dtype="float32")(x))
    numbers = np.random.default_rng(2)  # the same on every backend
    for weight in model.trainable_weights:
        if len(weight.shape) > 1:
            weight.assign(numbers.normal(size=weight.shape) * np.sqrt(2 / np.prod(weight.shape[:-1])))
    return model, inner


def plant(layer, units):
    bias = np.zeros(layer.bias.shape)
    bias[units] = -1e3
    layer.bias.assign(bias)


def fired(model, layer, x):
    """Units of a layer that are above 0 for any example, by a forward pass of Keras's own."""
    outputs = to_numpy(keras.Model(model.inputs[0], layer.output)(x))
    return outputs.max(axis=tuple(range(outputs.ndim - 1))) > 0


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param(row.values[0], marks=[*row.marks, *([] if row.values[0] in QUICK else [pytest.mark.slow])])
        for row in ROWS[: len(MODES)]
    ],
)
def test_planted_units_are_found_and_none_other(mode):
    keras.mixed_precision.set_dtype_policy(MODES[mode].get("policy", "float32"))
    model, inner = network()
    planted = {"conv": [1, 5], "before_relu": [0], "before_no_slope": [2, 3], "before_activation": [6]}
    for name, units in planted.items():
        plant(model.get_layer(name), units)
    plant(inner.get_layer("conv"), [4])
    plant(model.get_layer("before_prelu"), [0])
    x, y = images()
    record, callback = Record(), DeadReLU(every=5)
    compiled(model, MODES[mode], learning_rate=1e-6)
    history = fit(model, [callback, record], x, y, batch_size=BATCH, epochs=5).history
    want = {"conv": [1, 5], "relu": [0], "conv (2)": [4], "no_slope": [2, 3], "activation": [6]}
    assert callback.dead == want
    for name in ("conv", "relu", "no_slope", "activation"):  # and in truth all others do fire
        layer = model.get_layer(name)
        assert np.flatnonzero(~fired(model, layer, x)).tolist() == want[name], name
    sizes = {"conv": 6, "relu": 5, "conv (2)": 5, "no_slope": 6, "activation": 7}
    assert callback.units == sizes
    assert callback.fractions == {path: len(want[path]) / sizes[path] for path in want}
    assert history["dead_relu"][-1] == 7 / 29
    events = [event for event in record.events if event.name == "dead_relu"]
    assert events[-1].values == callback.fractions and events[-1].healthy == (0.0, 0.4)


@pytest.mark.parametrize(
    ("function", "relu"),
    [
        (keras.activations.relu, True),
        (keras.activations.relu6, True),
        (keras.ops.relu, True),
        (lambda x: keras.ops.maximum(x, 0.0), True),
        (lambda x: keras.activations.relu(x, threshold=1.0), True),
        (keras.activations.leaky_relu, False),
        (keras.activations.gelu, False),
        (keras.activations.silu, False),
        (keras.activations.elu, False),
        (keras.activations.softmax, False),
        (keras.activations.linear, False),
        (lambda x: x[:, 0], False),
        (layers.ReLU(), False),  # found as a layer of its own
        (None, False),
    ],
)
def test_what_counts_as_a_relu(function, relu):
    assert is_relu(function) is relu


def test_a_relu_layer_as_an_activation_is_watched():
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(5, activation=layers.ReLU(name="inside")), layers.Dense(3)]
    )
    plant(model.layers[0], [2])
    callback = DeadReLU()
    x, y = np.random.default_rng(0).normal(size=(256, 4)), np.zeros(256)
    fit(compiled(model, {}, learning_rate=1e-6), [callback], x, y)
    assert list(callback.dead.values()) == [[2]]


def one_unit(position=None, examples=1024):
    """A dense layer whose unit 1 fires for the example at `position` alone, and its data."""
    inputs = keras.Input((2,))
    dense = layers.Dense(2, activation="relu", kernel_initializer="identity", name="dense")
    model = keras.Model(inputs, layers.Dense(3, name="logits")(dense(inputs)))
    x = np.ones((examples, 2)) * [1, -1]
    if position is not None:
        x[position, 1] = 1
    return compiled(model, {}, learning_rate=1e-6), x, np.zeros(examples)


@pytest.mark.parametrize("position", [0, 600, 1023])
def test_a_unit_that_fires_once_in_an_epoch_is_alive(position):
    model, x, y = one_unit(position)
    record, callback = Record(), DeadReLU(every=4)
    history = fit(model, [callback, record], x, y, batch_size=32, epochs=3).history
    assert callback.dead == {} and callback.fractions == {"dense": 0.0}
    assert all(event.values == {"dense": 0.0} for event in record.events)
    assert history["dead_relu"] == [0.0, 0.0, 0.0]


def test_nothing_is_said_after_too_few_examples():
    model, x, y = one_unit(examples=255)
    callback = DeadReLU(every=1)
    history = fit(model, [callback], x, y, batch_size=32).history
    assert callback.dead == {} and callback.fractions == {} and np.isnan(history["dead_relu"]).all()
    fit(model, [callback], x, y, batch_size=32, epochs=2)
    assert callback.dead == {"dense": [1]}


def test_steps_are_looked_at_as_often_as_examples_are_needed():
    model, x, y = one_unit(examples=2 * 64 * 100)
    read = []

    class Looks(DeadReLU):
        def on_activations(self, step, activations):
            read.extend(each.examples for each in activations.values())
            super().on_activations(step, activations)

    fit(model, [Looks(every=50)], x, y, batch_size=64)
    assert sum(read) == pytest.approx(4 * 1024, rel=0.1)  # of 12,800


@pytest.mark.parametrize("offset", [0, 1, 2])
def test_a_unit_that_fires_in_every_third_batch_is_alive_where_a_third_is_looked_at(offset):
    model, x, y = one_unit(examples=32 * 192)
    x.reshape(192, 32, 2)[offset::3, :, 1] = 1
    callback = DeadReLU(every=96)
    fit(model, [callback], x, y, batch_size=32)
    assert callback.dead == {} and callback.fractions == {"dense": 0.0}


def test_a_unit_that_dies_is_found_and_one_that_revives_is_forgotten():
    model, x, y = one_unit(position=0, examples=512)

    class Bias(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.get_layer("dense").bias.assign([0.0, -1e3] if 1 <= epoch < 4 else [0.0, 0.0])

    class Dead(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(callback.dead)

    seen, callback = [], DeadReLU()
    fit(model, [Bias(), callback, Dead()], x, y, batch_size=32, epochs=5)
    assert seen == [{}, {"dense": [1]}, {"dense": [1]}, {"dense": [1]}, {}]


def twice(make_relu, widths=(4, 6)):
    """One ReLU object behind two dense layers, the second of which has dead units; in every way that Keras allows."""
    inputs, relu = keras.Input((4,)), make_relu()
    dense = [layers.Dense(width, name=f"dense{index}") for index, width in enumerate(widths)]
    hidden = relu(dense[0](inputs))
    model = keras.Model(inputs, layers.Dense(3, name="logits")(relu(dense[1](hidden))))
    plant(dense[1], [1, 2])
    return model


def subclassed(widths=(4, 6)):
    class Twice(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense, self.relu = [layers.Dense(width) for width in widths], layers.ReLU(name="shared")
            self.logits = layers.Dense(3)

        def call(self, x):
            for dense in self.dense:
                x = self.relu(dense(x))
            return self.logits(x)

    model = Twice()
    model(np.zeros((1, 4)))
    plant(model.dense[1], [1, 2])
    return model


def in_a_block(widths=(4, 6)):
    class Block(layers.Layer):
        def __init__(self):
            super().__init__(name="shared")
            self.dense, self.activation = [layers.Dense(width) for width in widths], keras.activations.relu

        def call(self, x):
            for dense in self.dense:
                x = self.activation(dense(x))
            return x

    block = Block()
    model = keras.Sequential([keras.Input((4,)), block, layers.Dense(3)])
    plant(block.dense[1], [1, 2])
    return model


def as_activation(widths=(4, 6)):
    relu = layers.ReLU(name="shared")
    dense = [layers.Dense(width, activation=relu) for width in widths]
    model = keras.Sequential([keras.Input((4,)), *dense, layers.Dense(3)])
    plant(dense[1], [1, 2])
    return model


SHARED = {
    "ReLU": lambda **widths: twice(lambda: layers.ReLU(name="shared"), **widths),
    "Activation": lambda **widths: twice(lambda: layers.Activation("relu", name="shared"), **widths),
    "subclassed": subclassed,
    "activation of a block": in_a_block,
    "activation=layer": as_activation,
}


@pytest.mark.parametrize("widths", [(4, 6), pytest.param((5, 5), marks=SLOW)], ids=str)
@pytest.mark.parametrize("kind", SHARED)
def test_a_relu_used_twice_is_watched_at_each_use(kind, widths):
    model, callback = SHARED[kind](widths=widths), DeadReLU()
    x, y = np.random.default_rng(0).normal(size=(256, 4)), np.zeros(256)
    fit(compiled(model, {}, learning_rate=1e-6), [callback], x, y, batch_size=64)
    assert list(callback.units.values()) == list(widths)
    first, second = (callback.dead.get(name, []) for name in callback.units)
    assert {1, 2} <= set(second) and not {1, 2} <= set(first)


@SLOW
def test_a_head_called_at_several_levels_is_alive_where_one_call_activates_it():
    inputs = keras.Input((4,))
    dense = layers.Dense(4, activation="relu", name="dense")
    head = keras.Sequential([keras.Input((4,)), dense, layers.ReLU(name="relu")], name="head")
    x = layers.Concatenate()([head(inputs), head(-inputs)])
    model = keras.Model(inputs, layers.Dense(3, name="logits")(x))
    dense.kernel.assign(np.eye(4))
    plant(dense, [3])
    callback = DeadReLU()
    x, y = np.random.default_rng(0).uniform(size=(256, 4)), np.zeros(256)
    fit(compiled(model, {}, learning_rate=1e-6), [callback], x, y, batch_size=64)
    assert callback.fractions == {"head/dense": 0.25, "relu": 0.25}


def bare():
    """A functional model with bare ReLUs, one of them in a model inside."""
    inputs = keras.Input((5,))
    inner = keras.Model(inputs, keras.ops.relu(layers.Dense(5, name="inside")(inputs)), name="inner")
    inputs = keras.Input((4,))
    x = keras.ops.relu6(layers.Dense(5, name="outside")(inputs))
    model = keras.Model(inputs, layers.Dense(3)(inner(x)))
    plant(model.get_layer("outside"), [3])
    plant(inner.get_layer("inside"), [0, 2])
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    return compiled(model, {}, learning_rate=1e-6), x, np.zeros(64)


def test_bare_relus_are_watched_on_data():
    model, x, y = bare()
    callback = DeadReLU(every=2, data=x)
    fit(model, [callback], x, y, epochs=2)
    assert sorted(callback.dead.values()) == [[0, 2], [3]]
    for operation in model.operations:
        assert "call" not in vars(operation)


def test_bare_relus_without_data_are_named_once(capsys):
    model, x, y = bare()
    callback = DeadReLU()
    fit(model, [callback], x, y, epochs=2)
    fit(model, [callback], x, y)
    printed = capsys.readouterr().out
    assert printed.count("not watched") == 1 and "relu6" in printed and "data=" in printed
    assert callback.dead == {}


def test_a_second_fit_does_not_know_what_the_first_saw():
    model, callback = compiled(dense_model(), {}, learning_rate=1e-6), DeadReLU()
    plant(model.get_layer("hidden"), [2, 5])
    fit(model, [callback], epochs=3)
    assert list(callback.dead.values()) == [[2, 5]] and list(callback.units.values()) == [8]
    plant(model.get_layer("hidden"), [])
    history = fit(model, [callback], epochs=1).history  # too few examples for a verdict
    assert (callback.dead, callback.fractions, callback.units) == ({}, {}, {})
    assert np.isnan(history["dead_relu"]).all()
