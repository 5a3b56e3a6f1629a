"""The history equals what `fit` returns, and survives late columns, second fits, kills and bad numbers."""

import csv
import fcntl
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import types

import keras
import numpy as np
import pytest

from kvision.callbacks import LearningRate, Report, RunHistory, Vitals, WandbLogger, read_history
from kvision.trackers import pace, run_history, tracker
from kvision.trackers.backend import is_first_process
from kvision.trackers.events import Advice, Images, Measurement
from kvision.trackers.files import replace_file, writable_directory
from kvision.trackers.tracker import emit
from tests.callbacks.runs import STEPS, Late, fit_tiny, tiny_model
from tests.trackers.report_page import page_data


def strict_lines(directory, within=False):
    """The lines of a history; those within an epoch only if asked for."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = (directory / "history.jsonl").read_text()
    assert text.endswith("\n")
    lines = [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
    return [line for line in lines if within or line["event"] != "steps"]


def epochs_of(directory):
    return [event for event in read_history(directory) if event["event"] == "epoch"]


def rows(directory):
    with open(directory / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def epoch_end(history, epoch, logs):
    """One epoch's end as Keras reports it, without a `fit`."""
    history.on_epoch_begin(epoch)
    history.on_epoch_end(epoch, logs)


@pytest.fixture
def history(tmp_path):
    history = RunHistory(tmp_path)
    history.set_model(tiny_model())
    history.on_train_begin()
    return history


def test_both_files_equal_the_history_of_keras(tmp_path):
    directory = tmp_path / "made" / "on the way"
    returned = fit_tiny(tiny_model(), [RunHistory(directory), LearningRate(0.05)], epochs=3).history
    epochs = epochs_of(directory)
    assert len(epochs) == 3
    assert {name: [event["logs"][name] for event in epochs] for name in epochs[0]["logs"]} == returned
    assert [event["epoch"] for event in epochs] == [0, 1, 2]
    assert [event["step"] for event in epochs] == [STEPS, 2 * STEPS, 3 * STEPS]
    assert 0 < epochs[0]["seconds"] < epochs[1]["seconds"] < epochs[2]["seconds"] < 600
    assert {name: [float(row[name]) for row in rows(directory)] for name in returned} == returned
    assert [(row["epoch"], row["step"]) for row in rows(directory)] == [("0", "4"), ("1", "8"), ("2", "12")]


def test_events_of_vitals_are_lines(tmp_path):
    class Vital(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            emit(self, Advice("loss", 0, 0, "Lower the rate: 0.1 → 0.01."))

        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                emit(self, Measurement("ratio", 2, {"a/kernel": np.float32(0.5), "b": np.nan}, (1e-5, 2e-2)))
                emit(self, Images(2, {"filters": np.zeros((2, 2, 3), "uint8")}))

    fit_tiny(tiny_model(), [Vital(), RunHistory(tmp_path)], epochs=1)
    advice, measurement, epoch = strict_lines(tmp_path)
    assert advice == {"event": "advice", "vital": "loss", "step": 0, "epoch": 0, "text": "Lower the rate: 0.1 → 0.01."}
    assert measurement == {
        "event": "measurement",
        "name": "ratio",
        "step": 2,
        "values": {"a/kernel": 0.5, "b": "NaN"},
        "healthy": [1e-5, 2e-2],
    }
    assert epoch["event"] == "epoch"
    (read,) = [event for event in read_history(tmp_path) if event["event"] == "measurement"]
    assert math.isnan(read["values"]["b"])


def test_late_logs_are_merged(tmp_path):
    fit_tiny(tiny_model(), [RunHistory(tmp_path), Late()])
    lines = strict_lines(tmp_path)
    assert [(line["epoch"], line.get("late", False)) for line in lines] == [
        (0, False),
        (0, True),
        (1, False),
        (1, True),
    ]
    assert lines[1]["logs"] == {"late": 0.5}
    assert [event["logs"]["late"] for event in epochs_of(tmp_path)] == [0.5, 1.5]
    assert [row["late"] for row in rows(tmp_path)] == ["0.5", "1.5"]


def test_a_column_may_appear_and_vanish(history, tmp_path):
    epoch_end(history, 0, {"loss": 3.0})
    epoch_end(history, 1, {"loss": 2.0, "AP, small": 0.25})
    epoch_end(history, 2, {"AP, small": 0.5})
    assert (tmp_path / "history.csv").read_text().splitlines()[0] == 'epoch,step,seconds,loss,"AP, small"'
    assert [(row["loss"], row["AP, small"]) for row in rows(tmp_path)] == [("3.0", ""), ("2.0", "0.25"), ("", "0.5")]


def test_rows_are_appended_and_not_rewritten(history, tmp_path, monkeypatch):
    """A run of 100,000 epochs would write 100,000 times the whole file; late entries replace their own row alone."""
    epoch_end(history, 0, {"loss": 3.0})
    written = []
    monkeypatch.setattr(run_history, "replace_file", lambda path, content: written.append(path))
    for epoch in range(1, 4):
        epoch_end(history, epoch, {"loss": 3.0 - epoch})
    assert written == []
    assert [row["loss"] for row in rows(tmp_path)] == ["3.0", "2.0", "1.0", "0.0"]


@pytest.mark.parametrize("late", [{"score": 0.5}, {"score": "a, long text\nof two lines"}], ids=["number", "text"])
def test_late_entries_replace_the_row_of_their_epoch(history, tmp_path, late):
    for epoch in range(3):
        history.on_epoch_begin(epoch)
        logs = {"loss": float(epoch)}
        history.on_epoch_end(epoch, logs)
        logs |= late
        history.on_epoch_begin(epoch + 1)
    assert [(row["epoch"], row["loss"], row["score"]) for row in rows(tmp_path)] == [
        (str(epoch), str(float(epoch)), str(late["score"])) for epoch in range(3)
    ]


@pytest.mark.parametrize("cut", ["1,8,0.5,2", "1"])
def test_a_row_cut_short_is_left_out_and_appended_to_cleanly(history, tmp_path, cut):
    epoch_end(history, 0, {"loss": 3.0})
    with open(tmp_path / "history.csv", "a") as file:
        file.write(cut)
    resumed = RunHistory(tmp_path)
    resumed.set_model(history.model)
    epoch_end(resumed, 1, {"loss": 2.0})
    assert [(row["epoch"], row["loss"]) for row in rows(tmp_path)] == [("0", "3.0"), ("1", "2.0")]


@pytest.mark.parametrize("same_callback", [True, False])
def test_a_second_fit_appends(tmp_path, same_callback):
    model, first = tiny_model(), RunHistory(tmp_path)
    fit_tiny(model, [first], validation_data=None)
    second = first if same_callback else RunHistory(tmp_path)
    fit_tiny(model, [second], epochs=4, initial_epoch=2)
    assert [(event["epoch"], event["step"]) for event in epochs_of(tmp_path)] == [(0, 4), (1, 8), (2, 12), (3, 16)]
    assert [row["step"] for row in rows(tmp_path)] == ["4", "8", "12", "16"]
    assert [bool(row["val_loss"]) for row in rows(tmp_path)] == [False, False, True, True]


@pytest.mark.parametrize(
    "value, written, in_csv",
    [
        (math.nan, "NaN", "nan"),
        (math.inf, "Infinity", "inf"),
        (-math.inf, "-Infinity", "-inf"),
        (np.float32(0.5), 0.5, "0.5"),
        (np.int64(3), 3, "3"),
        (0.1, 0.1, "0.1"),
        (True, True, "True"),
    ],
)
def test_values_are_valid_json_and_come_back(history, tmp_path, value, written, in_csv):
    epoch_end(history, 0, {"loss": value})
    assert strict_lines(tmp_path)[0]["logs"] == {"loss": written}
    assert repr(read_history(tmp_path)[0]["logs"]["loss"]) == repr(getattr(value, "item", lambda: value)())
    assert rows(tmp_path)[0]["loss"] == in_csv


def test_values_that_are_no_numbers_do_not_end_the_run(history, tmp_path):
    epoch_end(history, 0, {"counts": np.array([1, 2]), "nothing": None, "name": "NaN-free", "odd": object})
    logs = strict_lines(tmp_path)[0]["logs"]
    assert logs == {"counts": [1, 2], "nothing": None, "name": "NaN-free", "odd": str(object)}


@pytest.mark.parametrize("cut", ['{"event": "epoch", "ep', '{"event": "epoch", "epoch": 1, "step": 8, "logs": {}}'])
def test_a_line_cut_short_is_left_out_and_appended_to_cleanly(tmp_path, cut):
    fit_tiny(tiny_model(), [RunHistory(tmp_path)], epochs=1)
    with open(tmp_path / "history.jsonl", "a") as file:
        file.write(cut)
    whole = cut.endswith("}")
    assert [event["epoch"] for event in epochs_of(tmp_path)] == ([0, 1] if whole else [0])
    fit_tiny(tiny_model(), [RunHistory(tmp_path)], epochs=1)
    assert [line["epoch"] for line in strict_lines(tmp_path)] == ([0, 1, 0] if whole else [0, 0])


@pytest.mark.slow
def test_a_killed_run_keeps_what_it_had(tmp_path):
    code = f"""
import os, signal, keras
from kvision.callbacks import RunHistory
from tests.callbacks.runs import fit_tiny, tiny_model

class Kill(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if self.model.optimizer.iterations >= 14:
            os.kill(os.getpid(), signal.SIGKILL)

fit_tiny(tiny_model(), [RunHistory({str(tmp_path)!r}), Kill()], epochs=9)
"""
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [line["step"] for line in strict_lines(tmp_path)] == [4, 8, 12]
    assert [row["step"] for row in rows(tmp_path)] == ["4", "8", "12"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.csv", "history.jsonl"]


def test_the_loss_within_an_epoch_is_that_of_each_batch(tmp_path):
    class Losses(keras.callbacks.Callback):
        """The loss of each batch, by Keras's own mean, reset before every one."""

        def __init__(self):
            super().__init__()
            self.losses = []

        def on_train_batch_begin(self, batch, logs=None):
            self.model.metrics[0].reset_state()

        def on_train_batch_end(self, batch, logs=None):
            self.losses.append(logs["loss"])

    losses = Losses()
    fit_tiny(tiny_model(), [losses], epochs=2, batch_size=6)  # 5 batches of 6 and one of 2
    fit_tiny(tiny_model(), [RunHistory(tmp_path)], epochs=2, batch_size=6)
    steps = [line for line in strict_lines(tmp_path, within=True) if line["event"] == "steps"]
    places = [(epoch, 6 * epoch + step) for epoch in (0, 1) for step in range(1, 6)]
    assert [(line["epoch"], line["step"]) for line in steps] == places
    want = [losses.losses[line["step"] - 1] for line in steps]
    np.testing.assert_allclose([line["logs"]["loss"] for line in steps], want, rtol=1e-4)


def test_images_a_second_are_those_of_the_training(tmp_path, monkeypatch):
    clock = iter(range(1000))  # a second passes from one look at the clock to the next
    monkeypatch.setattr(pace, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
    fit_tiny(tiny_model(), [RunHistory(tmp_path)], epochs=2)
    speeds = [event["images_per_second"] for event in epochs_of(tmp_path)]
    assert speeds == [8 * STEPS / 1] * 2


@pytest.mark.slow
def test_two_processes_do_not_write_one_directory(tmp_path):
    code = f"""
import keras, time
from kvision.callbacks import RunHistory
from tests.callbacks.runs import fit_tiny, tiny_model

class Wait(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        print("running", flush=True)
        input()

fit_tiny(tiny_model(), [RunHistory({str(tmp_path)!r}), Wait()], epochs=1)
"""
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, **pipes) as other:
        assert "running" in other.stdout.readline()
        with pytest.raises(ValueError, match=r"Another process is writing to a directory: got .*Choose another"):
            fit_tiny(tiny_model(), [RunHistory(tmp_path)], epochs=1)
        other.communicate("go on\n", timeout=60)
    assert other.returncode == 0
    fit_tiny(tiny_model(), [RunHistory(tmp_path)], epochs=1)
    assert [event["step"] for event in epochs_of(tmp_path)] == [STEPS, STEPS]


@pytest.mark.parametrize("record", [RunHistory, Report])
def test_a_directory_is_held_while_a_training_runs_and_no_longer(tmp_path, record):
    """What another process meets: a notebook lives on after its `fit`, and a script continues the run."""

    def is_held():
        with open(tmp_path / "history.jsonl") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    held = []
    ask = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: held.append(is_held()))
    fit_tiny(tiny_model(), [record(tmp_path), ask], epochs=1)
    assert held == [True]
    assert not is_held()


def test_a_directory_belongs_to_one_run_after_the_other_of_a_process(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_tiny(tiny_model(), [RunHistory(tmp_path), Stop()])
    fit_tiny(tiny_model(), [RunHistory(tmp_path)], epochs=1)
    assert len(epochs_of(tmp_path)) == 2


def test_only_the_first_process_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tracker, "is_first_process", lambda model: False)
    model = tiny_model()
    callbacks = [
        RunHistory(tmp_path / "history"),
        Report(tmp_path / "report"),
        WandbLogger(directory=tmp_path / "wandb"),
    ]
    fit_tiny(model, [*callbacks, Vitals(every=1)])
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


@pytest.mark.tensorflow_only
def test_the_first_process_is_the_one_that_keeps_the_checkpoints():
    import tensorflow as tf

    model = tiny_model()
    assert is_first_process(model)
    with tf.distribute.MirroredStrategy().scope():
        assert is_first_process(tiny_model())

    class Worker:
        extended = tf.distribute.get_strategy().extended
        distribute_strategy = property(lambda self: self)

    monkey = type("Extended", (), {"should_checkpoint": False})
    worker = Worker()
    worker.extended = monkey
    assert not is_first_process(worker)


@pytest.mark.parametrize("name", ["with spaces & <signs>", "\udce9t\udce9"], ids=["spaces", "surrogates"])
def test_any_name_of_a_directory_will_do(tmp_path, name, capsys):
    directory = tmp_path / name
    fit_tiny(tiny_model(), [Report(directory), RunHistory(directory / "inner")], epochs=1)
    assert len(epochs_of(directory)) == len(epochs_of(directory / "inner")) == 1
    assert page_data(directory / "report.html")["run"] == name.encode(errors="replace").decode()
    out = capsys.readouterr().out
    assert "failed" not in out and "Report: " in out
    with pytest.raises(ValueError, match="No history found"):
        read_history(directory / "nothing")


def test_names_in_the_logs_may_be_any(history, tmp_path):
    epoch_end(history, 0, {"m\udce9tric": 1.0, "a b, c": 2.0})
    epoch_end(history, 1, {"m\udce9tric": 3.0, "a b, c": 4.0})
    assert [event["logs"]["m\udce9tric"] for event in epochs_of(tmp_path)] == [1.0, 3.0]
    assert [row["m?tric"] for row in rows(tmp_path)] == ["1.0", "3.0"]


@pytest.mark.parametrize("what", ["a file", "below a file", "jsonl is a directory", "csv is no text"])
def test_a_directory_that_cannot_be_written_is_an_error_before_training(tmp_path, what):
    directory = tmp_path / "file" if "a file" in what else tmp_path
    if directory != tmp_path:
        directory.write_text("in the way")
        directory = directory / "below" if what == "below a file" else directory
    elif what.startswith("jsonl"):
        (tmp_path / "history.jsonl").mkdir()
    else:
        (tmp_path / "history.csv").write_bytes(b"\xff\xfe\x00")
    model = tiny_model()
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"got .*expected .*Choose another directory"):
        fit_tiny(model, [RunHistory(directory)])
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), before, strict=True))


def test_writing_that_fails_later_is_told_once_and_the_run_goes_on(tmp_path, capsys):
    class Break(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                (tmp_path / "runs" / "history.jsonl").unlink()
                (tmp_path / "runs" / "history.csv").unlink()
                (tmp_path / "runs").rmdir()

    done = fit_tiny(tiny_model(), [RunHistory(tmp_path / "runs"), Break()], epochs=4)
    assert done.epoch == [0, 1, 2, 3]
    assert capsys.readouterr().out.count("RunHistory cannot write to") == 1


def test_no_history_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"No history found: got .*expected .*Give the directory"):
        read_history(tmp_path)


def test_the_history_does_not_change_the_training(tmp_path):
    plain = tiny_model()
    fit_tiny(plain)
    tracked = tiny_model()
    fit_tiny(tracked, [RunHistory(tmp_path)])
    assert all(np.array_equal(a, b) for a, b in zip(plain.get_weights(), tracked.get_weights(), strict=True))


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    replace_file(path, "first ä")
    assert path.read_bytes() == "first ä".encode()

    def refuse(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="disk full"):
        replace_file(path, b"second, which is longer")
    assert path.read_bytes() == "first ä".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_who_reads_a_file_while_it_is_replaced_has_the_old_one(tmp_path):
    path = tmp_path / "report.html"
    replace_file(path, "first")
    with open(path) as reader:
        replace_file(path, "second")
        assert reader.read() == "first"
    assert path.read_text() == "second"


def test_a_writable_directory_is_made_and_left_empty(tmp_path):
    directory = writable_directory(str(tmp_path / "a" / "b"))
    assert directory == tmp_path / "a" / "b"
    assert list(directory.iterdir()) == []
