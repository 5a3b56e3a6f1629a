"""Where XLA compiles a single operation inside a graph of TensorFlow: where that pays."""

import numpy as np
import pytest

pytestmark = pytest.mark.tensorflow_only


@pytest.fixture(autouse=True)
def fuse_small_maps_too():
    """Here the real size counts."""


def compiled_calls(function, *shapes):
    import tensorflow as tf

    graph = tf.function(function, autograph=False).get_concrete_function(*map(tf.TensorSpec, shapes)).graph
    return sum(operation.type.endswith("PartitionedCall") for operation in graph.get_operations())


@pytest.mark.parametrize(
    ("shapes", "pays"),
    [
        (([None, 64, 64, 8],), True),
        (([None, 64, 64, 7],), False),
        (([None, 8], [None, 64, 64, 8], [8]), True),
        (([None, 8], [None, 64, 8], [8]), False),
        (([None, 192], [192]), True),  # rows: nobody knows how many
        (([None, None, 64, 8],), False),
    ],
)
def test_it_pays_on_large_maps_and_on_rows(shapes, pays):
    from kvision.ops._tensorflow import fuse

    assert compiled_calls(fuse(lambda *tensors: sum(map(abs, tensors[:1]))), *shapes) == pays


def test_both_ways_give_the_same_numbers():
    import tensorflow as tf

    from kvision.ops._tensorflow import fuse

    function = fuse(lambda x: tf.square(x) - 1.0)
    x = np.random.default_rng(0).normal(size=(2, 64, 64, 8)).astype("float32")
    for part in (x, x[:, :8]):
        traced = tf.function(function, input_signature=[tf.TensorSpec([None, *part.shape[1:]])])
        np.testing.assert_allclose(traced(part), part**2 - 1, rtol=1e-6, atol=1e-6)
