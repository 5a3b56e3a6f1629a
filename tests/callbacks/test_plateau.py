import json

import keras
import numpy as np
import pytest

from kvision.callbacks.plateau import ReduceOnPlateau

# Worked out by hand: the rate falls after the epochs 3, 6 and 9.
SCORES = [1.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.8, 0.8, 0.8, 0.8, 0.8]
RATES = [1.0] * 4 + [0.5] * 3 + [0.25] * 3 + [0.125] * 2
OPTIONS = {"monitor": "score", "mode": "min", "factor": 0.5, "patience": 2, "cooldown": 2}


class Scores(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        logs["score"] = SCORES[epoch]


class Restore(keras.callbacks.Callback):
    """Hands the state over when training begins, as a checkpoint does."""

    def __init__(self, plateau, state):
        super().__init__()
        self.plateau, self.state = plateau, state

    def on_train_begin(self, logs=None):
        self.plateau.set_state(self.state)


def toy(rate=1.0):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(rate), loss="mse")
    return model


def rates(model, callbacks, epochs, initial_epoch=0):
    """The rate of each epoch of a run without steps; Keras's callback writes it into the logs."""
    callbacks = keras.callbacks.CallbackList([Scores(), *callbacks], model=model, add_history=True)
    callbacks.on_train_begin()
    for epoch in range(initial_epoch, epochs):
        callbacks.on_epoch_begin(epoch)
        callbacks.on_epoch_end(epoch)
    callbacks.on_train_end()
    return model.history.history.get("learning_rate")


def test_follows_the_rule_of_keras():
    assert rates(toy(), [ReduceOnPlateau(**OPTIONS)], 12) == RATES
    assert rates(toy(), [keras.callbacks.ReduceLROnPlateau(**OPTIONS)], 12) == RATES


@pytest.mark.parametrize("order", ["before fit", "checkpoint first", "checkpoint last"])
@pytest.mark.parametrize("stop", [1, 3, 4, 5, 6, 9, 11])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(stop, order):
    before = ReduceOnPlateau(**OPTIONS)
    rates(toy(), [before], stop)
    state = json.loads(json.dumps(before.get_state()))
    after = ReduceOnPlateau(**OPTIONS)
    if order == "before fit":
        after.set_state(state)
        callbacks = [after]
    else:
        callbacks = [Restore(after, state), after] if order == "checkpoint first" else [after, Restore(after, state)]
    assert rates(toy(), callbacks, 12, initial_epoch=stop) == RATES[stop:]


def test_works_in_fit():
    model, data = toy(), np.zeros((2, 1))
    before, after = ReduceOnPlateau(**OPTIONS), ReduceOnPlateau(**OPTIONS)
    used = model.fit(data, data, epochs=5, callbacks=[Scores(), before], verbose=0).history["learning_rate"]
    after.set_state(before.get_state())
    model.optimizer.learning_rate = 1.0
    callbacks = [Scores(), after]
    resumed = model.fit(data, data, epochs=8, initial_epoch=5, callbacks=callbacks, verbose=0)
    assert used + resumed.history["learning_rate"] == RATES[:8]


def test_state_is_plain_numbers():
    plateau = ReduceOnPlateau(**OPTIONS)
    rates(toy(), [plateau], 5)
    assert plateau.get_state() == {"best": 0.9, "wait": 0, "cooldown": 1, "rates": [0.5]}


def test_state_before_the_first_fit_is_asked_for_and_given_back():
    state = ReduceOnPlateau(**OPTIONS).get_state()
    assert state == {"best": None, "wait": 0, "cooldown": 0, "rates": []}
    plateau = ReduceOnPlateau(**OPTIONS)
    plateau.set_state(state)
    assert rates(toy(), [plateau], 12) == RATES


def test_state_that_waits_to_be_used_is_not_lost():
    state = {"best": 0.5, "wait": 1, "cooldown": 0, "rates": [0.25]}
    plateau = ReduceOnPlateau(**OPTIONS)
    plateau.set_state(state)
    assert plateau.get_state() == state


def test_a_second_fit_forgets_the_first():
    plateau = ReduceOnPlateau(**OPTIONS)
    rates(toy(), [plateau], 3)
    assert plateau.get_state()["wait"] == 1
    assert rates(toy(), [plateau], 12) == RATES


def test_several_optimizers_keep_a_rate_each():
    model = toy()
    optimizer = keras.optimizers.MultiOptimizer(
        lambda weight: kernel_optimizer if weight.path.endswith("kernel") else bias_optimizer
    )
    kernel_optimizer, bias_optimizer = keras.optimizers.SGD(1.0), keras.optimizers.SGD(0.5)
    model.compile(optimizer, loss="mse")
    optimizer.build(model.trainable_variables)
    plateau = ReduceOnPlateau(**OPTIONS)
    rates(model, [plateau], 5)
    assert plateau.get_state()["rates"] == [0.5, 0.25]


def test_a_rate_owned_by_a_schedule_is_refused_when_training_begins():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    with pytest.raises(TypeError, match="learning rate is not settable"):
        rates(toy(schedule), [ReduceOnPlateau(**OPTIONS)], 1)
