"""How a tapped step records on JAX: the compiled step calls back to the host, under a condition.

What a step is to measure comes with its data: a compiled step on JAX sees nothing else that changes.
"""

import itertools
import weakref

import jax
import jax.numpy as jnp
import numpy as np

from kvision.callbacks.vitals.readings import Activations


class Recorder:
    """Holds the numbers of the last measured step, and the units that were active since they were last taken.

    Args:
        model: The model whose steps are recorded.
        size: Length of the plan: the first step, the window, and the intervals.
    """

    def __init__(self, model, size):
        self._model = weakref.ref(model)  # JAX keeps what a compiled step calls back to
        self.begin([0] * size)

    def begin(self, plan, batches=0):
        """Forget what was recorded, and measure by this plan from now on; so many batches were seen before."""
        self._model().jax_state_sync()  # the model's variables are empty while an epoch runs
        self._host_plan = np.array(plan, "int32")
        self._batches = batches
        self._last = None
        self._activations, self._sums = {}, {}

    def call(self, function, arguments):
        """Call the train function that was made of `run`."""
        state, iterator = arguments
        self._read = []
        return function(state, self._with_plan(iterator))

    def unread(self, arguments):
        """The arguments of the last `call`, with the data that it has read."""
        state, iterator = arguments
        return state, itertools.chain(self._read, iterator)

    def _with_plan(self, iterator):
        for data in iterator:
            self._read.append(data)
            self._batches += 1
            yield data, self._host_plan, np.int32(self._batches)

    def run(self, step, arguments):
        """Run the model's `train_step`."""
        state, (data, self._plan, self._batch) = arguments
        return step(state, data)

    def plan(self):
        """The first step to measure and the window, as tensors."""
        return self._plan[0], self._plan[1]

    def batch(self):
        """The number of this batch in the run, from 1, as a tensor."""
        return self._batch

    def is_due(self, step):
        """Whether an optimizer step is to be measured, as a tensor."""
        return (step == self._plan[0]) | jnp.any(step % self._plan[2:] == 0)

    def value(self, variable):
        """What a Keras variable holds now, as a tensor that stays when the variable moves on."""
        return variable.value

    def whole_batch(self, gradients):
        """Gradients of the whole batch: the step is written for all devices at once."""
        return gradients

    def around_update(self, due, size, before, update, after):
        """Run `update`, and where `due` record what `after` finds.

        Args:
            due: Boolean tensor.
            size: Length of the recorded vector.
            before: Function that reads from ahead of the update what `after` needs.
            update: Function that changes the weights.
            after: Function of what was read; returns the optimizer step and a float32 vector of `size`.
        """
        read = before()
        update()
        jax.lax.cond(due, lambda: jax.debug.callback(self._keep, *after(read)), lambda: None)

    def count_active(self, name, due, units, active, examples):
        """Where `due`, remember which of the `units` of a ReLU were active on so many `examples`."""

        def count():
            jax.debug.callback(lambda active: self._add(name, active, examples), active())

        jax.lax.cond(due, count, lambda: None)

    def add_up(self, name, due, size, numbers):
        """Where `due`, add to the sums of that name what `numbers` gives: a float32 vector of `size`."""

        def add():
            jax.debug.callback(lambda numbers: self._add_sums(name, numbers), numbers())

        jax.lax.cond(due, add, lambda: None)

    def measured(self):
        """The last measured optimizer step and a function that gives its vector, or None before the first."""
        jax.effects_barrier()
        if self._last is None:
            return None
        step, values = self._last
        return step, lambda: values

    def take_activations(self):
        """`{name: Activations}` since the last call."""
        jax.effects_barrier()
        taken, self._activations = self._activations, {}
        return taken

    def take_sums(self):
        """`{name: float64 vector}` since the last call, of those to which something was added."""
        jax.effects_barrier()
        taken, self._sums = self._sums, {}
        return taken

    def _keep(self, step, values):
        if self._last is None or step >= self._last[0]:  # callbacks of one call may arrive in any order
            self._last = int(step), np.array(values)

    def _add(self, name, active, examples):
        new = Activations(np.array(active), examples)
        self._activations[name] = self._activations[name] + new if name in self._activations else new

    def _add_sums(self, name, numbers):
        self._sums[name] = self._sums.get(name, 0.0) + np.array(numbers, "float64")
