"""Compiled functions and their gradients on TensorFlow."""

import tensorflow as tf


class _Function:
    """TensorFlow counts how often the source of a function is traced, and warns; that of an object is its own."""

    def __init__(self, function):
        self._function = function

    def __call__(self, *arguments):
        return self._function(*arguments)


def compiled(function):
    """`function` of tensors, compiled."""
    return tf.function(_Function(function), autograph=False)


def with_gradients(function):
    """`function(values, batch)` of a list of arrays to a scalar → (scalar, gradients), compiled."""

    @compiled
    def both(values, batch):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            value = function(values, batch)
        return value, tape.gradient(value, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    return both
