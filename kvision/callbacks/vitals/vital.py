"""The base of all vitals: what a callback overrides to read what happens inside the training step."""

import math

import keras

from kvision.callbacks.vitals.step_tap import tap_of
from kvision.trackers.clock import clock_of
from kvision.trackers.events import Measurement
from kvision.trackers.tracker import emit


class Vital(keras.callbacks.Callback):
    """Base of the callbacks that read the inside of the training step.

    All vitals of one `fit` share one measurement in the compiled step, taken at the optimizer steps they ask for. A
    subclass overrides what it needs of `on_norms`, `on_activations`, `on_statistics` and `summary`, and hands numbers
    by weight or layer to the trackers with `emit`. One that overrides `on_train_begin`, `on_epoch_begin`,
    `on_train_batch_begin`, `on_train_batch_end`, `on_epoch_end` or `on_train_end` calls those of this class. Steps are
    those of the run: they go on where the model is compiled anew.

    Where the optimizer cannot be measured (`compile(optimizer=None)`, a `train_step` of one's own with optimizers of
    its own, ...), one sentence says so, the training goes on, and steps are batches, counted in this `fit`.

    A run that `Resume` goes on with measures as one that was never stopped. A subclass names in the class attribute
    `remembers` those of its attributes that it needs for that, plain values and arrays: `("update",)` below.

    Args:
        every: Optimizer steps from one measurement to the next, at least 1. The first step of a fit is measured as
            well, where no run goes on.

    Raises:
        ValueError: if `every` is no integer of at least 1.

    Example: how far the largest weight matrix has moved.

    ```python
    import kvision

    class Largest(kvision.callbacks.Vital):
        remembers = ("update",)

        def __init__(self, every=100):
            super().__init__(every)
            self.update = None

        def on_norms(self, norms):
            largest = max(norms.weights, key=norms.weights.get)
            self.update = norms.updates[largest]
            self.emit("largest_update", norms.step, {largest: self.update})

        def summary(self):
            return {"largest_update": self.update}

    history = model.fit(images, labels, callbacks=[Largest(every=4)]).history
    history["largest_update"]
    ```
    """

    remembers = ()

    def __init__(self, every=100):
        super().__init__()
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ValueError(
                f"`every` counts optimizer steps: got {every!r}, expected an integer of at least 1. Give the steps "
                "from one measurement to the next."
            )
        self.every = every
        self._tap = None

    def get_state(self):
        """What a run that goes on needs: the attributes in `remembers`, and what was read and not yet delivered."""
        if self._tap is None:
            return {}
        return {"tap": self._tap.state_of(self)} | {name: getattr(self, name) for name in self.remembers}

    def set_state(self, state):
        """Take over what `get_state` gave, once the fit has begun."""
        if "tap" in state and self._tap is not None:
            self._tap.go_on(self, state["tap"])
        vars(self).update({name: value for name, value in state.items() if name != "tap"})

    def on_norms(self, norms):
        """Receive the `Norms` of a step: the first of a fit, and every `every`-th."""

    def on_activations(self, step, activations):
        """Receive `{ReLU: Activations}` since the last call; at the same steps, and at the end of each epoch."""

    def on_statistics(self, step, statistics):
        """Receive `{activation: Statistics}` since the last call; at the same steps, and at the end of each epoch."""

    def summary(self):
        """`{name: number}` for the `logs` of an epoch, as last measured; None stands for what is not known yet."""
        return {}

    def emit(self, name, step, values, healthy=None):
        """Hand numbers by weight or layer to the trackers of this fit; once a step, however often a vital is listed.

        Args:
            name: What was measured, as in `logs`.
            step: Optimizer steps taken when it was measured.
            values: `{weight or layer path: number}`.
            healthy: The range `(low, high)` in which a healthy run stays, or None where there is none.
        """
        if self._tap.is_new(name, step):
            emit(self, Measurement(name, step, values, healthy))

    def on_train_begin(self, logs=None):
        self._tap = tap_of(self)
        own = {name: getattr(type(self), name) is not getattr(Vital, name) for name in ("on_norms", "on_statistics")}
        self._tap.join(self, reads_norms=own["on_norms"], reads_statistics=own["on_statistics"])

    def on_epoch_begin(self, epoch, logs=None):
        clock_of(self.model).begin(self, epoch)

    def on_train_batch_begin(self, batch, logs=None):
        self._tap.before_batch(self, batch)

    def on_train_batch_end(self, batch, logs=None):
        self._tap.after_batch(self, batch)

    def on_epoch_end(self, epoch, logs=None):
        self._tap.end_epoch(self, epoch)
        clock_of(self.model).end_epoch(self, epoch)
        if logs is not None:  # every epoch has the same entries, so that a table can be made of the history
            logs.update({name: math.nan if value is None else value for name, value in self.summary().items()})

    def on_train_end(self, logs=None):
        self._tap.close()

    def __getstate__(self):
        """A copy belongs to no fit: a tap cannot be copied, and need not be."""
        return vars(self) | {"_tap": None}
