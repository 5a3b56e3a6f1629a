"""Planted faults: nothing of a broken step is applied, and the state afterwards is the last good one."""

import gc
import os

import keras
import numpy as np
import pytest
from keras import ops

from kvision.callbacks import (
    Diverged,
    GradientToWeight,
    LearningRate,
    PrecisionHealth,
    Rollback,
    Throughput,
    UpdateRatio,
    Vitals,
)
from kvision.callbacks.model_state import copy_state
from kvision.callbacks.vitals import tapped_step
from kvision.trackers.clock import optimizer_steps
from tests.callbacks.rollback_runs import (
    BATCHES,
    GRADIENT,
    LOSS,
    broken_run,
    compiled,
    data,
    differing,
    fit,
    loss,
    network,
    reset,
    shared,
)
from tests.callbacks.vitals.vital_runs import ALL, Record
from tests.support import assert_close
from tests.training.models import batch, convnet

KINDS = (LOSS, GRADIENT, "input", 6.0)


def goes_back_to_the_last_good_state(seed):
    """Whether all variables after a fault of the kind that `seed` says equal those of the step that is named."""
    model, first = shared()
    reset(model, first)
    numbers, kind = np.random.default_rng(seed), KINDS[seed % len(KINDS)]
    begin, length = (int(numbers.integers(101, 113)), 4) if kind == 6.0 else (int(numbers.integers(0, 12)), 1)
    faults = [(batch, kind) for batch in range(begin, begin + length)]
    watch, rollback = broken_run(model, faults, seed=seed, batches=begin + length + 1)
    ((step, after),) = watch.after
    assert rollback.retries == 1 and max(0, begin - 13) <= step <= begin  # one odd loss delays the proof of a copy
    assert float(model.optimizer.learning_rate) == pytest.approx(0.025)
    return differing(watch.states[step], after) == []


def test_the_state_after_a_fault_is_the_last_good_one(capsys):
    assert [goes_back_to_the_last_good_state(seed) for seed in range(5)] == [True] * 5
    told = capsys.readouterr().out
    assert told.count("Rollback 1 of 3") == 5 and told.count("times the mean of the 100 before") == 1


@pytest.mark.slow
def test_the_state_after_a_fault_is_the_last_good_one_at_50_seeds():
    assert sum(goes_back_to_the_last_good_state(seed) for seed in range(50)) == 50


@pytest.mark.slow
def test_clean_steps_raise_no_false_alarm():
    model, first = shared()
    reset(model, first)
    rollback = Rollback()
    fit(model, [rollback], *data(batches=1000), epochs=10, shuffle=True)
    assert rollback.retries <= 1


@pytest.mark.slow
def test_2000_steps_leak_nothing():
    """At most 1 MiB in 100 steps, with everything that reads the step."""
    sizes = []

    class Size(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            gc.collect()
            sizes.append(resident_bytes())

    callbacks = [Vitals(every=10), GradientToWeight(10), PrecisionHealth(10), Throughput(), Rollback(every=10), Size()]
    fit(compiled(), callbacks, *data(batches=100), epochs=22, shuffle=True)
    assert sizes[-1] - sizes[1] <= 20 * 2**20


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


QUICK = ("jit", "several steps a call")


def rows(names):
    for name in names:
        marks = [] if name in QUICK else [pytest.mark.slow]
        yield pytest.param(name, marks=[*marks, pytest.mark.tensorflow_only] if name == "eager" else marks)


@pytest.mark.parametrize("name", list(rows(ALL)))
def test_every_mode_goes_back(name):
    model = compiled(name)
    watch, rollback = broken_run(model, [(10, LOSS)])
    ((step, after),) = watch.after
    assert rollback.retries == 1 and step <= 10
    assert differing(watch.states[step], after) == []
    assert all(np.isfinite(array).all() for array in copy_state(model).values())
    assert float(model.optimizer.learning_rate) == pytest.approx(0.025)


@pytest.mark.parametrize("fault", [LOSS, GRADIENT], ids=["loss", "gradient"])
def test_nothing_of_a_broken_step_is_applied(fault):
    """Seen between the step and the callback: weights, momentum, moving statistics, seeds and metrics."""
    model, first = shared()
    reset(model, first)
    states, losses = [], []

    class Between(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            states.append(copy_state(self.model))
            losses.append(float(logs["loss"]))

    history = fit(model, [Between(), keras.callbacks.TerminateOnNaN(), Rollback()], *data(faults=[(5, fault)]))
    assert differing(states[4], states[5], but=("nothing",)) == []
    assert differing(states[6], states[5], but=("nothing",)) != []
    assert losses[5] == losses[4] and len(states) == BATCHES
    assert np.isfinite(history["loss"]).all()


@pytest.mark.parametrize("vitals_first", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_clean_run_is_the_run_without_it(vitals_first):
    plain, watched = compiled(), compiled()
    record, ratio = Record(), UpdateRatio(every=3)
    alone = UpdateRatio(every=3)
    history = fit(plain, [alone], *data())
    callbacks = [ratio, Rollback(every=5), record]
    found = fit(watched, callbacks if vitals_first else callbacks[::-1], *data())
    assert found["loss"] == pytest.approx(history["loss"], rel=1e-4)
    for one, other in zip(copy_state(plain).values(), copy_state(watched).values(), strict=True):
        assert_close(one, other)  # XLA may fuse another way
    assert list(ratio.ratios.values()) == pytest.approx(list(alone.ratios.values()), rel=1e-3)


def test_it_guards_where_a_measurement_fails(monkeypatch):
    def fail(*_):
        raise TypeError("planted")

    monkeypatch.setattr(tapped_step, "sum_of_squares", fail)
    model, rollback = compiled(), Rollback(every=4)
    fit(model, [Vitals(), rollback], *data(faults=[(10, GRADIENT)]))
    assert rollback.retries == 1 and int(model.optimizer.iterations) > 12


def test_a_run_that_blows_up_at_once_goes_back_to_its_beginning(capsys):
    """Its loss jumps to 1e4 and comes back by itself, of a network that is dead: two steps are all there is to see."""
    keras.utils.set_random_seed(0)
    model, rollback = convnet(None), Rollback()  # of probabilities the loss ends at 16, where Keras clips them
    model.compile(keras.optimizers.SGD(30.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    fit(model, [rollback], *batch(64), batch_size=16)
    assert rollback.retries >= 1 and rollback.restored_step == 0
    assert "times the largest of the 1 before" in capsys.readouterr().out


def test_vitals_and_steps_go_on_behind_a_fault():
    model, record, vitals = compiled(), Record(), Vitals(every=2)
    fit(model, [vitals, Rollback(every=4), record], *data(faults=[(12, GRADIENT)]))
    steps = list(record.measurements("update_ratio"))
    assert steps == sorted(set(steps)) and steps[-1] >= BATCHES - 3
    (told,) = [advice.text for advice in record.advice if advice.vital == "rollback"]
    assert told.startswith("Rollback 1 of 3 at step 13, learning rate 0.05: the gradient of ")
    assert optimizer_steps(model) == BATCHES - 1


def test_a_schedule_goes_on_and_the_halving_stays_a_factor_on_it():
    rates = []

    class Rates(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            rates.append(float(self.model.optimizer.learning_rate))

    schedule = LearningRate(lambda step: 0.1 - 0.001 * step)
    fit(compiled(), [schedule, Rates(), Rollback(every=4)], *data(faults=[(10, LOSS)]))
    steps = [*range(11), *range(10, BATCHES - 1)]
    wanted = [(0.1 - 0.001 * step) * (1 if batch <= 10 else 0.5) for batch, step in enumerate(steps)]
    assert rates == pytest.approx(wanted, rel=1e-5)


def test_a_copy_of_weights_that_have_just_blown_up_is_no_good_state():
    """An update may be finite and yet so large that the next loss is not."""

    class BlowUp(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 10:
                head = self.model.get_layer("head")
                head.kernel.assign(ops.full(head.kernel.shape, 1e30))

    model, first = shared()
    reset(model, first)
    rollback = Rollback(every=1)
    fit(model, [BlowUp(), rollback], *data())
    assert rollback.retries == 1 and 0 < rollback.restored_step <= 10


def test_a_copy_is_good_once_four_more_steps_went_well():
    model, first = shared()
    reset(model, first)
    _, rollback = broken_run(model, [(13, LOSS)], every=1)  # 13 steps went well
    assert 5 <= rollback.restored_step <= 9


def test_the_rate_is_halved_again_and_an_older_state_taken():
    model, first = shared()
    reset(model, first)
    watch, rollback = broken_run(model, [(14, LOSS), (15, GRADIENT), (16, "input")], every=4)
    steps = [step for step, _ in watch.after]
    assert rollback.retries == 3 and steps[0] > steps[1] >= steps[2]
    assert float(model.optimizer.learning_rate) == pytest.approx(0.05 / 8)


@pytest.mark.slow
def test_an_overflow_that_the_loss_scale_mends_is_no_fault():
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    model, rollback = network(), Rollback(max_retries=0)
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.05), initial_scale=2.0**30)
    model.compile(scaled, loss)
    fit(model, [rollback], *data())
    assert rollback.retries == 0 and 0 < int(model.optimizer.iterations) < BATCHES


def test_a_gradient_that_no_loss_scale_mends_is_a_fault(tmp_path):
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    model = network()
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.05), initial_scale=0.5), loss)
    with pytest.raises(Diverged, match="the gradient of"):
        fit(model, [Rollback(max_retries=0, directory=tmp_path)], *data(faults=[(5, GRADIENT)]))


@pytest.mark.tensorflow_only  # JAX takes labels outside the classes, and gives a loss that is not finite
def test_a_label_outside_the_classes_names_the_sample():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    y = np.arange(16) % 3
    y[[3, 11]] = 7, -1
    with pytest.raises(Exception, match="label value") as caught:
        fit(model, [Rollback()], np.zeros((16, 4)), y)
    assert caught.value.__notes__ == [
        "The batch: [8, 4] float32, [8] int64.",
        "Labels: sample 3 has label 7; expected 0...2. Mend the labels, or build the model with more classes.",
    ]


def test_what_it_remembers_goes_on():
    model, first = shared()
    reset(model, first)
    before, after = Rollback(every=4), Rollback(every=4)
    fit(model, [before], *data(faults=[(5, LOSS)]))
    state = before.get_state()
    assert state["retries"] == 1 and len(state["losses"]) == BATCHES - 1
    after.set_state(state)
    fit(model, [after], *data(faults=[(5, LOSS)]), initial_epoch=1, epochs=2)
    assert after.retries == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_retries": -1}, "`max_retries`: got -1, expected an integer of at least 0"),
        ({"every": 0}, "`every`: got 0, expected an integer of at least 1"),
        ({"every": True}, "`every`: got True"),
    ],
)
def test_refuses_numbers_without_a_meaning(options, message):
    with pytest.raises(ValueError, match=message):
        Rollback(**options)


def test_refuses_an_optimizer_whose_rate_cannot_be_set():
    with pytest.raises(ValueError, match="Rollback cannot halve the rate .* SGD with a schedule of its own"):
        fit(compiled(learning_rate=keras.optimizers.schedules.CosineDecay(0.1, 10)), [Rollback()], *data())


def test_refuses_a_second_one_in_the_same_fit():
    model, first = shared()
    reset(model, first)
    rollbacks = [Rollback(), Rollback()]
    with pytest.raises(ValueError, match="One Rollback watches a fit: got a second among its callbacks"):
        fit(model, rollbacks, *data())
    assert differing(first, copy_state(model)) == []
    fit(model, rollbacks[:1], *data(batches=2))
    fit(model, rollbacks[1:], *data(batches=2))
