"""Charts of what a trained network gets wrong by matplotlib, loaded on first use."""

import numpy as np

from kvision.drawing.errors import ERROR_COLOURS

MOST_NUMBERS = 30  # classes up to which every cell of a confusion matrix has its number
BLUE, DARK_RED, GREY = "#2f6f9f", "#7f0000", "#888888"
LIGHTEST, DARKEST = 0.5, 0.7  # fractions up to which red, and from which white has a contrast of 4.5 on a blue cell


def confusion_chart(matrix, class_names=None, title=None):
    """A confusion matrix: rows are the labels, columns the predictions, each row shaded by its fractions.

    Args:
        matrix: [n, n] counts.
        class_names: [n] texts; None numbers the classes.
        title: Of the figure, or None.

    Returns:
        A `matplotlib.figure.Figure`; write it with `figure.savefig(path)`.

    Raises:
        ValueError: on a matrix of another shape, or another number of names.

    >>> confusion_chart([[8, 2], [0, 5]], ["cat", "dog"]).axes[0].get_xlabel()
    'prediction'
    """
    from matplotlib.figure import Figure

    matrix = np.asarray(matrix)
    names = [str(name) for name in (range(len(matrix)) if class_names is None else class_names)]
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(names) != len(matrix):
        raise ValueError(
            f"drawing.confusion_chart: expected counts [n, n] and n names, got {matrix.shape} and {len(names)} names."
        )
    size = min(max(3.6, 0.34 * len(names) + 1.6), 12)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.add_subplot()
    fractions = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= MOST_NUMBERS:
        for row, column in np.argwhere(matrix > 0).tolist():
            light = "black" if row == column or fractions[row, column] > LIGHTEST else DARK_RED
            colour = "white" if fractions[row, column] > DARKEST else light
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=colour, fontsize=8)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize="small")
        axes.set_yticks(range(len(names)), names, fontsize="small")
    axes.set_xlabel("prediction")
    axes.set_ylabel("label")
    if title:
        axes.set_title(title, fontsize="medium")
    return figure


def reliability_diagram(confidences, accuracies, counts, title=None):
    """How often predictions are right by how sure they are, in bins of equal width, and how many there are in each.

    On the dashed diagonal a network is right as often as it is sure; bars below it are of an overconfident one. Guo et
    al. 2017, *On Calibration of Modern Neural Networks*, Figure 1.

    Args:
        confidences: [bins] mean confidence in each; NaN where it is empty.
        accuracies: [bins] fraction of right predictions.
        counts: [bins] predictions in each.
        title: Of the figure, or None.

    Returns:
        A `matplotlib.figure.Figure`; write it with `figure.savefig(path)`.

    Raises:
        ValueError: on different numbers of bins.

    >>> figure = reliability_diagram([0.3, 0.9], [0.4, 0.8], [10, 30])
    >>> [axes.get_ylabel() for axes in figure.axes]
    ['accuracy', 'predictions']
    """
    from matplotlib.figure import Figure

    confidences, accuracies, counts = (np.asarray(each, "float64") for each in (confidences, accuracies, counts))
    if confidences.ndim != 1 or not confidences.shape == accuracies.shape == counts.shape:
        raise ValueError(
            "drawing.reliability_diagram: expected as many confidences, accuracies and counts, got "
            f"{confidences.shape}, {accuracies.shape} and {counts.shape}."
        )
    bins = len(counts)
    middles, width = (np.arange(bins) + 0.5) / bins, 1 / bins
    figure = Figure(figsize=(4.4, 5.0), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    held = counts > 0
    above.bar(middles[held], accuracies[held], width, color=BLUE, edgecolor="white", label="accuracy")
    above.plot(confidences[held], accuracies[held], "o", color="black", markersize=3, label="at the mean confidence")
    above.plot([0, 1], [0, 1], "--", color=GREY, label="calibrated")
    above.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    above.legend(frameon=False, fontsize="x-small", loc="upper left")
    below.bar(middles, counts, width, color=GREY, edgecolor="white")
    below.set(xlabel="confidence", ylabel="predictions")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    if title:
        above.set_title(title, fontsize="small")
    return figure


def error_bars(costs, counts=None, title=None):
    """What each kind of error of a detector costs in average precision, as bars.

    Args:
        costs: `{kind: cost}` in [0, 1], such as `{"class": 0.1, "missed": 0.2}`.
        counts: `{kind: number of errors}`, written beside the bars, or None.
        title: Of the figure, or None.

    Returns:
        A `matplotlib.figure.Figure`; write it with `figure.savefig(path)`.

    >>> error_bars({"class": 0.1, "missed": 0.2}, {"class": 3, "missed": 9}).axes[0].get_xlabel()
    'average precision lost'
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 0.36 * len(costs) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    colours = [np.divide(ERROR_COLOURS.get(kind, (136, 136, 136)), 255) for kind in costs]
    positions = np.arange(len(costs))
    axes.barh(positions, list(costs.values()), color=colours)
    for position, (kind, cost) in enumerate(costs.items()):
        number = "" if counts is None or kind not in counts else f"  ({counts[kind]})"
        axes.text(cost, position, f" {cost:.3f}{number}", va="center", fontsize="small")
    axes.set_yticks(positions, [kind.replace("_", " ") for kind in costs], fontsize="small")
    axes.invert_yaxis()
    axes.set_xlim(0, max(1.45 * max(costs.values(), default=0), 0.01))
    axes.set_xlabel("average precision lost")
    axes.spines[["top", "right"]].set_visible(False)
    if title:
        axes.set_title(title, fontsize="medium")
    return figure
