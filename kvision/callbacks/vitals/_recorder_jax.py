"""How a step tap records on JAX: the compiled step calls back to the host, under a condition."""

import jax
import numpy as np

from kvision._keras import calls_variable


class Recorder:
    """Holds the numbers of the last measured step, and the units that fired since they were last read.

    Args:
        model: The model whose steps are recorded.
    """

    def __init__(self, model):
        model.jax_state_sync()  # its variables are empty while an epoch runs
        self._model = model
        self._last = None
        self._fired = {}

    def calls(self, optimizer, arguments):
        """Calls of `optimizer.apply` before this step; `arguments` are those of `train_step`."""
        (_, _, optimizer_variables, _), *_ = arguments
        places = [variable is calls_variable(optimizer) for variable in self._model.optimizer.variables]
        return optimizer_variables[places.index(True)]

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

    def count_fired(self, key, look, units, fired, examples):
        """Where `look`, remember which of the `units` of activation `key` fired on so many `examples`."""

        def count():
            jax.debug.callback(lambda fired: self._add(key, fired, examples), fired())

        jax.lax.cond(look, count, lambda: None)

    def measured(self):
        """The last measured optimizer step and its vector, or None before the first."""
        jax.effects_barrier()
        if self._last is None:
            return None
        step, values = self._last
        return step, lambda: values

    def take_fired(self):
        """`{key: (units that fired, examples looked at)}` since the last call."""
        jax.effects_barrier()
        taken, self._fired = self._fired, {}
        return taken

    def _keep(self, step, values):
        if self._last is None or step >= self._last[0]:  # callbacks of one call may arrive in any order
            self._last = int(step), np.array(values)

    def _add(self, key, fired, examples):
        before, seen = self._fired.get(key, (False, 0))
        self._fired[key] = (np.array(fired) | before, seen + examples)
