"""The page in Chromium: drawn without an error, on wide and narrow screens, in light and dark."""

import html
import json
import pathlib
import re

import pytest

from kvision.callbacks.vitals.vitals import Vitals
from kvision.trackers.events import Advice, Measurement
from kvision.trackers.report import Report
from tests.callbacks.runs import STEPS, fit_tiny, tiny_model
from tests.trackers.report_page import open_in_browser, page_data
from tests.trackers.test_report import EVIL, long_run, started

pytestmark = pytest.mark.browser
PROBE = (pathlib.Path(__file__).parent / "report_probe.js").read_text()


@pytest.fixture
def probed(tmp_path):
    """A function: a report -> what a script added to a copy of its page has seen there."""

    def probe(report, style="", **options):
        copy = report.path.with_name("probe.html")
        copy.write_text(f"{report.path.read_text()}<style>{style}</style><script>{PROBE}</script>")
        document, console = open_in_browser(copy, tmp_path / "profile", **options)
        assert console == []
        seen = json.loads(html.unescape(re.search(r"<body[^>]*>(.*?)</body>", document, re.DOTALL)[1]))
        assert seen["error"] is None
        return seen

    return probe


def test_draws_the_curves_and_heat_maps(tmp_path, probed):
    report = Report(tmp_path / "run")
    fit_tiny(tiny_model(), [report, Vitals(every=1)], epochs=4)
    document, console = open_in_browser(report.path, tmp_path / "profile")
    assert console == [] and 'data-drawn="yes"' in document and "data-error" not in document
    seen = probed(report)
    lines = {name: drawn for name, drawn, _ in seen["charts"]}
    assert lines["loss"] == lines["accuracy"] == [4, 4]
    assert lines["learning rate"] == lines["update ratio"] == [4]
    first = page_data(report.path)["curves"]["val_loss"][0][2]
    assert seen["hover"].startswith(f"epoch 1validation {first:.4g}"[:-1])
    assert seen["arrow"].startswith("epoch 3")
    assert "hidden/kernel" in seen["cell"] and f"step {4 * STEPS}" in seen["cell"]
    assert "classes/kernel" in seen["below"]
    assert seen["colours"] > 8 and seen["rows"] == 4
    assert seen["texts"]["status"].startswith("Finished after 4 epochs")


def test_breaks_the_line_where_numbers_are_not_finite(tmp_path, probed):
    report = started(tmp_path / "run", epochs=5)
    for epoch, loss in enumerate([2.0, 1.0, float("nan"), float("inf"), 0.5]):
        report.model.optimizer.iterations.assign(epoch + 1)
        report.on_epoch_end(epoch, {"loss": loss, "only_nan": float("nan")})
    charts = {name: (lines, broken) for name, lines, broken in probed(report)["charts"]}
    assert charts["loss"] == ([3], 2) and charts["only nan"] == ([0], 5)


def test_shows_an_empty_run_and_a_single_epoch(tmp_path, probed):
    report = started(tmp_path / "run")
    seen = probed(report)
    assert seen["charts"] == [] and "no epoch has ended yet" in seen["texts"]["status"]
    report.on_epoch_end(0, {"loss": 1.0})
    assert probed(report)["charts"] == [["loss", [1], 0], ["learning rate", [1], 0]]


def test_text_from_the_run_stays_text(tmp_path, probed):
    report = started(tmp_path / "run")
    report.record(Measurement("update_ratio", 1, {EVIL: 0.5}, (1e-5, 2e-2)))
    report.record(Advice(EVIL, 1, 0, EVIL))
    report.on_epoch_end(0, {EVIL: 1.0})
    seen = probed(report)
    assert seen["elements"] == 0 and EVIL in seen["texts"]["advice"] and EVIL in seen["cell"]
    assert seen["charts"][0][0] == EVIL


def test_a_long_run_fits_the_screen(tmp_path, probed):
    report = long_run(tmp_path / "run")
    for width in (390, 1200):
        seen = probed(report, f"html {{ width: {width}px }}", width=max(width, 500))  # Chromium's own least is 500
        assert seen["wide"] == []
        assert max(count for _, lines, _ in seen["charts"] for count in lines) == 200
        assert seen["colours"] > 100


def test_follows_the_dark_mode_of_the_system(tmp_path, probed):
    report = started(tmp_path / "run")
    light, dark = probed(report)["paper"], probed(report, dark=True)["paper"]
    assert [sum(map(int, re.findall(r"\d+", colour))) // 3 > 128 for colour in (light, dark)] == [True, False]


def ratios(report, step, ratio, rare=1.0):
    """A measurement of two layers, the second `rare` times the first, and the epoch that it ends."""
    report.model.optimizer.iterations.assign(step)
    report.record(
        Measurement("update_ratio", step, {"conv1/kernel": ratio, "conv2/kernel": ratio * rare}, (1e-5, 2e-2))
    )
    report.on_epoch_end(step, {"loss": 1.0, "update_ratio": ratio})


def shown(report, tmp_path):
    document, console = open_in_browser(report.path, tmp_path / "profile")
    assert console == []
    return document


def test_the_ratios_of_an_annealed_rate_are_not_called_unhealthy(tmp_path):
    report = started(tmp_path / "run")
    for step, ratio in enumerate([1e-3, 1e-3, 1e-4, 1e-6, 1e-7], 1):
        ratios(report, step, ratio)
    document = shown(report, tmp_path)
    assert "Small at the last measurement, after a healthy run" in document and "(below)" not in document


@pytest.mark.parametrize(
    ("series", "rare", "told"), [([1e-3, 1e-3], 1e-5, "1e-8"), ([1e-7, 1e-7], 1.0, "1e-7")], ids=["a layer", "the run"]
)
def test_ratios_that_are_low_by_themselves_are_shown_so(tmp_path, series, rare, told):
    report = started(tmp_path / "run")
    for step, ratio in enumerate(series, 1):
        ratios(report, step, ratio, rare)
    assert f"conv2/kernel {told} (below)" in shown(report, tmp_path)


@pytest.mark.parametrize("series", [[1e-3, 0.0, 1e-3], [0.0, 0.0]])
def test_a_ratio_of_zero_lies_below_the_healthy_band(tmp_path, series):
    report = started(tmp_path / "run")
    for step, ratio in enumerate(series, 1):
        ratios(report, step, ratio)
    document = shown(report, tmp_path)
    chart = document[document.index(">update ratio</h3>") :]
    band = re.search(r'class="healthy"[^>]* y="([\d.]+)" height="([\d.]+)"', chart)
    zero = re.search(r'<text [^>]*y="([\d.]+)"[^>]*>0</text>', chart)
    assert float(zero[1]) - 4 > float(band[1]) + float(band[2])
    assert "log scale" in chart
