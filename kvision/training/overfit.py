"""A handful of samples must be learned by heart: CS231n, "Babysitting the learning process"."""

import dataclasses
import math

import keras
import numpy as np

from kvision._keras import print_message
from kvision.batches import num_rows
from kvision.task_model import TaskModel
from kvision.training.batches import first_batch
from kvision.training.losses import prepare, tensors
from kvision.training.untouched import copy_optimizer, untouched, without_dropout, without_regularization
from kvision.training.verdict import Verdict

SEVERED = (
    "No gradient reaches any weight, expected one for each. Look for a stop_gradient, a rounding or an argmax between "
    "the weights and the loss."
)


@dataclasses.dataclass(frozen=True)
class OverfitBatch(Verdict):
    """The result of `overfit_one_batch`.

    Args:
        losses: Of each step, without regularization.
        target: The loss at or below which the batch counts as learned.
    """

    losses: tuple
    target: float

    def plot(self):
        """The losses by step as a `matplotlib.figure.Figure`."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5, 3.2), layout="constrained")
        axes = figure.add_subplot()
        axes.semilogy(self.losses)
        axes.axhline(self.target, linestyle="--", color="0.6")
        axes.set(xlabel="step", ylabel="loss", title="One batch, again and again")
        return figure


def overfit_one_batch(model, batch, *, samples=8, steps=300, target=None, optimizer=None, verbose=0):
    """Train on a few samples, again and again, until their loss is small, and put the model back bit for bit.

    A network that cannot learn eight samples by heart will not learn more: frozen weights, a loss that does not reach
    them, or an activation that holds gradients back. Regularization, dropout and noise layers are off meanwhile;
    augmentation inside the model is not. It is the model's own training step that runs, compiled as it was compiled.

    CS231n, "Babysitting the learning process": overfit a tiny subset of the data before anything else.

    Args:
        model: A compiled `keras.Model`; its weights, seeds, metrics, optimizer and compiled functions stay as they are.
        batch: `(x, y)` or `(x, y, sample_weight)`, or a data set, of which the first batch is taken.
        samples: How many of its rows to learn.
        steps: At most.
        target: Loss that counts as learned. None: 10 % of the first loss; 20 % for models that bring their own losses,
            such as detectors, whose boxes take longer.
        optimizer: Whatever `compile` takes; a copy is used, so `model.optimizer` tries the one of the training. None is
            Adam at 1e-3, which learns a few samples whatever the training needs.
        verbose: 1 prints the loss ten times.

    Returns:
        An `OverfitBatch`.

    Raises:
        ValueError: on a model that is not compiled, a batch without targets, numbers that are not positive.

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(2, "softmax")])
    >>> model.compile("sgd", "sparse_categorical_crossentropy")
    >>> x = np.random.default_rng(0).normal(size=(8, 8)).astype("float32")
    >>> overfit_one_batch(model, (x, np.arange(8) % 2), optimizer=keras.optimizers.Adam(0.02)).ok
    True
    """
    for name, value in (("samples", samples), ("steps", steps)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1: got {value!r}.")
    if target is not None and not target > 0:
        raise ValueError(f"target is a loss above 0: got {target!r}.")
    batch = first_batch(batch, samples)
    prepare(model, batch)
    optimizer = _optimizer(model, optimizer)
    losses = []
    with untouched(model, optimizer), without_regularization(model), without_dropout(model):
        batch = tuple(map(tensors, batch))
        for step in range(steps):
            try:
                loss = float(model.train_on_batch(*batch, return_dict=True)["loss"])
            except ValueError as error:  # TensorFlow says so; on JAX the gradient is 0
                if "No gradients provided" not in str(error):
                    raise
                return OverfitBatch(False, SEVERED, tuple(losses), math.inf if target is None else target)
            losses.append(loss)
            if target is None:
                target = abs(loss) * (0.2 if isinstance(model, TaskModel) else 0.1)
            if verbose and step % max(1, steps // 10) == 0:
                print_message(f"overfit_one_batch: step {step} of {steps}, loss {loss:.4g}")
            if not math.isfinite(loss) or loss <= target:
                break
    ok = losses[-1] <= target
    return OverfitBatch(ok, _sentence(model, batch, losses, target, ok), tuple(losses), target)


def _optimizer(model, optimizer):
    copy = copy_optimizer(keras.optimizers.get("adam" if optimizer is None else optimizer))
    scaled = type(model.optimizer).__name__ == "LossScaleOptimizer"
    if scaled and type(copy) is not type(model.optimizer):
        copy = keras.optimizers.LossScaleOptimizer(copy)
    return copy


def _sentence(model, batch, losses, target, ok):
    course = f"Loss of {num_rows(batch[0])} samples from {losses[0]:.3g} to {losses[-1]:.3g} in {len(losses)} steps"
    if ok:
        return f"{course}: learned by heart."
    course = f"{course}, expected {target:.3g} or less: "
    if not math.isfinite(losses[-1]):
        return course + "it is not finite. Run check_initial_loss and check_gradients, and lower the learning rate."
    if not model.trainable_variables:
        return course + "no weight is trainable. Set trainable=True where it should learn, and compile again."
    if len(set(losses)) == 1:
        return course + "it does not move at all: no gradient reaches the weights. Run check_gradients."
    if twins := _contradiction(batch):
        return course + f"rows {twins[0]} and {twins[1]} have the same input but different targets. Check the labels."
    if losses[-1] > losses[0]:
        return course + "it rises. Lower the learning rate of `optimizer`, and run check_gradients."
    return course + (
        "it falls too little. Look for frozen layers, initial weights or a last activation that hold the gradient back "
        "(check_gradients, compare_initialisations); if it is still falling, raise `steps` or the learning rate."
    )


def _contradiction(batch):
    """Two rows of the same input and different targets, or None."""
    rows = [
        [np.asarray(array)[row].tobytes() for array in keras.tree.flatten(batch[0])]
        for row in range(num_rows(batch[0]))
    ]
    targets = [[np.asarray(array)[row].tobytes() for array in keras.tree.flatten(batch[1])] for row in range(len(rows))]
    pairs = ((one, other) for other in range(len(rows)) for one in range(other))
    return next(
        (pair for pair in pairs if rows[pair[0]] == rows[pair[1]] and targets[pair[0]] != targets[pair[1]]), None
    )
