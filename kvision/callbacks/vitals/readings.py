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
        loss_scale: What the loss was multiplied by before the gradient was taken.
        subnormal: Fraction of the gradient's numbers, times the loss scale, that are not 0 and below the smallest
            normal float16, 6.1e-5, where it loses digits.
        lost: Fraction below the smallest float16 at all, 6e-8, which it rounds to 0; part of `subnormal`.
    """

    step: int
    learning_rate: float
    shapes: dict
    gradients: dict
    weights: dict
    updates: dict
    largest_input: float | None = None
    loss_scale: float = 1.0
    subnormal: float = 0.0
    lost: float = 0.0

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


@dataclasses.dataclass(frozen=True)
class Statistics:
    """The outputs of an activation, over the batches that were read.

    Args:
        mean: Mean of all of them.
        deviation: Their standard deviation.
        saturated: Fraction whose derivative is below a tenth of its largest; None for others than sigmoid and tanh.
    """

    mean: float
    deviation: float
    saturated: float | None

    @classmethod
    def of(cls, sums):
        """The `Statistics` in the sums of `[1, mean, mean square, fraction saturated or -1]`, by batch."""
        count, mean, square, saturated = (float(number) for number in sums)
        mean, square, saturated = mean / count, square / count, saturated / count
        return cls(mean, math.sqrt(max(0.0, square - mean**2)) if square >= 0 else square, _or_none(saturated))


def _or_none(fraction):
    return None if fraction < 0 else fraction
