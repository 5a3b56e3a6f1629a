"""ZFNet against a NumPy twin, the paper's layer table, and its filter renormalisation."""

import keras
import numpy as np
import pytest

from kvision.applications import ZFNet
from kvision.applications.classification.zfnet import FilterRadius
from tests.applications.classification import twins
from tests.support import assert_close

# Figure 3: (window, channels seen by one window, outputs).
TABLE = [
    (7, 3, 96),
    (5, 96, 256),
    (3, 256, 384),
    (3, 384, 384),
    (3, 384, 256),
    (1, 6 * 6 * 256, 4096),
    (1, 4096, 4096),
    (1, 4096, 1000),
]


def test_layer_table():
    assert twins.count(TABLE) == 62_357_608
    with keras.StatelessScope():
        model = ZFNet()
    layers = [f"conv{i}" for i in range(1, 6)] + [f"fc{i}" for i in range(6, 9)]
    assert [model.get_layer(name).count_params() for name in layers] == [twins.count([line]) for line in TABLE]


@pytest.mark.parametrize("size", [(47, 47), (67, 54)], ids=str)
def test_equals_the_twin(size):
    model = ZFNet("tiny", input_shape=(*size, 3), classes=3, classifier_activation=None)
    w = twins.randomised(model)
    image = np.random.default_rng(1).normal(0, 20, size=(*size, 3))
    x = twins.normalize_response(twins.pool(twins.convolve(image, w, "conv1", stride=2, padding=1), reach_over=True))
    x = twins.normalize_response(twins.pool(twins.convolve(x, w, "conv2", stride=2), reach_over=True))
    for index in (3, 4, 5):
        x = twins.convolve(x, w, f"conv{index}", padding=1)
    x = twins.adapt(twins.pool(x, reach_over=True), 6)
    x = twins.dense(twins.dense(x, w, "fc6"), w, "fc7")
    assert_close(twins.scores_of(model, image), twins.dense(x, w, "fc8", relu=False), tolerance=(1e-4, 1e-4))


def test_large_filters_are_scaled_back_and_small_ones_left():
    kernel = np.random.default_rng(0).normal(0, [0.02, 5.0, 0.3], size=(7, 7, 3, 3)).astype("float32")
    got = keras.ops.convert_to_numpy(FilterRadius(0.1)(kernel))
    size = np.sqrt((got**2).mean(axis=(0, 1, 2)))
    assert_close(got[..., 0], kernel[..., 0])
    assert_close(size[1:], [0.1, 0.1])
    assert_close(got[..., 1] / kernel[..., 1], np.full((7, 7, 3), got[0, 0, 0, 1] / kernel[0, 0, 0, 1]))
    assert_close(FilterRadius(0.1)(np.zeros((2, 2, 1, 1), "float32")), np.zeros((2, 2, 1, 1)))


@pytest.mark.parametrize("radius", [0.1, None])
def test_filters_stay_inside_the_radius_in_fit(radius):
    model = ZFNet("tiny", input_shape=(47, 47, 3), classes=3, initializer="normal_1", filter_radius=radius)
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.fit(np.zeros((4, 47, 47, 3), "float32"), np.array([0, 1, 2, 0]), verbose=0)
    kernels = [keras.ops.convert_to_numpy(model.get_layer(f"conv{i}").kernel) for i in range(1, 6)]
    inside = [np.sqrt((kernel**2).mean(axis=(0, 1, 2))).max() <= 0.1001 for kernel in kernels]
    assert all(inside) if radius else not any(inside)


def test_smallest_size():
    with keras.StatelessScope():
        assert ZFNet(input_shape=(47, 47, 3), include_top=False).output_shape[1:3] == (1, 1)
    with pytest.raises(ValueError, match="at least 47 pixels"):
        ZFNet(input_shape=(46, 47, 3))
