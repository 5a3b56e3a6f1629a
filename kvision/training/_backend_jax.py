"""Compiled functions and their gradients on JAX."""

import jax

compiled = jax.jit


def with_gradients(function):
    """`function(values, batch)` of a list of arrays to a scalar → (scalar, gradients), compiled."""
    return jax.jit(jax.value_and_grad(function))
