"""How cost grows: time and memory of a step by batch, image size, boxes, proposals and depth, each in its own process.

`make bench ONLY=growth`; about ten minutes on two quiet cores. A straight line is laid through each, so that a reader
sees where there is none.
"""

import dataclasses
import datetime
import statistics

import numpy as np
from comparison import Case
from harness import QUICK
from workers import HERE, MOST_FOREIGN, Worker, wait_until_quiet

NAME, TITLE = "growth", "How cost grows: by batch, image size, boxes, proposals and depth"
PLOT = HERE / "growth.png"
POINT_MS = 1 if QUICK else 2500
ATTEMPTS = 1 if QUICK else 3  # at a point, until others leave the cores alone


@dataclasses.dataclass(frozen=True)
class Axis:
    """What grows.

    Args:
        name: Of the cases in `steps_growth.py`.
        title: What is run.
        numbers: Of the cases.
        unit: What is counted.
        count: How many units a number is: the line is laid through these.
        note: Why it is no straight line, where it is none.
    """

    name: str
    title: str
    numbers: tuple
    unit: str
    count: object = float
    note: str = ""


AXES = (
    Axis(
        "batch",
        "ResNet-18 training step, 128x128",
        (1, 2, 4, 8, 16, 32),
        "images a batch",
        note="The second image costs 22 ms, each of the last sixteen 16: larger products use the cores better.",
    ),
    Axis(
        "size",
        "RetinaNet on ResNet-18, 64 channels, training step, one square image",
        (160, 224, 320, 448, 640),
        "thousand pixels",
        lambda side: side * side / 1e3,
        note="224 pixels lie above the line; why was not looked into.",
    ),
    Axis(
        "boxes",
        "RetinaNet on ResNet-18, 64 channels, training step, one 320x320 image",
        (1, 10, 25, 50, 100),
        "boxes",
        note="Level, as it should be: matching is a small part of the step.",
    ),
    Axis("proposals", "Faster R-CNN on ResNet-18, one 320x320 image", (125, 250, 500, 1000), "proposals"),
    Axis(
        "depth",
        "ResNet of CIFAR, training step, 32 images of 32x32",
        (1, 3, 5, 7, 9),
        "layers",
        lambda blocks: 6 * blocks + 2,
    ),
)


@dataclasses.dataclass(frozen=True)
class Line:
    """A straight line through points, and how far they lie beside it.

    deviation: the largest distance as a fraction of the line; at: where it is.
    """

    start: float
    slope: float
    deviation: float
    at: float


def line(xs, ys):
    """The `Line` of least squares through at least two points."""
    xs, ys = np.asarray(xs, float), np.asarray(ys, float)
    slope, start = np.polyfit(xs, ys, 1)
    beside = np.abs(ys / (start + slope * xs) - 1)
    return Line(float(start), float(slope), float(beside.max()), float(xs[beside.argmax()]))


def measure(facts, log):
    """All points: `{"date", "machine", "axes": {name: [point, …]}}`."""
    axes = {}
    for axis in AXES:
        print(axis.title, flush=True)
        axes[axis.name] = []
        for number in axis.numbers[: 2 if QUICK else None]:
            point = measure_point(axis, number, log)
            print(f"  {axis.count(number):.0f} {axis.unit}: {shown(point)}", flush=True)
            axes[axis.name].append(point)
    return {"date": datetime.date.today().isoformat(), "machine": facts, "axes": axes}


def shown(point):
    if "error" in point:
        return f"failed: {point['error']}"
    return f"{point['median_ms']:.1f} ms, {point['peak_mb']:,} MB, others used {point['foreign']:.0%} of the cores"


def measure_point(axis, number, log):
    """Median, peak and first call of one process; of a few attempts the least disturbed."""
    worker = Worker(Case("kvision", "steps_growth.py", f"{axis.name}:{number}"), log)
    replies, built = [], worker.built
    repetitions = max(3, worker.repetitions_in(POINT_MS))
    while "error" not in built and len(replies) < ATTEMPTS:
        if not QUICK:
            wait_until_quiet(30)
        reply = worker.ask(run=repetitions)
        if "error" in reply:
            built = reply
            break
        replies.append(reply)
        if reply["foreign"] <= MOST_FOREIGN:
            break
    worker.close()
    if "error" in built:
        return {"number": number, "error": built["error"]}
    best = min(replies, key=lambda reply: reply["foreign"])
    return {
        "number": number,
        "median_ms": statistics.median(best["times"]),
        "peak_mb": best["peak_mb"],
        "first_s": built["first_ms"] / 1e3,
        "foreign": best["foreign"],
    }


def section(measured):
    """The lines of RESULTS.md: `{kind: what measure gave}`."""
    if not measured:
        return
    yield from ("", f"## {TITLE}", "", f"![Time and memory of a step]({PLOT.name})")
    for axis in AXES:
        yield from ("", f"**{axis.title}**", "")
        yield f"| {axis.unit} | {' | '.join(f'{axis.count(number):.0f}' for number in axis.numbers)} |"
        yield f"| --- | {' | '.join('---:' for _ in axis.numbers)} |"
        sentences = []
        for kind, result in measured.items():
            points = {point["number"]: point for point in result["axes"].get(axis.name, []) if "error" not in point}
            for name, unit in (("median_ms", "ms"), ("peak_mb", "MB"), ("first_s", "s")):
                cells = (f"{points[n][name]:,.{int(unit == 's')}f}" if n in points else "" for n in axis.numbers)
                what = {"ms": "ms", "MB": "peak MB", "s": "first call s"}[unit]
                yield f"| {what} at {kind} | {' | '.join(cells)} |"
                if len(points) > 2 and unit != "s":
                    sentences.append(fitted(axis, [points[n] for n in points], name, unit, kind))
        yield ""
        yield " ".join([*sentences, axis.note]).strip()
    for kind, result in measured.items():
        foreign = max(p["foreign"] for points in result["axes"].values() for p in points if "error" not in p)
        versions = ", ".join(f"{name} {version}" for name, version in result["machine"]["versions"].items())
        yield ""
        yield f"{kind}; {result['date']}, {versions}, other processes used at most {foreign:.0%}."


def fitted(axis, points, name, unit, kind):
    """The line through some points, in a sentence."""
    found = line([axis.count(point["number"]) for point in points], [point[name] for point in points])
    sign = "+" if found.slope >= 0 else "−"
    return (
        f"At {kind}: {rounded(found.start)} {sign} {rounded(abs(found.slope))} x ({axis.unit}) {unit}, at most "
        f"{found.deviation:.0%} beside it, at {found.at:.0f}."
    )


def rounded(value):
    """Three digits, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def draw(store):
    """The plot of all kinds of machine that have been measured: time above, memory below."""
    measured = {kind: rows["growth"] for kind, rows in store["machines"].items() if "growth" in rows}
    if not measured:
        return
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(3.2 * len(AXES), 5.6), layout="constrained")
    axes = figure.subplots(2, len(AXES))
    for column, axis in enumerate(AXES):
        for row, (name, unit) in enumerate((("median_ms", "ms"), ("peak_mb", "peak MB"))):
            plot = axes[row][column]
            for number, (kind, result) in enumerate(measured.items()):
                points = [point for point in result["axes"].get(axis.name, []) if "error" not in point]
                xs, ys = [axis.count(point["number"]) for point in points], [point[name] for point in points]
                plot.plot(xs, ys, "o", color=f"C{number}", label=kind)
                if len(points) > 2:
                    found = line(xs, ys)
                    ends = np.array([0, max(xs)])
                    plot.plot(ends, found.start + found.slope * ends, "-", color=f"C{number}", linewidth=0.8)
            plot.set(xlabel=axis.unit, xlim=(0, None), ylim=(0, 1.05 * plot.get_ylim()[1]))
            if row == 0:
                plot.set_title(axis.title.replace(", training", ",\ntraining").replace(", one", ",\none"), fontsize=8)
            if column == 0:
                plot.set_ylabel(unit)
    axes[0][0].legend(fontsize=8)
    figure.savefig(PLOT, dpi=110, metadata={"Software": None})
