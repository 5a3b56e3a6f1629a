"""The CS231n pattern against a NumPy twin, and the lecture's shapes."""

import keras
import numpy as np
import pytest

from kvision.applications import ConvNet
from tests.applications.classification.test_lenet5 import convolve
from tests.support import assert_close


def pool(x):
    h, w, c = x.shape
    return x[: h // 2 * 2, : w // 2 * 2].reshape(h // 2, 2, w // 2, 2, c).max(axis=(1, 3))


def same(x, kernel, bias):
    padding = kernel.shape[0] // 2
    return convolve(np.pad(x, ((padding, padding), (padding, padding), (0, 0))), kernel, bias)


def test_equals_the_twin():
    model = ConvNet(2, 2, 1, input_shape=(9, 8, 3), filters=4, units=6, classes=3, classifier_activation=None)
    rng = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(rng.normal(0, 0.3, variable.shape))
    w = {variable.path: keras.ops.convert_to_numpy(variable).astype("float64") for variable in model.weights}
    image = rng.normal(size=(9, 8, 3))
    x = image
    for group in (1, 2):
        for layer in (1, 2):
            x = np.maximum(same(x, w[f"conv{group}_{layer}/kernel"], w[f"conv{group}_{layer}/bias"]), 0)
        x = pool(x)
    x = np.maximum(x.ravel() @ w["dense1/kernel"] + w["dense1/bias"], 0)
    x = x @ w["classifier/kernel"] + w["classifier/bias"]
    assert_close(model(image[None].astype("float32"))[0], x, tolerance=(1e-4, 1e-4))


def test_ten_filters_of_the_lecture_have_760_parameters():
    model = ConvNet(1, 1, 0, filters=10, kernel_size=5, pool=False)
    assert model.get_layer("conv1_1").count_params() == 760


@pytest.mark.parametrize(
    ("counts", "message"), [((0, 1, 1), "n of at least 1"), ((1, -1, 0), "at least 0"), ((1, 1, -1), "at least 0")]
)
def test_counts_out_of_range_are_refused(counts, message):
    with pytest.raises(ValueError, match=message):
        ConvNet(*counts)


def test_even_kernels_are_refused():
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        ConvNet(1, 1, 1, kernel_size=4)
