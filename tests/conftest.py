"""Every test starts from the same place: float32, a fixed seed, no models of the test before."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
if not os.environ.get("KVISION_TEST_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("MPLBACKEND", "Agg")

import contextlib

with contextlib.suppress(ImportError):
    import torchvision  # noqa: F401  # before TensorFlow: loaded after it, torch's operators crash the process

import keras
import pytest


@pytest.fixture(autouse=True)
def fresh_session():
    keras.mixed_precision.set_dtype_policy("float32")
    keras.utils.set_random_seed(0)
    yield
    keras.mixed_precision.set_dtype_policy("float32")
    keras.utils.clear_session(free_memory=False)


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """The folder that published weights of an address are kept in, for this test alone; not there yet."""
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path / "keras"))
    (tmp_path / "keras").mkdir()
    return tmp_path / "keras" / "models"
