"""Several runs on one page: `python -m kvision.trackers.compare runs/*`."""

import argparse
import json
import pathlib
import re

from kvision._keras import print_message
from kvision.page import page_of
from kvision.trackers.best import Best
from kvision.trackers.events import unique_names
from kvision.trackers.files import readable, replace_file
from kvision.trackers.report_data import ReportData, plain
from kvision.trackers.run_history import read_history

_DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)
_LAST = ("learning_rate", "update_ratio", "dead_relu", "gradient_norm")  # of the curves, behind the metrics


def compare(directories, path="compare.html"):
    """Write one page that shows several runs: their best values, curves over the steps, and what differs between them.

    The page holds all it needs. Curves come from each run's history, the configuration from its `report.html`, where a
    `Report` wrote one.

    Args:
        directories: Those that `Report` or `RunHistory` were given; others are named and left out.
        path: The page; replaced as a whole.

    Returns:
        The path, as a `pathlib.Path`.

    Raises:
        ValueError: If no directory holds a history.

    ```python
    kvision.trackers.compare.compare(["runs/first", "runs/second"], "runs/compare.html")
    ```
    """
    runs, without = [], []
    for directory in map(pathlib.Path, directories):
        try:
            runs.append((directory, read_history(directory)))
        except ValueError:
            without.append(readable(directory))
    if not runs:
        raise ValueError(
            f"No runs to compare: got {without}, expected directories that Report or RunHistory were given. Give one "
            "or more of these."
        )
    if without:
        print_message(f"No runs, left out: {', '.join(without)}")
    names = [directory.resolve().name for directory, _ in runs]
    if len(set(names)) < len(names):
        names = [str(directory) for directory, _ in runs]
    curves, described = {}, []
    for index, (name, (directory, events)) in enumerate(zip(unique_names(names), runs, strict=True)):
        data = ReportData()
        for event in events:
            data.add(event)
        page = data.page()
        lines = page["curves"] | {f"{curve} within epochs": points for curve, points in page["within"].items()}
        for curve, points in lines.items():
            curves.setdefault(curve, []).append({"run": index, "points": points})
        described.append({"name": readable(name)} | _summary(page, events) | {"config": _config_of(directory)})
    order = sorted(curves, key=lambda name: (name.removeprefix("val_") in _LAST, "loss" not in name))
    data = {"runs": described, "curves": {name: curves[name] for name in order}}
    scripts = ("elements", "charts", "compare")
    replace_file(path, page_of("compare.html", f"{len(runs)} runs compared", scripts, data))
    return pathlib.Path(path)


def _summary(page, events):
    """How far a run came, how fast, and the best it reached."""
    best = Best()
    for name, points in page["curves"].items():
        for _, epoch, value in points:
            best.add(epoch, {name: value})
    speeds = [event["images_per_second"] for event in events if "images_per_second" in event]
    return {
        "epochs": 0 if page["epoch"] is None else page["epoch"] + 1,
        "images_per_second": round(speeds[-1]) if speeds else None,
        "best": {name: (plain(value), best.epochs[name]) for name, value in best.values.items()},
    }


def _config_of(directory):
    """The configuration that a run's own page shows, or nothing."""
    try:
        found = _DATA.search((directory / "report.html").read_text(encoding="utf-8"))
        return json.loads(found[1])["config"]
    except (OSError, TypeError, ValueError, KeyError):
        return {}


def main(arguments=None):
    """The command line of `compare`."""
    parser = argparse.ArgumentParser("python -m kvision.trackers.compare", description="Several runs on one page.")
    parser.add_argument("directories", nargs="+", help="those that Report or RunHistory were given")
    parser.add_argument("-o", "--output", default="compare.html", help="the page to write (default: compare.html)")
    options = parser.parse_args(arguments)
    try:
        path = compare(options.directories, options.output)
    except (OSError, ValueError) as error:
        parser.error(readable(error))
    print_message(f"Comparison: {readable(path)}")


if __name__ == "__main__":
    main()
