"""What an export to another runtime asks of the operations."""

import contextlib

from kvision.ops._backend import kernels

OWN_RUNTIME = "tf_saved_model"  # every other format is read by a runtime that has only operations of its own


def operations_for(format):
    """The context in which a model is traced for a format of `keras.Model.export`.

    A SavedModel runs TensorFlow's own kernels and what XLA compiles. Runtimes of ONNX and LiteRT know neither: for
    them non-maximum suppression, RoIAlign and shifted windows are built of operations that all have, which are slower
    in TensorFlow itself.

    Args:
        format: As in `keras.Model.export`.

    Returns:
        A context manager.

    >>> with operations_for("onnx"):
    ...     tuple(kvision.ops.roi_align(keras.ops.ones((1, 4, 4, 2)), [[[0.0, 0.0, 4.0, 4.0]]], 2, 1.0).shape)
    (1, 1, 2, 2, 2)
    """
    return contextlib.nullcontext() if format == OWN_RUNTIME else kernels.portable(format)
