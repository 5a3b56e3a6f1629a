"""What a graph of TensorFlow is traced for, and functions that are traced once however often a graph needs them."""

import contextlib
import contextvars
import functools

import tensorflow as tf

# TensorFlow has no public way to ask whether the graph under construction is compiled by XLA.
from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext as in_xla_context

_runtime = contextvars.ContextVar("runtime", default=None)


@contextlib.contextmanager
def portable(runtime):
    """What is traced within uses only operations that another runtime knows, `"onnx"` or `"litert"`, however slow."""
    token = _runtime.set(runtime)
    try:
        yield
    finally:
        _runtime.reset(token)


def runtime():
    """The runtime other than TensorFlow for which is traced, or None."""
    return _runtime.get()


def in_xla():
    """Whether what is traced now is compiled by XLA."""
    return not tf.executing_eagerly() and in_xla_context(tf.compat.v1.get_default_graph())


def _in_graph():
    """Whether a graph for TensorFlow's own runtime is traced, which alone takes calls of functions."""
    return not (tf.executing_eagerly() or in_xla() or runtime() is not None)


def reuse(function):
    """`function` of tensors, traced once per shape and called by name wherever a graph needs it again.

    Tracing takes about a tenth of a millisecond an operation, and a network normalises fifty times. TensorFlow puts the
    operations in place of the call when it optimises the graph. Keyword arguments are constants. It pays within a
    gradient of one's own, or where no gradient flows: that of a call is made anew for each.
    """
    by_shape = tf.function(function, autograph=False)

    @functools.wraps(function)
    def call(*tensors, **constants):
        if not _in_graph():
            return function(*tensors, **constants)
        return by_shape(*map(tf.convert_to_tensor, tensors), **constants)  # variables by their value

    return call


def reuse_for_any_size(function):
    """`reuse`, traced once for tensors of all sizes: of a shape, `function` may rely on the last axis of two or more.

    So are the sizes of the outputs unknown but for that axis; who calls knows them.
    """
    by_shape = tf.function(function, autograph=False)

    @functools.wraps(function)
    def call(*tensors, **constants):
        if not _in_graph():
            return function(*tensors, **constants)
        tensors = [tf.convert_to_tensor(tensor) for tensor in tensors]
        return by_shape.get_concrete_function(*map(_of_any_size, tensors), **constants)(*tensors)

    return call


def _of_any_size(tensor):
    rank = len(tensor.shape)
    return tf.TensorSpec([None] * (rank - 1) + [tensor.shape[-1] if rank > 1 else None] * (rank > 0), tensor.dtype)
