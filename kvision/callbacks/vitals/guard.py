"""A training step that does not apply what is not finite, and tells of every batch how it went."""

import dataclasses
import itertools
import time

import keras
import numpy as np

from kvision.diagnosis import notes_on

if keras.backend.backend() == "jax":
    from kvision.callbacks.vitals._guard_jax import guarded, whole_batch
else:
    from kvision.callbacks.vitals._guard_tensorflow import guarded, whole_batch

VERDICT = "_kvision_verdict"  # beside the logs of a step, taken out before anyone sees them


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How the step on one batch went.

    Args:
        data: The batch, as the data set gave it.
        loss: Its loss, not averaged over the epoch; NaN where the step of the model tells none.
        applied: Whether loss and gradients were finite, so that the update was applied.
    """

    data: object
    loss: float
    applied: bool


class Guard:
    """Runs the batches of one train function one by one, keeps each, and reads how its step went.

    Where loss or gradients of a step are not finite, weights, optimizer, moving statistics, seeds and metrics stay as
    they were before it. A gradient that overflows under dynamic loss scaling is that optimizer's own business, as long
    as the loss scale can still fall. Over several replicas of TensorFlow the update cannot be withheld, only told.

    Args:
        model: A compiled model.
        withholds: Whether it guards; else it only hands the batches on, counts and times them.

    Attributes:
        examples: How many examples were read.
        waited: Seconds that the step has waited for them.
    """

    def __init__(self, model, withholds=True):
        self.examples, self.waited = 0, 0.0
        self._model = model
        self._withholds = withholds
        self._steps = model.steps_per_execution
        self._held = []
        self._data = None

    def run(self, step, arguments):
        """Run the model's `train_step`; traced."""
        return guarded(self._model, step, arguments, VERDICT) if self._withholds else step(*arguments)

    def call(self, function, arguments):
        """Call the train function that was made of `run` on as many batches as one call of it takes."""
        *state, iterator = arguments
        outputs = None
        for _ in range(self._steps):
            begin = time.perf_counter()
            try:
                self._data = next(iterator)
            except StopIteration:
                if outputs is None:
                    raise
                break
            self.waited += time.perf_counter() - begin
            self.examples += examples_of(whole_batch(self._model, self._data))
            try:
                outputs = function(*state, iter([self._data]))
            except Exception as error:
                for note in notes_on(self._model, self._data):
                    error.add_note(note)
                raise
            logs, state = (outputs[0], [outputs[1]]) if state else (outputs, [])
            if isinstance(logs, dict) and VERDICT in logs:
                self._held.append((self._data, logs.pop(VERDICT)))
        return outputs

    def unread(self, arguments):
        """The arguments of a `call` that failed in its first batch, with that batch."""
        *state, iterator = arguments
        return *state, itertools.chain([self._data], iterator)

    @property
    def batch(self):
        """The batch that was read last."""
        return self._data

    def take(self):
        """The `Verdict`s since the last call."""
        held, self._held = self._held, []
        verdicts = []
        for data, numbers in held:
            loss, applied = np.asarray(keras.ops.convert_to_numpy(numbers), "float64")
            whole = whole_batch(self._model, data)
            verdicts.append(Verdict(whole, float(loss), bool(applied == 1)))
        return verdicts


def examples_of(data):
    """How many examples a batch holds, by its first array; 0 where that cannot be told."""
    shapes = (getattr(each, "shape", ()) for each in keras.tree.flatten(data))
    return next((int(shape[0]) for shape in shapes if len(shape) and shape[0]), 0)
