"""Published ImageNet weights, end to end: file → network → names of what is in a photo."""

import keras
import numpy as np
import pytest

from kvision.applications import mobilenet_v2
from tests.support import PARITY, assert_close

pytestmark = pytest.mark.real


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
