"""The page shows what Keras and the history say, survives bad runs and bad names, and stays small."""

import base64
import io
import re
import time

import keras
import numpy as np
import pytest
from PIL import Image

from kvision.callbacks import RunHistory, read_history
from kvision.callbacks.vitals.vitals import Vitals
from kvision.page import ONE, SIDE, encoded
from kvision.trackers import report as report_module
from kvision.trackers import report_gallery
from kvision.trackers.clock import optimizer_steps
from kvision.trackers.events import Advice, Images, Measurement
from kvision.trackers.report import Report
from kvision.trackers.report_gallery import Gallery
from kvision.trackers.tracker import emit
from tests.callbacks.runs import STEPS, Late, fit_tiny, tiny_model
from tests.trackers.report_page import page_data, parse

SIX_DIGITS = 5e-6
EVIL = "</script><b>&amp;"


class Norms(keras.callbacks.Callback):
    """Emits one measurement a step, as a vital does."""

    def on_train_batch_end(self, batch, logs=None):
        emit(self, Measurement("gradient_norm", optimizer_steps(self.model), {"kernel": 1.0}))


def drive(callbacks, epochs, initial_epoch=0, stop=None):
    """The hooks of a fit of `STEPS` steps an epoch, without its training; it is killed before the step `stop`."""
    model = tiny_model()
    model.optimizer.iterations.assign(initial_epoch * STEPS)
    hooks = keras.callbacks.CallbackList(callbacks, model=model, epochs=epochs)
    hooks.on_train_begin()
    for epoch in range(initial_epoch, epochs):
        hooks.on_epoch_begin(epoch)
        for batch in range(STEPS):
            if epoch * STEPS + batch == stop:
                return
            hooks.on_train_batch_begin(batch)
            model.optimizer.iterations.assign(epoch * STEPS + batch + 1)
            hooks.on_train_batch_end(batch)
        hooks.on_epoch_end(epoch, {"loss": 1.0 / (epoch + 1)})
    hooks.on_train_end()


def started(directory, model=None, epochs=3):
    """A report in the middle of a run, without a `fit`."""
    report = Report(directory)
    report.set_params({"epochs": epochs})
    report.set_model(tiny_model() if model is None else model)
    report.on_train_begin()
    report.on_epoch_begin(0)
    return report


def values(data, name):
    return [value for _, _, value in data["curves"][name]]


@pytest.mark.parametrize("order", ["report first", "report last"])
def test_shows_the_numbers_of_keras_and_of_the_history(tmp_path, order):
    report, history = Report(tmp_path / "report"), RunHistory(tmp_path / "history")
    callbacks = [Vitals(every=1), Late(), history]
    callbacks = [report, *callbacks] if order == "report first" else [*callbacks, report]
    keras_own = fit_tiny(tiny_model(), callbacks, epochs=3)
    data = page_data(report.path)
    assert set(data["curves"]) == {*keras_own.history, "learning_rate"} and "val_loss" in data["curves"]
    for name, numbers in keras_own.history.items():
        shown = [float(value) for value in values(data, name)]  # JSON knows no NaN
        assert shown == pytest.approx(numbers, rel=SIX_DIGITS, nan_ok=True)
    assert values(data, "learning_rate") == pytest.approx([0.1] * 3)
    assert [place[:2] for place in data["curves"]["loss"]] == [[STEPS, 0], [2 * STEPS, 1], [3 * STEPS, 2]]

    events = read_history(history.directory)
    measured = {event["name"]: event for event in events if event["event"] == "measurement"}
    assert set(measured) == set(data["grids"]) >= {"update_ratio", "gradient_norm"}
    for name, event in measured.items():
        grid = data["grids"][name]
        assert grid["latest"] == pytest.approx(event["values"], rel=SIX_DIGITS)
        steps = [each["step"] for each in events if each.get("name") == name]
        assert [first for first, _ in grid["steps"]] == steps
        column = {path: 10 ** (row[-1] / 100) for path, row in zip(grid["rows"], grid["cells"], strict=True)}
        for path, number in event["values"].items():
            if grid["scale"] == "log":
                assert column[path] == pytest.approx(number, rel=0.012)
    advice = [{key: value for key, value in event.items() if key != "event"} for event in events if "text" in event]
    assert data["advice"] == advice
    timed = ("seconds", "images_per_second")
    strip = [{key: value for key, value in event.items() if key not in timed} for event in events]
    own = [
        {key: value for key, value in event.items() if key not in timed} for event in read_history(report.path.parent)
    ]
    for event in own:
        event.get("logs", {}).pop("learning_rate", None)
    assert own == strip


def test_describes_run_and_model(tmp_path):
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="deep")], name="inner")
    model = keras.Sequential([keras.Input((4,)), inner, keras.layers.Dense(2, name="classes")], name="outer")
    model.compile(keras.optimizers.SGD(0.25, momentum=0.5), "mse")
    report = Report(tmp_path / "digits")
    model.fit(np.zeros((4, 4)), np.zeros((4, 2)), epochs=2, callbacks=[report], verbose=0)
    data = page_data(report.path)
    assert (data["run"], data["model"], data["status"]) == ("digits", "outer", "finished")
    assert (data["epochs"], data["epoch"]) == (2, 1)
    assert data["layers"] == [
        [0, "inner", "Sequential", "[None, 3]", 15],
        [1, "deep", "Dense", "[None, 3]", 15],
        [0, "classes", "Dense", "[None, 2]", 8],
    ]
    assert [path.rpartition("/")[2] for path in data["vectors"]] == ["bias", "bias"]
    assert data["config"]["optimizer"]["momentum"] == 0.5 and data["config"]["versions"]["keras"] == keras.__version__
    assert data["config"]["compile"]["loss"] == "mse" and data["config"]["parameters"] == 23
    assert parse(report.path).texts["title"] == "outer (digits): training report"


def test_a_model_built_by_its_first_batch_is_described_after_it(tmp_path):
    model = keras.Sequential([keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    report = Report(tmp_path)
    model.fit(np.zeros((4, 4)), np.zeros((4, 2)), callbacks=[report], verbose=0)
    assert page_data(report.path)["layers"][0][4] == 10


def test_loads_nothing_from_elsewhere(tmp_path):
    report = started(tmp_path)
    page = parse(report.path)
    text = report.path.read_text()
    assert set(re.findall(r"https?://[^\s\"']+", text)) == {"http://www.w3.org/2000/svg"}  # a name, never fetched
    fetched = [value for name, value in page.attributes if name in ("src", "href")]
    assert [value for value in fetched if not value.startswith(("data:", "history."))] == []
    policy = dict(page.attributes)["content"]
    assert policy.startswith("default-src 'none'") and "http" not in policy


def test_names_from_the_run_cannot_break_the_page(tmp_path):
    model = tiny_model()
    model.name = "<b>&"
    report = started(tmp_path, model)
    report.record(Measurement("update_ratio", 1, {EVIL: 1e-3, "<!-- <script>": 1e-3}, (1e-5, 2e-2)))
    report.record(Advice(EVIL, 1, 0, EVIL + "\u2028 ü"))
    report.record(Images(1, {EVIL: np.zeros((4, 4, 3), "uint8")}))
    report.on_epoch_end(0, {EVIL: 1.0})
    page, data = parse(report.path), page_data(report.path)
    assert page.tags.count("script") == 2 and "b" not in page.tags
    assert "<title>&lt;b&gt;&amp; (" in report.path.read_text()
    assert data["advice"][0]["text"] == EVIL + "\u2028 ü"
    assert data["grids"]["update_ratio"]["rows"] == [EVIL, "<!-- <script>"]
    assert data["curves"][EVIL] == [[0, 0, 1.0]] and data["images"][0]["name"] == EVIL


def test_numbers_that_are_not_finite_stay_visible(tmp_path):
    report = started(tmp_path)
    for epoch, loss in enumerate([1.0, float("nan"), float("inf"), -float("inf")]):
        report.on_epoch_end(epoch, {"loss": loss})
    report.record(Measurement("gradient_norm", 1, {"kernel": float("nan")}))
    report.on_train_end()
    data = page_data(report.path)
    assert values(data, "loss") == [1.0, "NaN", "Infinity", "-Infinity"]
    assert data["grids"]["gradient_norm"]["latest"] == {"kernel": "NaN"}


def test_a_run_that_breaks_at_once_has_a_page(tmp_path):
    report = Report(tmp_path)
    drive([report], epochs=2, stop=0)
    data = page_data(report.path)
    assert data["status"] == "running" and data["epoch"] is None and data["curves"] == {}
    assert len(data["layers"]) == 3


def test_a_killed_run_keeps_its_epochs_and_is_continued(tmp_path):
    report = Report(tmp_path)
    drive([Norms(), report], epochs=4, stop=2 * STEPS + 2)
    data = page_data(report.path)
    assert data["status"] == "running" and data["epoch"] == 1 and len(data["curves"]["loss"]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.csv", "history.jsonl", "report.html"]

    drive([Norms(), Report(tmp_path)], epochs=4, initial_epoch=2)
    data = page_data(report.path)
    assert data["status"] == "finished" and data["epoch"] == 3
    assert [step for step, _, _ in data["curves"]["loss"]] == [STEPS, 2 * STEPS, 3 * STEPS, 4 * STEPS]
    assert [first for first, _ in data["grids"]["gradient_norm"]["steps"]] == list(range(1, 4 * STEPS + 1))


def test_a_new_run_replaces_the_page_from_its_first_moment(tmp_path):
    report = Report(tmp_path)
    drive([Norms(), report], epochs=3)
    drive([report], epochs=3, stop=0)
    data = page_data(report.path)
    assert (data["curves"], data["grids"], data["status"]) == ({}, {}, "running")


@pytest.mark.parametrize("order", [1, -1])
def test_a_history_in_the_same_directory_is_not_written_twice(tmp_path, order):
    drive([Norms(), *[Report(tmp_path), RunHistory(tmp_path)][::order]], epochs=2)
    events = [event["event"] for event in read_history(tmp_path)]
    assert events == [*["measurement"] * STEPS, "epoch"] * 2


def test_the_page_follows_advice_that_comes_after_the_epoch_ended(tmp_path):
    report = started(tmp_path)
    report.on_epoch_end(0, {"loss": 1.0})
    report.record(Advice("dead_relu", 1, 0, "late"))
    report.on_epoch_begin(1)
    assert [advice["text"] for advice in page_data(report.path)["advice"]] == ["late"]


def test_a_late_entry_does_not_bring_the_rate_of_the_next_epoch(tmp_path):
    report, logs = started(tmp_path), {"loss": 1.0}
    report.on_epoch_end(0, logs)
    logs["score"] = 0.5
    report.model.optimizer.learning_rate = 0.025
    report.on_epoch_begin(1)
    data = page_data(report.path)
    assert values(data, "score") == [0.5] and values(data, "learning_rate") == [pytest.approx(0.1)]


def test_seconds_per_epoch_are_those_of_the_epochs_done(tmp_path, monkeypatch):
    now = time.time()
    monkeypatch.setattr(report_module.time, "time", lambda: now)
    report = started(tmp_path, epochs=7)
    seen = [page_data(report.path)["seconds_per_epoch"]]
    for epoch, seconds in enumerate([10, 40]):
        now = report._start + seconds
        report.on_epoch_end(epoch, {})
        seen.append(page_data(report.path)["seconds_per_epoch"])
    assert seen == [None, 10.0, 20.0]


def test_secrets_of_the_configuration_are_masked(tmp_path):
    class Remote(keras.losses.MeanSquaredError):
        def get_config(self):
            return super().get_config() | {"api_key": "hunter2-planted"}

    model = tiny_model()
    model.compile("sgd", Remote())
    report = started(tmp_path, model)
    assert page_data(report.path)["config"]["compile"]["loss"]["config"]["api_key"] == "***"
    assert "hunter2-planted" not in report.path.read_text()


def test_a_long_epoch_is_written_soon_and_then_about_once_a_minute(tmp_path, monkeypatch):
    now = time.time()
    monkeypatch.setattr(report_module.time, "time", lambda: now)
    report = started(tmp_path)
    for seconds, shown in [(2, 0), (3, 2), (4, 2), (61, 4), (100, 4), (131, 6)]:
        now = report._start + seconds
        report.record(Measurement("update_ratio", seconds, {"kernel": 1e-3}, (1e-5, 2e-2)))
        grids = page_data(report.path)["grids"]
        assert len(grids["update_ratio"]["steps"] if grids else []) == shown


def test_a_page_that_cannot_be_written_is_told_once_and_stops_nothing(tmp_path, monkeypatch, capsys):
    def full(path, content):
        raise OSError("No space left on device")

    monkeypatch.setattr(report_module, "replace_file", full)
    drive([Report(tmp_path)], epochs=2)
    assert capsys.readouterr().out.count("No space left on device") == 1


def test_a_directory_that_cannot_be_written_is_refused_before_the_first_batch(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="Cannot write to a directory"):
        drive([Report(tmp_path / "file" / "runs")], epochs=1)


def test_the_first_epoch_shows_its_loss_before_it_ends(tmp_path, monkeypatch):
    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            pages.append(page_data(tmp_path / "report.html"))

    monkeypatch.setattr(report_module, "SOON", 0)
    monkeypatch.setattr(report_module, "QUIET", 0)
    pages = []
    fit_tiny(tiny_model(), [Report(tmp_path), Look()], epochs=1)
    assert [len(page["within"].get("loss", ())) for page in pages] == [0, 1, 2, 3]
    assert pages[-1]["curves"] == {} and pages[-1]["status"] == "running"
    assert [point[:2] for point in pages[-1]["within"]["loss"]] == [[1, 0], [2, 0], [3, 0]]


def test_shows_where_the_run_comes_from_and_how_fast_it_is(tmp_path, capsys):
    options = {"depth": 3, "data": {"api_key": "hunter2-planted"}, "path": tmp_path}
    report = Report(tmp_path / "run", config=options)
    fit_tiny(tiny_model(), [report], epochs=2)
    data = page_data(report.path)
    assert data["config"]["options"] == {"depth": 3, "data": {"api_key": "***"}, "path": str(tmp_path)}
    assert set(data["config"]["source"]) <= {"command", "commit"}
    assert data["images_per_second"] > 0 and data["memory"]["process"] > 1e6
    assert "hunter2-planted" not in report.path.read_text()
    assert capsys.readouterr().out == f"Report: {report.path}\n"
    with pytest.raises(ValueError, match="config must be a dict: got list"):
        Report(tmp_path, config=["depth"])


def long_run(directory, layers=200, steps=100_000, epochs=200, every=100):
    """A run of many layers and steps in a second: events only, and no history."""
    report = started(directory, epochs=epochs)
    report._layers = [
        [0, f"layer{n // 10}.{n % 10}.conv1", "Conv2D", "[None, 56, 56, 256]", 589_824] for n in range(layers)
    ]
    numbers = np.random.default_rng(0)
    names = [
        f"layer{n // 10}.{n % 10}.{part}" for n in range(layers) for part in ("conv1/kernel", "bn1/gamma", "bn1/beta")
    ]
    relus = [f"layer{n // 10}.{n % 10}.relu" for n in range(layers)]
    images = {f"image {n}": numbers.integers(0, 256, (300, 400, 3), "uint8") for n in range(8)}
    report.history.record = lambda event: None
    report.history.record_epoch = lambda epoch, logs, late: None
    metrics = [f"{prefix}metric_{n}" for n in range(10) for prefix in ("", "val_")]
    for step in range(0, steps, every):
        for name in ("update_ratio", "gradient_norm"):
            ratios = 10 ** numbers.normal(-3, 1, len(names))
            report.record(Measurement(name, step, dict(zip(names, ratios.tolist(), strict=True)), (1e-5, 2e-2)))
        fractions = numbers.random(layers).tolist()
        report.record(Measurement("dead_relu", step, dict(zip(relus, fractions, strict=True)), (0.0, 0.4)))
        report.record(Advice("update_ratio", step, 0, "a sentence of the usual length " * 4))
    report.record(Images(steps, images))
    for epoch in range(epochs):
        report.model.optimizer.iterations.assign((epoch + 1) * steps // epochs)
        report.record_epoch(epoch, dict(zip(metrics, numbers.random(len(metrics)).tolist(), strict=True)))
    report.on_train_end()
    return report


def test_a_long_run_stays_under_two_megabytes(tmp_path):
    report = long_run(tmp_path)
    assert report.path.stat().st_size < 2_000_000
    data = page_data(report.path)
    assert len(data["grids"]["update_ratio"]["rows"]) == 600 and len(data["layers"]) == 200
    assert data["grids"]["update_ratio"]["steps"][-1][1] == 99_900


def decoded(image):
    return Image.open(io.BytesIO(base64.b64decode(image["source"].partition("base64,")[2])))


def test_pictures_are_in_the_page(tmp_path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3, 2), dpi=100)
    figure.subplots().plot([0, 1])
    gradient = np.linspace(0, 255, 40 * 60 * 3).reshape(40, 60, 3).astype("uint8")
    report = started(tmp_path)
    report.record(Images(1, {"gradient": np.zeros((4, 4, 3), "uint8")}))
    report.record(Images(2, {"figure": figure, "gradient": gradient, "floats": gradient / 255}))
    report.on_train_end()
    images = {image["name"]: image for image in page_data(report.path)["images"]}
    assert {name: image["step"] for name, image in images.items()} == {"figure": 2, "gradient": 2, "floats": 2}
    assert decoded(images["figure"]).size == (300, 200) == (images["figure"]["width"], images["figure"]["height"])
    for name in ("gradient", "floats"):
        assert np.abs(np.asarray(decoded(images[name]), "float32") - gradient).mean() < 2


def test_pictures_are_small_and_the_newest(monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1000, 3), "uint8")
    kind, content, (width, height) = encoded(noise)
    assert len(content) <= ONE and kind == "jpeg" and max(width, height) <= SIDE
    assert height == pytest.approx(1.5 * width, abs=2)
    one = len(encoded(noise[:30, :30])[1])
    monkeypatch.setattr(report_gallery, "ALL", 3 * one)
    book = Gallery()
    for step in range(12):
        book.add(Images(step, {f"noise {step}": noise[:30, :30]}))
    assert [image["step"] for image in book.page()] == [11, 10, 9]


def test_a_picture_that_is_none_stops_nothing(tmp_path, capsys):
    report = started(tmp_path)
    report.record(Images(1, {"broken": np.zeros((2, 2, 2, 2))}))
    report.on_epoch_end(0, {"loss": 1.0})
    assert "an image failed" in capsys.readouterr().out
    assert values(page_data(report.path), "loss") == [1.0]
