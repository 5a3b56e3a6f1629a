"""A training step that does not apply what is not finite, on JAX: the state after it is one of two."""

import jax
import jax.numpy as jnp
import keras

from kvision._keras import loss_mean, replaced


def guarded(model, step, arguments, name):
    """Run `step`, Keras's `train_step`, and give the state before it where loss or gradients are not finite.

    Args:
        model: The model.
        step: Its step.
        arguments: The state and the data.
        name: The entry of the logs that tells `[loss, 1 where the update was applied else 0]`.

    Returns:
        What `step` returns.
    """
    state, _ = arguments
    mean, optimizer = loss_mean(model), model.optimizer
    losses, finite, attributes = [], [], []

    if mean is not None:
        update_state = mean.update_state

        def read_loss(values, *args, **kwargs):
            losses.append(jnp.asarray(values, "float32"))
            return update_state(values, *args, **kwargs)

        attributes.append((mean, "update_state", read_loss))
    if optimizer is not None:
        apply = optimizer.stateless_apply

        def read_gradients(optimizer_variables, grads, trainable_variables):
            finite.append(_are_right(optimizer, optimizer_variables, grads))
            return apply(optimizer_variables, grads, trainable_variables)

        attributes.append((optimizer, "stateless_apply", read_gradients))
    with replaced(attributes):
        logs, new_state = step(*arguments)
    if not isinstance(logs, dict) or not (losses or finite):
        return logs, new_state
    loss = jnp.mean(losses[-1]) if losses else jnp.float32(jnp.nan)
    right = jnp.all(jnp.stack([*finite, *(jnp.all(jnp.isfinite(loss)) for loss in losses)]))
    new_state = jax.tree.map(lambda new, old: jnp.where(right, new, old), _as_lists(new_state), _as_lists(state))
    logs = _logs_before(model, logs, state[-1], right)
    return logs | {name: jnp.stack([loss, right.astype("float32")])}, tuple(new_state)


def whole_batch(model, data):
    """A batch as one: an array is one already, on however many devices it lies."""
    return data


def _as_lists(state):
    return [list(part) for part in state]


def _are_right(optimizer, optimizer_variables, gradients):
    """Whether all gradients are finite, or the loss scale takes care of those that are not."""
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(gradient)) for gradient in jax.tree.leaves(gradients)]))
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        values = dict(zip(map(id, optimizer.variables), optimizer_variables, strict=True))
        return finite | (values[id(optimizer.dynamic_scale)] >= 1)
    return finite


def _logs_before(model, logs, metrics_variables, right):
    """The logs of a step, or where it was withheld those of the metrics before it."""
    with keras.StatelessScope(state_mapping=list(zip(model.metrics_variables, metrics_variables, strict=True))):
        results = model.get_metrics_result()
    if results.keys() != logs.keys():
        return logs
    return {key: jnp.where(right, value, results[key]) for key, value in logs.items()}
