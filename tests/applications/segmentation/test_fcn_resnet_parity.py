"""FCN on ResNet against torchvision's, fed the same weights."""

import keras
import numpy as np
import pytest

from kvision import applications as A
from kvision import weights
from kvision.applications.segmentation import fcn_resnet
from tests.applications.classification.test_parity import randomise
from tests.support import PARITY, assert_close

pytestmark = pytest.mark.parity


@pytest.mark.parametrize(("name", "size"), [("fcn_resnet50", (97, 130)), ("fcn_resnet101", (64, 64))])
def test_equals_torchvision(name, size):
    import torch
    import torchvision

    torch.manual_seed(0)
    theirs = getattr(torchvision.models.segmentation, name)(weights=None, weights_backbone=None, aux_loss=True)
    theirs = randomise(theirs).eval()
    ours = A.FCNResNet(name.removeprefix("fcn_resnet"), input_shape=(*size, 3), auxiliary=True)
    weights.load_torch(ours, theirs.state_dict())
    images = np.random.default_rng(0).normal(size=(2, *size, 3)).astype("float32")
    with torch.no_grad():
        want = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    got = ours(images)
    for output, key in (("logits", "out"), ("auxiliary_logits", "aux")):
        expected = want[key].numpy().transpose(0, 2, 3, 1)
        largest = np.abs(expected).max()
        assert_close(keras.ops.convert_to_numpy(got[output]) / largest, expected / largest, tolerance=PARITY)


@pytest.mark.parametrize("variant", fcn_resnet.WEIGHTS)
def test_the_rows_say_what_torchvision_says(variant):
    import torchvision

    entry = torchvision.models.get_model_weights(f"fcn_resnet{variant}").COCO_WITH_VOC_LABELS_V1
    row = fcn_resnet.WEIGHTS[variant]["coco"]
    assert f"{row.repository}/{row.file}" == entry.url
    assert row.accuracy == entry.meta["_metrics"]["COCO-val2017-VOC-labels"]["miou"]
    assert row.resizing == f"short side to {entry.transforms().resize_size[0]} (bilinear)"
    categories = tuple(name.strip("_") for name in entry.meta["categories"])
    assert categories == fcn_resnet.VOC_CLASSES
    with keras.StatelessScope(initialize_variables=False):
        model = A.FCNResNet(variant, auxiliary=True)
    assert sum(np.prod(w.shape) for w in model.trainable_weights) == entry.meta["num_params"]
