"""Several runs on one page: their best, their curves, and what differs between them."""

import subprocess
import sys

import keras
import pytest

from kvision.callbacks import Report, RunHistory, read_history
from kvision.trackers.best import is_lower_better
from kvision.trackers.compare import compare, main
from tests.callbacks.runs import fit_tiny, tiny_model
from tests.trackers.report_page import open_in_browser, page_data, parse


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs with a page, and one with a history alone."""
    directory = tmp_path_factory.mktemp("runs")
    for name, rate in (("slow", 0.01), ("fast", 0.1)):
        model = tiny_model(keras.optimizers.SGD(rate))
        fit_tiny(model, [Report(directory / name, config={"rate": rate, "same": 1})], epochs=3)
    fit_tiny(tiny_model(), [RunHistory(directory / "bare & <b>")], epochs=2)
    (directory / "empty").mkdir()
    (directory / "file.html").write_text("")
    return directory


def test_the_page_holds_the_best_and_the_curves_of_each(runs, tmp_path, capsys):
    main([*map(str, sorted(runs.iterdir())), "-o", str(tmp_path / "page.html")])
    data = page_data(tmp_path / "page.html")
    assert [run["name"] for run in data["runs"]] == ["bare & <b>", "fast", "slow"]
    assert [run["epochs"] for run in data["runs"]] == [2, 3, 3]
    for index, run in enumerate(data["runs"]):
        epochs = [event for event in read_history(runs / run["name"]) if event["event"] == "epoch"]
        losses = [event["logs"]["val_loss"] for event in epochs]
        assert run["best"]["val_loss"] == [pytest.approx(min(losses), rel=1e-5), losses.index(min(losses))]
        accuracies = [event["logs"]["accuracy"] for event in epochs]
        assert run["best"]["accuracy"] == [pytest.approx(max(accuracies), rel=1e-5), accuracies.index(max(accuracies))]
        line = data["curves"]["val_loss"][index]
        assert line["run"] == index and [value for _, _, value in line["points"]] == pytest.approx(losses, rel=1e-5)
    assert [run["config"].get("options") for run in data["runs"]] == [
        None,
        {"rate": 0.1, "same": 1},
        {"rate": 0.01, "same": 1},
    ]
    assert next(iter(data["curves"])).endswith("loss") and "loss within epochs" in data["curves"]
    out = capsys.readouterr().out
    assert f"No runs, left out: {runs / 'empty'}, {runs / 'file.html'}" in out
    assert f"Comparison: {tmp_path / 'page.html'}" in out


def test_runs_of_one_name_go_by_their_paths(runs, tmp_path):
    fit_tiny(tiny_model(), [RunHistory(tmp_path / "fast")], epochs=1)
    page = compare([runs / "fast", tmp_path / "fast"], tmp_path / "page.html")
    assert [run["name"] for run in page_data(page)["runs"]] == [str(runs / "fast"), str(tmp_path / "fast")]


def test_no_run_is_an_error(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"No runs to compare: got \[.*expected directories"):
        compare([tmp_path], tmp_path / "page.html")
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "No runs to compare" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_runs_as_a_module(runs, tmp_path):
    command = [sys.executable, "-m", "kvision.trackers.compare", str(runs / "fast"), str(runs / "slow")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)
    assert "Comparison: compare.html" in done.stdout and "Warning" not in done.stderr
    assert parse(tmp_path / "compare.html").texts["title"] == "2 runs compared"


@pytest.mark.browser
def test_draws(runs, tmp_path):
    page = compare([runs / "fast", runs / "slow", runs / "bare & <b>"], tmp_path / "page.html")
    document, console = open_in_browser(page, tmp_path / "profile")
    assert console == [] and 'data-drawn="yes"' in document and "data-error" not in document
    assert "3 runs compared" in document and "options.rate" in document and "options.same" not in document
    assert 'class="line run run0"' in document and 'class="line run run2"' in document
    assert "bare &amp; &lt;b&gt;" in document


@pytest.mark.parametrize(
    ("name", "lower"),
    [
        ("loss", True),
        ("val_loss", True),
        ("rpn_box_loss", True),
        ("val_mae", True),
        ("rmse", True),
        ("mean_squared_error", True),
        ("accuracy", False),
        ("val_sparse_top_k_categorical_accuracy", False),
        ("val_AP", False),
        ("val_AP50", False),
        ("AP_small", False),
        ("val_AR", False),
        ("mAP", False),
        ("mean_io_u", False),
        ("iou", False),
        ("val_f1_score", False),
        ("learning_rate", None),
        ("update_ratio", None),
        ("gradient_norm", None),
        ("images_seen", None),
        ("dead_relu", None),
    ],
)
def test_the_name_of_a_metric_tells_what_is_better(name, lower):
    assert is_lower_better(name) is lower
