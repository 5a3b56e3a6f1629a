"""What `Resume` does in one fit."""

import keras

from kvision._keras import build_for, fit_input, fit_of, print_message, start_fit_at
from kvision.callbacks.callback_state import (
    callback_states,
    pack,
    random_states,
    restore_callbacks,
    restore_random,
    unpack,
)
from kvision.callbacks.model_state import GROUPS, copy_state, restore_state
from kvision.callbacks.snapshots import Snapshots
from kvision.stop_signals import StopSignals
from kvision.trackers.backend import is_first_process
from kvision.trackers.clock import clock_of
from kvision.trackers.files import readable
from kvision.trackers.tracker import Tracker

STATE = "state/"  # before the names of the model's variables in a checkpoint
ORDER = ("length", "batch_size", "shuffle", "seed", "shard")  # what an order of the data depends on


class ResumedFit(keras.callbacks.Callback):
    """The last callback of a fit: it restores after all others have begun, and saves what all of them have done.

    Args:
        resume: The `Resume` of the fit.
        callbacks: Keras's `CallbackList`, which is about to begin.
    """

    def __init__(self, resume, callbacks):
        super().__init__()
        self.callbacks = callbacks
        self._resume = resume
        self._trained = resume.model  # on JAX, asking for `model` within an epoch costs a copy
        self._order = None if resume.data is None else resume.data.source.order
        self._signals = StopSignals(lambda frame: fit_of(callbacks, frame) is not None)
        self._writes = is_first_process(resume.model)
        self._snapshots = Snapshots(resume.directory, resume.keep)
        if self._writes:
            self._snapshots.hold()
        self._where = readable(resume.directory)
        self._epoch = 0
        self._next = 0, 0, {}  # the epoch that was interrupted, its batches that were done, and its metrics
        self._begun = 0  # batches of the present epoch that were done before this fit
        self._since = 0  # batches since the last checkpoint
        self._epoch_end = None  # what `stop_training` is while it only ends the loop over the batches
        self._told = set()
        self._found = self._snapshots.newest()
        for name, reason in self._snapshots.damaged.items():
            self._tell(f"{name} in {self._where} is damaged and passed over ({reason}).")
        if self._found is not None:
            _, state, arrays = self._found
            restore_callbacks(callbacks.callbacks, state["callbacks"], arrays, _is_tracker)

    def on_train_begin(self, logs=None):
        self.set_model(self._resume.model)
        self.set_params(self._resume.params)
        self._check()
        if self._order is None:
            self._tell("without data=, checkpoints are at the ends of epochs; an interrupted one is begun anew.")
        if self._found is not None:
            self._restore(*self._found)
            self._found = None
        callback_states(self.callbacks.callbacks, {})  # what cannot be kept is told now, not at the first checkpoint
        self._signals.install()

    def _check(self):
        for other in self.callbacks.callbacks:
            if isinstance(other, keras.callbacks.BackupAndRestore | type(self._resume)) and other is not self._resume:
                raise ValueError(
                    f"Resume: got {type(other).__name__} beside it, expected one callback that restores. Leave one out."
                )
            if isinstance(other, keras.callbacks.CSVLogger) and not other.append:
                raise ValueError(
                    f"Resume: got CSVLogger({other.filename!r}), which begins its file anew in each fit, expected one "
                    "that goes on. Give it append=True."
                )
        steps = self.params.get("steps")
        if self._order is not None and steps != len(self._resume.data):
            raise ValueError(
                f"Resume: got {steps} steps in an epoch of fit and {len(self._resume.data)} batches in data, expected "
                "an epoch to be one pass over data. Leave out steps_per_epoch, or give the data set that fit reads."
            )

    def _restore(self, name, state, arrays):
        model, callbacks = self.model, self.callbacks.callbacks
        spec = getattr(fit_input(self.callbacks), "element_spec", None)
        if spec is not None:  # which also makes the metrics that are restored when the epoch begins
            build_for(
                model, keras.tree.map_structure(lambda each: keras.KerasTensor(each.shape, each.dtype.name), spec)
            )
        if not model.built:
            raise ValueError(
                f"Resume: got {model.name}, which is not built, expected a model with weights to restore. Give it an "
                "Input, or call it on a batch before fit."
            )
        saved = {key.removeprefix(STATE): array for key, array in arrays.items() if key.startswith(STATE)}
        metrics = {key: saved.pop(key) for key in list(saved) if key.startswith("metrics/")}
        try:
            restore_state(model, saved)
        except ValueError as error:
            raise ValueError(
                f"Resume: {name} in {self._where} does not fit, and is left as it is. {error} Or choose another "
                "directory for this run."
            ) from error
        left = restore_callbacks(callbacks, state["callbacks"], arrays, lambda callback: not _is_tracker(callback))
        if left:
            self._tell(f"{name} holds the memory of callbacks that are not here: {', '.join(left)}.")
        clock_of(model).set_state(unpack(state["clock"], arrays), model)
        restore_random(unpack(state["random"], arrays))
        batch = state["batch"]
        if self._differs(name, state["data"], batch):
            batch, metrics = 0, {}
        self._next = state["epoch"], batch, metrics
        self._go_on(name, state["epoch"], batch, state["ended"])

    def _differs(self, name, before, batch):
        """Whether the order of the data is not that of the checkpoint; it is told."""
        now = self._data()
        if before == now:
            return False
        if before and now:
            changed = [f"{each} was {before[each]}, is {now[each]}" for each in ORDER if before[each] != now[each]]
        else:
            changed = ["data= was given" if before else "data= was not given"]
        anew = "the interrupted epoch is begun anew" if batch else "the run goes on with them"
        self._tell(f"the data are not those of {name} ({', '.join(changed)}); {anew}.")
        return True

    def _data(self):
        """What the order of the data depends on, as JSON gives it back; None without `data=`."""
        if self._order is None:
            return None
        order = self._order
        size = None if order.batch_size is None else int(order.batch_size)
        facts = (int(order.length), size, bool(order.shuffle), int(order.seed), list(map(int, order.shard)))
        return dict(zip(ORDER, facts, strict=True))

    def _go_on(self, name, epoch, batch, ended):
        epochs = self.params["epochs"]
        start = max(epoch, epochs) if ended else epoch
        if start < epochs:
            place = f", after {batch} of {self.params['steps']} batches" if batch else ""
            print_message(f"Resume: goes on at epoch {epoch + 1} of {epochs}{place}, from {name}.")
        elif ended:
            print_message(
                f"Resume: a callback ended the run in {self._where} after {epoch} epochs; nothing is trained. Choose "
                "another directory for a new run."
            )
        else:
            print_message(
                f"Resume: {epoch} epochs are done in {self._where}; nothing is trained. Give fit more epochs, or "
                "choose another directory for a new run."
            )
        start_fit_at(self._trained, start)

    def on_epoch_begin(self, epoch, logs=None):
        start_fit_at(self._trained, None)
        first, batch, metrics = self._next
        self._epoch, self._begun = epoch, batch if epoch == first else 0
        self._next = -1, 0, {}
        if self._order is not None:
            self._order.start(epoch, self._begun)
        if self._begun:
            try:
                restore_state(self.model, metrics)
            except ValueError:
                self._tell("the metrics of this epoch are those of its remaining batches, since fit makes them anew.")

    def on_train_batch_end(self, batch, logs=None):
        steps = self.params.get("steps")
        done = self._begun + batch + 1
        self._since += 1
        if steps and done >= steps:
            if self._begun and not self._trained.stop_training:  # the rest of the data set is all that Keras has
                self._epoch_end = self._trained.stop_training = _EpochEnd()
        elif self._signals.received:
            if self._order is not None:
                self._save(self._epoch, done)
            self._stop()
        elif self._resume.every != "epoch" and self._since >= self._resume.every:
            self._save(self._epoch, done)

    def on_epoch_end(self, epoch, logs=None):
        model = self._trained
        if self._epoch_end is not None and model.stop_training is self._epoch_end:
            model.stop_training = False
        self._epoch_end = None
        self._save(epoch + 1, 0, bool(model.stop_training))
        if self._signals.received:
            self._stop()

    def on_train_end(self, logs=None):
        start_fit_at(self._trained, None)
        self._snapshots.wait()
        self._tell_failure()
        self._snapshots.release()
        self._signals.uninstall()
        self._signals.repeat()

    def _save(self, epoch, batch, ended=False):
        self._since = 0
        if not self._writes:
            return
        self._tell_failure()
        arrays = {}
        try:
            state = {
                "epoch": epoch,
                "batch": batch,
                "ended": ended,
                "data": self._data(),
                "callbacks": callback_states(self.callbacks.callbacks, arrays),
                "clock": pack(clock_of(self._trained).get_state(), arrays, "clock"),
                "random": pack(random_states(), arrays, "random"),
            }
        except (ValueError, OSError) as error:
            self._tell(f"no checkpoint is written; the training goes on. {error}")
            return
        copied = copy_state(self.model, GROUPS if batch else [group for group in GROUPS if group != "metrics"])
        self._snapshots.save(state, arrays | {STATE + name: array for name, array in copied.items()})

    def _stop(self):
        """End the fit here: the epoch is not done, so nothing may take it for one."""
        self._snapshots.wait()
        name = self._signals.received.name
        print_message(f"\nResume: stopped by {name}; run it again to go on from the checkpoint in {self._where}.")
        self.callbacks.on_train_end()
        raise KeyboardInterrupt(f"stopped by {name}")  # whoever handles the signal did not end the process

    def _tell_failure(self):
        error = self._snapshots.failure()
        if error is not None:
            self._tell(
                f"a checkpoint could not be written to {self._where} ({error.strerror or error}); the training goes "
                "on, the last one is untouched. Make room there, or mend its permissions."
            )

    def _tell(self, text):
        """Print a line, once."""
        if text not in self._told:
            print_message(f"\nResume: {text}")
        self._told.add(text)


class _EpochEnd:
    """True, and told from what another callback sets `stop_training` to."""


def _is_tracker(callback):
    """Whether a callback takes its memory before training begins: it opens a run there."""
    return isinstance(callback, Tracker)
