"""How what is seen during a run reaches whoever records it.

A *tracker* records a run (W&B, the local report, the history file); a *vital* measures it. Neither knows the other: a
vital calls `emit`, and every tracker of the same `fit` receives it, in whatever order the callbacks were listed.
"""

import weakref

import keras

from kvision.trackers.backend import is_first_process
from kvision.trackers.clock import clock_of, optimizer_steps
from kvision.trackers.pace import Pace

_trackers = weakref.WeakSet()


class Tracker(keras.callbacks.Callback):
    """Base of the callbacks that record a run.

    A subclass overrides `record`, which receives every event that is emitted during its own `fit` (`Measurement`,
    `Advice`, `Images`, all in `kvision.trackers`), and `record_epoch`, which receives the logs of every epoch at its
    end. A callback that stands later in the list may add entries to the logs; those alone come in a second call, with
    `late=True`, before the next epoch begins. So nothing is lost to the order of callbacks, and nothing waits for it.
    `record_steps` receives the loss within an epoch, thinned. Epochs and steps are those of the run: they go on in a
    second `fit`, also where the model was compiled anew. Where several processes train one model only the first
    records. A subclass that overrides `set_model`, `on_epoch_begin`, `on_train_batch_begin`, `on_test_begin`,
    `on_epoch_end` or `on_train_end` calls these of its base.

    Attributes:
        writes: Whether this process is the one that records.
        images_per_second: Of the training of the latest epoch; None where the model does not count images.

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

    writes = True
    _epoch = None  # number, logs and recorded entries of the epoch that has just ended
    _pace = _restored_pace = None
    _number = 0  # of the epoch, in the run

    @property
    def images_per_second(self):
        return None if self._pace is None else self._pace.images_per_second

    def set_model(self, model):
        super().set_model(model)
        self._epoch = None
        self._pace = Pace()
        self.writes = is_first_process(model)
        if self.writes:
            _trackers.add(self)

    def get_state(self):
        """What a run needs to go on in another process, where `Resume` keeps it: how its curves are thinned."""
        return {} if self._pace is None else {"pace": self._pace.get_state()}

    def set_state(self, state):
        """Take over what `get_state` gave, before training begins."""
        self._restored_pace = state.get("pace")

    def record(self, event):
        """Receive one event; by default it is dropped."""

    def record_epoch(self, epoch, logs, late=False):
        """Receive an epoch's logs as `{name: value}`; by default they are dropped."""

    def record_steps(self, epoch, step, logs):
        """Receive the mean `{"loss": number}` of the steps since the last call in an epoch; by default it is dropped.

        Calls come after every step at first, then ever more rarely, so that their number stays bounded.
        """

    def on_epoch_begin(self, epoch, logs=None):
        self._record_late_logs()
        clock_of(self.model).begin(self, epoch)
        self._number = clock_of(self.model).epoch(epoch)
        if self._restored_pace is not None:
            self._pace.set_state(self._restored_pace)
            self._restored_pace = None
        self._pace.begin_epoch()

    def on_train_batch_begin(self, batch, logs=None):
        loss = self._pace.loss(self, batch) if self.writes else None
        if loss is not None:
            self.record_steps(self._number, optimizer_steps(self.model), {"loss": loss})

    def on_test_begin(self, logs=None):
        self._pace.end_training(self)

    def on_epoch_end(self, epoch, logs=None):
        self._pace.end_training(self)
        clock = clock_of(self.model)
        clock.end_epoch(self, epoch)
        logs = {} if logs is None else logs
        if self.writes:
            self._epoch = clock.epoch(epoch), logs, set(logs)
            self.record_epoch(clock.epoch(epoch), dict(logs))

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
