"""What the report keeps of a long run: bounded, and never without the first, last, lowest and highest number."""

import math

import numpy as np
import pytest

from kvision.trackers.report_data import (
    BUCKETS,
    COLUMNS,
    MISSING,
    NOT_FINITE,
    SENTENCES,
    ZERO,
    Curve,
    Grid,
    ReportData,
)


def curve_of(values):
    curve = Curve()
    for index, value in enumerate(values):
        curve.add(10 * index, index, value)
    return curve


def epoch_event(step, epoch, **logs):
    return {"event": "epoch", "step": step, "epoch": epoch, "seconds": 1.0, "logs": logs}


def measurement(step, **values):
    return {"event": "measurement", "name": "update_ratio", "step": step, "values": values, "healthy": (1e-5, 2e-2)}


def cells(grid):
    """The numbers of a page's cells, within the half per cent of its codes."""
    page = grid.page()
    decode = (lambda code: code / 1000) if page["scale"] == "linear" else (lambda code: 10 ** (code / 100))
    return np.array([[decode(code) for code in row] for row in page["cells"]]), page


def test_a_short_curve_is_kept_whole():
    values = np.random.default_rng(0).normal(size=BUCKETS).tolist()
    assert curve_of(values).points() == [(10 * index, index, value) for index, value in enumerate(values)]


@pytest.mark.parametrize("length", [BUCKETS + 1, 2 * BUCKETS, 5_000, 20_011])
def test_a_long_curve_keeps_ends_and_spikes(length):
    generator = np.random.default_rng(length)
    values = generator.normal(size=length)
    spikes = generator.choice(np.arange(1, length - 1), 6, replace=False)
    values[spikes[:3]], values[spikes[3:]] = 50.0 + np.arange(3), -50.0 - np.arange(3)
    points = curve_of(values.tolist()).points()
    assert len(points) <= 2 * BUCKETS + 2
    assert all(values[epoch] == value and step == 10 * epoch for step, epoch, value in points)
    assert [epoch for _, epoch, _ in points] == sorted({epoch for _, epoch, _ in points})
    assert {0, length - 1, spikes[2], spikes[5]} <= {epoch for _, epoch, _ in points}


def test_every_stretch_of_a_long_curve_keeps_its_extremes():
    values = np.random.default_rng(1).normal(size=8 * BUCKETS)
    kept = {epoch for _, epoch, _ in curve_of(values.tolist()).points()}
    for stretch in np.arange(len(values)).reshape(BUCKETS, -1):
        assert stretch[np.argmin(values[stretch])] in kept
        assert stretch[np.argmax(values[stretch])] in kept


def test_a_nan_survives_thinning():
    values = [1.0] * 4_000
    values[1_234] = math.nan
    assert [epoch for _, epoch, value in curve_of(values).points() if math.isnan(value)] == [1_234]


@pytest.mark.parametrize(
    ("healthy", "scale", "low", "high"), [(None, "log", 1e-6, 1e3), ((0.0, 0.4), "linear", 0.0, 1.0)]
)
@pytest.mark.parametrize("length", [1, COLUMNS, COLUMNS + 1, 1_000])
def test_a_cell_is_the_highest_of_its_stretch(healthy, scale, low, high, length):
    numbers = np.random.default_rng(length).uniform(low, high, (length, 4))
    grid = Grid()
    for step, row in enumerate(numbers):
        grid.add(step, dict(zip("abcd", row.tolist(), strict=True)), healthy)
    got, page = cells(grid)
    assert page["scale"] == scale and page["rows"] == list("abcd") and len(page["steps"]) <= COLUMNS
    covered = [step for first, last in page["steps"] for step in range(first, last + 1)]
    assert covered == list(range(length))
    want = np.array([numbers[first : last + 1].max(0) for first, last in page["steps"]]).T
    np.testing.assert_allclose(got, want, rtol=0.012 if scale == "log" else 0, atol=6e-4)
    assert page["latest"] == {name: float(f"{number:.6g}") for name, number in zip("abcd", numbers[-1], strict=True)}


def test_zero_missing_and_infinite_cells_have_codes_of_their_own():
    grid = Grid()
    grid.add(1, {"early": 0.0, "broken": math.nan})
    grid.add(2, {"late": 1e-3, "early": 1.0, "broken": math.inf})
    page = grid.page()
    assert page["rows"] == ["early", "broken", "late"]
    assert page["cells"] == [[ZERO, 0], [NOT_FINITE, NOT_FINITE], [MISSING, -300]]
    assert page["latest"] == {"late": 1e-3, "early": 1.0, "broken": "Infinity"}


def test_a_negative_number_counts_by_its_magnitude():
    grid = Grid()
    grid.add(1, {"mean": -0.01})
    assert grid.page()["cells"] == [[-200]]


def test_many_rows_have_few_columns():
    grid = Grid()
    for step in range(200):
        grid.add(step, {f"layer{index}": 1.0 for index in range(3_000)})
    page = grid.page()
    assert len(page["rows"]) == 3_000 and len(page["steps"]) <= 16


def fold(events):
    data = ReportData()
    for event in events:
        data.add(event)
    return data


FIRST_RUN = [
    measurement(100, kernel=1e-3),
    epoch_event(150, 0, loss=1.0),
    {"event": "advice", "vital": "update_ratio", "step": 100, "epoch": 0, "text": "first"},
    measurement(200, kernel=2e-3),
    epoch_event(300, 1, loss=0.9),
    measurement(400, kernel=3e-3),
    {"event": "advice", "vital": "update_ratio", "step": 400, "epoch": 1, "text": "second"},
]


def test_a_resumed_run_replaces_what_it_repeats():
    events = [*FIRST_RUN, measurement(200, kernel=5e-3), epoch_event(300, 1, loss=0.8), epoch_event(450, 2, loss=0.7)]
    page = fold(events).page()
    assert page["curves"] == {"loss": [(150, 0, 1.0), (300, 1, 0.8), (450, 2, 0.7)]}
    assert page["grids"]["update_ratio"]["steps"] == [[100, 100], [200, 200]]
    assert page["grids"]["update_ratio"]["cells"] == [[-300, -230]]
    assert [advice["text"] for advice in page["advice"]] == ["first"]
    assert page["epoch"] == 2


def test_a_repeated_epoch_is_replaced_where_nothing_is_measured():
    events = [epoch_event(150, 0, loss=1.0), epoch_event(300, 1, loss=0.9), epoch_event(300, 1, loss=0.8)]
    assert fold(events).page()["curves"] == {"loss": [(150, 0, 1.0), (300, 1, 0.8)]}


@pytest.mark.parametrize("length", [2, 2 * BUCKETS + 1])
@pytest.mark.parametrize("value", [-1.0, 1e6])
def test_a_repeated_point_of_a_curve_is_replaced(length, value):
    values = [float(index) for index in range(length)]
    curve = curve_of(values)
    curve.add(10 * (length - 1), length - 1, value)
    points = curve.points()
    assert points[-1] == (10 * (length - 1), length - 1, value) and values[-1] not in [point[-1] for point in points]


def test_a_run_that_begins_anew_forgets_the_old_one():
    page = fold([*FIRST_RUN, measurement(1, other=1e-2), epoch_event(9, 0, accuracy=0.5)]).page()
    assert page["curves"] == {"accuracy": [(9, 0, 0.5)]}
    assert page["grids"]["update_ratio"]["rows"] == ["other"]
    assert page["advice"] == [] and page["epoch"] == 0


def test_a_second_fit_of_the_same_model_goes_on():
    """Epochs count from 0 again, steps do not."""
    page = fold([*FIRST_RUN, epoch_event(450, 0, loss=0.5)]).page()
    assert page["curves"] == {"loss": [(150, 0, 1.0), (300, 1, 0.9), (450, 0, 0.5)]}
    assert page["epoch"] == 0


def test_epochs_without_an_optimizer_step_are_all_kept():
    assert len(fold([epoch_event(0, epoch, loss=1.0) for epoch in range(3)]).page()["curves"]["loss"]) == 3


def test_vitals_of_the_same_step_as_the_epoch_are_all_kept():
    events = [measurement(100, kernel=1e-3), epoch_event(150, 0, loss=1.0), measurement(150, kernel=1e-4)]
    assert fold(events).page()["grids"]["update_ratio"]["steps"] == [[100, 100], [150, 150]]


def test_late_entries_join_their_epoch():
    late = {**epoch_event(150, 0, score=0.5), "late": True}
    page = fold([epoch_event(150, 0, loss=1.0), late, epoch_event(300, 1, loss=0.9)]).page()
    assert page["curves"] == {"loss": [(150, 0, 1.0), (300, 1, 0.9)], "score": [(150, 0, 0.5)]}


def test_what_is_no_number_has_no_curve():
    assert list(fold([epoch_event(1, 0, loss=np.float32(1.0), text="hello", none=None)]).curves) == ["loss"]


def test_advice_is_bounded_to_the_newest():
    advice = [{"event": "advice", "vital": "dead_relu", "step": n, "epoch": n, "text": str(n)} for n in range(900)]
    kept = fold(advice).page()["advice"]
    assert len(kept) == SENTENCES and kept[-1]["text"] == "899"


def steps_event(step, epoch, loss):
    return {"event": "steps", "step": step, "epoch": epoch, "logs": {"loss": loss}}


def test_the_loss_within_an_epoch_is_a_curve_of_its_own():
    events = [steps_event(1, 0, 3.0), steps_event(2, 0, 2.0), epoch_event(4, 0, loss=2.5), steps_event(5, 1, 1.0)]
    page = fold(events).page()
    assert page["within"] == {"loss": [(1, 0, 3.0), (2, 0, 2.0), (5, 1, 1.0)]}
    assert page["curves"] == {"loss": [(4, 0, 2.5)]} and page["epoch"] == 0


def test_a_resumed_run_replaces_the_steps_it_repeats():
    events = [epoch_event(4, 0, loss=2.5), steps_event(5, 1, 9.0), steps_event(6, 1, 9.0), steps_event(5, 1, 1.0)]
    assert fold(events).page()["within"] == {"loss": [(5, 1, 1.0)]}
