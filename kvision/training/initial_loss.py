"""The loss before any training: CS231n, "Babysitting the learning process", "Look for correct loss at chance"."""

import dataclasses
import math

import keras
import numpy as np
from keras import ops

from kvision._keras import compiled_loss
from kvision.task_model import TaskModel
from kvision.training.batches import first_batch
from kvision.training.losses import loss_name, named_losses, prepare, tensors
from kvision.training.untouched import untouched, without_dropout, without_regularization
from kvision.training.verdict import Verdict

# What a network without knowledge gives, by the loss it is trained on; losses that are not here have no chance level.
SOFTMAX = ("categorical_crossentropy", "sparse_categorical_crossentropy", "categorical_focal_crossentropy")
SIGMOID = ("binary_crossentropy", "binary_focal_crossentropy")
MARGIN = ("hinge", "squared_hinge", "categorical_hinge")

SPREAD = 3.0  # what fresh logits of a deviation of about 2.5 add to a cross-entropy; features of ReLUs give 2


@dataclasses.dataclass(frozen=True)
class InitialLoss(Verdict):
    """The result of `check_initial_loss`.

    Args:
        losses: `{name: loss}` without regularization: `"loss"`, or each loss of a detector.
        expected: `{name: loss at chance}` of those that have one.
        loss: The sum of `losses`, without regularization.
        regularized: The loss that is trained on, with regularization.
    """

    losses: dict
    expected: dict
    loss: float
    regularized: float


def check_initial_loss(model, batch, tolerance=0.25):
    """Compare the loss of an untrained model with that of guessing.

    Guessing costs log C with a softmax over C classes and log 2 with a sigmoid. A detector with focal loss starts where
    every anchor has the foreground probability of its prior; one with proposals at log 2 for objectness and at
    log(C + 1) for its classes. Losses of boxes and masks have no such level. The loss is that of a training step
    without dropout: batch norm uses the batch's statistics. A model that was trained is below its chance level and
    fails. The model stays as it was.

    CS231n, "Babysitting the learning process": the right loss at chance, and regularization raises it.

    Args:
        model: A compiled `keras.Model` before training.
        batch: `(x, y)` or `(x, y, sample_weight)`, or a data set, of which the first batch is taken; 16 samples or
            more, of all classes, give a steady number.
        tolerance: Relative distance from chance that is allowed; above, fresh logits may add another 3.

    Returns:
        An `InitialLoss`.

    Raises:
        ValueError: on a model that is not compiled, a batch without targets, or labels that no output is for.

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, activation="softmax")])
    >>> model.compile("sgd", "sparse_categorical_crossentropy")
    >>> x = np.random.default_rng(0).normal(size=(32, 8)).astype("float32")
    >>> verdict = check_initial_loss(model, (x, np.arange(32) % 4))
    >>> verdict.ok, round(verdict.expected["loss"], 3)
    (True, 1.386)
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance is a relative distance above 0: got {tolerance!r}.")
    batch = first_batch(batch)
    prepare(model, batch)
    with untouched(model), without_dropout(model):
        with without_regularization(model):
            losses = named_losses(model, batch)
        if isinstance(model, TaskModel):
            chance = getattr(model.head, "chance_losses", None)
            expected = {} if chance is None else chance(batch[1])
            faults = []
            added = float(sum(map(_number, _regularization(model))))
            regularized = sum(losses.values()) + added
        else:
            regularized = named_losses(model, batch)["loss"]
            expected, faults = _of_compiled_loss(model, batch)
    loss = sum(losses.values())
    faults += _out_of_range(losses, expected, tolerance)
    if regularized < loss - 1e-4 * max(1.0, abs(loss)):
        faults.append(
            f"Regularization lowers the loss from {loss:.4g} to {regularized:.4g}, expected a rise: its factor is "
            "negative."
        )
    sentence = " ".join(faults) or _passed(losses, expected, loss, regularized)
    return InitialLoss(not faults, sentence, losses, expected, loss, regularized)


def _regularization(model):
    return [variable.regularizer(variable) for variable in model.trainable_variables if variable.regularizer]


def _number(value):
    return float(ops.convert_to_numpy(value))


def _passed(losses, expected, loss, regularized):
    parts = [f"{name} {losses[name]:.3g}, by chance {level:.3g}" for name, level in expected.items()]
    if not parts:
        parts = [f"Loss {loss:.3g} is finite; its kind has no known level of chance"]
    if regularized > loss + 1e-6 * max(1.0, abs(loss)):
        parts.append(f"with regularization {regularized:.3g}")
    sentence = "; ".join(parts).capitalize() + "."
    if any(losses[name] > level + 1 for name, level in expected.items()):
        sentence += " Smaller initial weights of the last layer would start closer."
    return sentence


def _out_of_range(losses, expected, tolerance):
    for name, loss in losses.items():
        level = expected.get(name)
        if not math.isfinite(loss):
            yield f"{name} is {loss} before training: look for values that are not finite in the inputs and weights."
        elif level is None:
            continue
        elif loss < level * (1 - tolerance):
            yield (
                f"{name} is {loss:.3g}, below {level:.3g}, that of guessing: the model was trained already, sees its "
                "labels, or the loss does not count all samples."
            )
        elif loss > level * (1 + tolerance) + (SPREAD if level > 0.1 else 0.0):
            yield (
                f"{name} is {loss:.3g}, expected about {level:.3g}, that of guessing: the first outputs are confident "
                "and wrong. Look for inputs that were not scaled, a last layer whose initial weights or bias are off, "
                "or a last activation that does not fit the loss."
            )


# Models with a compiled loss


def _of_compiled_loss(model, batch):
    """`({"loss": chance}, faults)`; no chance level where one of the losses has none."""
    x, y, weight = map(tensors, batch)
    with keras.StatelessScope():
        outputs = model(x, training=True)
    names = list(outputs) if hasattr(outputs, "keys") else None
    flat = keras.tree.flatten(outputs)
    losses = _loss_of_each(model.loss, flat, names)
    guesses, faults = [], []
    for output, loss in zip(flat, losses, strict=True):
        guess, fault = _guess(loss, np.asarray(ops.convert_to_numpy(ops.cast(output, "float32"))))
        guesses.append(guess)
        faults += [] if fault is None else [fault]
    if any(guess is None for guess in guesses):
        return {}, faults
    guesses = keras.tree.pack_sequence_as(outputs, [ops.convert_to_tensor(guess) for guess in guesses])
    return {"loss": _number(compiled_loss(model, y, guesses, weight))}, faults


def _loss_of_each(loss, outputs, names):
    """The loss of each output, in their order; None where there is none."""
    if hasattr(loss, "keys"):
        return [loss.get(name) for name in names] if names else [None] * len(outputs)
    if isinstance(loss, tuple | list):
        losses = list(loss)
        return losses if len(losses) == len(outputs) else [None] * len(outputs)
    return [loss] * len(outputs)


def _guess(loss, outputs):
    """What a network without knowledge gives instead of `outputs`, and what is wrong with their activation."""
    name = loss_name(loss)
    config = loss.get_config() if isinstance(loss, keras.losses.Loss) else {}
    logits = bool(config.get("from_logits", False))
    classes = outputs.shape[-1] if outputs.ndim else 1
    low, high = float(outputs.min()), float(outputs.max())
    if name in SOFTMAX:
        sums = np.allclose(outputs.sum(axis=-1), 1, atol=1e-2) and low >= 0
        fault = None
        if classes == 1:
            fault = "A softmax over one output is always 1: use two outputs, or a sigmoid with binary_crossentropy."
        elif logits and sums:
            fault = (
                "The loss has from_logits=True, but the outputs sum to 1: softmax is applied twice. Use one of them."
            )
        elif not logits and not sums:
            fault = (
                f"{name} takes scores that sum to 1, but the outputs lie in {low:.3g} to {high:.3g} and do not: end in "
                "a softmax, or use from_logits=True."
            )
        return np.full_like(outputs, 0.0 if logits else 1 / classes), fault
    if name in SIGMOID:
        inside = low >= 0 and high <= 1
        fault = None
        if logits and inside and outputs.size >= 4:
            fault = "The loss has from_logits=True, but the outputs lie in 0 to 1: sigmoid is applied twice. Use one."
        elif not logits and not inside:
            fault = (
                f"{name} takes scores in 0 to 1, but the outputs lie in {low:.3g} to {high:.3g}: end in a sigmoid, or "
                "use from_logits=True."
            )
        elif not logits and classes > 1 and np.allclose(outputs.sum(axis=-1), 1, atol=1e-3):
            fault = (
                f"The {classes} outputs of {name} sum to 1, so only one class can be present: end in a sigmoid, or use "
                "categorical_crossentropy."
            )
        return np.full_like(outputs, 0.0 if logits else 0.5), fault
    if name in MARGIN:
        return np.zeros_like(outputs), None
    return None, None
