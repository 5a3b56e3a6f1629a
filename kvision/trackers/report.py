"""A local report of a run: one page that needs no account and no network."""

import itertools
import json
import math
import time

import keras

from kvision._keras import print_message
from kvision.page import page_of
from kvision.trackers.backend import device_memory, process_memory
from kvision.trackers.clock import clock_of, last_learning_rate, optimizer_steps
from kvision.trackers.events import Advice, Images, Measurement, unique_names
from kvision.trackers.files import readable, replace_file
from kvision.trackers.report_data import ReportData, plain
from kvision.trackers.report_gallery import Gallery
from kvision.trackers.run_config import check_config, config_of, mask_secrets
from kvision.trackers.run_history import RunHistory, read_history
from kvision.trackers.run_source import source_of_run
from kvision.trackers.tracker import Tracker, trackers_of

LAYERS = 1_000  # rows of the model's summary
SOON, QUIET = 5, 60  # seconds within a long epoch after which the page is written again: at first, and later


class Report(Tracker):
    """Writes `report.html`: what a run has done so far, on one page that opens in any browser.

    The page shows the loss and metrics of training and validation, the loss within epochs, the learning rate, update
    ratios, dead ReLUs and gradient norms by layer as vitals measure them, their advice, images, images a second, the
    memory, the model's summary, the configuration, the command line and the git commit. It holds all it needs, loads
    nothing and stays under 2 MB: long runs are thinned, and each stretch keeps its lowest and highest number. It is
    replaced as a whole when training begins, at the end of every epoch and, in long epochs, after some seconds and then
    about once a minute. Beside it lie `history.jsonl` and `history.csv`, which hold every number (see `RunHistory`,
    which need not be listed as well). Where it lies is printed when training ends;
    `python -m kvision.trackers.compare runs/*` puts several runs on one page.

    A run goes on with the page of its directory where it is resumed (`initial_epoch`, or a restored optimizer) and
    where the same model is trained again, compiled anew or not; a new model that begins at epoch 0 replaces it. Images
    are those of the latest `fit`, the newest of each name.

    Args:
        directory: Where the page and the history lie; made when training begins.
        config: A dict of what else the page should name, such as the script's options: `vars(arguments)`. Text under a
            name that reads like a secret (`api_key`, `password`, ...) is masked, in the command line too.

    Attributes:
        path: The path of `report.html`.

    Raises:
        ValueError: For a config that is no dict; before the first batch, if the directory or a file in it cannot be
            written, or another process is writing there.

    Example:

    ```python
    model.fit(x, y, epochs=3, callbacks=[kvision.callbacks.Vitals(), kvision.callbacks.Report("runs/digits")])
    ```
    """

    def __init__(self, directory, config=None):
        super().__init__()
        check_config(config)
        self.config = dict(config or {})
        self.history = RunHistory(directory)
        self.path = self.history.directory / "report.html"
        self._failed = False

    def get_state(self):
        """Where the run stands, to go on from in another process."""
        return self.history.get_state()

    def set_state(self, state):
        """Take over what `get_state` gave, before training begins."""
        super().set_state(state)
        self.history.set_state(state)

    def set_model(self, model):
        super().set_model(model)
        self.history.set_model(model)
        self.history._pace = self._pace
        self._data = ReportData()
        for event in read_history(self.history.directory) if self.writes else ():
            self._data.add(event)
        self._images = Gallery()
        self._status = "waiting"
        self._layers, self._config, self._vectors, self._built = [], {}, [], False
        self._start = self._written = time.time()
        self._epochs_done, self._speed = 0, None
        self._history_is_listed = False  # beside this report, with the same directory: then that one writes
        self._unwritten = False

    def on_train_begin(self, logs=None):
        self.history.on_train_begin()
        self._start = time.time()
        self._history_is_listed = any(
            isinstance(other, RunHistory) and other.directory.resolve() == self.history.directory.resolve()
            for other in trackers_of(self)
        )
        self._attempt("describing the model", self._describe)

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        if not self.writes:
            return
        if self._status == "waiting":  # by now a checkpoint has restored what it restores
            self._status = "running"
            self._data.cut(optimizer_steps(self.model) + 1)
            self._write()
        elif self._unwritten:
            self._write()

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        if not self.writes:
            return
        self._epochs_done += 1
        if not self._built:  # but by its first batch
            self._attempt("describing the model", self._describe)
        self._write()

    def on_train_end(self, logs=None):
        super().on_train_end(logs)
        self.history.on_train_end()
        if self.writes:
            self._status = "finished"
            self._write()
            print_message(f"Report: {readable(self.path)}")

    def record(self, event):
        self._unwritten = True
        if isinstance(event, Images):
            self._attempt("an image", self._images.add, event)
        elif isinstance(event, Measurement | Advice):
            if not self._history_is_listed:
                self.history.record(event)
            self._data.add({"event": type(event).__name__.lower(), **vars(event)})
        self._write_in_a_while()

    def record_steps(self, epoch, step, logs):
        if not self._history_is_listed:
            self.history.record_steps(epoch, step, logs)
        self._data.add({"event": "steps", "epoch": epoch, "step": step, "logs": logs})
        self._write_in_a_while()

    def record_epoch(self, epoch, logs, late=False):
        self._unwritten = True
        self._speed = self.images_per_second or self._speed
        model = self.model
        rate = last_learning_rate(model)
        if rate is not None and not late:
            logs = {"learning_rate": rate} | logs
        if not self._history_is_listed:
            self.history.record_epoch(epoch, logs, late)
        self._data.add({"event": "epoch", "epoch": epoch, "step": optimizer_steps(model), "logs": logs})

    def _write_in_a_while(self):
        """Write the page if the last one is some time ago; in the first minute of a run sooner."""
        now = time.time()
        if self._status == "running" and now - self._written > min(max(now - self._start, SOON) / 2, QUIET):
            self._write()

    def _describe(self):
        model = self.model
        self._built = model.built
        own = {"options": json.loads(json.dumps(self.config, default=str))} if self.config else {}
        config, _ = mask_secrets(config_of(model) | {"source": source_of_run()} | own)
        config.get("compile", {}).pop("optimizer", None)  # it has an entry of its own
        self._config = json.loads(json.dumps(config), parse_constant=str)
        self._layers = list(itertools.islice(_rows(model), LAYERS))
        weights = model.trainable_weights
        paths = unique_names(weight.path for weight in weights)
        self._vectors = [path for path, weight in zip(paths, weights, strict=True) if len(weight.shape) < 2]

    def _write(self):
        self._written = time.time()
        self._unwritten = False
        self._attempt("the page", lambda: replace_file(self.path, self._page()))

    def _page(self):
        seconds = self._written - self._start
        epochs = self.params.get("epochs")
        data = {
            "run": readable(self.path.resolve().parent.name),
            "model": self.model.name,
            "status": self._status,
            "epochs": epochs and clock_of(self.model).epoch(epochs),
            "written": round(self._written),
            "seconds_per_epoch": plain(seconds / self._epochs_done) if self._epochs_done else None,
            "images_per_second": self._speed and plain(self._speed),
            "memory": {"process": process_memory(), "device": device_memory()},
            "config": self._config,
            "layers": self._layers,
            "vectors": self._vectors,
            "images": self._images.page(),
            **self._data.page(),
        }
        title = f"{data['model']} ({data['run']}): training report"
        return page_of("page.html", title, ("elements", "charts", "maps", "page"), data)

    def _attempt(self, what, function, *arguments):
        """Nothing that goes wrong with the page stops the training; it is told once."""
        try:
            function(*arguments)
        except Exception as error:
            if not self._failed:
                print_message(f"\nReport: {what} failed; the training goes on. {type(error).__name__}: {error}")
            self._failed = True


def _rows(layer, depth=0):
    """Depth, name, class, output shape and parameters of every layer, nested models opened."""
    for inner in layer.layers:
        try:
            shape = str(keras.tree.map_structure(lambda tensor: list(tensor.shape), inner.output))
        except (AttributeError, ValueError):  # a layer that was called more than once, or never
            shape = ""
        yield depth, inner.name, type(inner).__name__, shape, sum(math.prod(weight.shape) for weight in inner.weights)
        if isinstance(inner, keras.Model):
            yield from _rows(inner, depth + 1)
