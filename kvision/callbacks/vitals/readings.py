"""What a step tap reads of a training step, and hands to the vitals."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Norms:
    """What one optimizer step did to the trainable weights, as Euclidean norms.

    Args:
        step: Optimizer steps taken, this one included.
        learning_rate: The rate this step was taken with; the largest one of a `MultiOptimizer`.
        shapes: `{weight path: shape}` of the trainable weights, in the model's order.
        gradients: `{weight path: norm}`, before clipping, unscaled; weights without a gradient are missing.
        weights: `{weight path: norm}` before the step.
        updates: `{weight path: norm}` of what the step added.
        largest_input: Largest magnitude in the images of the step's batch; None where the inputs are no images.
    """

    step: int
    learning_rate: float
    shapes: dict
    gradients: dict
    weights: dict
    updates: dict
    largest_input: float | None = None

    @property
    def kernels(self):
        """Paths of the weights that medians and advice look at: rank 2 or more, root mean square above 1e-6."""
        return [path for path, shape in self.shapes.items() if len(shape) >= 2 and self.root_mean_square(path) > 1e-6]

    def root_mean_square(self, path):
        """Root mean square of the elements of a weight before the step."""
        return self.weights[path] / math.sqrt(max(1, math.prod(self.shapes[path])))


@dataclasses.dataclass(frozen=True)
class Activations:
    """Which units of a ReLU were active.

    Args:
        active: [units] bool: whether a unit was above 0 anywhere, for any of the examples.
        examples: Number of examples that were read.
    """

    active: object
    examples: int

    def __add__(self, other):
        return Activations(self.active | other.active, self.examples + other.examples)
