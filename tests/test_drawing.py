"""Pictures of runs show the numbers they are given."""

import numpy as np

from kvision.drawing import curves


def test_curves_hold_the_history():
    history = {"loss": [3.0, 2.0, 1.0], "val_loss": [3.5, 2.5, 2.0], "learning_rate": [0.1, 0.1, 0.01]}
    figure = curves(history, title="run")
    loss, rate = figure.axes
    assert [line.get_label() for line in loss.lines] == ["training", "validation"]
    assert np.array_equal(loss.lines[0].get_ydata(), history["loss"])
    assert np.array_equal(loss.lines[1].get_ydata(), history["val_loss"])
    assert rate.get_title() == "learning_rate"
    assert loss.lines[0].get_linestyle() != loss.lines[1].get_linestyle()


def test_a_metric_seen_in_validation_alone_has_its_own_chart():
    assert [axes.get_title() for axes in curves({"loss": [1.0], "val_AP": [0.5]}).axes] == ["loss", "val_AP"]


def test_an_empty_history_is_an_empty_figure():
    assert curves({}).axes == []
