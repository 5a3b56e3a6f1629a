"""Values and gradients of a function on either backend, and the central differences to hold them against."""

import keras
import numpy as np
import pytest

# JAX knows no graph but the jitted one, and compiles its eager operations one by one, which takes longer.
MODES = ("eager", "graph", "jit") if keras.backend.backend() == "tensorflow" else ("jit",)
# Each case is traced or compiled anew: beyond one case per operation these modes of TensorFlow are for CI.
SLOW = [pytest.mark.slow] if keras.backend.backend() == "tensorflow" else []
JIT_IS_SLOW = [pytest.param(mode, marks=SLOW if mode == "jit" else []) for mode in MODES]
GRAPHS_ARE_SLOW = [pytest.param(mode, marks=SLOW if mode != "eager" else []) for mode in MODES]


def value_and_gradients(function, arguments, upstream, mode=MODES[0]):
    """`function(*arguments)` and the gradients of `sum(upstream * output)` for every argument, as tensors."""
    arguments = [keras.ops.convert_to_tensor(argument) for argument in arguments]
    upstream = keras.ops.convert_to_tensor(upstream)
    if keras.backend.backend() == "jax":
        import jax

        def run(upstream, *arguments):
            output, pullback = jax.vjp(function, *arguments)
            return output, pullback(upstream)

        return jax.jit(run)(upstream, *arguments)

    import tensorflow as tf

    def run(upstream, *arguments):
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            output = function(*arguments)
        return output, tape.gradient(output, arguments, upstream)

    if mode != "eager":
        run = tf.function(run, jit_compile=mode == "jit", autograph=False)
    return run(upstream, *arguments)


def central_differences(function, arguments, upstream, step=1e-5):
    """The gradients of `sum(upstream * output)` for every argument of a NumPy function, in float64."""
    arguments = [np.array(argument, "float64") for argument in arguments]
    gradients = [np.zeros_like(argument) for argument in arguments]
    for argument, gradient in zip(arguments, gradients, strict=True):
        for index in np.ndindex(argument.shape):
            value = argument[index]
            argument[index] = value + step
            above = np.sum(upstream * function(*arguments))
            argument[index] = value - step
            below = np.sum(upstream * function(*arguments))
            argument[index] = value
            gradient[index] = (above - below) / (2 * step)
    return gradients
