"""Network in network against a NumPy twin, and the layer tables its authors published."""

import keras
import numpy as np
import pytest

from kvision.applications import NetworkInNetwork
from tests.applications.classification import twins
from tests.support import assert_close

# (window, channels in, channels out).
TABLES = {
    "imagenet": [
        (11, 3, 96), (1, 96, 96), (1, 96, 96),
        (5, 96, 256), (1, 256, 256), (1, 256, 256),
        (3, 256, 384), (1, 384, 384), (1, 384, 384),
        (3, 384, 1024), (1, 1024, 1024), (1, 1024, 1000),
    ],
    "cifar10": [
        (5, 3, 192), (1, 192, 160), (1, 160, 96),
        (5, 96, 192), (1, 192, 192), (1, 192, 192),
        (3, 192, 192), (1, 192, 192), (1, 192, 10),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("variant", "published"), [("imagenet", 7_595_176), ("cifar10", 966_986)])
def test_layer_table(variant, published):
    assert twins.count(TABLES[variant]) == published
    with keras.StatelessScope():
        model = NetworkInNetwork(variant)
    counts = [layer.count_params() for layer in model.layers if layer.count_params()]
    assert counts == [twins.count([line]) for line in TABLES[variant]]


@pytest.mark.parametrize("size", [(16, 16), (14, 18)], ids=str)
def test_small_images_equal_the_twin(size):
    model = NetworkInNetwork("tiny", input_shape=(*size, 3), classes=3, classifier_activation=None)
    w = twins.randomised(model)
    image = np.random.default_rng(1).normal(size=(*size, 3))
    x = twins.convolve(twins.convolve(image, w, "conv1", padding=2), w, "cccp1")
    x = twins.pool(x, reach_over=True)
    x = twins.convolve(twins.convolve(x, w, "conv2", padding=1), w, "cccp2")
    if size == (16, 16):  # means of the windows there are; at odd sides Keras centres them
        x = twins.pool(x, reach_over=True, reduce=np.mean)
        x = twins.convolve(twins.convolve(x, w, "conv3", padding=1), w, "cccp3").mean(axis=(0, 1))
        assert_close(twins.scores_of(model, image), x, tolerance=(1e-4, 1e-4))
    else:
        inner = keras.Model(model.inputs[0], model.get_layer("cccp2.relu").output)
        assert_close(twins.scores_of(inner, image), x, tolerance=(1e-4, 1e-4))


# Of each stage: stride and padding of its convolution, and the number of 1x1 convolutions behind it.
FORMS = {
    "imagenet": ((39, 52), [(4, 0, 2), (1, 2, 2), (1, 1, 2), (1, 1, 2)], [np.max, np.max, np.max]),
    "cifar10": ((16, 8), [(1, 2, 2), (1, 2, 2), (1, 1, 2)], [np.max, np.mean]),
}


@pytest.mark.parametrize("variant", FORMS)
def test_published_networks_equal_the_twin(variant):
    size, stages, poolings = FORMS[variant]
    model = NetworkInNetwork(variant, input_shape=(*size, 3), classes=3, classifier_activation=None)
    w = twins.randomised(model, deviation=0.03)
    image = np.random.default_rng(1).normal(size=(*size, 3))
    x, pointwise = image, 0
    for stage, (stride, padding, count) in enumerate(stages, 1):
        if stage > 1:
            x = twins.pool(x, reach_over=True, reduce=poolings[stage - 2])
        x = twins.convolve(x, w, f"conv{stage}", stride=stride, padding=padding)
        for _ in range(count):
            pointwise += 1
            x = twins.convolve(x, w, f"cccp{pointwise}")
    want = x.mean(axis=(0, 1))
    assert_close(twins.scores_of(model, image) / want.max(), want / want.max(), tolerance=(1e-4, 1e-4))


def test_smallest_size():
    with keras.StatelessScope():
        assert NetworkInNetwork(input_shape=(39, 39, 3), include_top=False).output_shape[1:3] == (1, 1)
    with pytest.raises(ValueError, match="at least 39 pixels"):
        NetworkInNetwork(input_shape=(38, 39, 3))
