"""The state of a model, copied and put back: a training that goes on from it is the one that went on from there."""

import keras
import numpy as np
import pytest

from kvision.callbacks.model_state import copy_state, restore_state
from tests.callbacks.runs import fit_tiny, tiny_model

OPTIMIZERS = {
    "momentum": lambda: None,
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01), initial_scale=8.0),
    "averages": lambda: keras.optimizers.SGD(0.1, use_ema=True, ema_overwrite_frequency=3),
    "accumulation": lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=3),
    "two optimizers": lambda: keras.optimizers.MultiOptimizer(
        lambda v: (keras.optimizers.SGD if "hidden" in v.path else keras.optimizers.Adam)(0.1)
    ),
}


def equal(state, other):
    return state.keys() == other.keys() and all(np.array_equal(state[name], other[name]) for name in state)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_goes_on_as_before(optimizer):
    model = tiny_model(OPTIMIZERS[optimizer]())
    fit_tiny(model, epochs=1)
    state = copy_state(model)
    restore_state(
        model, state
    )  # on JAX a weight and its average share memory after a fit, which Keras's next one fails on
    fit_tiny(model, shuffle=False)
    first = copy_state(model)
    restore_state(model, state)
    assert equal(copy_state(model), state)
    fit_tiny(model, shuffle=False)
    assert equal(copy_state(model), first)
    assert not equal(first, state)


def test_holds_every_variable():
    model = tiny_model(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1, momentum=0.9)))
    keras.random.normal((1,))
    fit_tiny(model, epochs=1)
    names = copy_state(model)
    leaves = {(name.partition("/")[0], name.rpartition("/")[2].rpartition("_")[2]) for name in names}
    expected = {("model", "kernel"), ("model", "bias"), ("model", "state"), ("optimizer", "momentum")}
    assert expected | {("optimizer", "scale"), ("optimizer", "iteration"), ("metrics", "total")} <= leaves
    assert (
        len(names) == len({id(v) for v in [*model.variables, *model.optimizer.variables, *model.metrics_variables]}) + 1
    )


def test_a_model_built_again_takes_it_in_order():
    model = tiny_model()
    fit_tiny(model, epochs=1)
    state = copy_state(model, ("model", "optimizer"))
    again = tiny_model()
    assert list(copy_state(again, ("model",))) != list(copy_state(model, ("model",)))
    restore_state(again, state)
    assert equal(dict(enumerate(state.values())), dict(enumerate(copy_state(again, ("model", "optimizer")).values())))


def test_within_an_epoch():
    """On JAX the variables of the model lag behind within an epoch."""
    states = []

    class Copy(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            states.append(copy_state(self.model, ("model",)))

    fit_tiny(tiny_model(), [Copy()], epochs=1)
    assert not equal(states[0], states[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state | {"model/sequential/hidden/kernel": np.zeros((4, 9), "float32")},
            r"at 'model/sequential/hidden/kernel' got",
        ),
        (lambda state: state | {"model/sequential/hidden/kernel": np.zeros((4, 8), "int32")}, "int32"),
        (lambda state: state | {"model/sequential/further/kernel": np.zeros((4, 8), "float32")}, "expected"),
        (lambda state: {"model/other/gamma": np.zeros(8, "float32")}, "gamma"),
    ],
    ids=["shape", "dtype", "one more", "another"],
)
def test_another_model_is_refused_and_nothing_changed(change, message):
    model = tiny_model()
    state = copy_state(model, ("model",))
    with pytest.raises(ValueError, match=message):
        restore_state(model, change({name: array + 1 for name, array in state.items()}))
    assert equal(copy_state(model, ("model",)), state)
