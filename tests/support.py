"""What tests share: one table of tolerances, and a comparison that says where two arrays part."""

import keras
import numpy as np
import pytest

from kvision._keras import replaced

# (relative, absolute) by the dtype the computation ran in. Loosening one needs a reason on the line that does it.
TOLERANCES = {
    "float32": (1e-5, 1e-5),
    "bfloat16": (2e-2, 2e-2),
    "float16": (2e-3, 2e-3),
}
PARITY = (1e-4, 1e-4)  # a whole network against another engine, outputs divided by the largest: sums in another order

# For tests that TensorFlow's tracing makes slow; JAX, whose whole run is for CI, runs them always.
SLOW = pytest.mark.slow if keras.backend.backend() == "tensorflow" else pytest.mark.skipif(False, reason="none")


def assert_close(got, want, dtype="float32", tolerance=None):
    """Fail with the place and size of the largest difference; shapes must be equal."""
    got, want = (np.asarray(keras.ops.convert_to_numpy(value), dtype="float64") for value in (got, want))
    rtol, atol = tolerance or TOLERANCES[dtype]
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


def are_untuned(call):
    """Whether each data set that a model reads within a call is one that TensorFlow does not tune as it runs."""
    import tensorflow as tf

    strategy, read = tf.distribute.get_strategy(), []
    with replaced([(strategy, "experimental_distribute_dataset", lambda data: read.append(data) or data)]):
        call()
    return [data.options().autotune.enabled is False for data in read]
