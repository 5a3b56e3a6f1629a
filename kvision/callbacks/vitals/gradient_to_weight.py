"""How large the gradients are beside the weights."""

import statistics

from kvision.callbacks.vitals.vital import Vital

HEALTHY = (0.0, 10.0)  # no lower end: the reduction of the loss and Adam's rates set the size


class GradientToWeight(Vital):
    """Measures ‖g‖ / ‖w‖ of every trainable weight inside the training step.

    g is the gradient before clipping, unscaled, averaged over accumulated batches, as `GradientNorm` sees it. Beside
    `UpdateRatio` it does not depend on the rate: it compares layers. Ratios that fall by orders of magnitude towards
    the input are a vanishing gradient (CS231n, "Babysitting the learning process"); a median above 10 has exploded.

    The median over the weights of rank 2 or more goes into `logs["gradient_to_weight"]` at the end of each epoch, as
    last measured (NaN before that); trackers receive the ratios of all weights. A weight that is exactly zero has no
    ratio.

    Args:
        every: Optimizer steps from one measurement to the next; the first step is measured as well.

    Attributes:
        ratios: `{weight path: ratio last measured}`.

    Example:

    ```python
    ratio = kvision.callbacks.GradientToWeight(every=50)
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
        weights = norms.weights
        self.ratios = {path: norm / weights[path] for path, norm in norms.gradients.items() if weights[path] != 0}
        kernels = [self.ratios[path] for path in norms.kernels if path in self.ratios]
        if kernels:
            self._median = statistics.median(kernels)
        self.emit("gradient_to_weight", norms.step, self.ratios, HEALTHY)

    def summary(self):
        return {"gradient_to_weight": self._median}
