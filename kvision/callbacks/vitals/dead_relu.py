"""Which ReLUs never fire."""

import keras
import numpy as np
from keras import ops

from kvision._keras import layers_of, print_message
from kvision.callbacks.vitals.step_tap import EXAMPLES, Vital, replaced
from kvision.trackers.tracker import optimizer_steps, unique_names

FEWEST_EXAMPLES = 256  # where an epoch has fewer than EXAMPLES
HEALTHY = (0.0, 0.4)


class DeadReLU(Vital):
    """Finds the channels of convolutions and units of dense layers whose ReLU no longer fires.

    A ReLU that is 0 for every example has no gradient and stays dead; CS231n ("Commonly used activation functions")
    reports up to 40 % of a network dead after a learning rate set too high.

    Every ReLU-like activation is watched: a `ReLU` or `Activation` layer, `activation=` of any layer, with `max_value`
    or `negative_slope=0`, in nested models too; a leaky ReLU or PReLU is not. The last axis holds the channels. A unit
    is dead when it was 0, at every position, for the last 1,024 examples that were looked at (for one epoch where that
    has fewer, but 256 at least). Per window of `every` steps as many steps are looked at as give 1,024 examples,
    spread evenly: all of them where batches are small, one in three at batch 32 and `every=100`.

    The share of dead units of all layers goes into `logs["dead_relu"]`; trackers receive the share of each layer.

    A bare `keras.ops.relu` in a functional model is not a layer: it is watched by a forward pass of `data` after every
    window, or named once as not watched. A ReLU written inside the `call` of a layer cannot be seen. Right with
    `steps_per_execution`, gradient accumulation and mixed precision; under `MirroredStrategy` only where Keras itself
    trains (not with `jit_compile=True`, `steps_per_execution` or gradient accumulation).

    Args:
        every: Optimizer steps from one verdict to the next; there is one at the end of each epoch as well.
        data: Inputs of the model, one batch, for the bare ReLUs; or None.

    Attributes:
        dead: `{layer path: indices}` of the layers that have dead units.
        shares: `{layer path: share of its units that are dead, 0...1}`, of all layers with enough examples.
        units: `{layer path: number of its units}` of the same layers.

    Example:

    ```python
    dead = kvision.callbacks.DeadReLU()
    model.fit(images, labels, callbacks=[dead])
    dead.dead  # {"conv3": [5, 17]}
    ```
    """

    def __init__(self, every=100, data=None):
        super().__init__(every)
        self.data = data
        self._listed = False
        self._reset()

    def _reset(self):
        self.dead, self.shares, self.units = {}, {}, {}
        self._silences = {}
        self._fresh, self._judged = False, None

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._reset()
        self._bare = bare_relus(self.model)
        if self._bare and self.data is None and not self._listed:
            self._listed = True
            print_message(
                f"DeadReLU: not watched, since they are no layers: {', '.join(name for name, _ in self._bare)}. "
                "Pass `data=`, one batch of inputs, or use `keras.layers.ReLU`."
            )

    def looked(self, fired):
        self._fresh = True
        for path, (units, examples) in fired.items():
            self._silences.setdefault(path, _Silence()).add(units, examples)

    def measured(self, norms):
        self._judge(norms.step)

    def on_epoch_end(self, epoch, logs=None):
        self._tap.look()
        fewer_suffice = [silence.end_epoch() for silence in self._silences.values()]
        self._fresh = self._fresh or any(fewer_suffice)
        self._judge(optimizer_steps(self.model))
        super().on_epoch_end(epoch, logs)

    def summary(self):
        units = sum(self.units.values())
        return {"dead_relu": sum(map(len, self.dead.values())) / units} if units else {}

    def _judge(self, step):
        probed = self.data is not None and self._bare and step != self._judged
        if not self._fresh and not probed:
            return
        self._fresh, self._judged = False, step
        verdicts = {path: silence.dead() for path, silence in self._silences.items() if silence.judged()}
        if self.data is not None:
            verdicts |= silent_on(self.data, self.model, self._bare)
        self.dead = {path: np.flatnonzero(dead).tolist() for path, dead in verdicts.items() if dead.any()}
        self.shares = {path: float(dead.mean()) for path, dead in verdicts.items()}
        self.units = {path: len(dead) for path, dead in verdicts.items()}
        if verdicts:
            self.emit("dead_relu", step, self.shares, HEALTHY)


class _Silence:
    """For how many examples the units of one activation have not fired."""

    def __init__(self):
        self._examples = 0
        self._silent = 0
        self._needed = EXAMPLES
        self._first_epoch = True

    def add(self, fired, examples):
        self._examples += examples
        self._silent = np.where(fired, 0, self._silent + examples)

    def end_epoch(self):
        """After the first epoch its examples are enough; returns whether that makes them fewer."""
        if not self._first_epoch:
            return False
        self._first_epoch = False
        self._needed = min(max(self._examples, FEWEST_EXAMPLES), EXAMPLES)
        return self._needed < EXAMPLES

    def judged(self):
        return self._examples >= self._needed

    def dead(self):
        return self._silent >= self._needed


def bare_relus(model):
    """`(name, operation)` of the ReLUs in the graphs of `model` that no layer holds."""
    operations = {
        id(operation): operation
        for layer in layers_of(model, include_self=True)
        for operation in getattr(layer, "operations", ())
        if type(operation).__name__ in ("Relu", "Relu6", "ReLU", "LeakyRelu")
        and not isinstance(operation, keras.Layer)
        and getattr(operation, "negative_slope", 0) == 0
    }.values()
    return list(zip(unique_names(operation.name for operation in operations), operations, strict=True))


def silent_on(data, model, operations):
    """`{name: units that are 0 for all of data}` of bare ReLUs, by one forward pass with wrappers on for as long."""
    fired = {}

    def recording(name, call):
        def recorded(*args, **kwargs):
            outputs = call(*args, **kwargs)
            axes = tuple(range(len(outputs.shape) - 1))
            fired[name] = fired.get(name, False) | ops.convert_to_numpy(ops.any(outputs > 0, axis=axes))
            return outputs

        return recorded

    with replaced([(operation, "call", recording(name, operation.call)) for name, operation in operations]):
        model(data, training=False)
    return {name: ~units for name, units in fired.items()}
