"""Arrays as a data set: every sample once an epoch with what belongs to it, and wrong arrays refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kvision.data import arrays

X = np.arange(20.0).reshape(10, 2)


def test_samples_stay_together():
    inputs = {"image": X, "index": np.arange(10)}
    data = arrays(inputs, {"labels": X[:, 0].astype("int32")}, X[:, 1], batch_size=4, seed=3)
    seen = []
    for x, y, weight in data:
        assert x["image"].dtype == tf.float32
        np.testing.assert_array_equal(x["image"][:, 0], 2 * x["index"])
        np.testing.assert_array_equal(y["labels"], 2 * x["index"])
        np.testing.assert_array_equal(weight, 2 * x["index"] + 1)
        seen += x["index"].numpy().tolist()
    assert seen == data.source.order.indices(0).tolist() != sorted(seen)
    assert len(data) == 3


def test_in_order_and_without_targets():
    batches = [x.numpy() for x in arrays(X, shuffle=False, batch_size=8)]
    np.testing.assert_array_equal(np.concatenate(batches), X)


def test_fit_takes_it():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(arrays(X, X[:, :1], np.ones(10), batch_size=4), epochs=2, verbose=0, shuffle=False)
    assert int(model.optimizer.iterations) == 6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((X, X[:9]), r"got shapes \(10, 2\), \(9, 2\)"),
        ((X[:0], X[:0]), "at least 1"),
        ((X, np.float32(1)), r"got shapes \(\), \(10, 2\)"),
        ((X, None, X[:, 0]), "sample_weight without y"),
    ],
    ids=["lengths", "empty", "a number", "weights alone"],
)
def test_wrong_arrays_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        arrays(*given)
