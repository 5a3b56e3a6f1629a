"""A run in Weights & Biases: a thin tracker on `run.log` which no server can stop."""

import os
import pathlib
import shlex
import sys
import weakref

import keras
import numpy as np

from kvision._keras import print_message
from kvision.errors import unknown
from kvision.trackers.best import Best
from kvision.trackers.clock import last_learning_rate, optimizer_steps
from kvision.trackers.events import Advice, Images, Measurement
from kvision.trackers.files import readable, writable_directory
from kvision.trackers.run_config import check_config, config_of, mask_secrets
from kvision.trackers.run_source import source_of_run
from kvision.trackers.tracker import Tracker, trackers_of
from kvision.trackers.wandb_mode import choose_mode
from kvision.trackers.wandb_overlay import wandb_image

STEP = "trainer/step"
MODES = ("online", "offline", "disabled")
BOUNDS = {"init_timeout": 20, "finish_timeout": 60}  # seconds
RESUME = ("allow", "must", "never", "auto")

_begun = weakref.WeakSet()  # runs that a logger has begun


class WandbLogger(Tracker):
    """Records a run in Weights & Biases, online or offline.

    Everything is logged over `trainer/step`, the optimizer's steps:

    - `epoch/<name>`: the logs of every epoch, `epoch/learning_rate`, and `epoch/images_per_second` of the training;
    - `batch/loss`: the loss within an epoch, the mean of the steps since the point before: every step at first, then
      ever fewer, so that a long run stays small;
    - `vitals/<name>/<weight or layer path>`: the numbers that vitals measure; `advice/<vital>`: their sentences;
      `images/<name>`: their images, and with W&B's own boxes and masks those of `DetectionImages` and
      `SegmentationImages`;
    - `media/<name>`: what `media` returns; `weights/<path>`: histograms of the weights.

    The run's summary holds the latest of each, and `best/<name>` of the metrics whose name tells what is better (lower:
    loss, error; higher: accuracy, AP, IoU, ...).

    The run's config holds the user's `config` and, where that has no entry of the name, `compile`, `optimizer`,
    `parameters`, `versions` and `source` (command line and git commit). Text under a name that reads like a secret
    (`api_key`, `hf_token`, `password`, ...) is masked, and one line says so.

    **Online or offline** is decided before the first batch. The environment variable `WANDB_MODE` wins over `mode`.
    Where neither says `"offline"` or `"disabled"`, the run goes online if there is an API key and the server answers
    one anonymous request with 200 within 5 seconds, else offline, and one line says why; so `"online"` too means
    "online if possible". `wandb sync` uploads an offline run later. Should the server refuse the run after all, it is
    recorded offline as well.

    **Nothing here stops or changes the training.** A server that fails later costs nothing until the end of the run,
    which waits at most 60 seconds for the upload (`WANDB_FINISH_TIMEOUT` changes that). A call to W&B or to `media`
    that raises is told once, with the exception, and left out.

    If a run is active already (`wandb.init` was called), it is used, its config is completed, and it is not finished.
    Otherwise every `fit` is a run of its own. One that was interrupted is finished, as failed, when the next begins.

    Numbers of your own join the run with `wandb.log({"mine": 1.0, "trainer/step": step})`, without `step=`: W&B drops
    what it is given with a `step=` below its own count of calls, which this logger raises with every call.

    Args:
        project: The W&B project; None leaves it to `WANDB_PROJECT` or W&B.
        config: A dict of hyperparameters for the run's config.
        name, id, group: Name of the run, its id (letters and digits, for `resume`), and the group it belongs to.
        tags: A list of strings.
        resume: `"allow"`, `"must"`, `"never"` or `"auto"`: whether a run with this `id` goes on, as `wandb.init` takes
            it; None begins a new one.
        mode: `"online"`, `"offline"`, `"disabled"`, or None for what is possible.
        media: A function `model -> {name: matplotlib figure or image array}`, called at the end of every epoch. An
            array is [height, width] or [height, width, 3], uint8, or float in [0, 1].
        histograms: Whether to log a histogram of every trainable weight at the end of every epoch.
        directory: Where W&B keeps the run's files, below `wandb/`; None leaves it to `WANDB_DIR` or W&B.

    Attributes:
        run: The W&B run of the latest `fit`, or None.
        location: Where it lies, in words; printed at the end of the run.

    Raises:
        ValueError: For an unknown mode or `resume`, a config that is no dict, media that is no function; before the
            first batch, for a directory that cannot be written, and for a name, id, group, tags or `resume` where a
            run is active, which has its own.

    ```python
    model.fit(x, y, epochs=3, callbacks=[kvision.callbacks.WandbLogger("digits", config={"augmentation": "light"})])
    ```
    """

    def __init__(
        self,
        project=None,
        config=None,
        mode=None,
        media=None,
        histograms=False,
        directory=None,
        name=None,
        id=None,
        group=None,
        tags=None,
        resume=None,
    ):
        super().__init__()
        if mode is not None and mode not in MODES:
            raise unknown("W&B mode", mode, MODES)
        if resume is not None and resume not in RESUME:
            raise unknown("resume", resume, RESUME)
        if isinstance(tags, str):
            raise ValueError(f"tags are a list of strings: got {tags!r}. Give [{tags!r}].")
        check_config(config)
        if media is not None and not callable(media):
            raise ValueError(
                f"media must be a function: got {type(media).__name__}, expected model -> {{name: figure or array}}. "
                "Give the function itself."
            )
        self.project = project
        self.config = dict(config or {})
        self.mode = mode
        self.media = media
        self.histograms = histograms
        self.directory = directory
        identity = {"name": name, "id": id, "group": group, "tags": tags, "resume": resume}
        self._identity = {key: value for key, value in identity.items() if value is not None}
        self.run = None
        self.location = None
        self._early = []  # events from before the run began, then None
        self._restored = None  # of the run that goes on
        self._owned = False
        self._told = set()

    def get_state(self):
        """The run's id, and the best values so far, to go on in the same run from another process."""
        best = {"best": self._best.values, "epochs": self._best.epochs}
        return super().get_state() | best | {"id": getattr(self.run, "id", None)}

    def set_state(self, state):
        """Take over what `get_state` gave, before training begins."""
        super().set_state(state)
        self._restored = dict(state)

    def set_model(self, model):
        super().set_model(model)
        self._early = []
        self._best = Best()
        if self.directory is not None and self.writes:
            writable_directory(self.directory)

    def on_train_begin(self, logs=None):
        if not self.writes:
            return
        self._check_identity()
        if self._restored is not None:
            self._best.values, self._best.epochs = dict(self._restored["best"]), dict(self._restored["epochs"])
        self._attempt("starting the run", self._begin)
        self._restored = None
        early, self._early = self._early, None
        for event in early or ():
            self.record(event)

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        if not self.writes:
            return
        if self.media is not None:
            self._attempt("media", self._log_media)
        if self.histograms:
            self._attempt("histograms", self._log_histograms)

    def on_train_end(self, logs=None):
        super().on_train_end(logs)
        if self._owned:
            self._owned = False
            self._attempt("finishing the run", self.run.finish)
            if self.location:
                print_message(f"W&B: {self.location}")

    def record(self, event):
        if self._early is not None:
            self._early.append(event)
        elif isinstance(event, Measurement):
            values = {f"vitals/{event.name}/{path}": number for path, number in event.values.items()}
            self._log("measurements", values, event.step)
        elif isinstance(event, Advice):
            self._log("advice", {f"advice/{event.vital}": event.text}, event.step)
        elif isinstance(event, Images):
            log, images = (self._log_overlays, event.overlays) if event.overlays else (self._log_images, event.images)
            self._attempt("images", log, "images", images, event.step)

    def record_epoch(self, epoch, logs, late=False):
        entries = {f"epoch/{name}": value for name, value in logs.items()}
        if not late:
            entries["epoch/epoch"] = epoch
            rate = last_learning_rate(self.model)
            if rate is not None:
                entries.setdefault("epoch/learning_rate", rate)
            if self.images_per_second is not None:
                entries["epoch/images_per_second"] = self.images_per_second
        self._log("the logs of an epoch", entries, optimizer_steps(self.model))
        best = {f"best/{name}": value for name, value in self._best.add(epoch, logs).items()}
        if self.run is not None and best:
            self._attempt("the best values", self.run.summary.update, best)

    def record_steps(self, epoch, step, logs):
        self._log("the loss of a step", {f"batch/{name}": value for name, value in logs.items()}, step)

    def _check_identity(self):
        wandb = sys.modules.get("wandb")
        run = getattr(wandb, "run", None)
        if self._identity and run is not None and run not in _begun:
            given = ", ".join(self._identity)
            raise ValueError(
                f"WandbLogger: a run is active, which has its own name and id: got {given}. Give them to wandb.init, "
                "or call wandb.finish() before fit."
            )

    def _begin(self):
        import wandb

        if wandb.run is not None and wandb.run in _begun and not self._is_of_this_fit(wandb.run):
            wandb.run.finish(exit_code=1)  # left open by a fit that was interrupted
        config, masked = mask_secrets(config_of(self.model) | {"source": source_of_run()} | self.config)
        if masked:
            print_message(f"W&B: the config entries {', '.join(masked)} read like secrets and are masked.")
        self.run, self._owned = wandb.run, False
        if self.run is None:
            self.run = self._start(wandb, config)
            self._owned = True
            _begun.add(self.run)
        else:
            self.run.config.update({key: value for key, value in config.items() if key not in self.run.config})
        self.location = _location(self.run)
        self.run.define_metric(STEP)
        for group in ("epoch", "batch", "vitals", "advice", "images", "media", "weights"):
            self.run.define_metric(f"{group}/*", step_metric=STEP)

    def _is_of_this_fit(self, run):
        """Whether another logger of this fit has begun `run`."""
        return any(other is not self and other._owned and other.run is run for other in _loggers_of(self))

    def _start(self, wandb, config):
        bounds = {name: seconds for name, seconds in BOUNDS.items() if f"WANDB_{name.upper()}" not in os.environ}
        restored = None if self._restored is None else self._restored["id"]
        options = {
            "project": self.project,
            "config": config,
            "dir": self.directory,
            "settings": bounds | {"silent": True},
            **({"id": restored, "resume": "allow"} if restored else {}),
            **self._identity,
        }
        mode = choose_mode(self.mode)
        try:
            return wandb.init(mode=mode, **options)
        except Exception as error:
            if mode == "offline":
                raise
            print_message(f"W&B: the server refused the run ({type(error).__name__}: {error}); recording offline.")
            return wandb.init(mode="offline", **options)

    def _attempt(self, what, function, *arguments):
        """Call W&B or `media`; an exception is told once and never reaches the training."""
        try:
            function(*arguments)
        except Exception as error:
            if what not in self._told:
                print_message(f"\nWandbLogger: {what} failed; the training goes on. {type(error).__name__}: {error}")
            self._told.add(what)

    def _log(self, what, entries, step):
        if self.run is not None and entries:
            self._attempt(what, self.run.log, {**entries, STEP: step})

    def _log_media(self):
        images = self.media(self.model) or {}
        self._log_images("media", images, optimizer_steps(self.model))
        if "matplotlib.pyplot" in sys.modules:
            for image in images.values():
                if hasattr(image, "savefig"):
                    sys.modules["matplotlib.pyplot"].close(image)

    def _log_images(self, group, images, step):
        import wandb

        images = {f"{group}/{name}": wandb.Image(_drawable(image)) for name, image in images.items()}
        self._log(group, images, step)

    def _log_overlays(self, group, overlays, step):
        images = {f"{group}/{name}": [wandb_image(overlay) for overlay in each] for name, each in overlays.items()}
        self._log(group, images, step)

    def _log_histograms(self):
        import wandb

        histograms = {}
        for weight in self.model.trainable_weights:
            values = keras.ops.convert_to_numpy(weight).astype("float64")  # float32 has no 64 bins in a narrow range
            values = values[np.isfinite(values)]
            if values.size:
                histograms[f"weights/{weight.path}"] = wandb.Histogram(values)
        self._log("histograms", histograms, optimizer_steps(self.model))


def _loggers_of(callback):
    return [tracker for tracker in trackers_of(callback) if isinstance(tracker, WandbLogger)]


def _location(run):
    """Where a run lies, in words: its page, or the command that uploads what is recorded offline."""
    if run.disabled:
        return None
    if run.offline:
        path = shlex.quote(readable(pathlib.Path(run.dir).parent))
        return f"recorded offline; to upload it: wandb sync {path}"
    return run.url


def _drawable(image):
    """A figure as it is; an array as uint8, which is all that W&B takes without cutting it off."""
    if hasattr(image, "savefig"):
        return image
    array = keras.ops.convert_to_numpy(image)
    if array.dtype.kind not in "iu":
        array = np.round(255 * np.nan_to_num(array.astype("float32")))
    return np.clip(array, 0, 255).astype("uint8")
