"""The maps of these tests are small; they are to run what large maps run."""

import keras
import pytest


@pytest.fixture(autouse=True)
def fuse_small_maps_too(monkeypatch):
    if keras.backend.backend() == "tensorflow":
        monkeypatch.setattr("kvision.ops._tensorflow._LARGE_SAMPLE", 0)
