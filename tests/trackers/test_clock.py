"""One clock: epochs, steps and images of a run go on over its fits, and a new run begins at zero."""

import keras
import pytest

from kvision.callbacks import LearningRate, Report, RunHistory, UpdateRatio, read_history
from kvision.trackers.clock import Clock, clock_of, optimizer_steps
from kvision.trackers.events import Measurement
from kvision.trackers.tracker import Tracker
from tests.callbacks.runs import STEPS, fit_tiny, tiny_model
from tests.trackers.report_page import page_data

PHASES = 2  # epochs of the first phase


class Recorder(Tracker):
    def __init__(self):
        super().__init__()
        self.epochs, self.measured = [], []

    def record_epoch(self, epoch, logs, late=False):
        self.epochs.append((epoch, optimizer_steps(self.model)))

    def record(self, event):
        if isinstance(event, Measurement):
            self.measured.append(event.step)


def compile_anew(model, **options):
    model.compile(keras.optimizers.SGD(0.05, **options), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def copy_of(model, with_optimizer):
    """The model in another process, as a file brings it there."""
    other = tiny_model()
    other.set_weights(model.get_weights())
    if with_optimizer:
        other.optimizer.build(other.trainable_variables)
        other.optimizer.iterations.assign(int(keras.ops.convert_to_numpy(model.optimizer.iterations)))
    return other


GOES_ON = [(0, STEPS), (1, 2 * STEPS), (2, 3 * STEPS), (3, 4 * STEPS)]
ANEW = [(0, STEPS), (1, 2 * STEPS), (0, STEPS), (1, 2 * STEPS)]
SECOND_PHASES = {
    "fit again": (lambda model: model, {"epochs": 2}, GOES_ON),
    "fit again from an initial epoch": (lambda model: model, {"epochs": 4, "initial_epoch": 2}, GOES_ON),
    "compiled anew": (compile_anew, {"epochs": 2}, GOES_ON),
    "compiled anew, from an initial epoch": (compile_anew, {"epochs": 4, "initial_epoch": 2}, GOES_ON),
    "weights in a new model": (lambda model: copy_of(model, False), {"epochs": 4, "initial_epoch": 2}, GOES_ON),
    "a new model restored": (lambda model: copy_of(model, True), {"epochs": 4, "initial_epoch": 2}, GOES_ON),
    "a new model": (lambda model: tiny_model(), {"epochs": 2}, ANEW),
    "an epoch repeated": (
        lambda model: compile_anew(model),
        {"epochs": 2, "initial_epoch": 1},
        [*GOES_ON[:2], (1, 2 * STEPS)],
    ),
}


@pytest.mark.parametrize(("between", "options", "expected"), SECOND_PHASES.values(), ids=SECOND_PHASES)
def test_the_second_phase_of_a_run(between, options, expected):
    recorder, model = Recorder(), tiny_model()
    fit_tiny(model, [recorder], epochs=PHASES, validation_data=None)
    fit_tiny(between(model), [recorder], validation_data=None, **options)
    assert recorder.epochs == expected


def test_three_phases_and_what_vitals_measure_in_them():
    recorder, model, ratio = Recorder(), tiny_model(), UpdateRatio(every=1)
    for _ in range(3):
        fit_tiny(compile_anew(model), [ratio, recorder], epochs=1, validation_data=None)
    assert recorder.epochs == GOES_ON[:3]
    assert recorder.measured == list(range(1, 3 * STEPS + 1))


def test_an_interrupted_epoch_is_not_counted():
    class Stop(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if self.model.optimizer.iterations >= STEPS + 1:
                raise KeyboardInterrupt

    recorder, model = Recorder(), tiny_model()
    with pytest.raises(KeyboardInterrupt):
        fit_tiny(model, [recorder, Stop()], epochs=3, validation_data=None)
    fit_tiny(model, [recorder], epochs=1, validation_data=None)
    assert recorder.epochs == [(0, STEPS), (1, 2 * STEPS + 1)]


def test_accumulated_batches_are_one_step_of_a_resumed_run():
    recorder = Recorder()
    model = compile_anew(tiny_model(), gradient_accumulation_steps=2)
    fit_tiny(model, [recorder], epochs=3, initial_epoch=2, validation_data=None)
    assert recorder.epochs == [(2, 3 * STEPS // 2)]


@pytest.mark.parametrize("tracker", [RunHistory, Report])
def test_the_history_of_a_directory_knows_the_steps_of_a_resumed_run(tmp_path, tracker):
    """The second phase has batches of another size: twice as many images a step, half the steps an epoch."""
    fit_tiny(tiny_model(), [tracker(tmp_path)], epochs=PHASES)
    fit_tiny(tiny_model(), [tracker(tmp_path)], epochs=4, initial_epoch=PHASES, batch_size=16)
    epochs = [(event["epoch"], event["step"]) for event in read_history(tmp_path) if event["event"] == "epoch"]
    assert epochs == [(0, STEPS), (1, 2 * STEPS), (2, 2.5 * STEPS), (3, 3 * STEPS)]
    if tracker is Report:
        data = page_data(tmp_path / "report.html")
        assert [tuple(point[:2]) for point in data["curves"]["loss"]] == [(step, epoch) for epoch, step in epochs]
        assert data["epochs"] == 4


def test_a_resumed_run_of_unknown_length_is_known_by_nobody():
    clock, model = Clock(), tiny_model()
    callback = keras.callbacks.Callback()
    callback.set_params({"steps": None})
    callback.set_model(model)
    clock.begin(callback, 3)
    assert not clock.is_known
    model.optimizer.iterations.assign(7)
    other = keras.callbacks.Callback()
    other.set_params({"steps": None})
    other.set_model(model)
    clock = Clock()
    clock.begin(other, 3)
    assert clock.is_known and clock.steps_before == 0


def test_images_are_those_of_each_phase():
    model = tiny_model()
    fit_tiny(model, [LearningRate(lambda images: 0.1, "images", batch_size=8)], epochs=2, validation_data=None)
    assert clock_of(model).images(2 * STEPS, 8) == 64
    seen = []
    schedule = LearningRate(lambda images: seen.append(images) or 0.1, "images", batch_size=16)
    fit_tiny(model, [schedule], epochs=1, validation_data=None, batch_size=16)
    assert seen == [64, 64, 80]  # at the epoch's beginning, and before each of two steps
