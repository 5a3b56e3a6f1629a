"""Events reach the trackers of their own fit, and logs reach them whole, whatever the order of callbacks."""

import gc

import keras
import pytest

from kvision.trackers import tracker
from kvision.trackers.clock import optimizer_steps
from kvision.trackers.events import Advice, Images, Measurement
from kvision.trackers.tracker import Tracker, emit
from tests.callbacks.runs import STEPS, Late, fit_tiny, tiny_model


class Recorder(Tracker):
    def __init__(self):
        super().__init__()
        self.events, self.epochs = [], []

    def record(self, event):
        self.events.append(event)

    def record_epoch(self, epoch, logs, late=False):
        self.epochs.append((epoch, sorted(logs), late, optimizer_steps(self.model)))


class Vital(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        emit(self, Measurement("ratio", optimizer_steps(self.model), {"hidden/kernel": 0.5}, (0.0, 1.0)))

    def on_epoch_end(self, epoch, logs=None):
        emit(self, Advice("ratio", optimizer_steps(self.model), epoch, "Lower the rate."))
        emit(self, Images(optimizer_steps(self.model), {}))


@pytest.mark.parametrize("tracker_first", [True, False])
def test_events_arrive_in_either_order(tracker_first):
    recorder = Recorder()
    callbacks = [recorder, Vital()] if tracker_first else [Vital(), recorder]
    fit_tiny(tiny_model(), callbacks)
    assert [type(event).__name__ for event in recorder.events] == (["Measurement"] * STEPS + ["Advice", "Images"]) * 2
    assert [event.step for event in recorder.events if isinstance(event, Measurement)] == list(range(1, 2 * STEPS + 1))


def test_events_stay_within_their_fit():
    other, recorder = Recorder(), Recorder()
    model = tiny_model()
    fit_tiny(model, [other], epochs=1)
    fit_tiny(model, [Vital(), recorder], epochs=1)
    assert not other.events
    assert len(recorder.events) == STEPS + 2


def test_a_vital_outside_fit_emits_to_nobody():
    recorder = Recorder()
    recorder.set_model(tiny_model())
    emit(Vital(), Images(0, {}))
    assert not recorder.events


@pytest.mark.parametrize("tracker_first", [True, False])
def test_logs_of_an_epoch_are_whole_in_either_order(tracker_first):
    recorder = Recorder()
    fit_tiny(tiny_model(), [recorder, Late()] if tracker_first else [Late(), recorder])
    own = ["accuracy", "loss", "val_accuracy", "val_loss"]
    rows = [(own, False), (["late"], True)] if tracker_first else [(sorted([*own, "late"]), False)]
    assert recorder.epochs == [(epoch, *row, (epoch + 1) * STEPS) for epoch in range(2) for row in rows]


def test_late_logs_of_a_broken_fit_are_forgotten():
    class Broken(Late):
        def on_epoch_end(self, epoch, logs=None):
            super().on_epoch_end(epoch, logs)
            raise RuntimeError

    recorder, model = Recorder(), tiny_model()
    with pytest.raises(RuntimeError):
        fit_tiny(model, [recorder, Broken()])
    fit_tiny(model, [recorder], epochs=1)
    assert [late for _, _, late, _ in recorder.epochs] == [False, False]


def test_optimizer_steps_count_updates():
    model = tiny_model(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))
    fit_tiny(model, epochs=1)
    assert optimizer_steps(model) == STEPS // 2
    assert optimizer_steps(keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])) == 0


def test_trackers_are_not_kept_alive():
    gc.collect()
    before = len(tracker._trackers)
    recorder = Recorder()
    recorder.set_model(tiny_model())
    assert len(tracker._trackers) == before + 1
    del recorder
    gc.collect()
    assert len(tracker._trackers) == before
