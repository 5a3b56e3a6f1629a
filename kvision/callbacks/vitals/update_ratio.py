"""How large the updates are beside the weights (CS231n, "Babysitting the learning process": near 1e-3)."""

import statistics

from kvision.callbacks.vitals.vital import Vital

HEALTHY = (1e-5, 2e-2)  # the range in which nothing is said; 1e-3 is the middle


class UpdateRatio(Vital):
    """Measures ‖Δw‖ / ‖w‖ of every trainable weight inside the training step.

    CS231n, "Babysitting the learning process", calls about 1e-3 healthy: far above, the learning rate is too high, far
    below, too low. Δw is what one optimizer step added, with momentum, clipping, weight decay and constraints in it,
    without moving averages that overwrite the weights (`use_ema`); w is the weight before.

    The median over the weights of rank 2 or more goes into `logs["update_ratio"]` at the end of each epoch, as last
    measured (NaN before that); trackers receive the ratios of all weights. A weight that is exactly zero before the
    step has no ratio. With `steps_per_execution=k` at most one step of the k is read; gradient accumulation is one step
    an update; a step that loss scaling skipped is none. Under `MirroredStrategy` the weights are read at every step;
    where Keras itself does not train under it (`jit_compile=True`, `steps_per_execution`, gradient accumulation) there
    is nothing to read.

    Args:
        every: Optimizer steps from one measurement to the next; the first step is measured as well.

    Attributes:
        ratios: `{weight path: ratio last measured}`.

    Example:

    ```python
    ratio = kvision.callbacks.UpdateRatio(every=50)
    model.fit(images, labels, callbacks=[ratio])
    ratio.ratios["conv1/kernel"]
    ```
    """

    remembers = ("ratios", "_median")

    def __init__(self, every=100):
        super().__init__(every)
        self.ratios = {}
        self._median = None

    def on_norms(self, norms):
        self.ratios = {path: norms.updates[path] / weight for path, weight in norms.weights.items() if weight != 0}
        kernels = [self.ratios[path] for path in norms.kernels]
        if kernels:
            self._median = statistics.median(kernels)
        self.emit("update_ratio", norms.step, self.ratios, HEALTHY)

    def summary(self):
        return {"update_ratio": self._median}
