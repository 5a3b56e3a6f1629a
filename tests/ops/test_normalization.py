import keras
import numpy as np
import pytest

from kvision.ops._backend import kernels
from kvision.ops.normalization import batch_normalize, batch_normalize_train, group_normalize
from tests.ops.differentiation import (
    GRAPHS_ARE_SLOW,
    JIT_IS_SLOW,
    MODES,
    central_differences,
    value_and_gradients,
)
from tests.support import TOLERANCES, assert_close

# (shape, groups): every rank, odd channels, one group, one channel per group, one position, one value per group
GROUPED = [((2, 3, 2, 6), 3), ((2, 3, 2, 6), 1), ((3, 7), 7), ((4, 6), 2), ((2, 5, 9), 3), ((2, 2, 1, 3, 4), 2)]
SHAPES = [(4, 3, 2, 5), (6, 5), (3, 4, 2), (2, 1, 3, 2, 3)]


def with_modes(rows):
    """The first row in every mode, the others without the slow compilation of TensorFlow's third."""
    return [(row, mode) for index, row in enumerate(rows) for mode in (MODES[:2] if index else MODES)]


def group_twin(x, gamma, beta, groups, epsilon):
    y = np.empty_like(x)
    size = x.shape[-1] // groups
    for sample in range(x.shape[0]):
        for first in range(0, x.shape[-1], size):
            part = x[sample, ..., first : first + size]
            y[sample, ..., first : first + size] = (part - part.mean()) / np.sqrt(part.var() + epsilon)
    return y * gamma + beta


def batch_twin(x, gamma, beta, epsilon):
    axes = tuple(range(x.ndim - 1))
    return (x - x.mean(axes)) / np.sqrt(x.var(axes) + epsilon) * gamma + beta


def affine_twin(x, gamma, beta, mean, variance, epsilon):
    return (x - mean) / np.sqrt(variance + epsilon) * gamma + beta


def example(shape, mean=0.0, dtype="float32"):
    """x, gamma, beta, upstream as arrays of `dtype`, the parameters float32."""
    rng = np.random.default_rng(0)
    x = keras.ops.convert_to_numpy(keras.ops.cast(rng.normal(mean, 1.0, shape), dtype))
    gamma, beta = rng.normal(1.0, 1.0, (2, shape[-1])).astype("float32")
    upstream = keras.ops.convert_to_numpy(keras.ops.cast(rng.normal(size=shape), dtype))
    return x, gamma, beta, upstream


def wide(*arrays):
    return [np.asarray(keras.ops.convert_to_numpy(array)).astype("float64") for array in arrays]


@pytest.mark.parametrize("row, mode", with_modes(GROUPED))
def test_group_equals_twin_and_its_differences(row, mode):
    shape, groups = row
    x, gamma, beta, upstream = example(shape)
    y, gradients = value_and_gradients(
        lambda *tensors: group_normalize(*tensors, groups, 0.1), (x, gamma, beta), upstream, mode
    )
    assert_close(y, group_twin(*wide(x, gamma, beta), groups, 0.1))
    want = central_differences(lambda *arrays: group_twin(*arrays, groups, 0.1), (x, gamma, beta), upstream)
    for got, gradient in zip(gradients, want, strict=True):
        assert_close(got, gradient)


@pytest.mark.parametrize("shape, mode", with_modes(SHAPES))
def test_batch_train_equals_twin_and_its_differences(shape, mode):
    x, gamma, beta, upstream = example(shape, mean=3.0)
    y, gradients = value_and_gradients(
        lambda *tensors: batch_normalize_train(*tensors, 0.1)[0], (x, gamma, beta), upstream, mode
    )
    assert_close(y, batch_twin(*wide(x, gamma, beta), 0.1))
    want = central_differences(lambda *arrays: batch_twin(*arrays, 0.1), (x, gamma, beta), upstream)
    for got, gradient in zip(gradients, want, strict=True):
        assert_close(got, gradient)


@pytest.mark.parametrize("shape, mode", with_modes(SHAPES))
def test_batch_with_stored_statistics_equals_twin_and_its_differences(shape, mode):
    x, gamma, beta, upstream = example(shape)
    mean, variance = (0.1 + np.random.default_rng(1).random((2, shape[-1]))).astype("float32")
    arguments = (x, gamma, beta, mean, variance)
    y, gradients = value_and_gradients(lambda *tensors: batch_normalize(*tensors, 0.1), arguments, upstream, mode)
    assert_close(y, affine_twin(*wide(*arguments), 0.1))
    want = central_differences(lambda *arrays: affine_twin(*arrays, 0.1), arguments, upstream)
    for got, gradient in zip(gradients, want, strict=True):
        assert_close(got, gradient)


def batch_statistics(x, mode):
    channels = np.ones(x.shape[-1], "float32")

    def flat(x):
        y, mean, variance = batch_normalize_train(x, channels, 0 * channels, 1e-3)
        return keras.ops.concatenate([keras.ops.reshape(keras.ops.cast(y, "float32"), (-1,)), mean, variance], 0)

    values, _ = value_and_gradients(flat, (x,), np.ones(x.size + 2 * x.shape[-1], "float32"), mode)
    values = np.asarray(keras.ops.convert_to_numpy(values))
    return values[: x.size].reshape(x.shape), *values[x.size :].reshape(2, -1)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape, mode", with_modes(SHAPES[:2]))
def test_batch_statistics_are_the_biased_ones_in_float32(shape, dtype, mode):
    x, *_ = example(shape, mean=3.0, dtype=dtype)
    _, mean, variance = batch_statistics(x, mode)
    axes = tuple(range(len(shape) - 1))
    assert_close(mean, wide(x)[0].mean(axes))
    assert_close(variance, wide(x)[0].var(axes))


@pytest.mark.parametrize("mode", JIT_IS_SLOW)
@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (1, 3)])
def test_a_single_value_per_channel_has_variance_zero(shape, mode):
    x, *_ = example(shape)
    y, mean, variance = batch_statistics(x, mode)
    assert_close(y, np.zeros(shape))
    assert_close(mean, x.reshape(-1))
    assert_close(variance, np.zeros(3))


# As functions of x, gamma, beta: ours and the twin.
WITH_STATISTICS = {
    "group": (lambda *tensors: group_normalize(*tensors, 4, 1e-5), lambda *arrays: group_twin(*arrays, 4, 1e-5)),
    "batch": (lambda *tensors: batch_normalize_train(*tensors, 1e-5)[0], lambda *arrays: batch_twin(*arrays, 1e-5)),
}


def assert_slopes(twin, arguments, upstream, gradients, tolerance):
    """Every gradient along a random direction, against a central difference of the float64 twin."""
    rng = np.random.default_rng(2)
    arguments, upstream = wide(*arguments), wide(upstream)[0]
    for index, gradient in enumerate(wide(*gradients)):
        direction = rng.normal(size=gradient.shape)
        ahead, behind = list(arguments), list(arguments)
        ahead[index] = arguments[index] + 1e-5 * direction
        behind[index] = arguments[index] - 1e-5 * direction
        want = np.sum(upstream * (twin(*ahead) - twin(*behind))) / 2e-5
        size = np.linalg.norm(gradient)
        assert_close(np.sum(gradient * direction) / size, want / size, tolerance=tolerance)


@pytest.mark.parametrize("mode", JIT_IS_SLOW)
@pytest.mark.parametrize("mean", [1e2, 1e4])
@pytest.mark.parametrize("name", WITH_STATISTICS)
def test_error_grows_with_the_mean_and_not_with_its_square(name, mean, mode):
    function, twin = WITH_STATISTICS[name]
    x, _, beta, upstream = example((4, 24, 24, 16), mean)
    gamma = np.ones_like(beta)
    y, gradients = value_and_gradients(function, (x, gamma, beta), upstream, mode)
    # 1e-6 of the mean is some ten roundings of x; E[x^2] - E[x]^2 is off by 1e-7 * mean^2 and at 1e4 leaves nothing.
    tolerance = (1e-5 + 1e-6 * mean, 1e-5 + 1e-6 * mean)
    assert_close(y, twin(*wide(x, gamma, beta)), tolerance=tolerance)
    assert_slopes(twin, (x, gamma, beta), upstream, gradients, tolerance)


@pytest.mark.parametrize("mode", JIT_IS_SLOW)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", [*WITH_STATISTICS, "stored"])
def test_16_bit_input(name, dtype, mode):
    stored = np.full(8, 3e3, "float32"), np.full(8, 100.0, "float32"), 1e-5
    function, twin = {
        **WITH_STATISTICS,
        "stored": (lambda *tensors: batch_normalize(*tensors, *stored), lambda *arrays: affine_twin(*arrays, *stored)),
    }[name]
    # 3000 +- 10: sums and squares leave float16, so the statistics must not live there.
    x, gamma, beta, upstream = example((4, 8, 8, 8), mean=300.0, dtype=dtype)
    x = x * np.asarray(10, x.dtype)
    y, gradients = value_and_gradients(function, (x, gamma, beta), upstream, mode)
    dtypes = [keras.backend.standardize_dtype(tensor.dtype) for tensor in (y, *gradients)]
    assert dtypes == [dtype, dtype, "float32", "float32"]
    assert_close(y, twin(*wide(x, gamma, beta)), dtype)
    assert_slopes(twin, (x, gamma, beta), upstream, gradients, TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float64"])
def test_other_dtypes(dtype):
    x, gamma, beta, _ = example((2, 4, 4, 6))
    x = np.round(x * 5 + 30).astype(dtype)
    expected = keras.backend.result_type(dtype, "float32")
    for y, want in (
        (group_normalize(x, gamma, beta, 2, 1e-3), group_twin(*wide(x, gamma, beta), 2, 1e-3)),
        (batch_normalize_train(x, gamma, beta, 1e-3)[0], batch_twin(*wide(x, gamma, beta), 1e-3)),
        (
            batch_normalize(x, gamma, beta, beta, gamma**2, 1e-3),
            affine_twin(*wide(x, gamma, beta, beta, gamma**2), 1e-3),
        ),
    ):
        assert keras.backend.standardize_dtype(y.dtype) == expected
        assert_close(y, want)


@pytest.mark.parametrize("mode", GRAPHS_ARE_SLOW)
@pytest.mark.parametrize("name", ["group", "batch", "stored"])
def test_second_derivative(name, mode):
    x, gamma, beta, weights = example((2, 3, 2, 4))
    function, twin = {
        "group": (lambda x: group_normalize(x, gamma, beta, 2, 0.1), lambda x: group_twin(x, gamma, beta, 2, 0.1)),
        "batch": (lambda x: batch_normalize_train(x, gamma, beta, 0.1)[0], lambda x: batch_twin(x, gamma, beta, 0.1)),
        "stored": (
            lambda x: batch_normalize(x, gamma, beta, beta, gamma**2, 0.1),
            lambda x: affine_twin(x, gamma, beta, beta, gamma**2, 0.1),
        ),
    }[name]

    def loss_gradient(x):
        return value_and_gradients(lambda x: weights * function(x) ** 2, (x,), np.ones_like(weights))[1][0]

    def twin_gradient(x):
        return central_differences(lambda x: weights * twin(x) ** 2, (x,), 1.0, step=1e-4)[0]

    _, (got,) = value_and_gradients(loss_gradient, (x,), weights, mode)
    (want,) = central_differences(twin_gradient, (x,), weights, step=1e-4)
    assert_close(got, want, tolerance=(1e-4, 1e-4))  # differences of differences


@pytest.mark.parametrize("groups", [0, -1, 4, 12])
def test_groups_that_do_not_fit(groups):
    with pytest.raises(ValueError, match=rf"got groups={groups}, expected one of \[1, 2, 3, 6\]"):
        group_normalize(np.zeros((1, 2, 2, 6), "float32"), np.ones(6), np.zeros(6), groups, 1e-5)


def test_empty_batch():
    x = np.zeros((0, 3, 3, 4), "float32")
    ones = np.ones(4, "float32")
    assert group_normalize(x, ones, ones, 2, 1e-5).shape == (0, 3, 3, 4)
    assert batch_normalize(x, ones, ones, ones, ones, 1e-5).shape == (0, 3, 3, 4)


@pytest.mark.tensorflow_only
@pytest.mark.parametrize("sizes", [(None, 4, 4), (None, None, None)])
@pytest.mark.parametrize("cpu", [True, False], ids=["cpu", "gpu"])
def test_every_kernel_path_gives_the_same(monkeypatch, cpu, sizes):
    import tensorflow as tf

    channels = 6 if cpu else 9  # what is traced once per shape is traced for either
    sizes = (*sizes[:3], channels)
    x, gamma, beta, upstream = example((3, 4, 4, channels), mean=1.0)
    for function in (
        lambda x: group_normalize(x, gamma, beta, 3, 1e-5),
        lambda x: batch_normalize_train(x, gamma, beta, 1e-5)[0],
        lambda x: batch_normalize(x, gamma, beta, beta, gamma**2, 1e-5),
    ):
        plain = tf.nest.flatten(value_and_gradients(function, (x,), upstream))

        @tf.function(input_signature=[tf.TensorSpec(sizes), tf.TensorSpec(sizes)], autograph=False)
        def run(x, upstream, function=function):
            return tf.nest.flatten(value_and_gradients(function, (x,), upstream))

        with monkeypatch.context() as patch:
            patch.setattr(kernels, "on_cpu", lambda: cpu)
            for got, want in zip(run(x, upstream), plain, strict=True):
                assert_close(got, want)


@pytest.mark.tensorflow_only
def test_the_compiled_gradient_stays_out_of_the_forward_graph():
    import tensorflow as tf

    x, gamma, beta, _ = example((2, 4, 4, 6))

    def graph_of(function):
        return str(
            tf.function(function, autograph=False).get_concrete_function(tf.TensorSpec(x.shape)).graph.as_graph_def()
        )

    def forward(x):
        return group_normalize(x, gamma, beta, 3, 1e-5)

    assert "_XlaMustCompile" not in graph_of(forward)
    assert "_XlaMustCompile" in graph_of(lambda x: tf.gradients(forward(x), x))


@pytest.mark.tensorflow_only
def test_equal_layers_are_traced_once():
    """A graph of a hundred normalisations holds a few nodes for each."""
    import tensorflow as tf

    _, gamma, beta, _ = example((2, 4, 4, 6))

    def nodes(depth):
        @tf.function(autograph=False)
        def both(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = x
                for _ in range(depth):
                    y = group_normalize(y, gamma, beta, 3, 1e-5)
            return tape.gradient(y, x)

        graph = both.get_concrete_function(tf.TensorSpec((None, 4, 4, 6))).graph.as_graph_def()
        return len(graph.node), len(graph.library.function)

    (few, functions), (more, same) = nodes(1), nodes(3)
    assert same == functions
    assert more - few <= 2 * 30
