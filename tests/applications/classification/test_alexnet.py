"""AlexNet against a NumPy twin, and the paper's layer table."""

import keras
import numpy as np
import pytest

from kvision.applications import AlexNet
from tests.applications.classification import twins
from tests.support import assert_close

# Section 3.5: (window, channels seen by one window, outputs); the dense layers last.
DENSE = [(1, 6 * 6 * 256, 4096), (1, 4096, 4096), (1, 4096, 1000)]
TABLES = {
    "2012": [(11, 3, 96), (5, 48, 256), (3, 256, 384), (3, 192, 384), (3, 192, 256), *DENSE],
    "ungrouped": [(11, 3, 96), (5, 96, 256), (3, 256, 384), (3, 384, 384), (3, 384, 256), *DENSE],
}


@pytest.mark.parametrize(("variant", "published"), [("2012", 60_965_224), ("ungrouped", 62_378_344)])
def test_layer_table(variant, published):
    assert twins.count(TABLES[variant]) == published
    with keras.StatelessScope():
        model = AlexNet(variant)
    layers = [f"conv{i}" for i in range(1, 6)] + [f"fc{i}" for i in range(6, 9)]
    counts = [model.get_layer(name).count_params() for name in layers]
    assert counts == [twins.count([line]) for line in TABLES[variant]]
    assert counts[0] == 34_944


@pytest.mark.parametrize("size", [(67, 67), (99, 83)], ids=str)
def test_equals_the_twin(size):
    model = AlexNet("tiny", input_shape=(*size, 3), classes=3, classifier_activation=None)
    w = twins.randomised(model)
    image = np.random.default_rng(1).normal(0, 20, size=(*size, 3))
    x = twins.pool(twins.normalize_response(twins.convolve(image, w, "conv1", stride=4)))
    x = twins.pool(twins.normalize_response(twins.convolve(x, w, "conv2", padding=2, groups=2)))
    x = twins.convolve(x, w, "conv3", padding=1)
    x = twins.convolve(x, w, "conv4", padding=1, groups=2)
    x = twins.pool(twins.convolve(x, w, "conv5", padding=1, groups=2))
    x = twins.dense(twins.dense(twins.adapt(x, 6), w, "fc6"), w, "fc7")
    assert_close(twins.scores_of(model, image), twins.dense(x, w, "fc8", relu=False), tolerance=(1e-4, 1e-4))


def test_biases_are_initialized_as_in_the_paper():
    model = AlexNet("tiny", input_shape=(67, 67, 3))
    initial = {layer.name: keras.ops.convert_to_numpy(layer.bias) for layer in model.layers if hasattr(layer, "bias")}
    assert {name for name, bias in initial.items() if (bias == 1).all()} == {"conv2", "conv4", "conv5", "fc6", "fc7"}
    assert {name for name, bias in initial.items() if (bias == 0).all()} == {"conv1", "conv3", "fc8"}
    zero = AlexNet("tiny", input_shape=(67, 67, 3), bias_initializer="zero")
    assert all((keras.ops.convert_to_numpy(layer.bias) == 0).all() for layer in zero.layers if hasattr(layer, "bias"))


def test_a_norm_replaces_the_response_normalisation():
    with keras.StatelessScope():
        names = [layer.name for layer in AlexNet("tiny", norm="batch").layers]
    assert [name for name in names if name.startswith("bn")] == ["bn1", "bn2", "bn3", "bn4", "bn5"]
    assert not [name for name in names if name.startswith("norm")]


@pytest.mark.parametrize(("variant", "smallest"), [("2012", 67), ("2014", 63)])
def test_smallest_size(variant, smallest):
    with keras.StatelessScope():
        assert AlexNet(variant, input_shape=(smallest, smallest, 3), include_top=False).output_shape[1:3] == (1, 1)
    with pytest.raises(ValueError, match=f"at least {smallest} pixels"):
        AlexNet(variant, input_shape=(smallest, smallest - 1, 3))
