"""Which units of ReLUs are dead: never active."""

import numpy as np

from kvision._keras import print_message
from kvision.callbacks.vitals.active_units import inactive_on, named_bare_relus
from kvision.callbacks.vitals.vital import Vital
from kvision.callbacks.vitals.watched_units import EXAMPLES

FEWEST_EXAMPLES = 256  # where an epoch has fewer than EXAMPLES
HEALTHY = (0.0, 0.4)


class DeadReLU(Vital):
    """Finds the channels of convolutions and units of dense layers whose ReLU is dead.

    A ReLU that is 0 for every example has no gradient and stays dead; CS231n ("Commonly used activation functions")
    reports up to 40 % of a network dead after a learning rate set too high.

    Every ReLU-like activation is watched: a `ReLU` or `Activation` layer, `activation=` of any layer, with `max_value`
    or `negative_slope=0`, in nested models too; a leaky ReLU or PReLU is not. The last axis holds the channels. A unit
    is dead when it was 0, at every position, for the last 1,024 examples that were read (for one epoch where that has
    fewer, but 256 at least). Per window of `every` steps as many steps are read as give 1,024 examples, spread evenly:
    all of them where batches are small, one in three at batch 32 and `every=100`. A ReLU that is used in several places
    is one row a place; in a part of the network that is called several times, a unit lives where any call activates it.

    The fraction of dead units of all layers goes into `logs["dead_relu"]` (NaN until enough examples were read);
    trackers receive the fraction of each layer.

    A bare `keras.ops.relu` in a functional model is not a layer: it is watched by a forward pass of `data` after every
    window, or named once as not watched. A ReLU written inside the `call` of a layer cannot be seen. Right with
    `steps_per_execution`, gradient accumulation and mixed precision; under `MirroredStrategy` only where Keras itself
    trains (not with `jit_compile=True`, `steps_per_execution` or gradient accumulation).

    Args:
        every: Optimizer steps from one verdict to the next; there is one at the end of each epoch as well.
        data: Inputs of the model, one batch, for the bare ReLUs; or None.

    Attributes:
        dead: `{layer path: indices}` of the layers that have dead units.
        fractions: `{layer path: fraction of its units that are dead, in [0, 1]}`, of all layers with enough examples.
        units: `{layer path: number of its units}` of the same layers.

    Example:

    ```python
    dead = kvision.callbacks.DeadReLU()
    model.fit(images, labels, callbacks=[dead])
    dead.dead  # {"conv3": [5, 17]}
    ```
    """

    remembers = ("dead", "fractions", "units", "_fresh", "_judged")

    def __init__(self, every=100, data=None):
        super().__init__(every)
        self.data = data
        self._listed = False
        self._bare = []
        self._reset()

    def _reset(self):
        self.dead, self.fractions, self.units = {}, {}, {}
        self._inactive = {}
        self._fresh, self._judged = False, None

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._reset()
        self._bare = named_bare_relus(self.model)
        if self._bare and self.data is None and not self._listed:
            self._listed = True
            print_message(
                f"DeadReLU: not watched, since they are no layers: {', '.join(name for name, _ in self._bare)}. "
                "Pass `data=`, one batch of inputs, or use `keras.layers.ReLU`."
            )

    def get_state(self):
        return super().get_state() | {"inactive": {path: dict(vars(each)) for path, each in self._inactive.items()}}

    def set_state(self, state):
        super().set_state({name: value for name, value in state.items() if name != "inactive"})
        self._inactive = {path: _Inactive() for path in state.get("inactive", {})}
        for path, each in self._inactive.items():
            vars(each).update(state["inactive"][path])

    def on_activations(self, step, activations):
        self._fresh = self._fresh or bool(activations)
        for path, each in activations.items():
            self._inactive.setdefault(path, _Inactive()).add(each)
        self._judge(step)

    def on_epoch_end(self, epoch, logs=None):
        self._tap.end_epoch(self, epoch)
        fewer_suffice = [inactive.end_epoch() for inactive in self._inactive.values()]
        self._fresh = self._fresh or any(fewer_suffice)
        self._judge(self._tap.step)
        super().on_epoch_end(epoch, logs)

    def summary(self):
        units = sum(self.units.values())
        if units:
            return {"dead_relu": sum(map(len, self.dead.values())) / units}
        watched = self._tap.watches_relus() or (self._bare and self.data is not None)
        return {"dead_relu": None} if watched else {}

    def _judge(self, step):
        probed = self.data is not None and self._bare and step != self._judged
        if not self._fresh and not probed:
            return
        self._fresh, self._judged = False, step
        verdicts = {path: inactive.dead() for path, inactive in self._inactive.items() if inactive.is_judged()}
        if self.data is not None:
            verdicts |= inactive_on(self.data, self.model, self._bare)
        self.dead = {path: np.flatnonzero(dead).tolist() for path, dead in verdicts.items() if dead.any()}
        self.fractions = {path: float(dead.mean()) for path, dead in verdicts.items()}
        self.units = {path: len(dead) for path, dead in verdicts.items()}
        if verdicts:
            self.emit("dead_relu", step, self.fractions, HEALTHY)


class _Inactive:
    """For how many examples the units of one ReLU have not been active."""

    def __init__(self):
        self._examples = 0
        self._inactive = 0
        self._needed = EXAMPLES
        self._first_epoch = True

    def add(self, activations):
        self._examples += activations.examples
        self._inactive = np.where(activations.active, 0, self._inactive + activations.examples)

    def end_epoch(self):
        """After the first epoch its examples are enough; returns whether that makes them fewer."""
        if not self._first_epoch:
            return False
        self._first_epoch = False
        self._needed = min(max(self._examples, FEWEST_EXAMPLES), EXAMPLES)
        return self._needed < EXAMPLES

    def is_judged(self):
        return self._examples >= self._needed

    def dead(self):
        return self._inactive >= self._needed
