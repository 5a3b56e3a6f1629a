"""A run is gone on with after faults of disks, damaged checkpoints, and signals."""

import os
import pathlib
import signal

import keras
import numpy as np
import pytest

import kvision
from kvision.callbacks import Report
from kvision.callbacks import snapshots as snapshots_module
from tests.callbacks.resume_runs import assert_same, train

# Faults of disks.


@pytest.fixture
def cut_run(tmp_path):
    train(tmp_path, cut=9)
    return tmp_path


def checkpoints(path):
    return sorted(each.name for each in path.glob("checkpoint-*"))


def contents(path):
    return {
        file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name != "lock"
    }


def truncate(path):
    os.truncate(path / "arrays.bin", 100)


def flip_a_bit(path):
    damaged = bytearray((path / "arrays.bin").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (path / "arrays.bin").write_bytes(damaged)


def lose_the_manifest(path):
    (path / "manifest.json").unlink()


def garble_the_state(path):
    (path / "state.json").write_text("{")


def garble_the_manifest(path):
    (path / "manifest.json").write_text('{"format": 1}')


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, garble_the_state, garble_the_manifest, lose_the_manifest])
def test_a_damaged_checkpoint_is_passed_over(damage, cut_run, straight, capsys):
    *_, older, newest = checkpoints(cut_run)
    damage(cut_run / newest)
    assert_same(train(cut_run), straight)
    out = capsys.readouterr().out
    assert f"from {older}" in out
    assert (f"{newest} in {cut_run} is damaged" in out) == (damage is not lose_the_manifest)
    assert newest not in checkpoints(cut_run)
    assert len(checkpoints(cut_run)) == 2


def test_a_damaged_one_is_none_of_those_that_are_kept(tmp_path):
    store = snapshots_module.Snapshots(tmp_path)
    for number in range(3):
        store.save({"number": number}, {"ones": np.ones(100)})
        store.wait()
        if number == 1:
            flip_a_bit(tmp_path / "checkpoint-00000002")
            assert store.newest()[0] == "checkpoint-00000001"
    assert checkpoints(tmp_path) == ["checkpoint-00000001", "checkpoint-00000003"]


def test_another_models_checkpoint_is_left_alone(cut_run):
    before = contents(cut_run)

    def other():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return model

    with pytest.raises(ValueError, match="does not fit, and is left as it is.*choose another directory"):
        train(cut_run, model=other)
    assert contents(cut_run) == before


def test_a_full_disk(cut_run, straight, monkeypatch, capsys):
    """The checkpoints stay, half of a new one does not, the training goes on; and once there is room, all is well."""
    before = contents(cut_run)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshots_module.os, "rename", full)
    assert_same(train(cut_run), straight)
    assert contents(cut_run) == before
    assert capsys.readouterr().out.count("could not be written to") == 1
    monkeypatch.undo()
    assert_same(train(cut_run), straight)
    assert contents(cut_run) != before


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="expected a directory in which files can be created"):
        train(tmp_path / "file")


def test_the_lock_names_the_other_run(tmp_path, monkeypatch):
    def held(path):
        path.write_text("process 7 on there")
        raise ValueError("Another process is writing.")

    monkeypatch.setattr(snapshots_module, "hold", held)
    with pytest.raises(ValueError, match="It is process 7 on there"):
        train(tmp_path)


def test_two_are_kept_and_nothing_can_be_unpickled(cut_run):
    assert len(checkpoints(cut_run)) == 2
    assert {path.name for path in (cut_run / checkpoints(cut_run)[0]).iterdir()} == {
        "arrays.bin",
        "state.json",
        "manifest.json",
    }
    sources = pathlib.Path(kvision.__file__).parent.glob("callbacks/*.py")
    texts = (path.read_text().replace("unpickle", "").replace("allow_pickle=False", "") for path in sources)
    assert not any("pickle" in text for text in texts)


# Signals.


class Signal(keras.callbacks.Callback):
    """Sends this process signals before the batch of that number."""

    def __init__(self, *signals, batch=6):
        super().__init__()
        self.signals, self.left = signals, batch

    def on_train_batch_begin(self, batch, logs=None):
        if self.left == 0:
            for number in self.signals:
                signal.raise_signal(number)
        self.left -= 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize("batch", [6, 9], ids=["within", "at the end of an epoch"])
def test_a_signal_saves_and_stops(number, batch, tmp_path, straight, capsys):
    """The batch during which it comes is done, and kept; SIGTERM then does what the process had set."""
    received = []
    former = signal.signal(signal.SIGTERM, lambda *arguments: received.append("SIGTERM"))
    try:
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, Signal(number, batch=batch), Report(tmp_path / "report"))
        assert received == (["SIGTERM"] if number == signal.SIGTERM else [])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, former)
    out = capsys.readouterr().out
    assert f"stopped by {signal.Signals(number).name}" in out
    assert "Report: " in out  # the others have ended too
    assert_same(train(tmp_path, every=100), straight)
    assert ("after 2 of 5 batches" if batch == 6 else "goes on at epoch 3 of 3,") in capsys.readouterr().out


def test_a_second_signal_stops_at_once(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, Signal(signal.SIGINT, signal.SIGINT, batch=2), every=100)
    assert not checkpoints(tmp_path)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_fit_that_broke_off_leaves_signals_alone(tmp_path):
    train(tmp_path, cut=2)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
