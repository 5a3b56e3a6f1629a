"""A model again, of the same weights, in another precision."""

import contextlib

import keras
from keras import ops

from kvision._keras import graph_of, layers_of, loss_weights
from kvision.batches import for_arrays
from kvision.task_model import TaskModel
from kvision.training.losses import prepare
from kvision.training.untouched import changed


def may_be_float64(model):
    """Whether the model is all in its graph and in what `compile` was given. Keras on JAX rounds to float32."""
    return (
        _is_graph(model) and type(model).compute_loss is keras.Model.compute_loss and keras.backend.backend() != "jax"
    )


def _is_graph(model):
    return hasattr(graph_of(model), "operations")


def in_precision(model, precision, batch):
    """A context that gives the model where it computes in this precision, else one that does, of the same weights."""
    is_narrow = any(layer.compute_dtype in ("float16", "bfloat16") for layer in layers_of(model))
    return _rebuilt(model, precision, batch) if is_narrow or precision == "float64" else contextlib.nullcontext(model)


@contextlib.contextmanager
def _rebuilt(model, precision, batch):
    floatx = keras.config.floatx()
    try:
        keras.config.set_floatx(precision)
        copy = _copy(model, precision)
        for variable, original in zip(copy.variables, model.variables, strict=True):
            variable.assign(ops.convert_to_numpy(original).astype(keras.backend.standardize_dtype(variable.dtype)))
        prepare(copy, batch)
        yield copy
    finally:
        keras.config.set_floatx(floatx)


def _copy(model, precision):
    """A compiled model of fresh weights."""
    if isinstance(model, TaskModel):
        copy = type(model).from_config(_with_dtype(model.get_config(), precision))
        copy.compile("sgd", loss_weights=model._loss_weights or None)
        return copy
    if not _is_graph(model):
        raise ValueError(
            "check_gradients needs a functional or sequential model to check one of 16 bits: got "
            f"{type(model).__name__}. Build it under the policy float32."
        )

    def layer_copy(layer):
        copy = type(layer).from_config(_with_dtype(layer.get_config(), precision))
        copy.trainable = layer.trainable
        return copy

    def loss_copy(loss):
        is_object = isinstance(loss, keras.losses.Loss)
        return type(loss).from_config(loss.get_config() | {"dtype": precision}) if is_object else loss

    models = [each for each in layers_of(model, include_self=True) if getattr(each, "compiled", False)]
    with changed([(each, "compiled", False) for each in models]):  # its loss may be one that no config can tell
        copy = keras.models.clone_model(model, clone_function=layer_copy, recursive=True)
    copy.compile(loss=for_arrays(loss_copy, model.loss), loss_weights=loss_weights(model))
    return copy


def _with_dtype(config, precision):
    """A config in which everything computes in this precision."""
    if isinstance(config, dict):
        return {key: precision if key == "dtype" else _with_dtype(value, precision) for key, value in config.items()}
    return [_with_dtype(value, precision) for value in config] if isinstance(config, list) else config
