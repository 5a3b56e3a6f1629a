"""What the local report shows, folded from the events of a run and kept within bounds however long it is."""

import functools
import math

import numpy as np

BUCKETS = 300  # of a curve, two points each
CELLS = 48_000  # of a heat map
COLUMNS = 80  # of a heat map, at most
SENTENCES = 200  # of advice
MISSING, ZERO, NOT_FINITE = -10_000, -9_999, 9_999  # codes of cells, known to report.js


class _Buckets:
    """Stretches of equally many entries; joined two by two when there are too many of them.

    An entry is a tuple that begins with its count; `join` makes one of two neighbours.
    """

    def __init__(self, join):
        self.join = join
        self.size = 1
        self.entries = []

    def add(self, entry, limit):
        if self.entries and self.entries[-1][0] < self.size:
            entry = self.join(self.entries.pop(), entry)
        self.entries.append(entry)
        while len(self.entries) > limit:
            self.size *= 2
            pairs = (self.entries[first : first + 2] for first in range(0, len(self.entries), 2))
            self.entries = [functools.reduce(self.join, pair) for pair in pairs]


class Curve:
    """A number over the steps, thinned: the first and last point, and the lowest and highest of every stretch.

    Example:

    >>> curve = Curve()
    >>> curve.add(step=10, epoch=0, value=0.5)
    >>> curve.points()
    [(10, 0, 0.5)]
    """

    def __init__(self):
        self._buckets = _Buckets(_extremes)
        self._first = self._last = None

    def add(self, step, epoch, value):
        point = (step, epoch, value)
        if self._last is not None and _position(point) <= _position(self._last):  # an epoch that a resumed run repeats
            self.cut(_position(point))
        self._first, self._last = self._first or point, point
        self._buckets.add((1, point, point), BUCKETS)

    def points(self):
        """At most `2 * BUCKETS + 2` tuples of step, epoch and value, in order."""
        points = [self._first, self._last, *(point for entry in self._buckets.entries for point in entry[1:])]
        return sorted({point[:2]: point for point in points if point}.values(), key=_position)

    def cut(self, position):
        """Forget what was seen at `position`, a step and an epoch, and later."""
        kept = [point for point in self.points() if _position(point) < position]
        self._buckets, self._first, self._last = _Buckets(_extremes), None, None
        for point in kept:
            self.add(*point)


def _position(point):
    return point[:2]


def _rank(point):
    return math.inf if math.isnan(point[-1]) else point[-1]


def _extremes(one, two):
    return one[0] + two[0], min(one[1], two[1], key=_rank), max(one[2], two[2], key=_rank)


class Grid:
    """Numbers by layer over the steps, thinned: a cell holds the highest number of its stretch."""

    def __init__(self):
        self.healthy = None
        self.latest = {}
        self._rows = {}
        self._columns = _Buckets(lambda one, two: (one[0] + two[0], one[1], two[2], _highest(one[3], two[3])))

    def add(self, step, values, healthy=None):
        self.healthy = healthy
        self.latest = dict(values)
        rows = [self._rows.setdefault(name, len(self._rows)) for name in values]
        column = np.full(len(self._rows), np.nan)
        numbers = np.array(list(values.values()), "float64")
        column[rows] = np.where(np.isfinite(numbers), numbers, np.inf)
        self._columns.add((1, step, step, column), min(max(CELLS // max(len(self._rows), 1), 8), COLUMNS))

    def cut(self, step):
        """Forget what was seen at `step` and later."""
        self._columns.entries = [entry for entry in self._columns.entries if entry[2] < step]
        return self._columns.entries

    def page(self):
        """As JSON can hold it: cells are hundredths of a decade of the magnitude, or thousandths on a linear scale."""
        linear = self.healthy is not None and self.healthy[0] == 0
        columns = [entry[3] for entry in self._columns.entries]
        cells = np.full((len(columns), len(self._rows)), np.nan)
        for row, column in zip(cells, columns, strict=True):
            row[: len(column)] = column
        with np.errstate(divide="ignore", invalid="ignore"):
            codes = np.round(cells * 1000 if linear else np.log10(np.abs(cells)) * 100)
        codes[np.isposinf(cells)] = NOT_FINITE
        codes[cells == 0] = 0 if linear else ZERO
        codes[np.isnan(cells)] = MISSING
        return {
            "healthy": self.healthy,
            "scale": "linear" if linear else "log",
            "rows": list(self._rows),
            "steps": [[first, last] for _, first, last, _ in self._columns.entries],
            "cells": codes.T.astype(int).tolist(),
            "latest": {name: plain(value) for name, value in self.latest.items()},
        }


def _highest(one, two):
    longer = np.full(max(len(one), len(two)), np.nan)
    longer[: len(one)] = one
    longer[: len(two)] = np.fmax(longer[: len(two)], two)
    return longer


class ReportData:
    """The events of a run, as `history.jsonl` holds them, folded into curves, heat maps and advice.

    Where a run was resumed or begun anew its steps start again from an earlier one: what came after is forgotten.
    """

    def __init__(self):
        self.curves, self.grids, self.advice = {}, {}, []
        self.within = {}  # curves of what is known within an epoch
        self._steps = {}

    def add(self, event):
        """Take in one event: a dict with the fields of a line of `history.jsonl`."""
        if event["event"] == "advice":
            self.advice.append({name: event[name] for name in ("vital", "step", "epoch", "text")})
            del self.advice[:-SENTENCES]
            return
        series = event.get("name", event["event"])
        if event["step"] < self._steps.get(series, 0):
            self.cut(event["step"])
        self._steps[series] = event["step"]
        if event["event"] == "measurement":
            self.grids.setdefault(series, Grid()).add(event["step"], event["values"], event["healthy"])
        else:
            curves = self.within if event["event"] == "steps" else self.curves
            for name, value in event["logs"].items():
                if _is_number(value):
                    curves.setdefault(name, Curve()).add(event["step"], event["epoch"], float(value))

    def cut(self, step):
        """Forget what was seen at `step` and later."""
        for curve in (*self.curves.values(), *self.within.values()):
            curve.cut((step, -1))
        self.curves = {name: curve for name, curve in self.curves.items() if curve.points()}
        self.within = {name: curve for name, curve in self.within.items() if curve.points()}
        self.grids = {name: grid for name, grid in self.grids.items() if grid.cut(step)}
        self.advice = [advice for advice in self.advice if advice["step"] < step]
        self._steps = {}

    def page(self):
        """As JSON can hold it; numbers have six digits, epochs count from 0."""
        curves = {name: curve.points() for name, curve in self.curves.items()}
        return {
            "epoch": max((_position(points[-1]) for points in curves.values()), default=(0, None))[1],
            "curves": {name: _plain_points(points) for name, points in curves.items()},
            "within": {name: _plain_points(curve.points()) for name, curve in self.within.items()},
            "grids": {name: grid.page() for name, grid in self.grids.items()},
            "advice": self.advice,
        }


def _plain_points(points):
    return [(step, epoch, plain(value)) for step, epoch, value in points]


def _is_number(value):
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def plain(value):
    """A number with six digits; JSON knows no NaN and no infinity, so these are text."""
    value = float(value)
    if math.isfinite(value):
        return float(f"{value:.6g}")
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
