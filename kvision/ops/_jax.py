"""JAX's side of `kvision.ops`; `_tensorflow.py` holds functions of the same names."""

import contextlib
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np

from kvision.ops._roi import align_by_gather

portable = contextlib.nullcontext  # of any runtime: what is exported is StableHLO, which every operation becomes
roll = jnp.roll
gelu = functools.partial(jax.nn.gelu, approximate=False)


def fuse(function):
    """`function` as it is: a jitted step is fused as a whole."""
    return function


def reuse(function):
    """`function` as it is: tracing is cheap here, and within a jitted step one graph."""
    return function


def on_cpu():
    """Whether this process computes on the CPU alone."""
    return jax.default_backend() == "cpu"


def outside_graph():
    """A context in which variables are made: JAX builds no graph that would hold them."""
    return contextlib.nullcontext()


def value_outside(variable):
    """The value of a variable as a NumPy array, also within a graph of TensorFlow."""
    return np.asarray(variable.value)


def channel_sums(x):
    """Sums over axis 1 of `[batch, positions, channels]`."""
    return jnp.sum(x, axis=1)


def channel_moments(x):
    """Means and biased variances over axis 1 of `[batch, positions, channels]`, right when |mean| >> deviation."""
    shift = jax.lax.stop_gradient(jnp.mean(x, axis=1))
    centred = x - shift[:, None]
    rest = jnp.mean(centred, axis=1)  # the rounding error of the first mean
    return shift + rest, jnp.maximum(jnp.mean(jnp.square(centred), axis=1) - jnp.square(rest), 0)


def fused_batch_normalize(x, gamma, beta, epsilon):
    """None: JAX has no such kernel, XLA fuses the formula."""


def bincount(x, size):
    """How often each of 0 … size − 1 occurs in integers, which are in that range: int32 [size]."""
    return jnp.bincount(jnp.ravel(x), length=size).astype("int32")


def take_rows(values, indices):
    """Of values `[b…, n, …]` the rows at indices `[b…, k]`: `[b…, k, …]`."""
    axis = indices.ndim - 1
    return jnp.take_along_axis(values, jnp.expand_dims(indices, tuple(range(indices.ndim, values.ndim))), axis=axis)


def is_known(tensor):
    """Whether a tensor has a value now, and is no step of a graph."""
    return not isinstance(tensor, jax.core.Tracer)


def multiply_add(x, scale, offset):
    """`x * scale + offset` by channel, computed in the dtype of `scale`, returned in that of `x`."""
    return (x.astype(scale.dtype) * scale + offset).astype(x.dtype)


def compiled(function):
    """`function` of tensors compiled by XLA wherever it is called, once per shape; keyword arguments are constants."""
    parameters = inspect.signature(function).parameters.values()
    return jax.jit(function, static_argnames=[p.name for p in parameters if p.kind is p.KEYWORD_ONLY])


traced = jax.jit  # a function of structures of tensors, traced again for each new shape


def value_and_gradients(function):
    """`function(values, *arguments)` → (scalar, more), traced, as one that gives ((scalar, more), gradients)."""
    return jax.jit(jax.value_and_grad(function, has_aux=True))


def fuse_and_recompute(function):
    """`function` of tensors whose gradient computes it again instead of keeping intermediate tensors."""
    return jax.checkpoint(function)


def of_first_rows(function, count, *tensors):
    """`function` of tensors [b, n, …], of all rows: sizes are known when a function is compiled."""
    return function(*tensors)


def apply_momentum(variable, velocity, gradient, rate, momentum, nesterov):
    """False: not done; a jitted step is fused as a whole."""
    return False


def apply_adam(variable, momentum, velocity, gradient, rate, step, betas, epsilon):
    """False: Keras's own update, which XLA fuses."""
    return False


roi_align = align_by_gather
