"""How a tapped step records on TensorFlow: free variables, filled inside the graph.

They belong to the tap alone: a variable tracked by the model or its optimizer would change what is saved and reloaded.
"""

import concurrent.futures

import numpy as np
import tensorflow as tf

from kvision.callbacks.vitals.readings import Activations


class Recorder:
    """Holds the numbers of the last measured step, and the units that were active since they were last taken.

    Args:
        model: The model whose steps are recorded.
        size: Length of the plan: the first step, the window, and the intervals.
    """

    def __init__(self, model, size):
        self._strategy = model.distribute_strategy
        self._replicas = self._strategy.num_replicas_in_sync
        self._plan = self._variable([size], "int64")
        self._batches = self._variable([], "int64")
        self._step = self._variable([], "int64")
        self._values = None
        self._activations, self._sums = {}, {}

    def begin(self, plan, batches=0):
        """Forget what was recorded, and measure by this plan from now on; so many batches were seen before."""
        self._plan.assign(np.array(plan, "int64"))
        self._batches.assign(batches)
        for variable in (self._step, *self._activations.values(), *self._sums.values()):
            variable.assign(tf.zeros_like(variable))

    def call(self, function, arguments):
        """Call the train function that was made of `run`."""
        return function(*arguments)

    def unread(self, arguments):
        """The arguments of the last `call`: a step that failed to trace has read no data."""
        return arguments

    def run(self, step, arguments):
        """Run the model's `train_step`."""
        self._batches.assign_add(1)
        return step(*arguments)

    def plan(self):
        """The first step to measure and the window, as tensors."""
        first, window = tf.unstack(tf.cast(self._plan[:2], "int32"))
        return first, window

    def batch(self):
        """The number of this batch in the run, from 1, as a tensor."""
        return tf.convert_to_tensor(self._batches)

    def is_due(self, step):
        """Whether an optimizer step is to be measured, as a tensor."""
        plan = tf.cast(tf.convert_to_tensor(self._plan), step.dtype)
        return tf.equal(step, plan[0]) | tf.reduce_any(tf.equal(step % plan[2:], 0))

    def value(self, variable):
        """What a Keras variable holds now, as a tensor that stays when the variable moves on."""
        return tf.convert_to_tensor(variable.value)

    def whole_batch(self, gradients):
        """Gradients of the whole batch; a replica holds those of its own part."""
        present = [tf.convert_to_tensor(gradient) for gradient in gradients if gradient is not None]
        if self._replicas > 1:
            present = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, present)
        present = iter(present)
        return [None if gradient is None else next(present) for gradient in gradients]

    def around_update(self, due, size, before, update, after):
        """Run `update`, and where `due` record what `after` finds.

        Args:
            due: Boolean tensor.
            size: Length of the recorded vector.
            before: Function that reads from ahead of the update what `after` needs.
            update: Function that changes the weights.
            after: Function of what was read; returns the optimizer step and a float32 vector of `size`.
        """
        if self._values is None:
            self._values = self._variable([size], "float32")
        if self._replicas > 1:
            # The update of several replicas cannot stand inside a condition: read the weights at every step.
            read = before()
            update()
            step, values = tf.cond(
                due, lambda: after(read), lambda: (tf.convert_to_tensor(self._step), tf.convert_to_tensor(self._values))
            )
            self._step.assign(step)
            self._values.assign(values)
            return

        def measured():
            read = before()
            update()
            step, values = after(read)
            self._step.assign(step)
            self._values.assign(values)
            return tf.constant(True)

        def plain():
            update()
            return tf.constant(False)

        tf.cond(due, measured, plain)

    def count_active(self, name, due, units, active, examples):
        """Where `due`, remember which of the `units` of a ReLU were active on so many `examples`."""
        if name not in self._activations:
            self._activations[name] = self._variable([units + 1], "float32", tf.VariableAggregation.SUM)
        counts = self._activations[name]

        def count():
            seen = tf.cast(tf.reshape(examples, [1]), "float32")
            counts.assign_add(tf.concat([tf.cast(active(), "float32"), seen], axis=0))
            return tf.constant(True)

        tf.cond(tf.convert_to_tensor(due), count, lambda: tf.constant(False))

    def add_up(self, name, due, size, numbers):
        """Where `due`, add to the sums of that name what `numbers` gives: a float32 vector of `size`."""
        if name not in self._sums:
            self._sums[name] = self._variable([size], "float32", tf.VariableAggregation.SUM)
        sums = self._sums[name]

        def add():
            sums.assign_add(numbers())
            return tf.constant(True)

        tf.cond(tf.convert_to_tensor(due), add, lambda: tf.constant(False))

    def measured(self):
        """The last measured optimizer step and a function that gives its vector, or None before the first."""
        step = int(self._step.numpy())
        return (step, lambda: np.array(self._values.numpy())) if step else None

    def take_activations(self):
        """`{name: Activations}` since the last call."""
        taken = {}
        for name, counts in self._activations.items():
            *active, examples = counts.numpy()
            if examples:
                taken[name] = Activations(np.array(active) > 0, int(examples))
                counts.assign(tf.zeros_like(counts))
        return taken

    def take_sums(self):
        """`{name: float64 vector}` since the last call, of those to which something was added."""
        taken = {name: sums.numpy().astype("float64") for name, sums in self._sums.items()}
        for sums in self._sums.values():
            sums.assign(tf.zeros_like(sums))
        return {name: sums for name, sums in taken.items() if sums.any()}

    def _variable(self, shape, dtype, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA):
        def make():
            with self._strategy.scope():
                return tf.Variable(
                    tf.zeros(shape, dtype),
                    trainable=False,
                    synchronization=tf.VariableSynchronization.ON_READ,
                    aggregation=aggregation,
                )

        with concurrent.futures.ThreadPoolExecutor(1) as outside:  # of the graph and the replica that ask for it
            return outside.submit(make).result()
