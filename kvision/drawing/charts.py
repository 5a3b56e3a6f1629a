"""Charts of runs by matplotlib, loaded on first use."""

import math

from kvision.drawing.canvas import PALETTE

# Line styles differ as well as colours: training is solid, validation dashed.
TRAIN, VALIDATION = {"color": "#2f6f9f", "linestyle": "-"}, {"color": "#c2571a", "linestyle": "--"}
SERIES = [PALETTE[index] for index in (6, 5, 4, 2, 0, 1)]  # those that are dark enough for a line on white


def curves(history, title=None):
    """The curves of a run, one small chart per metric, training and validation together.

    Args:
        history: `{name: [value of each epoch]}`, as `keras.callbacks.History.history`.
        title: Of the figure, or None.

    Returns:
        A `matplotlib.figure.Figure`; write it with `figure.savefig(path)`.

    >>> curves({"loss": [2.0, 1.0], "val_loss": [2.1, 1.4]}).axes[0].get_title()
    'loss'
    """
    from matplotlib.figure import Figure

    names = [name for name in history if not (name.startswith("val_") and name[4:] in history)]
    columns = min(3, max(1, len(names)))
    rows = math.ceil(len(names) / columns) or 1
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows), layout="constrained")
    for index, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, index + 1)
        epochs = range(1, len(history[name]) + 1)
        axes.plot(epochs, history[name], label="training", **TRAIN)
        if f"val_{name}" in history:
            validated = history[f"val_{name}"]
            axes.plot(range(1, len(validated) + 1), validated, label="validation", **VALIDATION)
            axes.legend(frameon=False, fontsize="small")
        axes.set_title(name, fontsize="medium")
        axes.set_xlabel("epoch", fontsize="small")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    if title:
        figure.suptitle(title)
    return figure


def lines(series, x_label, y_label, title=None):
    """Lines through points in one chart, each with its name.

    Args:
        series: `{name: (x, y)}`, sequences of as many numbers each; a name of None leaves a line out of the legend.
        x_label, y_label: What the axes show.
        title: Of the chart, or None.

    Returns:
        A `matplotlib.figure.Figure`; write it with `figure.savefig(path)`.

    >>> lines({"plain": ([0, 8], [0.98, 0.1])}, "epsilon", "accuracy").axes[0].get_xlabel()
    'epsilon'
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 3.8), layout="constrained")
    axes = figure.subplots()
    colours = [tuple(value / 255 for value in colour) for colour in SERIES]
    for index, (name, (x, y)) in enumerate(series.items()):
        axes.plot(x, y, color=colours[index % len(colours)], marker="o", markersize=3, label=name)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
    if any(name is not None for name in series):
        axes.legend(frameon=False, fontsize="small")
    if title:
        axes.set_title(title, fontsize="medium")
    return figure
