"""Who reads a training step, and when: one tap a `fit`, shared by all its vitals.

A vital cannot stand around the step: it would see the update of k steps where `steps_per_execution=k`, no gradient at
all, and no activation. So the tap measures inside the compiled step (`tapped_step`): `on_train_batch_begin` puts the
tapped train function in the place of Keras's for one call, which puts Keras's own back before it runs. A later fit
without vitals runs the function it always ran.

The walk of `every`: `Vital.every` -> `StepTap._begin_fit` -> `TappedStep.begin` -> `Recorder.is_due`, inside the step.
"""

import weakref

from kvision._keras import print_message
from kvision.callbacks.vitals.readings import Activations, Statistics
from kvision.callbacks.vitals.tapped_step import (
    GUARDS,
    NEVER,
    NORMS,
    READS,
    STATISTICS,
    MeasurementError,
    tapped_step_of,
)
from kvision.trackers.clock import applied_steps, clock_of, optimizer_steps, unwrapped_optimizer
from kvision.trackers.events import Advice
from kvision.trackers.tracker import emit

LONGEST_WINDOW = 100_000  # batches over which the examples of one verdict are spread

_taps = weakref.WeakValueDictionary()


def tap_of(vital):
    """The tap of the fit that `vital` takes part in; Keras gives one `params` dict to all callbacks of one fit."""
    tap = _taps.get(id(vital.params))
    if tap is None or tap.model is not vital.model:
        tap = _taps[id(vital.params)] = StepTap(vital.model, vital.params)
    return tap


class StepTap:
    """Measures inside the steps of one `fit` and tells every vital that joined.

    Args:
        model: A compiled model.
        params: The `params` of the callbacks of this fit; held, so that its identity stands for the fit.

    Attributes:
        unmeasured: The `Advice` that says why no norms are measured, once it was told; else None.
    """

    def __init__(self, model, params):
        self.model = model
        self.params = params
        self.unmeasured = None
        self._history = getattr(model, "history", None)
        self._vitals = []
        self._waiting = {}  # activations not yet delivered, by vital
        self._sums = {}  # of their statistics, likewise
        self._emitted = {}
        self._reads_norms = False
        self._parts = set()
        self._drivers = []
        self._plain = None
        self._tapped = None
        self._reason = None  # why this fit is not tapped
        self._batches = 0
        self._first = None  # the step that is measured beside every `every`-th
        self._goes_on = False
        self._step = self._next = self._reachable = self._begin = 0

    def join(self, vital, reads_norms, reads_statistics=False):
        """Let `vital` receive what is measured; before the first batch."""
        self._vitals.append(vital)
        self._drivers.append(vital)
        self._parts |= {NORMS, STATISTICS} if reads_statistics else {NORMS}
        self._waiting[id(vital)], self._sums[id(vital)] = {}, {}
        self._reads_norms = self._reads_norms or reads_norms

    def state_of(self, vital):
        """The place in the run, and what `vital` still has to receive, as plain values and arrays."""
        self._collect()
        waiting = {name: (each.active, each.examples) for name, each in self._waiting[id(vital)].items()}
        return {"batches": self._batches, "first": self._first, "waiting": waiting, "sums": dict(self._sums[id(vital)])}

    def go_on(self, vital, state):
        """Take over what `state_of` gave, before the first batch; the first step of a run is measured once."""
        self._batches, self._first = state["batches"], state["first"]
        self._goes_on = self._first is not None
        self._waiting[id(vital)] = {name: Activations(*each) for name, each in state["waiting"].items()}
        self._sums[id(vital)] = state["sums"]

    def join_guard(self, callback):
        """Let `callback` take the verdicts on every batch, and no update be applied that is not finite.

        Raises:
            ValueError: Where another one takes them already.
        """
        if GUARDS in self._parts:
            name = type(callback).__name__
            raise ValueError(f"One {name} watches a fit: got a second among its callbacks. Leave one of them out.")
        self._drivers.append(callback)
        self._parts.add(GUARDS)

    def join_reader(self, callback):
        """Let the batches be read one by one, counted and timed, for `callback`."""
        self._drivers.append(callback)
        self._parts.add(READS)

    @property
    def read(self):
        """`(examples, seconds waited for them)` of the batches that were read; None where they are not counted."""
        guard = None if self._tapped is None else self._tapped.guard
        return None if guard is None else (guard.examples, guard.waited)

    def take_verdicts(self):
        """The `Verdict`s on the batches since the last call; none where the steps are not guarded."""
        return [] if self._tapped is None or self._tapped.guard is None else self._tapped.guard.take()

    @property
    def reason(self):
        """Why this fit is not tapped; None where it is."""
        return self._reason

    def first(self, kind):
        """The first vital of a class that joined."""
        return next(vital for vital in self._vitals if isinstance(vital, kind))

    def is_new(self, name, step):
        """Whether `name` was not yet emitted at this step."""
        new = self._emitted.get(name) != step
        self._emitted[name] = step
        return new

    @property
    def step(self):
        """Optimizer steps of the run; batches of this fit where the optimizer is not the one that is applied."""
        return optimizer_steps(self.model) if self.measures_norms() else self._batches

    @property
    def batches(self):
        """Batches of this fit, with those of the one that it goes on with."""
        return self._batches

    def watches_saturation(self, but=()):
        """Whether the model has a sigmoid or tanh that is watched, beside those of the layers `but`."""
        return self._tapped is not None and any(path not in but for path in self._tapped.units.saturating)

    def watches_relus(self):
        """Whether the model has a ReLU that is watched."""
        return self._tapped is not None and bool(self._tapped.units.relus)

    def before_batch(self, vital, batch):
        """Put the tapped train function in place for one call."""
        if vital is not self._drivers[0]:
            return
        self._begin = batch
        plain = self.model.train_function
        if isinstance(getattr(plain, "__self__", None), StepTap):  # left in place by a fit that broke off
            plain = self.model.train_function = plain.__self__._plain
        if plain is not self._plain:
            self._plain = plain
            self._begin_fit()
        if self._tapped is not None:
            self.model.train_function = self._once

    def after_batch(self, vital, batch):
        """Tell the vitals of a new measurement, if there is one."""
        if vital is not self._drivers[0]:
            return
        executed = batch - self._begin + 1
        self._batches += executed
        if self._tapped is None:
            return
        if not self.measures_norms():
            self._after_batches(executed)
            return
        self._reachable += executed
        if self._reachable < self._next:
            return
        found = self._tapped.recorder.measured()
        if found is None or found[0] <= self._step:
            return
        self._step, values = found
        self._reachable = self._step + executed - 1
        self._next = self._next_due()
        step = self._step + clock_of(self.model).steps_before
        norms = self._tapped.norms(step, values())
        self._collect()
        for vital in self._vitals:
            if self._step == self._first or self._step % vital.every == 0:
                vital.on_norms(norms)
                self._deliver(vital, step)

    def end_epoch(self, vital, epoch):
        """Deliver to `vital` what is left, and tell once what cannot be measured."""
        if self._reason is None and self._reads_norms and self._batches and not self.measures_norms():
            self._reason = (
                f"the training step of {self.model.name} does not apply the optimizer it was compiled with, or that is "
                "a MultiOptimizer that accumulates gradients; compile the model with the optimizer that trains it"
            )
        if self._reason is not None and self.unmeasured is None:
            what = "Update ratios and gradient norms are" if self._tapped is not None else "The vitals of this run are"
            text = f"{what} not measured: {self._reason}."
            print_message(f"\n{text}")
            self.unmeasured = Advice("update_ratio", self.step, clock_of(self.model).epoch(epoch), text)
            emit(vital, self.unmeasured)
        self._collect()
        self._deliver(vital, self.step)

    def close(self):
        """Let the tapped function go; it stays with Keras's own for the next fit."""
        self._tapped = self._plain = None

    def measures_norms(self):
        """Whether the optimizer of this fit is measured."""
        return self._tapped is not None and bool(self._tapped.variables)

    def _begin_fit(self):
        self._tapped, self._reason = tapped_step_of(self.model, self._plain, frozenset(self._parts))
        if self._tapped is None:
            return
        optimizer = unwrapped_optimizer(self.model)
        self._step = self._reachable = applied_steps(self.model)
        if not self._goes_on:
            self._first = self._step + 1
        self._goes_on = False
        self._next = self._first if self._first > self._step else self._next_due()
        window = min((vital.every for vital in self._vitals), default=1)
        window *= getattr(optimizer, "gradient_accumulation_steps", None) or 1
        window = min(window, (self.params or {}).get("steps") or window, LONGEST_WINDOW)
        self._tapped.begin(self._first, window, {vital.every for vital in self._vitals}, self._batches)

    def _next_due(self):
        """The next step that a vital wants."""
        return min(((self._step // vital.every + 1) * vital.every for vital in self._vitals), default=self._step + 1)

    def _once(self, *arguments):
        """The tapped train function, for one call."""
        self.model.train_function = self._plain
        if self.model.history is not self._history:  # left in place by a fit that broke off before its step
            return self._plain(*arguments)
        try:
            return self._tapped(*arguments)
        except MeasurementError:
            arguments, failure = self._tapped.unread(arguments), self._tapped.failure
            self._tapped, self._reason = None, f"{type(failure).__name__}: {failure}"
            if GUARDS in self._parts:
                self._tapped, _ = tapped_step_of(self.model, self._plain, frozenset({GUARDS}))
                self._tapped.begin(self._first, 1, {NEVER})
                return self._tapped(*arguments)
            return self._plain(*arguments)

    def _after_batches(self, executed):
        self._collect()
        for vital in self._vitals:
            if self._batches // vital.every > (self._batches - executed) // vital.every:
                self._deliver(vital, self._batches)

    def _collect(self):
        """Take the activations out of the recorder, for every vital."""
        taken = self._tapped.recorder.take_activations() if self._tapped is not None else {}
        for waiting in self._waiting.values():
            for name, activations in taken.items():
                waiting[name] = waiting[name] + activations if name in waiting else activations
        taken = self._tapped.recorder.take_sums() if self._tapped is not None else {}
        for sums in self._sums.values():
            for name, numbers in taken.items():
                sums[name] = sums.get(name, 0.0) + numbers

    def _deliver(self, vital, step):
        activations, self._waiting[id(vital)] = self._waiting[id(vital)], {}
        vital.on_activations(step, activations)
        sums, self._sums[id(vital)] = self._sums[id(vital)], {}
        if sums:
            vital.on_statistics(step, {name: Statistics.of(numbers) for name, numbers in sums.items()})
