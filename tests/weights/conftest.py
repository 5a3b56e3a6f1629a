"""A tiny network for every test here."""

import pytest

from kvision.applications import ResNet


@pytest.fixture
def model():
    return ResNet("tiny", input_shape=(32, 32, 3), classes=3)
