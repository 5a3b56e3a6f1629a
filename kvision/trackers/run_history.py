"""The history of a run as plain files: no account, no network, readable after a kill."""

import csv
import io
import json
import math
import os
import pathlib
import time

import numpy as np

from kvision._keras import print_message
from kvision.trackers.clock import clock_of, optimizer_steps
from kvision.trackers.events import Advice, Measurement
from kvision.trackers.files import hold, readable, release, replace_file, writable_directory
from kvision.trackers.tracker import Tracker

NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class RunHistory(Tracker):
    """Writes what a run yields to `history.jsonl` and `history.csv` while it goes.

    `history.jsonl` holds one JSON object a line, each written through at once, so that a killed run keeps what it had:

    - `{"event": "epoch", "epoch", "step", "seconds", "images_per_second", "logs": {...}}` at the end of every epoch:
      `epoch` and `step` count the epochs and optimizer steps of the run, `seconds` the time since this `fit` began.
      Entries that a later callback adds to the logs follow in a line of their own that carries `"late": true`;
    - `{"event": "steps", "epoch", "step", "logs": {"loss": number}}` within an epoch: the mean loss of the steps since
      the line before. Every step has one at first, then ever fewer: a run of a million steps has about 1,400;
    - `{"event": "measurement", "name", "step", "values": {path: number}, "healthy": [low, high] or null}` and
      `{"event": "advice", "vital", "step", "epoch", "text"}` as vitals emit them. Images are not kept.

    `history.csv` holds the epochs alone, one row each, appended as the epoch ends; only where a column appears that was
    not there before is the file replaced as a whole, and the column is empty in the rows before. A second `fit` and a
    resumed run are appended to what the directory holds. A directory is written by one process at a time.

    JSON knows no NaN and no infinity: they are written as the strings `"NaN"`, `"Infinity"` and `"-Infinity"`
    (`read_history` turns them back into numbers), in the CSV file as `nan`, `inf` and `-inf`.

    Should writing fail in the middle of a run (a full disk), that is told once and the training goes on.

    Args:
        directory: Where the two files lie; made when training begins.

    Raises:
        ValueError: Before the first batch, if the directory or a file in it cannot be written, or another process is
            writing there.

    ```python
    model.fit(x, y, epochs=3, callbacks=[kvision.callbacks.RunHistory("runs/digits")])
    events = kvision.callbacks.read_history("runs/digits")
    losses = [event["logs"]["loss"] for event in events if event["event"] == "epoch"]
    ```
    """

    def __init__(self, directory):
        super().__init__()
        self.directory = pathlib.Path(directory)
        self._start = time.perf_counter()
        self._columns, self._row, self._last_row = [], {}, 0
        self._failed = False
        self._epoch_recorded = -1
        self._restored = None  # where the run stands that goes on

    def get_state(self):
        """Where the run stands, to go on from in another process."""
        size = self.jsonl.stat().st_size if self.jsonl.exists() else 0
        written = {"step": optimizer_steps(self.model), "epoch": self._epoch_recorded, "size": size}
        return super().get_state() | written

    def set_state(self, state):
        """Take over what `get_state` gave, before training begins: what was written of later steps is taken out."""
        super().set_state(state)
        self._restored = dict(state)

    @property
    def jsonl(self):
        """The path of `history.jsonl`."""
        return self.directory / "history.jsonl"

    @property
    def csv(self):
        """The path of `history.csv`."""
        return self.directory / "history.csv"

    def set_model(self, model):
        super().set_model(model)
        if not self.writes:
            return
        writable_directory(self.directory)
        try:
            self.jsonl.touch()
            hold(self.jsonl)
            _complete_last_line(self.jsonl)
            self._columns = _columns_of(self.csv)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ValueError(
                f"Cannot append to the history: got {readable(self.directory)!r} ({error}), expected a directory whose "
                "history.jsonl and history.csv, if any, were written by RunHistory. Choose another directory, or mend "
                "or remove the file."
            ) from error

    def on_train_begin(self, logs=None):
        self._start = time.perf_counter()
        if self.writes:
            if self._restored is not None:
                self._save(self._cut)
            clock_of(self.model).remember(lambda: _ends_of(self.jsonl))

    def on_train_end(self, logs=None):
        super().on_train_end(logs)
        release(self.jsonl)

    def _cut(self):
        """Take out what the run does again: the end of both files."""
        state, self._restored = self._restored, None
        self._epoch_recorded = state["epoch"]
        os.truncate(self.jsonl, min(state["size"], self.jsonl.stat().st_size))
        rows = kept = _rows_of(self.csv)
        while kept and _is_after(kept[-1], state):
            kept = kept[:-1]
        if len(kept) < len(rows):
            head = dict(zip(self._columns, self._columns, strict=True))
            replace_file(self.csv, _csv_lines(self._columns, [head, *kept]))

    def record(self, event):
        if isinstance(event, Measurement | Advice):
            self._append({"event": type(event).__name__.lower(), **vars(event)})

    def record_epoch(self, epoch, logs, late=False):
        self._epoch_recorded = epoch
        row = {
            "epoch": epoch,
            "step": optimizer_steps(self.model),
            "seconds": round(time.perf_counter() - self._start, 3),
        }
        speed = {} if late or self.images_per_second is None else {"images_per_second": self.images_per_second}
        self._append({"event": "epoch", **row, **speed, "logs": logs} | ({"late": True} if late else {}))
        self._row = self._row | logs if late else row | logs | row
        self._save(self._replace_row if late else self._append_row)

    def record_steps(self, epoch, step, logs):
        self._append({"event": "steps", "epoch": epoch, "step": step, "logs": logs})

    def _append(self, event):
        def write():
            with open(self.jsonl, "a", encoding="utf-8") as file:
                file.write(json.dumps(_plain(event), allow_nan=False) + "\n")

        self._save(write)

    def _append_row(self):
        """Add the row of the epoch; a file whose columns do not suffice is replaced."""
        if not self.csv.exists():
            self._columns = []
        new = [name for name in self._row if name not in self._columns]
        if new:
            rows = _rows_of(self.csv)
            self._columns += new
            head = _csv_lines(self._columns, [dict(zip(self._columns, self._columns, strict=True)), *rows])
            self._last_row = len(head)
            replace_file(self.csv, head + _csv_lines(self._columns, [self._row]))
            return
        with open(self.csv, "ab") as file:
            self._last_row = file.tell()
            file.write(_csv_lines(self._columns, [self._row]))

    def _replace_row(self):
        """Write the row of the epoch anew, with the entries that came late."""
        if self.csv.exists():
            os.truncate(self.csv, self._last_row)
        self._append_row()

    def _save(self, write):
        try:
            write()
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            if not self._failed:
                where = readable(self.directory)
                print_message(f"\nRunHistory cannot write to {where}; the training goes on: {readable(error)}")
            self._failed = True


def read_history(directory):
    """Read what `RunHistory` wrote.

    Lines that were cut short when a run was killed are left out. Entries that came late are merged into their epoch.

    Args:
        directory: The directory given to `RunHistory`.

    Returns:
        The events as dicts, in the order of the file, with non-finite numbers as floats.

    Raises:
        ValueError: If there is no history in the directory.
    """
    path = pathlib.Path(directory) / "history.jsonl"
    if not path.is_file():
        raise ValueError(
            f"No history found: got {readable(directory)!r}, expected a directory with the history.jsonl that "
            "RunHistory writes. Give the directory that RunHistory was given."
        )
    events, epoch = [], None
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        event = _parse(line)
        if event is None:
            continue
        for numbers in ("logs", "values"):
            if numbers in event:
                event[numbers] = {
                    key: NON_FINITE.get(value, value) if isinstance(value, str) else value
                    for key, value in event[numbers].items()
                }
        if event.get("late") and epoch is not None:
            epoch["logs"].update(event["logs"])
            continue
        epoch = event if event["event"] == "epoch" else epoch
        events.append(event)
    return events


def _parse(line):
    """The event of one line, or None where the line was cut short."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


def _is_after(row, state):
    """Whether a row of the table is of an epoch's end after the place that `RunHistory.get_state` tells."""
    return int(row["epoch"]) > state["epoch"] or int(row["step"]) > state["step"]


def _ends_of(path):
    """`{epoch: steps at its end}` of the latest run in a history."""
    events = map(_parse, path.read_text(encoding="utf-8", errors="replace").splitlines()) if path.exists() else ()
    return {event["epoch"]: event["step"] for event in events if event is not None and event["event"] == "epoch"}


def _complete_last_line(path):
    """Make sure that what is appended starts on a line of its own: half a line, left by a kill, is taken out."""
    with open(path, "a+b") as file:
        file.seek(0)
        whole, _, rest = file.read().rpartition(b"\n")
        if rest and _parse(rest) is not None:
            file.write(b"\n")
        elif rest:
            file.truncate(len(whole) + 1 if whole else 0)


def _columns_of(path):
    """The columns of a CSV file; half a row, left by a kill, is taken out."""
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    columns = next(csv.reader(io.StringIO(content.decode(), newline="")), [])
    if whole != content:
        os.truncate(path, len(whole))
    return columns if whole else []


def _rows_of(path):
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline=""))) if path.exists() else []


def _csv_lines(columns, rows):
    """Rows of a CSV file, as bytes."""
    text = io.StringIO()
    csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n").writerows(rows)
    return text.getvalue().encode(errors="replace")


def _plain(value):
    """`value` as JSON can hold it."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    array = np.asarray(value)
    if array.ndim:
        return _plain(array.tolist())
    try:
        value = array.item() if array.dtype.kind in "biu" else float(array)
    except (TypeError, ValueError):
        return str(value)
    return value if math.isfinite(value) else {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
