"""How what is seen during a run reaches whoever records it.

A *tracker* records a run (W&B, the local report, the history file); a *vital* measures it. Neither knows the other: a
vital calls `emit`, and every tracker of the same `fit` receives it, in whatever order the callbacks were listed.
"""

import weakref

import keras

_trackers = weakref.WeakSet()


class Tracker(keras.callbacks.Callback):
    """Base of the callbacks that record a run.

    A subclass overrides `record`, which receives every event that is emitted during its own `fit` (`Measurement`,
    `Advice`, `Images`, all in `kvision.trackers`), and `record_epoch`, which receives the logs of every epoch at its
    end. A callback that stands later in the list may add entries to the logs; those alone come in a second call, with
    `late=True`, before the next epoch begins. So nothing is lost to the order of callbacks, and nothing waits for it. A
    subclass that overrides `set_model`, `on_epoch_begin`, `on_epoch_end` or `on_train_end` calls these of its base.

    Example: a tracker that prints.

    ```python
    import kvision

    class Printer(kvision.trackers.Tracker):
        def record(self, event):
            if isinstance(event, kvision.trackers.Advice):
                print(f"step {event.step}: {event.text}")

        def record_epoch(self, epoch, logs, late=False):
            print(epoch, logs)

    model.fit(images, labels, callbacks=[kvision.callbacks.Vitals(), Printer()])
    ```
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


def trackers_of(callback):
    """The trackers of the `fit` that `callback` takes part in.

    Keras gives one and the same `params` dict to all callbacks of one `fit`: that is how they know each other.
    """
    params = callback.params
    return [tracker for tracker in list(_trackers) if params is not None and tracker.params is params]


def emit(callback, event):
    """Hand `event` to every tracker of the `fit` that `callback` takes part in."""
    for tracker in trackers_of(callback):
        tracker.record(event)
