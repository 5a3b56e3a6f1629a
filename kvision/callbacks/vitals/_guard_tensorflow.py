"""A training step that does not apply what is not finite, on TensorFlow: the update stands under a condition."""

import keras
import tensorflow as tf

from kvision._keras import forward_variables, loss_mean, replaced


def guarded(model, step, arguments, name):
    """Run `step`, Keras's `train_step`, and withhold its update where loss or gradients are not finite.

    Args:
        model: The model.
        step: Its step.
        arguments: The step's.
        name: The entry of the logs that tells `[loss, 1 where the update was applied else 0]`.

    Returns:
        What `step` returns.
    """
    withholds = model.distribute_strategy.num_replicas_in_sync == 1
    mean, optimizer = loss_mean(model), model.optimizer
    losses, finite, attributes = [], [], []

    if mean is not None:
        update_state = mean.update_state

        def read_loss(values, *args, **kwargs):
            losses.append(tf.cast(values, "float32"))
            return update_state(values, *args, **kwargs)

        attributes.append((mean, "update_state", read_loss))
    if optimizer is not None:
        apply = optimizer.apply

        def guarded_apply(grads, trainable_variables=None):
            grads = list(grads)
            finite.append(_are_right(optimizer, grads) & _loss_is_finite(losses))
            if not withholds:
                return apply(grads, trainable_variables=trainable_variables)
            if not optimizer.built and trainable_variables is not None:  # its variables cannot be made in a condition
                with keras.name_scope(optimizer.name, caller=optimizer):
                    optimizer.build(list(trainable_variables))

            def update():
                apply(grads, trainable_variables=trainable_variables)
                return tf.constant(True)

            return tf.cond(finite[-1], update, lambda: tf.constant(False))

        attributes.append((optimizer, "apply", guarded_apply))
    with replaced(attributes):
        changed = [*forward_variables(model), *model.metrics_variables] if withholds else []
        kept = [(variable, tf.identity(tf.convert_to_tensor(variable.value))) for variable in changed]
        logs = step(*arguments)
    if not isinstance(logs, dict) or not (losses or finite):
        return logs
    right = tf.reduce_all(tf.stack(finite)) if finite else _loss_is_finite(losses)
    for variable, before in kept:
        variable.assign(tf.where(right, tf.convert_to_tensor(variable.value), before))
    if withholds:
        logs = _logs_before(model, logs, right)
    loss = losses[-1] if losses else tf.constant(float("nan"))
    return logs | {name: tf.stack([tf.reduce_mean(loss), tf.cast(right, "float32")])}


def whole_batch(model, data):
    """A batch as one, where its parts lie on several replicas."""

    def joined(each):
        if not isinstance(each, tf.distribute.DistributedValues):
            return each
        return tf.concat(model.distribute_strategy.experimental_local_results(each), axis=0)

    return keras.tree.map_structure(joined, data)


def _loss_is_finite(losses):
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(loss)) for loss in losses]) if losses else tf.constant(True)


def _are_right(optimizer, gradients):
    """Whether all gradients are finite, or the loss scale takes care of those that are not."""
    values = [gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient for gradient in gradients]
    finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(value)) for value in values if value is not None])
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) and optimizer.built:
        return finite | (tf.convert_to_tensor(optimizer.dynamic_scale.value) >= 1)
    return finite


def _logs_before(model, logs, right):
    """The logs of a step, or where it was withheld those of the metrics before it."""
    results = model.get_metrics_result()
    if results.keys() != logs.keys():
        return logs
    logs = {key: tf.convert_to_tensor(value) for key, value in logs.items()}
    return {key: tf.where(right, value, tf.cast(results[key], value.dtype)) for key, value in logs.items()}
