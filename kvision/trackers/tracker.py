"""How what is seen during a run reaches whoever records it.

A *tracker* records a run (W&B, the local report, the history file); a *vital* measures it. Neither knows the other: a
vital calls `emit`, and every tracker of the same `fit` receives it, in whatever order the callbacks were listed.
"""

import dataclasses
import weakref

import keras

_trackers = weakref.WeakSet()


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Numbers by weight or layer at one step.

    Args:
        name: What was measured, as in `logs`: `"update_ratio"`, `"dead_relu"`, `"gradient_norm"`.
        step: Optimizer steps taken when it was measured.
        values: `{weight or layer path: number}`.
        healthy: The range `(low, high)` in which a healthy run stays, or None where there is none.
    """

    name: str
    step: int
    values: dict
    healthy: tuple | None = None


@dataclasses.dataclass(frozen=True)
class Advice:
    """A sentence for the person who watches the run: which layer, which number, what is healthy, what to change."""

    vital: str
    step: int
    epoch: int
    text: str


@dataclasses.dataclass(frozen=True)
class Overlay:
    """A picture and what lies over it.

    Args:
        image: [h, w, 3] uint8.
        layers: `{name: dict}` with `"boxes"` [n, 4] xyxy in pixels, `"labels"` [n] from 0 and, optional, `"scores"` [n]
            and `"masks"` [n, h, w] bool.
        classes: Names of the classes, in the order of the labels, or None.
        caption: A line for below the picture.
    """

    image: object
    layers: dict
    classes: tuple | None = None
    caption: str | None = None


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures of one step.

    Args:
        step: Optimizer steps taken.
        pictures: `{name: matplotlib figure, or [h, w, 3] uint8 array}`.
        overlays: `{name: [Overlay]}`: the same with nothing drawn over them. A tracker that draws boxes and masks by
            itself records these, where there are any, and leaves out `pictures`.
    """

    step: int
    pictures: dict
    overlays: dict = dataclasses.field(default_factory=dict)


class Tracker(keras.callbacks.Callback):
    """Base of the callbacks that record a run.

    A subclass overrides `record(event)`, which receives every `Measurement`, `Advice` and `Pictures` emitted during
    its own `fit`, and `record_epoch(epoch, logs)`, which receives the logs of every epoch at its end. A callback that
    stands later in the list may add entries to the logs; those alone come in a second call, with `late=True`, before
    the next epoch begins. So nothing is lost to the order of callbacks, and nothing waits for it. A subclass that
    overrides `on_epoch_begin`, `on_epoch_end` or `on_train_end` calls these of its base.
    """

    _epoch = None  # number, logs and recorded entries of the epoch that has just ended

    def set_model(self, model):
        super().set_model(model)
        self._epoch = None
        _trackers.add(self)

    def record(self, event):
        """Receive one event; by default it is dropped."""

    def record_epoch(self, epoch, logs, late=False):
        """Receive an epoch's logs as `{name: value}`; by default they are dropped."""

    def on_epoch_begin(self, epoch, logs=None):
        self._record_late_logs()

    def on_epoch_end(self, epoch, logs=None):
        logs = {} if logs is None else logs
        self._epoch = epoch, logs, set(logs)
        self.record_epoch(epoch, dict(logs))

    def on_train_end(self, logs=None):
        self._record_late_logs()

    def _record_late_logs(self):
        if self._epoch is not None:
            epoch, logs, recorded = self._epoch
            self._epoch = None
            late = {name: value for name, value in logs.items() if name not in recorded}
            if late:
                self.record_epoch(epoch, late, late=True)


def optimizer_steps(model):
    """The optimizer steps `model` has taken: batches divided by gradient accumulation, kept by a resumed run.

    Inside a callback give `self.model`: on JAX that brings the optimizer's variables up to date within an epoch.
    """
    optimizer = getattr(model, "optimizer", None)
    return 0 if optimizer is None else int(keras.ops.convert_to_numpy(optimizer.iterations))


def unique_names(names):
    """The names in order; one that came before gets a number, since dicts are keyed by them."""
    seen, unique = {}, []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return unique


def emit(callback, event):
    """Hand `event` to every tracker of the `fit` that `callback` takes part in.

    Keras gives one and the same `params` dict to all callbacks of one `fit`: that is how they know each other.
    """
    for tracker in list(_trackers):
        if tracker.params is not None and tracker.params is callback.params:
            tracker.record(event)
