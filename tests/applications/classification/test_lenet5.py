"""LeNet-5 of 1998 against a NumPy twin written from the paper, and the paper's own counts."""

import keras
import numpy as np
import pytest

from kvision.applications import LeNet5, lenet5
from tests.support import assert_close

# Table I of the paper, row by row (maps of S2): # where column k (map of C3) is connected.
TABLE_I = """
#...###..####.##
##...###..####.#
###...###..#.###
.###..####..#.##
..###..####.##.#
...###..####.###
""".split()


def squash(x):
    return 1.7159 * np.tanh(2 * x / 3)


def convolve(x, kernel, bias):
    """Valid convolution of [h, w, c] with [k, k, c, n], one window at a time."""
    k = kernel.shape[0]
    rows, columns = x.shape[0] - k + 1, x.shape[1] - k + 1
    out = np.empty((rows, columns, kernel.shape[-1]))
    for i in range(rows):
        for j in range(columns):
            out[i, j] = np.tensordot(x[i : i + k, j : j + k], kernel, axes=3) + bias
    return out


def subsample(x, coefficient, bias):
    sums = x[0::2, 0::2] + x[1::2, 0::2] + x[0::2, 1::2] + x[1::2, 1::2]
    return sums * coefficient + bias


def twin(image, weights):
    w = {path: value.astype("float64") for path, value in weights.items()}
    x = squash(convolve(image, w["C1/kernel"], w["C1/bias"]))
    x = squash(subsample(x, w["S2/coefficient"], w["S2/bias"]))
    kernel, used = np.zeros((5, 5, 6, 16)), 0
    for k in range(16):
        for channel in range(6):
            if TABLE_I[channel][k] == "#":
                kernel[:, :, channel, k] = w["C3/kernel"][:, :, used + 0]
                used += 1
    x = squash(convolve(x, kernel, w["C3/bias"]))
    x = squash(subsample(x, w["S4/coefficient"], w["S4/bias"]))
    x = squash(convolve(x, w["C5/kernel"], w["C5/bias"]))[0, 0]
    x = squash(x @ w["F6/kernel"] + w["F6/bias"])
    return np.square(x - lenet5.digit_codes()).sum(axis=1)


def test_equals_the_twin():
    model = LeNet5("1998", classifier_activation=None)
    rng = np.random.default_rng(1)
    for variable in model.weights:  # biases and coefficients of a fresh net would hide a fault
        variable.assign(rng.normal(0, 0.2, variable.shape))
    # The table's rows list their maps in another order than the crosses: put the kernels where the twin reads them.
    weights = {w.path: keras.ops.convert_to_numpy(w) for w in model.weights}
    indices, used = [], 0
    for maps in lenet5.C3_TABLE:
        indices += [used + maps.index(channel) for channel in sorted(maps)]
        used += len(maps)
    weights["C3/kernel"] = weights["C3/kernel"][:, :, indices]

    images = rng.normal(size=(3, 32, 32, 1)).astype("float32")
    want = np.stack([twin(image, weights) for image in images])
    assert_close(model(images), want, tolerance=(1e-4, 1e-3))


def test_connection_table_is_the_papers():
    for k, maps in enumerate(lenet5.C3_TABLE):
        assert sorted(maps) == [channel for channel in range(6) if TABLE_I[channel][k] == "#"]


@pytest.mark.parametrize(
    ("layer", "count"), [("C1", 156), ("S2", 12), ("C3", 1516), ("S4", 32), ("C5", 48_120), ("F6", 10_164)]
)
def test_counts_of_the_paper(layer, count):
    assert LeNet5("1998").get_layer(layer).count_params() == count


@pytest.mark.parametrize("initializer", [None, "he"])
def test_no_two_maps_of_c3_are_initialized_alike(initializer):
    kernel = LeNet5("1998", initializer=initializer).get_layer("C3").kernel.numpy()
    first, second = kernel[:, :, 0:3], kernel[:, :, 3:6]  # two maps that see three maps each
    assert not np.array_equal(first, second)


def test_codes_are_ten_bitmaps_of_seven_by_twelve():
    codes = lenet5.digit_codes()
    assert codes.shape == (10, 84)
    assert set(np.unique(codes)) == {-1.0, 1.0}
    assert len(np.unique(codes, axis=0)) == 10
    one = codes[1].reshape(12, 7)
    assert_close(one[2], [-1, 1, 1, 1, 1, -1, -1])  # the serif of the 1


def test_softmax_is_that_of_minus_the_distances():
    paper, scores = LeNet5("1998", classifier_activation=None), LeNet5("1998")
    scores.set_weights(paper.get_weights())
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 1)).astype("float32")
    distances = keras.ops.convert_to_numpy(paper(images)).astype("float64")
    want = np.exp(-distances + distances.min(axis=1, keepdims=True))
    assert_close(scores(images), want / want.sum(axis=1, keepdims=True))


def test_map_loss_is_equation_9():
    distances = np.array([[0.5, 2.0, 3.0], [4.0, 0.1, 9.0]], "float32")
    labels = np.array([0, 2])
    want = [d[c] + np.log(np.exp(-0.7) + np.exp(-d).sum()) for d, c in zip(distances, labels, strict=True)]
    assert_close(lenet5.MAPLoss(margin=0.7)(labels, distances), np.mean(want))


def test_paper_network_learns_with_its_own_loss():
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(10, 32, 32, 1)).astype("float32"), np.arange(10)
    model = LeNet5("1998", classifier_activation=None)
    model.compile(keras.optimizers.SGD(0.002, momentum=0.9), lenet5.MAPLoss())
    first = model.evaluate(images, labels, verbose=0)
    for _ in range(100):
        model.train_on_batch(images, labels)
    assert model.evaluate(images, labels, verbose=0) < 0.6 * first


def test_fan_in_uniform_stays_within_its_limits():
    kernel = keras.ops.convert_to_numpy(lenet5.FanInUniform(seed=0)((5, 5, 6, 200)))
    assert np.abs(kernel).max() <= 2.4 / 150
    assert np.abs(kernel).max() > 0.99 * 2.4 / 150


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "1999"}, "Unknown LeNet5 variant: got '1999'.*'1998', 'modern'"),
        ({"input_shape": (28, 28, 1)}, "Pad MNIST's 28x28"),
        ({"classes": 3}, "codes of the ten digits"),
        ({"norm": "batch"}, "has no normalisation"),
    ],
)
def test_errors_say_what_to_do(options, message):
    with pytest.raises(ValueError, match=message):
        LeNet5(**options)
