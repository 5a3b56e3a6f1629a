"""The rate of every step equals the schedule's, and training equals that with the schedule inside the optimizer."""

import keras
import numpy as np
import pytest

from kvision.callbacks import LearningRate, ReduceOnPlateau, learning_rate
from kvision.optimizers import MultiStep, OneCycle
from tests.callbacks.runs import STEPS, fit_tiny, tiny_model

DECAY = keras.optimizers.schedules.ExponentialDecay(0.1, 3, 0.5)
STAIRS = keras.optimizers.schedules.PiecewiseConstantDecay([2, 5], [0.1, 0.05, 0.01])


class Rates(keras.callbacks.Callback):
    """Notes the rate of every step, as the optimizer has it when the step is taken."""

    def __init__(self):
        super().__init__()
        self.rates = []

    def on_train_batch_end(self, batch, logs=None):
        self.rates.append(float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)))


def rates_of(callback, optimizer=None, epochs=2, model=None, **options):
    rates = Rates()
    model = tiny_model(optimizer) if model is None else model
    history = fit_tiny(model, [callback, rates], epochs=epochs, validation_data=None, **options).history
    return rates.rates, history.get("learning_rate")


def place(unit):
    """For every step of two epochs what the schedule should be asked for."""
    return {"step": range(8), "epoch": [0] * 4 + [1] * 4, "images": range(0, 64, 8)}[unit]


@pytest.mark.parametrize("unit", ["step", "epoch", "images"])
@pytest.mark.parametrize(
    "schedule",
    [DECAY, STAIRS, lambda place: 0.1 / (1 + place), OneCycle(0.1, 50), MultiStep(0.1, [])],
    ids=["decay", "stairs", "function", "one cycle", "constant"],
)
def test_every_step_has_the_rate_of_the_schedule(schedule, unit):
    rates, logged = rates_of(LearningRate(schedule, unit, batch_size=8 if unit == "images" else None))
    want = [float(schedule(step)) for step in place(unit)]
    np.testing.assert_allclose(rates, want, rtol=1e-6)
    np.testing.assert_allclose(logged, want[STEPS - 1 :: STEPS], rtol=1e-6)


@pytest.mark.parametrize(("unit", "size"), [("step", 1), ("images", 8)])
@pytest.mark.parametrize("ahead", [1, 3, 1000])
def test_a_schedule_of_kvision_is_asked_for_many_steps_at_once(unit, size, ahead, monkeypatch):
    asked, call = [], OneCycle.__call__
    monkeypatch.setattr(
        OneCycle, "__call__", lambda self, step: asked.append(np.array(step).tolist()) or call(self, step)
    )
    monkeypatch.setattr(learning_rate, "AHEAD", ahead)
    schedule = OneCycle(0.1, 50)
    rates, _ = rates_of(LearningRate(schedule, unit, batch_size=size if unit == "images" else None))
    assert asked == [[size * (place + step) for step in range(ahead)] for place in range(0, 8, ahead)]
    np.testing.assert_allclose(rates, [float(call(schedule, size * step)) for step in range(8)], rtol=1e-6)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_schedule_that_is_changed_counts_from_the_next_step(replaced):
    callback = LearningRate(MultiStep(0.1, [1000]))

    def change(batch, logs=None):
        if batch == 1 and replaced:
            callback.schedule = MultiStep(0.01, [1000])
        elif batch == 1:
            callback.schedule.initial_learning_rate = 0.01

    rates, model = Rates(), tiny_model()
    callbacks = [callback, rates, keras.callbacks.LambdaCallback(on_train_batch_end=change)]
    fit_tiny(model, callbacks, epochs=1, validation_data=None)
    np.testing.assert_allclose(rates.rates, [0.1, 0.1, 0.01, 0.01], rtol=1e-6)


def test_a_schedule_derived_from_one_of_kvision_may_take_one_step_only():
    class Held(OneCycle):
        def __call__(self, step):
            return 0.5 if step < 5 else super().__call__(step)

    rates, _ = rates_of(LearningRate(Held(0.1, 50)))
    np.testing.assert_allclose(rates, [0.5] * 5 + [float(OneCycle(0.1, 50)(step)) for step in (5, 6, 7)], rtol=1e-6)


@pytest.mark.parametrize(
    "options", [{}, pytest.param({"jit_compile": True}, marks=pytest.mark.slow)], ids=["graph", "jit"]
)
def test_training_equals_that_with_the_schedule_in_the_optimizer(options):
    inside = tiny_model(keras.optimizers.SGD(DECAY, momentum=0.9), **options)
    fit_tiny(inside, validation_data=None)
    outside = tiny_model(keras.optimizers.SGD(1.0, momentum=0.9), **options)
    fit_tiny(outside, [LearningRate(DECAY)], validation_data=None)
    for got, want in zip(outside.get_weights(), inside.get_weights(), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)


def test_the_rate_changes_between_executions_only():
    rates, _ = rates_of(LearningRate(lambda step: 0.1 / (1 + step)), model=tiny_model(steps_per_execution=2))
    np.testing.assert_allclose(rates, [0.1 / (1 + step) for step in (0, 2, 4, 6)], rtol=1e-6)


def test_accumulated_batches_are_one_step():
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    rates, _ = rates_of(LearningRate(lambda step: 0.1 / (1 + step)), optimizer)
    np.testing.assert_allclose(rates, [0.1 / (1 + step) for step in (0, 0, 1, 1, 2, 2, 3, 3)], rtol=1e-6)


def test_the_rate_reaches_the_optimizer_inside_loss_scaling():
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
    rates, logged = rates_of(LearningRate(STAIRS), optimizer)
    np.testing.assert_allclose(rates, [0.1] * 3 + [0.05] * 3 + [0.01] * 2, rtol=1e-6)
    np.testing.assert_allclose(optimizer.inner_optimizer.learning_rate, logged[-1])


def test_a_resumed_run_goes_on_where_it_was(tmp_path):
    whole, _ = rates_of(LearningRate(DECAY), epochs=4)
    model = tiny_model()
    fit_tiny(model, [LearningRate(DECAY)], epochs=2, validation_data=None)
    model.save(tmp_path / "half.keras")
    half = keras.models.load_model(tmp_path / "half.keras")
    resumed, _ = rates_of(LearningRate(DECAY), epochs=4, model=half, initial_epoch=2)
    np.testing.assert_allclose(resumed, whole[2 * STEPS :], rtol=1e-6)
    by_epoch, _ = rates_of(LearningRate(DECAY, "epoch"), epochs=4, initial_epoch=3)
    np.testing.assert_allclose(by_epoch, [float(DECAY(3))] * STEPS, rtol=1e-6)


# An epoch after another each halves the rate, whatever the unit: 4 steps of 8 images an epoch.
HALVED = {
    "step": lambda step: 0.1 * 0.5 ** (step // 4),
    "epoch": lambda epoch: 0.1 * 0.5**epoch,
    "images": lambda images: 0.1 * 0.5 ** (images // 32),
}


def halved(unit):
    return LearningRate(HALVED[unit], unit, batch_size=8 if unit == "images" else None)


def compile_anew(model):
    model.compile(keras.optimizers.SGD(0.3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))


@pytest.mark.parametrize("unit", HALVED)
def test_a_schedule_goes_on_in_every_unit(unit):
    want = [0.025, 0.0125]
    callback, model = halved(unit), tiny_model()
    fit_tiny(model, [callback], validation_data=None)
    compile_anew(model)
    assert rates_of(callback, model=model)[1] == pytest.approx(want)  # the same callback, compiled anew
    compile_anew(model)
    again = rates_of(halved(unit), model=model, epochs=4, initial_epoch=2)  # another, where the last fit ended
    assert again[1] == pytest.approx([0.00625, 0.003125])
    assert rates_of(halved(unit), epochs=4, initial_epoch=2)[1] == pytest.approx(want)  # in another process


@pytest.mark.parametrize("unit", HALVED)
def test_a_new_schedule_for_a_model_compiled_anew_begins_at_its_beginning(unit):
    model = tiny_model()
    fit_tiny(model, [halved(unit)], validation_data=None)
    compile_anew(model)
    second = halved(unit)
    assert rates_of(second, model=model)[1] == pytest.approx([0.1, 0.05])
    assert rates_of(second, model=model)[1] == pytest.approx([0.025, 0.0125])


@pytest.mark.parametrize("unit", ["step", "images"])
def test_a_resumed_run_of_unknown_length_is_an_error(unit):
    model = tiny_model()
    batches = ((np.zeros((8, 4)), np.zeros(8)) for _ in range(STEPS))
    with pytest.raises(ValueError, match="cannot tell how many steps initial_epoch=2 stands for"):
        model.fit(batches, epochs=3, initial_epoch=2, callbacks=[halved(unit)], shuffle=False)
    assert int(keras.ops.convert_to_numpy(model.optimizer.iterations)) == 0


class Drops(keras.callbacks.Callback):
    """Lowers the rate ten times after each epoch, as a user's own callback may."""

    def on_epoch_end(self, epoch, logs=None):
        self.model.optimizer.learning_rate = float(self.model.optimizer.learning_rate) / 10


PLATEAU = {"monitor": "loss", "factor": 0.1, "patience": 1, "min_delta": 10}  # drops after each epoch but the first


@pytest.mark.parametrize(
    ("dropping", "drops"),
    [
        (lambda: keras.callbacks.ReduceLROnPlateau(**PLATEAU), [1, 1, 0.1, 0.01]),
        (lambda: ReduceOnPlateau(**PLATEAU), [1, 1, 0.1, 0.01]),
        (Drops, [1, 0.1, 0.01, 0.001]),
    ],
    ids=["Keras's", "ours", "a user's"],
)
@pytest.mark.parametrize("unit", ["constant", *HALVED])
def test_what_another_callback_lowers_stays_lowered(unit, dropping, drops):
    for order in (1, -1):
        callback = LearningRate(0.1) if unit == "constant" else halved(unit)
        rates = Rates()
        fit_tiny(tiny_model(), [*[callback, dropping()][::order], rates], epochs=4, validation_data=None)
        want = [drop * (0.1 if unit == "constant" else HALVED["epoch"](epoch)) for epoch, drop in enumerate(drops)]
        np.testing.assert_allclose(rates.rates[1::STEPS], want, rtol=1e-5)


def test_a_restored_plateau_and_a_restored_schedule_do_not_drop_twice():
    before, plateau = halved("epoch"), ReduceOnPlateau(**PLATEAU)
    fit_tiny(tiny_model(), [before, plateau], epochs=3, validation_data=None)
    for order in (1, -1):
        after, restored, rates = halved("epoch"), ReduceOnPlateau(**PLATEAU), Rates()
        after.set_state(before.get_state())
        restored.set_state(plateau.get_state())
        callbacks = [*[after, restored][::order], rates]
        fit_tiny(tiny_model(), callbacks, epochs=4, initial_epoch=3, validation_data=None)
        np.testing.assert_allclose(rates.rates, [0.1 * 0.5**3 * 0.01] * STEPS, rtol=1e-5)


def test_a_function_of_epoch_and_rate_is_keras_own():
    def decayed(epoch, lr):
        return lr * 0.5 if epoch else lr

    theirs, ours = Rates(), Rates()
    fit_tiny(tiny_model(), [keras.callbacks.LearningRateScheduler(decayed), theirs], epochs=3)
    fit_tiny(tiny_model(), [LearningRate(decayed), ours], epochs=3)
    assert ours.rates == theirs.rates and ours.rates[-1] == pytest.approx(0.025)


@pytest.mark.parametrize(
    ("schedule", "unit"),
    [
        (lambda epoch, lr: lr, "epoch"),
        (lambda epoch, lr=None: 0.1, "epoch"),
        (lambda step, base=0.1: base, "step"),
        (lambda step: 0.1, "step"),
        (DECAY, "step"),
        (0.1, "step"),
        (None, "step"),
    ],
)
def test_the_unit_follows_from_the_function(schedule, unit):
    assert LearningRate(schedule).unit == unit


def test_a_rate_of_exactly_zero_is_a_rate():
    model = tiny_model()
    before = model.get_weights()
    rates, _ = rates_of(LearningRate(lambda step: 0.0), model=model, epochs=1)
    assert rates == [0.0] * STEPS
    assert all(np.array_equal(one, two) for one, two in zip(before, model.get_weights(), strict=True))


def test_a_number_is_a_constant_rate():
    rates, logged = rates_of(LearningRate(0.25), epochs=1)
    assert rates == [0.25] * STEPS
    assert logged == [0.25]


@pytest.mark.parametrize("rate, want", [(0.5, [0.5, 0.5]), (DECAY, [float(DECAY(3)), float(DECAY(7))])])
def test_without_a_schedule_the_rate_of_the_last_step_is_only_logged(rate, want):
    _, logged = rates_of(LearningRate(), keras.optimizers.SGD(rate))
    np.testing.assert_allclose(logged, want, rtol=1e-6)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"schedule": "cosine"}, r"schedule: got 'cosine', expected .*function"),
        ({"schedule": 0.1, "unit": "batch"}, r"Unknown unit: got 'batch'.*'step', 'epoch', 'images'"),
        ({"schedule": 0.1, "unit": "images"}, r"got batch_size=None, expected a positive integer"),
        ({"schedule": 0.1, "unit": "images", "batch_size": 0}, r"got batch_size=0, expected a positive integer"),
        ({"schedule": 0.1, "batch_size": 8}, r'batch_size has no effect with unit="step": got 8'),
        ({"schedule": lambda epoch, lr: lr, "unit": "step"}, r'asked once an epoch: got unit="step"'),
    ],
)
def test_wrong_arguments_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        LearningRate(**arguments)


@pytest.mark.parametrize("rate", [DECAY, lambda: 0.1], ids=["schedule", "function"])
def test_an_optimizer_with_a_schedule_of_its_own_is_an_error(rate):
    with pytest.raises(ValueError, match=r"got SGD with a schedule of its own.*expected an optimizer compiled with a"):
        fit_tiny(tiny_model(keras.optimizers.SGD(rate)), [LearningRate(STAIRS)])


@pytest.mark.parametrize("rate", [-0.1, float("nan"), float("inf")])
def test_a_rate_that_is_no_rate_is_an_error_before_the_first_batch(rate):
    model = tiny_model()
    with pytest.raises(ValueError, match=r"got .* from the schedule at step 0, expected a finite number"):
        fit_tiny(model, [LearningRate(lambda step: rate)])
    assert int(keras.ops.convert_to_numpy(model.optimizer.iterations)) == 0
