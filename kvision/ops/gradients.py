"""Functions as graphs of the backend, and their gradients."""

from kvision.ops._backend import kernels


def traced(function):
    """`function` of structures of tensors as one graph of the backend.

    Args:
        function: Takes and gives structures (lists, dicts, tuples) of tensors. It is called once for each set of
            shapes, with tensors that have no values; what else it reads is fixed then.

    Returns:
        A function of the same arguments and results.

    >>> float(traced(lambda x: keras.ops.sum(x * x))(keras.ops.convert_to_tensor([1.0, 2.0])))
    5.0
    """
    return kernels.traced(function)


def value_and_gradients(function):
    """The value and the gradient of a function, as one graph of the backend.

    Args:
        function: `function(values, *arguments)` → `(scalar, more)`: `values` is a structure of float tensors, `more`
            any structure of tensors that is wanted besides.

    Returns:
        A function of the same arguments that gives `((scalar, more), gradients)`; the gradients have the structure of
        `values` and are 0 where the scalar does not depend on them.

    >>> (value, _), (gradient,) = value_and_gradients(lambda v: (v[0] * v[0], ()))([keras.ops.convert_to_tensor(3.0)])
    >>> float(value), float(gradient)
    (9.0, 6.0)
    """
    return kernels.value_and_gradients(function)
