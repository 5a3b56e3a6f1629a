"""How a step tap records on TensorFlow: free variables, filled inside the graph.

They belong to the tap alone: a variable tracked by the model or its optimizer would change what is saved and reloaded.
"""

import concurrent.futures

import numpy as np
import tensorflow as tf

from kvision._keras import calls_variable


class Recorder:
    """Holds the numbers of the last measured step, and the units that fired since they were last read.

    Args:
        model: The model whose steps are recorded.
    """

    def __init__(self, model):
        self._strategy = model.distribute_strategy
        self._replicas = self._strategy.num_replicas_in_sync
        self._step = None
        self._values = None
        self._fired = {}

    def calls(self, optimizer, arguments):
        """Calls of `optimizer.apply` before this step; `arguments` are those of `train_step`."""
        return self.value(calls_variable(optimizer))

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
            self._step = self._variable([], "int64", tf.VariableAggregation.ONLY_FIRST_REPLICA)
            self._values = self._variable([size], "float32", tf.VariableAggregation.ONLY_FIRST_REPLICA)
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

    def count_fired(self, key, look, units, fired, examples):
        """Where `look`, remember which of the `units` of activation `key` fired on so many `examples`."""
        if key not in self._fired:
            self._fired[key] = self._variable([units + 1], "float32", tf.VariableAggregation.SUM)
        counts = self._fired[key]

        def count():
            seen = tf.cast(tf.reshape(examples, [1]), "float32")
            counts.assign_add(tf.concat([tf.cast(fired(), "float32"), seen], axis=0))
            return tf.constant(True)

        tf.cond(tf.convert_to_tensor(look), count, lambda: tf.constant(False))

    def measured(self):
        """The last measured optimizer step and its vector, or None before the first."""
        if self._values is None:
            return None
        step = int(self._step.numpy())
        return (step, lambda: np.array(self._values.numpy())) if step else None

    def take_fired(self):
        """`{key: (units that fired, examples looked at)}` since the last call."""
        taken = {}
        for key, counts in self._fired.items():
            *fired, examples = counts.numpy()
            if examples:
                taken[key] = (np.array(fired) > 0, int(examples))
                counts.assign(tf.zeros_like(counts))
        return taken

    def _variable(self, shape, dtype, aggregation):
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
