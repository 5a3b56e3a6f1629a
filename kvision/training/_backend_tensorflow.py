"""Compiled functions and their gradients on TensorFlow."""

import tensorflow as tf

compiled = tf.function(autograph=False)


def with_gradients(function):
    """`function(values, batch)` of a list of arrays to a scalar → (scalar, gradients), compiled."""

    @tf.function(autograph=False)
    def both(values, batch):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            value = function(values, batch)
        return value, tape.gradient(value, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    return both
