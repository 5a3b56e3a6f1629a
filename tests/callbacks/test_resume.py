"""A run that was stopped and started again is the one never stopped: weights, optimizer, history, callbacks."""

import json
import random
import signal

import keras
import numpy as np
import pytest

import kvision
from kvision.callbacks import (
    Exposure,
    GradientToWeight,
    LearningRate,
    ReduceOnPlateau,
    Report,
    Resume,
    RunHistory,
    Vital,
    Vitals,
)
from tests.applications.detection.rows import ROWS as ROWS_OF_DETECTORS
from tests.callbacks.resume_runs import (
    EPOCHS,
    Done,
    PowerCut,
    PowerCutError,
    X,
    Y,
    again,
    assert_same,
    data,
    model_again,
    train,
)
from tests.callbacks.runs import tiny_model


@pytest.mark.parametrize("cuts", [[0], [3], [5], [6], [14], [3, 2, 4]], ids=str)
def test_equals_the_run_that_was_never_stopped(cuts, straight, tmp_path):
    """Before the first batch, within an epoch, at its end, within the last batches, and several times."""
    for cut in cuts:
        assert train(tmp_path, cut=cut) is None
    assert_same(train(tmp_path), straight)


def test_saving_changes_nothing(straight):
    batches, model = data(), model_again()
    history = model.fit(batches, epochs=EPOCHS, verbose=0, shuffle=False)
    assert_same(Done(model, {"epoch": history.epoch, **history.history}, []), straight)


ROWS = {
    "float16": lambda: tiny_model(
        keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01), initial_scale=2.0**30)
    ),
    "averages": lambda: tiny_model(keras.optimizers.SGD(0.1, use_ema=True, ema_overwrite_frequency=4)),
    "accumulation": lambda: tiny_model(keras.optimizers.SGD(0.1, gradient_accumulation_steps=3)),
    "several steps": lambda: tiny_model(steps_per_execution=2),
    "compiled by XLA": lambda: tiny_model(jit_compile=True),
    "schedule": lambda: tiny_model(keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 15), momentum=0.9)),
}


@pytest.mark.parametrize(
    "row", [row if row == "averages" else pytest.param(row, marks=pytest.mark.slow) for row in ROWS]
)
def test_every_kind_of_training(row, tmp_path):
    if row == "float16":
        keras.mixed_precision.set_dtype_policy("mixed_float16")
    options = {"validation_data": (X[:8], Y[:8]), "model": ROWS[row]}
    straight = train(tmp_path / "straight", **options)
    train(tmp_path / "cut", cut=7, **options)
    assert_same(train(tmp_path / "cut", **options), straight)


def many_batches():
    numbers = np.random.default_rng(3)
    x, y = numbers.normal(size=(3000, 4)).astype("float32"), numbers.integers(0, 2, 3000)
    return kvision.data.arrays(x, y, batch_size=120, seed=5)


def model_of_two_activations():
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4,))])
    for units, activation in ((16, "relu"), (8, "tanh"), (2, None)):
        model.add(keras.layers.Dense(units, activation))
    model.layers[0].bias.assign(
        [-9.0] * 5 + np.linspace(-4, -2, 11).tolist()
    )  # some are dead, some active now and then
    adam = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01), initial_scale=2.0**127)
    model.compile(adam, keras.losses.SparseCategoricalCrossentropy(from_logits=True), loss_weights=[256.0])
    return model


class LargestUpdate(Vital):
    remembers = ("largest",)

    def __init__(self, every):
        super().__init__(every)
        self.largest = None

    def on_norms(self, norms):
        self.largest = max(norms.updates.values())

    def summary(self):
        return {"largest_update": self.largest}


@pytest.mark.parametrize("cuts", [[2], [45, 12]], ids=str)
def test_vitals_measure_as_in_the_run_that_was_never_stopped(cuts, tmp_path):
    """Between two measurements, within the window of the dead units, and after steps that were skipped."""

    def fit(directory, cut=None):
        vitals = (Vitals(every=20), GradientToWeight(every=21), LargestUpdate(every=30))
        build = {"model": lambda: again(model_of_two_activations), "data": many_batches}
        return train(directory, *vitals, **build, every=1, cut=cut)

    for cut in cuts:
        assert fit(tmp_path / "cut", cut) is None
    run, straight = fit(tmp_path / "cut"), fit(tmp_path / "straight")
    assert_same(run, straight)
    entries = ["update_ratio", "dead_relu", "saturation", "gradient_to_weight", "largest_update"]
    assert np.isfinite([straight.history[name][-1] for name in entries]).all()
    assert straight.history["skipped_steps"][0] > 0
    assert straight.history["dead_relu"][-1] > 0.25


def detector():
    keras.utils.set_random_seed(2)
    model = next(row for row in ROWS_OF_DETECTORS if row.name == "faster_rcnn").tiny()
    model.compile(keras.optimizers.SGD(1e-3, momentum=0.9), jit_compile=False)
    return model


def scenes():
    images, targets = kvision.data.shapes(6, image_size=(64, 64), classes=3, seed=1)
    return kvision.data.arrays(images, targets, batch_size=2, seed=1)


@pytest.mark.slow
def test_a_detector_that_samples(tmp_path):
    """Proposals and anchors are drawn by seeds of the head; each loss is in the history."""
    options = {"model": lambda: again(detector), "data": scenes, "every": 1, "epochs": 2}
    straight = train(tmp_path / "straight", **options)
    train(tmp_path / "cut", cut=2, **options)
    assert_same(train(tmp_path / "cut", **options), straight)
    assert len(straight.history) > 4


def test_without_data_an_epoch_is_begun_anew(tmp_path, capsys):
    def fit(directory, *more):
        model = model_again()
        callbacks = [Resume(directory), *more]
        history = model.fit(X, Y, batch_size=8, epochs=EPOCHS, callbacks=callbacks, verbose=0, shuffle=False)
        return Done(model, {"epoch": history.epoch, **history.history}, callbacks)

    straight = fit(tmp_path / "straight")
    with pytest.raises(PowerCutError):
        fit(tmp_path / "cut", PowerCut(8))
    assert capsys.readouterr().out.count("an interrupted one is begun anew") == 2
    assert_same(fit(tmp_path / "cut"), straight)
    assert "goes on at epoch 2 of 3, from" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cut", "told"),
    [
        (8, "(batch_size was 8, is 4); the interrupted epoch is begun anew."),
        (5, "(batch_size was 8, is 4); the run goes on with them."),
    ],
)
def test_data_that_changed_are_told(cut, told, tmp_path, capsys):
    """Within an epoch the place is no place in them; 36 samples are 5 batches of 8, or 9 of 4."""
    train(tmp_path, cut=cut)
    done = train(tmp_path, data=lambda: kvision.data.arrays(X, Y, batch_size=4, seed=5))
    assert told in capsys.readouterr().out
    assert int(done.model.optimizer.iterations) == {8: 7, 5: 5}[cut] + 2 * 9
    assert len(done.history["loss"]) == EPOCHS


@pytest.mark.parametrize("ended", [False, True], ids=["by its epochs", "by a callback"])
def test_a_run_that_is_done_trains_nothing_more(ended, tmp_path, capsys):
    stop = [keras.callbacks.EarlyStopping("loss", patience=1, min_delta=10, restore_best_weights=True)] if ended else []
    done = train(tmp_path, *stop)
    again = train(tmp_path, *(keras.callbacks.EarlyStopping("loss", patience=1, min_delta=10) for _ in stop))
    assert len(done.history["loss"]) == (2 if ended else EPOCHS)
    assert again.history == done.history
    assert "nothing is trained" in capsys.readouterr().out
    if not ended:
        assert_same(again, done)
        more = train(tmp_path, epochs=EPOCHS + 1)
        assert more.history["epoch"] == [0, 1, 2, 3]


def test_a_fit_leaves_nothing_behind(tmp_path):
    """Neither its first epoch to later fits, also where it breaks off, nor its signal handlers."""
    train(tmp_path, cut=7)
    train(tmp_path, cut=1)
    assert model_again().fit(data(), epochs=2, verbose=0, shuffle=False).epoch == [0, 1]
    train(tmp_path)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class Counts(keras.callbacks.Callback):
    """A callback of a user's, with a memory."""

    def __init__(self):
        super().__init__()
        self.batches, self.largest, self.drawn = 0, np.zeros(3), 0.0

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1
        self.largest[self.batches % 3] += logs["loss"]
        self.drawn += random.random() + np.random.random()

    def get_state(self):
        return {"batches": self.batches, "largest": self.largest, "drawn": self.drawn}

    def set_state(self, state):
        self.batches, self.largest, self.drawn = state["batches"], state["largest"], state["drawn"]


def remembering(folder):
    warm_up = lambda step: 0.1 * min(1.0, (step + 1) / 12)  # noqa: E731
    return [
        keras.callbacks.EarlyStopping("val_loss", patience=9, restore_best_weights=True),
        LearningRate(warm_up),
        ReduceOnPlateau("loss", patience=1, min_delta=10, factor=0.5),
        keras.callbacks.ModelCheckpoint(folder / "best.keras", "val_loss", save_best_only=True),
        keras.callbacks.CSVLogger(folder / "log.csv", append=True),
        Exposure(),
        Counts(),
        RunHistory(folder / "history"),
        Report(folder / "report"),
    ]


def memory(callback):
    hidden = {"append_header", "params", "filepath", "filename", "directory", "path"}
    plain = (int, float, str, list, dict, np.ndarray, type(None))
    return {
        name: value
        for name, value in vars(callback).items()
        if isinstance(value, plain) and name not in hidden and not name.startswith("_")
    }


def without_seconds(path):
    events = [json.loads(line) for line in (path / "history.jsonl").read_text().splitlines()]
    return [{key: value for key, value in event.items() if "second" not in key} for event in events]


@pytest.mark.parametrize(
    ("cut", "last"), [(7, False), *(pytest.param(*row, marks=pytest.mark.slow) for row in [(10, False), (7, True)])]
)
def test_callbacks_remember(cut, last, tmp_path):
    """Also those listed before it; the files that they write are those of the straight run."""
    runs = []
    for name, cuts in (("straight", []), ("cut", [cut])):
        (tmp_path / name).mkdir()
        for each in [*cuts, None]:
            callbacks = remembering(tmp_path / name)
            options = {"validation_data": (X[:8], Y[:8]), "last": last, "cut": each}
            run = train(tmp_path / name / "resume", *callbacks, **options)
        runs.append((run, callbacks))
    (straight, expected), (resumed, callbacks) = runs
    assert_same(resumed, straight)
    for callback, other in zip(callbacks[:7], expected, strict=False):
        np.testing.assert_equal(memory(callback), memory(other), type(callback).__name__)
    assert (tmp_path / "cut/log.csv").read_text() == (tmp_path / "straight/log.csv").read_text()
    rows = [
        np.genfromtxt(tmp_path / run / "history/history.csv", delimiter=",", names=True) for run in ("cut", "straight")
    ]
    assert rows[0]["epoch"].tolist() == rows[1]["epoch"].tolist()
    for tracker in ("history", "report"):
        curves = [without_seconds(tmp_path / run / tracker) for run in ("cut", "straight")]
        assert curves[0] == curves[1], tracker


# What is refused.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "got 0, expected an integer of at least 1"),
        ({"every": "batch"}, "'batch'"),
        ({"every": 10}, "without data"),
        ({"keep": 1}, "expected at least 2"),
        ({"data": X}, "got ndarray, expected a data set of kvision's readers"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_arguments(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Resume(tmp_path, **options)


@pytest.mark.parametrize(
    ("callback", "options", "message"),
    [
        (lambda path: keras.callbacks.BackupAndRestore(path / "backup"), {}, "got BackupAndRestore beside it"),
        (lambda path: Resume(path / "other"), {}, "got Resume beside it"),
        (lambda path: keras.callbacks.CSVLogger(path / "log.csv"), {}, "append=True"),
        (
            lambda path: keras.callbacks.Callback(),
            {"steps_per_epoch": 3},
            "got 3 steps in an epoch of fit and 5 batches",
        ),
    ],
    ids=["backup", "two", "a log that begins anew", "steps"],
)
def test_what_cannot_go_on_is_told_before_training(callback, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "resume", callback(tmp_path), **options)


def test_a_memory_that_cannot_be_kept(tmp_path):
    class Odd(Counts):
        def get_state(self):
            return {"model": self.model}

    with pytest.raises(ValueError, match="memory of a callback cannot be kept: Odd got Sequential"):
        train(tmp_path, Odd())
