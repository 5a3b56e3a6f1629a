"""The loss of one training step, as a function that changes nothing."""

import keras
import numpy as np
from keras import ops

from kvision.batches import for_arrays
from kvision.contract import wrong_labels
from kvision.diagnosis import batch_sentence, broken_samples
from kvision.errors import unknown
from kvision.ops import traced as compiled
from kvision.ops import value_and_gradients
from kvision.task_model import TaskModel
from kvision.training.untouched import untouched


def with_gradients(function):
    """`function(values, batch)` of a list of arrays to a scalar → (scalar, gradients), traced."""
    both = value_and_gradients(lambda values, batch: (function(values, batch), ()))

    def with_value(values, batch):
        (value, _), gradients = both(values, batch)
        return value, gradients

    return with_value


def prepare(model, batch):
    """Raise on a model or a batch that no check can use, and let the model make what a first batch makes."""
    if not isinstance(model, keras.Model) or not getattr(model, "compiled", False):
        raise ValueError(
            f"A sanity check needs a compiled keras.Model: got {getattr(model, 'name', type(model).__name__)!r}. Call "
            "compile as for fit."
        )
    x, y, weight = batch
    check_finite(x)
    if isinstance(model, TaskModel):
        if weight is not None:
            raise ValueError(f"{model.name} takes no sample_weight: got batches of three parts. Pass (x, y).")
        model.check(x, y)
        return
    with untouched(model):
        outputs = model(tensors(x), training=False)
        check_targets(model, y, outputs)
        loss = model.compute_loss(tensors(x), tensors(y), outputs, tensors(weight), training=False)
        if not np.isfinite(ops.convert_to_numpy(loss)):  # a loss may mask targets that are not finite
            check_finite((y, weight))


def check_finite(arrays):
    """Raise on numbers that are not finite: a check would look for their cause in the model."""
    if broken := broken_samples(arrays):
        raise ValueError(
            f"{batch_sentence(broken).capitalize()}: got {len(broken)} such samples, expected finite inputs, targets "
            "and weights. Look at those samples, and at what reads or scales them."
        )


def check_targets(model, y, outputs):
    """Raise on labels that are none of the loss: on a GPU, of an index without an output it is NaN without a word."""
    name = loss_name(model.loss)
    if not hasattr(outputs, "shape") or not hasattr(y, "shape") or "categorical" not in name:
        return
    given, wanted = tuple(y.shape), tuple(outputs.shape)
    if "sparse" not in name:
        if given in (wanted[:-1], (*wanted[:-1], 1)) and wanted[-1] > 1:
            raise ValueError(
                f"{name} of {model.name} takes labels that are one-hot, {list(wanted)}: got {list(given)}, such as "
                f"class indices. Compile with sparse_categorical_crossentropy, or pass "
                f"keras.utils.to_categorical(y, {wanted[-1]})."
            )
        return
    if given == wanted and wanted[-1] > 1:
        raise ValueError(
            f"{name} of {model.name} takes one integer a sample: got {list(given)}, as many as outputs, such as "
            f"one-hot labels. Compile with {name.removeprefix('sparse_')}, or pass y.argmax(axis=-1)."
        )
    classes, labels = wanted[-1], np.asarray(y).reshape(len(y), -1)
    wrong = wrong_labels(labels, classes, getattr(model.loss, "ignore_class", None))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise ValueError(
            f"Labels of {model.name} are integers from 0 to {classes - 1}: got {labels[row, column]} at index "
            f"{row} of the batch, {wrong.any(axis=1).sum()} such samples in all. Number the classes from 0, "
            "without a background class, or give the model more outputs."
        )


def loss_name(loss):
    """The name of a loss as Keras spells it in strings; that of a class in the same way. Empty for structures."""
    if not isinstance(loss, str) and not callable(loss):
        return ""
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    if "_" in name or name.islower():
        return name
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")


def tensors(values):
    """Arrays of any structure as tensors."""
    return for_arrays(ops.convert_to_tensor, values)


def step_loss(model, variables, names=None):
    """`function(values, batch)` → the loss of a training step, in which `variables` have these values.

    Dropout and sampling start from the same seeds at each call. Nothing is changed by a call.

    Args:
        model: A compiled model that `prepare` has seen.
        variables: Those that `values` are of.
        names: Which losses of a `TaskModel` to add up, unweighted; None: the loss that is trained on.
    """
    if names is not None:
        for name in names:
            if name not in model.head.loss_names:
                raise unknown(f"loss of {model.name}", name, model.head.loss_names)

    def loss(values, batch):
        x, y, weight = batch
        with _scope(model, variables, values):
            outputs = model(x, training=True)
            if names is not None:
                losses = model.head.losses(outputs, y, training=True)
                return sum(ops.cast(losses[name], "float32") for name in names)
            return model.compute_loss(x, y, outputs, weight, training=True)

    return loss


def _scope(model, variables=(), values=()):
    """What is assigned within is forgotten. Regularizers look for all weights in the scope alone."""
    given = {id(variable): (variable, variable.value) for variable in model.trainable_variables}
    given |= {id(variable): (variable, value) for variable, value in zip(variables, values, strict=True)}
    return keras.StatelessScope(list(given.values()), collect_losses=True)


def named_losses(model, batch):
    """`{name: float}` of a `TaskModel`, of one training step; `{"loss": float}` of another model, both unchanged."""
    x, y, weight = map(tensors, batch)

    @compiled
    def losses(x, y, weight):
        with _scope(model):
            outputs = model(x, training=True)
            if isinstance(model, TaskModel):
                return dict(model.head.losses(outputs, y, training=True))
            return {"loss": model.compute_loss(x, y, outputs, weight, training=True)}

    return {name: float(ops.convert_to_numpy(value)) for name, value in losses(x, y, weight).items()}
