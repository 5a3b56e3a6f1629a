"""Where a run stands: the optimizer's steps, and the learning rate of a step."""

import keras

from kvision._keras import calls_variable, learning_rate_schedule


def optimizer_steps(model):
    """The optimizer steps `model` has taken: batches divided by gradient accumulation, kept by a resumed run.

    Inside a callback give `self.model`: on JAX that brings the optimizer's variables up to date within an epoch.
    """
    optimizer = getattr(model, "optimizer", None)
    return 0 if optimizer is None else int(keras.ops.convert_to_numpy(optimizer.iterations))


def unwrapped_optimizer(model):
    """The optimizer of a compiled model, without the loss scaling of mixed precision around it; or None."""
    optimizer = getattr(model, "optimizer", None)
    return optimizer.inner_optimizer if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) else optimizer


def learning_rate(optimizer):
    """The rate an optimizer's next step is taken with, as a tensor; the largest one of a `MultiOptimizer`."""
    parts = getattr(optimizer, "optimizers", None)
    if parts is None:
        return optimizer.learning_rate
    return keras.ops.max(keras.ops.stack([keras.ops.cast(part.learning_rate, "float32") for part in parts]))


def last_learning_rate(model):
    """The rate the last step of `model` was taken with; None without an optimizer that has one rate.

    A schedule inside the optimizer stands at the next step already.
    """
    optimizer = unwrapped_optimizer(model)
    if getattr(optimizer, "learning_rate", None) is None:
        return None
    schedule = learning_rate_schedule(optimizer)
    if schedule is None:
        return float(keras.ops.convert_to_numpy(optimizer.learning_rate))
    calls = int(keras.ops.convert_to_numpy(calls_variable(optimizer)))
    return float(keras.ops.convert_to_numpy(schedule(max(calls - 1, 0))))
