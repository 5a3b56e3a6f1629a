"""How the outputs of activations are spread, and how many units of sigmoids and tanhs are saturated."""

import statistics as averages

import keras

from kvision._keras import producer
from kvision.callbacks.vitals.vital import Vital

HEALTHY = (0.0, 0.5)


class Saturation(Vital):
    """Measures mean and standard deviation of every activation, and the fraction of its units that are saturated.

    A sigmoid or tanh is saturated where its derivative is below a tenth of its largest: outputs beyond ±0.949 of a
    tanh, below 0.026 or above 0.974 of a sigmoid. There it passes no gradient on (CS231n, "Commonly used activation
    functions"; Glorot and Bengio, *Understanding the difficulty of training deep feedforward neural networks*, 2010,
    section 3). Means and deviations that shrink or grow from layer to layer are those of CS231n's "Weight
    Initialization". Every activation that is a layer or an `activation=` is read, in nested models too, at as many
    steps as give 1,024 examples per window of `every` steps. The output of the model is no part of the saturation: a
    sure classifier is saturated there.

    The mean fraction of the hidden sigmoids and tanhs goes into `logs["saturation"]` (NaN until it was measured; there
    is no entry where the model has none); trackers receive `saturation`, `activation_mean` and `activation_std` by
    layer.

    Args:
        every: Optimizer steps from one reading to the next; there is one at the end of each epoch as well.

    Attributes:
        saturated: `{layer path: fraction of saturated units, in [0, 1]}` of the hidden sigmoids and tanhs.
        means: `{layer path: mean}` of all activations, as last measured.
        deviations: `{layer path: standard deviation}`, likewise.

    Example:

    ```python
    saturation = kvision.callbacks.Saturation()
    model.fit(images, labels, callbacks=[saturation])
    saturation.saturated["hidden"], saturation.deviations["hidden"]
    ```
    """

    remembers = ("saturated", "means", "deviations")

    def __init__(self, every=100):
        super().__init__(every)
        self._reset()

    def _reset(self):
        self.saturated, self.means, self.deviations = {}, {}, {}
        self._outputs = frozenset()

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._reset()
        if isinstance(self.model, keras.Sequential | keras.Model) and getattr(self.model, "outputs", None):
            last = (producer(tensor) for tensor in keras.tree.flatten(self.model.outputs))
            self._outputs = frozenset(getattr(layer, "path", layer.name) or layer.name for layer in last)

    def on_statistics(self, step, statistics):
        self.means |= {path: each.mean for path, each in statistics.items()}
        self.deviations |= {path: each.deviation for path, each in statistics.items()}
        self.saturated |= {
            path: each.saturated
            for path, each in statistics.items()
            if each.saturated is not None and path not in self._outputs
        }
        self.emit("activation_mean", step, dict(self.means))
        self.emit("activation_std", step, dict(self.deviations))
        if self.saturated:
            self.emit("saturation", step, dict(self.saturated), HEALTHY)

    def summary(self):
        if self.saturated:
            return {"saturation": averages.fmean(self.saturated.values())}
        return {"saturation": None} if self._tap.watches_saturation(self._outputs) else {}
