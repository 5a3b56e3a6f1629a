"""How large the gradients are."""

import math

from kvision.callbacks.vitals.vital import Vital


class GradientNorm(Vital):
    """Measures the Euclidean norm of the gradient of every trainable weight, and of all together.

    It sees what the optimizer is given for one step: unscaled under loss scaling, before `clipnorm`, `clipvalue` or
    `global_clipnorm`, averaged over the batches of gradient accumulation, and summed over the replicas of a
    `MirroredStrategy` (which costs one more all-reduce a step; where Keras itself does not train under it, with
    `jit_compile=True`, `steps_per_execution` or gradient accumulation, there is nothing to measure). A step that loss
    scaling skipped is not seen. With `steps_per_execution=k` at most one step of the k is read.

    The global norm goes into `logs["gradient_norm"]` at the end of each epoch, as last measured (NaN before that);
    trackers receive the norms of all weights.

    Args:
        every: Optimizer steps from one measurement to the next; the first step is measured as well.

    Attributes:
        norms: `{weight path: norm last measured}`, without the weights that have no gradient.
        global_norm: Norm of all gradients together, last measured; None before.

    Example:

    ```python
    gradients = kvision.callbacks.GradientNorm(every=50)
    model.fit(images, labels, callbacks=[gradients])
    gradients.global_norm, gradients.norms["conv1/kernel"]
    ```
    """

    remembers = ("norms", "global_norm")

    def __init__(self, every=100):
        super().__init__(every)
        self.norms = {}
        self.global_norm = None

    def on_norms(self, norms):
        self.norms = norms.gradients
        self.global_norm = math.hypot(*self.norms.values())
        self.emit("gradient_norm", norms.step, self.norms)

    def summary(self):
        return {"gradient_norm": self.global_norm}
