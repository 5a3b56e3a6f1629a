"""Fast R-CNN's two heads and what it refuses; torchvision's outputs: test_detector_parity.py."""

import numpy as np
import pytest

from kvision import applications as A
from tests.applications.detection.rows import CLASSES, ROWS, SHAPE, tiny_backbone, tiny_vgg
from tests.applications.detection.test_detectors import batch_of

ROW = next(row for row in ROWS if row.proposals)


def test_with_the_last_stage_as_its_head_it_learns():
    backbone = tiny_backbone("C4", "C5", norm="batch")
    model = A.FastRCNN(input_shape=SHAPE, classes=CLASSES, backbone=backbone, head="conv5", num_samples=8)
    head = {weight.path for weight in model.head.box_stages[0].box_head.weights}
    assert {weight.path for weight in backbone.weights if weight.path.startswith("layer4")} < head
    x, targets = batch_of(ROW)
    losses = model.head.losses(model(x, training=True), targets, training=True)
    assert all(np.isfinite(float(loss)) for loss in losses.values())


def test_without_proposals_it_is_refused_before_the_first_step():
    model = ROW.tiny()
    model.compile("sgd")
    x, targets = batch_of(ROW)
    with pytest.raises(ValueError, match=r"looks at given regions.*got images alone"):
        model.fit(x["images"], targets, verbose=0)
    with pytest.raises(ValueError, match=r"got proposals of shape \(2, 9, 5\)"):
        model.fit({"images": x["images"], "proposals": np.zeros((2, 9, 5))}, targets, verbose=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "conv6"}, "Unknown head of FastRCNN: got 'conv6'.*'conv5'"),
        ({"head": "conv5", "backbone": lambda: tiny_backbone("C4")}, r"returns C4 and C5.*got \['C4'\]"),
        ({"backbone": lambda: tiny_backbone("C3")}, r"needs a backbone that returns C4: got \['C3'\]"),
        ({"backbone_norm": "nonsense"}, "Unknown backbone_norm of FastRCNN: got 'nonsense'"),
        ({"head": "conv5", "units": -5}, r"units=-5 is of the dense layers of head=\"fc\""),
        ({"head": "conv5", "dropout_rate": 0.1}, "dropout_rate=0.1 is of the dense layers"),
        ({"units": -5}, "units must be a whole number of at least 1.*got -5"),
        ({"dropout_rate": 1.0}, r"dropout_rate lie in \[0, 1\)"),
        ({"backbone": lambda: tiny_vgg("C4"), "backbone_norm": "group"}, "Leave one of the two out"),
        ({"min_background_iou": 0.6}, "Overlaps must rise"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    options = {name: value() if callable(value) else value for name, value in options.items()}
    with pytest.raises(ValueError, match=message):
        A.FastRCNN(input_shape=SHAPE, classes=CLASSES, **options)
