"""What the builders of detectors share."""

import keras
import numpy as np
import pytest

from kvision import applications as A
from tests.applications.detection.rows import SHAPE, tiny_backbone
from tests.support import assert_close


@pytest.mark.parametrize("builder", [A.FasterRCNN, A.RetinaNet])
@pytest.mark.parametrize(
    ("norm", "gain"), [("group", 2), ("sync_batch", 2), (None, 2), ("frozen_batch", 1), ("batch", 1)]
)
def test_pyramids_that_train_from_scratch_start_by_hes_law(builder, norm, gain):
    model = builder(
        input_shape=SHAPE, classes=3, backbone=tiny_backbone("C2", "C3", "C4", "C5"), norm=norm, channels=64
    )
    kernels = [
        keras.ops.convert_to_numpy(weight)
        for weight in model.trunk.get_layer("backbone.fpn").weights
        if weight.name == "kernel"
    ]
    assert len(kernels) == 8
    for kernel in kernels:
        assert_close(np.var(kernel) * np.prod(kernel.shape[:-1]), gain, tolerance=(0.1, 0))
