"""Windows that others cut, through the same classifier."""

import keras
import numpy as np
import pytest

from kvision import applications as A
from tests.support import assert_close

pytestmark = pytest.mark.parity


def test_equals_torchs_windows_on_every_pixel():
    import torch

    height, width, window = 21, 26, 15
    classifier = A.PatchClassifier("tiny", input_shape=(window, window, 3), classes=4, norm="batch")
    images = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype("float32")
    unfold = torch.nn.Unfold(window, padding=window // 2)
    columns = unfold(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()  # [b, c·window·window, pixels]
    cut = columns.transpose(0, 2, 1).reshape(-1, 3, window, window).transpose(0, 2, 3, 1)
    want = keras.ops.convert_to_numpy(classifier(cut)).reshape(2, height, width, 4)
    assert_close(A.dense(classifier, (height, width))(images), want)
