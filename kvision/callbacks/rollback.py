"""A run that goes back to its last good state when it breaks, and says where it broke when it cannot go on."""

import math
import pathlib

import keras

from kvision._keras import learning_rate_schedule, print_message
from kvision.callbacks.good_states import GoodStates
from kvision.callbacks.loss_spike import LossSpike
from kvision.callbacks.model_state import copy_state
from kvision.callbacks.vitals.step_tap import tap_of
from kvision.diagnosis import batch_file, diagnose
from kvision.trackers.clock import applied_steps, clock_of, last_learning_rate, optimizer_steps, unwrapped_optimizer
from kvision.trackers.events import Advice
from kvision.trackers.files import replace_file, writable_directory
from kvision.trackers.tracker import emit


class Diverged(RuntimeError):
    """A training that broke again after all its retries.

    Attributes:
        layer: Path of the first layer that was not finite; None after a spike of the loss.
        where: `"output"` or `"gradient"` of that layer; None after a spike.
        step: The optimizer step of the run at which it broke.
        learning_rate: The rate of that step.
        file: Path of the file with the batch, for `kvision.training.replay`; None where it could not be written.
    """

    def __init__(self, message, layer, where, step, learning_rate, file):
        super().__init__(message)
        self.layer, self.where, self.step = layer, where, step
        self.learning_rate, self.file = learning_rate, file


class Rollback(keras.callbacks.Callback):
    """Goes back to the last good state when a training breaks, at half the learning rate.

    A training breaks where loss or gradients are not finite: inside the compiled step that update is not applied. It
    also breaks where the loss of single batches, not averaged over the epoch, is at least twice the mean of the 100
    before, four times in a row. In the first 100 batches, where losses differ more, it is ten times the largest before,
    four times in a row, a hundred times twice, or ten thousand times once; and from a thousand times on where fewer
    than four are known. Then weights, optimizer, moving statistics and seeds are put back to the last copy from before
    that, the rate is halved, and the training goes on with the next batch; the logs of the epoch leave out the batches
    that were not applied. After `max_retries` of these in one `fit`, the state is put back once more and `Diverged` is
    raised: it names the first layer that is not finite, in the forward pass or in the gradient, the samples, the step
    and the rate, and a file with the batch, which `kvision.training.replay` runs again.

    A copy counts as good once four more steps went well. Steps of the run go on: a schedule of `LearningRate` is not
    put back, and what was halved stays a factor on it, as with `ReduceOnPlateau`. A gradient that overflows under
    dynamic loss scaling is no break as long as the loss scale is at least 1. Right with `jit_compile`,
    `steps_per_execution`, gradient accumulation and mixed precision, on TensorFlow and JAX, beside `Vitals` in any
    order. Over several replicas of TensorFlow the update is applied, then taken back; the logs of the epoch hold it.

    Args:
        max_retries: How often a `fit` may go back before it stops.
        every: Batches from one copy of the state to the next; copies lie in memory, three at most.
        directory: Where the copies are kept instead of memory, and the file with the batch is written; None: in memory,
            and that file in the present directory.

    Attributes:
        retries: How often the present `fit` went back.
        restored_step: The optimizer step of the state that was put back last, as the optimizer counts; None before.

    Raises:
        ValueError: For a number that is no integer of at least 0 or 1, a directory that cannot be written to, and,
            before the first batch, an optimizer whose rate cannot be set, and a second `Rollback` in the same `fit`.
        Diverged: From `fit`, after the last retry.

    ```python
    model.fit(images, labels, epochs=90, callbacks=[kvision.callbacks.Rollback()])
    ```
    """

    def __init__(self, max_retries=3, every=100, directory=None):
        super().__init__()
        for name, value, least in (("max_retries", max_retries, 0), ("every", every, 1)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(
                    f"`{name}`: got {value!r}, expected an integer of at least {least}. Give such a number."
                )
        self.max_retries = max_retries
        self.every = every
        self.directory = None if directory is None else writable_directory(directory)
        self.retries = 0
        self.restored_step = None
        self._restored = None
        self._tap = None

    def get_state(self):
        """What it remembers of a run, as plain numbers: `retries`, and the last `losses`."""
        return {"retries": self.retries, "losses": self._spike.get_state()} if self._tap is not None else {}

    def set_state(self, state):
        """Take over what `get_state` gave; it holds from the next epoch's beginning."""
        self._restored = dict(state)

    def on_train_begin(self, logs=None):
        for optimizer in self._optimizers():
            if learning_rate_schedule(optimizer) is not None or not isinstance(optimizer.learning_rate, keras.Variable):
                raise ValueError(
                    f"Rollback cannot halve the rate of this optimizer: got {type(optimizer).__name__} with a schedule "
                    "of its own, expected an optimizer compiled with a float learning_rate. Compile with a float and "
                    "give the schedule to kvision.callbacks.LearningRate."
                )
        self._tap = tap_of(self)
        self._tap.join_guard(self)
        self.retries, self.restored_step = 0, None
        self._spike = LossSpike()
        self._states = None
        self._told = False
        self._epoch = 0
        self._suspects = []

    def on_epoch_begin(self, epoch, logs=None):
        clock_of(self.model).begin(self, epoch)
        self._epoch = clock_of(self.model).epoch(epoch)
        if self._restored:
            self.retries = self._restored["retries"]
            self._spike.set_state(self._restored["losses"])
        self._restored = None

    def on_train_batch_begin(self, batch, logs=None):
        self._tap.before_batch(self, batch)
        if self._states is None:
            self._states = GoodStates(self.model, self.every, self.directory)

    def on_train_batch_end(self, batch, logs=None):
        self._tap.after_batch(self, batch)
        verdicts = self._tap.take_verdicts()
        if not verdicts:
            self._tell_unguarded()
        for verdict in verdicts:
            if not verdict.applied:
                self._go_back(verdict, None)
                break
            if self._spike.see(verdict.loss):
                first, *_ = [*self._suspects, verdict]
                self._go_back(first, self._spike.sentence)
                break
            self._suspects = [*self._suspects, verdict] if self._spike.is_suspicious else []
            self._states.step_went_well(self._spike.is_suspicious)
        else:
            self._states.copy_where_due(self.model, self._spike.is_suspicious)

    def on_epoch_end(self, epoch, logs=None):
        clock_of(self.model).end_epoch(self, epoch)

    def on_train_end(self, logs=None):
        self._tap.close()
        if self._states is not None:
            self._states.close()
        self._states, self._suspects = None, []

    def _go_back(self, verdict, spike):
        model = self.model
        step = optimizer_steps(model) + (0 if verdict.applied else 1)
        rates = [_number(optimizer.learning_rate) for optimizer in self._optimizers()]
        rate = last_learning_rate(model) if len(rates) == 1 else max(rates)
        diagnosis, says = (None, spike) if spike else self._diagnosed(verdict)
        self.retries += 1
        gives_up = self.retries > self.max_retries
        file = self._save(verdict, step, rate, says) if gives_up else None
        before = applied_steps(model)
        self._states.restore(model)
        self.restored_step = applied_steps(model)
        clock_of(model).go_back(before - self.restored_step)
        for optimizer, number in zip(self._optimizers(), rates, strict=True):
            optimizer.learning_rate = number if gives_up else number / 2
        self._spike.forget_suspects()
        self._suspects = []
        broke = f"step {step}, learning rate {rate:.3g}: {says}"
        if gives_up:
            self._states.close()
            saved = (
                f"The batch lies in {str(file)!r}; kvision.training.replay({str(file)!r}, model) runs it again."
                if file
                else "The batch could not be saved."
            )
            times = "once" if self.retries == 1 else f"{self.retries} times"
            layer, where = (diagnosis.first if diagnosis else None) or (None, None)
            raise Diverged(
                f"Training broke {times}, with max_retries={self.max_retries}. At {broke}. {saved} The model is back "
                "in its last good state: look at that batch, lower the rate, or clip the gradient.",
                layer,
                where,
                step,
                rate,
                file,
            )
        text = (
            f"Rollback {self.retries} of {self.max_retries} at {broke}. Back to the state of step {self.restored_step}"
            f", learning rate {rate / 2:.3g}."
        )
        print_message(f"\n{text}")
        emit(self, Advice("rollback", step, self._epoch, text))

    def _diagnosed(self, verdict):
        try:
            diagnosis = diagnose(self.model, verdict.data)
        except Exception as error:  # such as of a model whose layers run on replicas only
            what = "a gradient is not finite" if math.isfinite(verdict.loss) else f"the loss is {verdict.loss}"
            return None, f"{what} (its layers could not be looked at: {type(error).__name__})"
        return diagnosis, diagnosis.sentence

    def _save(self, verdict, step, rate, says):
        path = (self.directory or pathlib.Path()) / f"rollback-step-{step}.npz"
        try:
            weights = copy_state(self.model, ("model",))
            facts = {"step": step, "learning_rate": rate, "loss": str(verdict.loss), "says": says}
            replace_file(path, batch_file(verdict.data, facts, weights))
        except Exception as error:  # a full disk must not hide what is to be told
            print_message(f"\nRollback could not save the batch: {type(error).__name__}: {error}")
            return None
        return path

    def _tell_unguarded(self):
        if not self._told:
            self._told = True
            reason = self._tap.reason or "its training step tells neither loss nor gradients"
            print_message(f"\nRollback does not watch this run: {reason}.")

    def _optimizers(self):
        optimizer = unwrapped_optimizer(self.model)
        if optimizer is None:
            return []
        return list(getattr(optimizer, "optimizers", [optimizer]))

    def __getstate__(self):
        """A copy belongs to no fit."""
        return vars(self) | {"_tap": None, "_states": None, "_suspects": []}


def _number(value):
    return float(keras.ops.convert_to_numpy(value))
