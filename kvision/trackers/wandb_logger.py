"""A run in Weights & Biases: a thin tracker on `run.log` which no server can stop."""

import os
import pathlib
import sys

import keras
import numpy as np

from kvision._keras import print_message
from kvision.errors import unknown
from kvision.trackers.clock import last_learning_rate, optimizer_steps
from kvision.trackers.events import Advice, Images, Measurement
from kvision.trackers.files import writable_directory
from kvision.trackers.run_config import config_of, mask_secrets
from kvision.trackers.tracker import Tracker
from kvision.trackers.wandb_mode import choose_mode
from kvision.trackers.wandb_overlay import wandb_image

STEP = "trainer/step"
MODES = ("online", "offline", "disabled")
BOUNDS = {"init_timeout": 20, "finish_timeout": 60}  # seconds


class WandbLogger(Tracker):
    """Records a run in Weights & Biases, online or offline.

    Everything is logged over `trainer/step`, the optimizer's steps:

    - `epoch/<name>`: the logs of every epoch, and `epoch/learning_rate`;
    - `vitals/<name>/<weight or layer path>`: the numbers that vitals measure; `advice/<vital>`: their sentences;
      `images/<name>`: their images, and with W&B's own boxes and masks those of `DetectionImages`;
    - `media/<name>`: what `media` returns; `weights/<path>`: histograms of the weights.

    The run's config holds the user's `config` and, where that has no entry of the name, `compile`, `optimizer`,
    `parameters` and `versions`. Text under a name that reads like a secret (`api_key`, `hf_token`, `password`, ...) is
    masked, and one line says so.

    **Online or offline** is decided before the first batch. The environment variable `WANDB_MODE` wins over `mode`.
    Where neither says `"offline"` or `"disabled"`, the run goes online if there is an API key and the server answers
    one anonymous request with 200 within 5 seconds, else offline, and one line says why; so `"online"` too means
    "online if possible". `wandb sync` uploads an offline run later. Should the server refuse the run after all, it is
    recorded offline as well.

    **Nothing here stops or changes the training.** A server that fails later costs nothing until the end of the run,
    which waits at most 60 seconds for the upload (`WANDB_FINISH_TIMEOUT` changes that). A call to W&B or to `media`
    that raises is told once, with the exception, and left out.

    If a run is active already (`wandb.init` was called), it is used, its config is completed, and it is not finished.

    Args:
        project: The W&B project; None leaves it to `WANDB_PROJECT` or W&B.
        config: A dict of hyperparameters for the run's config.
        mode: `"online"`, `"offline"`, `"disabled"`, or None for what is possible.
        media: A function `model -> {name: matplotlib figure or image array}`, called at the end of every epoch. An
            array is [height, width] or [height, width, 3], uint8, or float in [0, 1].
        histograms: Whether to log a histogram of every trainable weight at the end of every epoch.
        directory: Where W&B keeps the run's files, below `wandb/`; None leaves it to `WANDB_DIR` or W&B.

    Attributes:
        run: The W&B run of the latest `fit`, or None.
        location: Where it lies, in words; printed at the end of the run.

    Raises:
        ValueError: For an unknown mode, a config that is no dict, media that is no function, and, before the first
            batch, a directory that cannot be written.

    ```python
    model.fit(x, y, epochs=3, callbacks=[kvision.callbacks.WandbLogger("digits", config={"augmentation": "light"})])
    ```
    """

    def __init__(self, project=None, config=None, mode=None, media=None, histograms=False, directory=None):
        super().__init__()
        if mode is not None and mode not in MODES:
            raise unknown("W&B mode", mode, MODES)
        if config is not None and not isinstance(config, dict):
            raise ValueError(f"config must be a dict: got {type(config).__name__}. Give vars(config) or dict(config).")
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
        self.run = None
        self.location = None
        self._early = []  # events from before the run began, then None
        self._owned = False
        self._told = set()

    def set_model(self, model):
        super().set_model(model)
        self._early = []
        if self.directory is not None:
            writable_directory(self.directory)

    def on_train_begin(self, logs=None):
        self._attempt("starting the run", self._begin)
        early, self._early = self._early, None
        for event in early or ():
            self.record(event)

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
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
        self._log("the logs of an epoch", entries, optimizer_steps(self.model))

    def _begin(self):
        import wandb

        config, masked = mask_secrets(config_of(self.model) | self.config)
        if masked:
            print_message(f"W&B: the config entries {', '.join(masked)} read like secrets and are masked.")
        self._owned = self._owned and self.run is wandb.run  # left open by a fit that raised
        self.run = wandb.run
        if self.run is None:
            self.run = self._start(wandb, config)
            self._owned = True
        else:
            self.run.config.update({key: value for key, value in config.items() if key not in self.run.config})
        self.location = _location(self.run)
        self.run.define_metric(STEP)
        for group in ("epoch", "vitals", "advice", "images", "media", "weights"):
            self.run.define_metric(f"{group}/*", step_metric=STEP)

    def _start(self, wandb, config):
        bounds = {name: seconds for name, seconds in BOUNDS.items() if f"WANDB_{name.upper()}" not in os.environ}
        options = {
            "project": self.project,
            "config": config,
            "dir": self.directory,
            "settings": bounds | {"silent": True},
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
            values = keras.ops.convert_to_numpy(weight).astype("float32")
            values = values[np.isfinite(values)]
            if values.size:
                histograms[f"weights/{weight.path}"] = wandb.Histogram(values)
        self._log("histograms", histograms, optimizer_steps(self.model))


def _location(run):
    """Where a run lies, in words: its page, or the command that uploads what is recorded offline."""
    if run.disabled:
        return None
    if run.offline:
        return f"recorded offline; to upload it: wandb sync {pathlib.Path(run.dir).parent}"
    return run.url


def _drawable(image):
    """A figure as it is; an array as uint8, which is all that W&B takes without cutting it off."""
    if hasattr(image, "savefig"):
        return image
    array = keras.ops.convert_to_numpy(image)
    if array.dtype.kind not in "iu":
        array = np.round(255 * np.nan_to_num(array.astype("float32")))
    return np.clip(array, 0, 255).astype("uint8")
