"""A tiny network for the tests of each module, its weights as new; one that changes more of it takes `own_model`."""

import pytest

from kvision.applications import ResNet


@pytest.fixture(scope="module")
def network():
    model = ResNet("tiny", input_shape=(32, 32, 3), classes=3)
    return model, model.get_weights()


@pytest.fixture
def model(network):
    model, initial = network
    model.set_weights(initial)
    return model


@pytest.fixture
def own_model():
    return ResNet("tiny", input_shape=(32, 32, 3), classes=3)
