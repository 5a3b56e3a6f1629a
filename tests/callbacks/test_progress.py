"""The bar on a terminal, one line an epoch elsewhere."""

import sys

import keras
import pytest

from kvision.callbacks import LearningRate, Progress
from tests.callbacks.runs import fit_tiny, tiny_model


@pytest.fixture
def no_notebook(monkeypatch):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    monkeypatch.delenv("PYCHARM_HOSTED", raising=False)
    keras.config.enable_interactive_logging()


def printed(capsys, callbacks, **options):
    fit_tiny(tiny_model(), callbacks, **options)
    return capsys.readouterr().out


@pytest.mark.parametrize("verbose", ["auto", 1, 2])
def test_one_line_an_epoch_without_a_terminal(no_notebook, capsys, verbose):
    out = printed(capsys, [Progress(), LearningRate(0.125)], verbose=verbose)
    assert not set(out) & set("\r\b\x1b")
    lines = out.splitlines()
    assert [line.split(" - ")[0] for line in lines] == ["Epoch 1/2", "Epoch 2/2"]
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        assert f" - {name}: " in lines[0]


def test_the_numbers_of_the_line_are_those_of_the_history(no_notebook, capsys):
    history = fit_tiny(tiny_model(), [Progress()], verbose=1).history
    lines = capsys.readouterr().out.splitlines()
    for epoch, line in enumerate(lines):
        entries = dict(entry.split(": ") for entry in line.split(" - ")[2:])
        assert entries == {name: f"{values[epoch]:.4g}" for name, values in history.items()}


def test_the_bar_of_keras_on_a_terminal(no_notebook, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with_progress, without = (printed(capsys, callbacks, verbose=1) for callbacks in ([Progress()], []))
    assert with_progress.count("━") == without.count("━") > 0
    assert with_progress.count("Epoch 1/2") == 1


def test_silence_stays_silence(no_notebook, capsys):
    assert printed(capsys, [Progress()], verbose=0) == ""
