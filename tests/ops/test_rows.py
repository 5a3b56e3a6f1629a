"""Rows by their index, against NumPy's loop."""

import keras
import numpy as np
import pytest

from kvision.ops import operations_for, take_rows
from tests.ops.differentiation import MODES, value_and_gradients
from tests.support import assert_close

SHAPES = {
    "numbers": ((2, 5), (2, 3)),
    "rows": ((2, 5, 4), (2, 7)),
    "levels": ((2, 3, 5, 4), (2, 3, 2)),
    "one": ((5, 2), (3,)),
}


@pytest.mark.parametrize("mode", MODES[:2])
@pytest.mark.parametrize("name", SHAPES)
def test_rows_and_their_gradients_equal_a_loop(name, mode):
    shape, indices_shape = SHAPES[name]
    rng = np.random.default_rng(0)
    values, indices = rng.normal(size=shape).astype("float32"), rng.integers(0, 5, indices_shape)
    leading = indices_shape[:-1]
    want = np.stack([values[place][indices[place]] for place in np.ndindex(leading)]).reshape(
        *indices_shape, *shape[len(indices_shape) :]
    )
    upstream = rng.normal(size=want.shape).astype("float32")
    got, (gradient,) = value_and_gradients(lambda values: take_rows(1.0 * values, indices), (values,), upstream, mode)
    assert_close(got, want)
    expected = np.zeros_like(values)
    for place in np.ndindex(indices_shape):
        expected[(*place[:-1], indices[place])] += upstream[place]
    assert_close(gradient, expected)
    with operations_for("onnx"):
        assert_close(keras.ops.convert_to_numpy(take_rows(values, indices)), want)
