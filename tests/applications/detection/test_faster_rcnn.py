"""Faster R-CNN on a pyramid, on C4, on any backbone; torchvision's outputs and losses: test_detector_parity.py."""

import keras
import numpy as np
import pytest

from kvision import applications as A
from tests.applications.detection.rows import CLASSES, SHAPE, tiny_backbone, tiny_two_stage, with_preprocessing
from tests.applications.detection.test_detectors import random_images, targets_of
from tests.support import SLOW, assert_close

BOXES = [(4, 6, 30, 34, 0), (20, 20, 60, 50, 2)]


def test_levels_of_a_real_image():
    model = A.FasterRCNN(input_shape=SHAPE, classes=CLASSES, backbone=tiny_backbone("C2", "C3", "C4", "C5"), channels=8)
    assert [len(level) for level in model.head.proposals._anchors] == [768, 192, 48, 12, 3]
    assert set(model.trunk.output) == {"P2", "P3", "P4", "P5", "objectness_logits", "anchor_deltas"}


@pytest.mark.slow
@pytest.mark.tensorflow_only
def test_no_gradient_flows_through_the_proposals():
    import tensorflow as tf

    model = tiny_two_stage(A.FasterRCNN)
    with tf.GradientTape() as tape:
        losses = model.head.losses(model(random_images(), training=True), targets_of(BOXES, []), training=True)
        total = losses["classification_loss"] + losses["box_loss"]
    rpn = [weight for weight in model.trainable_weights if weight.path.startswith("rpn.head")]
    assert len(rpn) == 6
    assert tape.gradient(total, [weight.value for weight in rpn]) == [None] * 6


BACKBONES = {
    "deformable resnet": lambda levels: A.ResNet(
        "tiny", include_top=False, input_shape=SHAPE, features=levels, deformable=("C5",), norm="frozen_batch"
    ),
    "efficientnet": lambda levels: A.EfficientNet("tiny", include_top=False, input_shape=SHAPE, features=levels),
    "swin": lambda levels: A.Swin("tiny", include_top=False, input_shape=SHAPE, features=levels),
    "vgg without norm": lambda levels: A.VGG("tiny", include_top=False, input_shape=SHAPE, features=levels),
}


@pytest.mark.parametrize(
    "backbone", [pytest.param(name, marks=[pytest.mark.slow] * (name != "swin")) for name in BACKBONES]
)
def test_any_backbone_with_named_levels(backbone):
    levels = BACKBONES[backbone](("C2", "C3", "C4", "C5"))
    few = {"num_candidates": (60, 40), "num_proposals": (40, 20), "num_samples": 24}
    model = A.FasterRCNN(input_shape=SHAPE, classes=CLASSES, backbone=with_preprocessing(levels), channels=8, **few)
    losses = model.head.losses(model(random_images(), training=True), targets_of(BOXES, []), training=True)
    assert all(np.isfinite(float(loss)) for loss in losses.values())


@SLOW
def test_on_c4_it_trains_and_is_saved(tmp_path):
    model = A.FasterRCNN(
        input_shape=SHAPE,
        classes=CLASSES,
        backbone=tiny_backbone("C4", "C5", norm="batch"),
        neck="c4",
        num_candidates=(60, 40),
        num_proposals=(40, 20),
        num_samples=24,
    )
    assert set(model.trunk.output) == {"C4", "objectness_logits", "anchor_deltas"}
    assert len(model.head.proposals._anchors[0]) == 4 * 4 * 15
    model.compile("sgd")
    logs = model.train_on_batch(random_images(), targets_of(BOXES, []), return_dict=True)
    assert np.isfinite(list(logs.values())).all()
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    assert [weight.path for weight in copy.weights] == [weight.path for weight in model.weights]
    assert len({weight.path for weight in copy.weights}) == len(copy.weights)
    features = model(random_images(), training=True)
    assert_close(copy(random_images(), training=True)["C4"], features["C4"])
    assert_close(copy.head.decode(features)["boxes"], model.head.decode(features)["boxes"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neck": "c5"}, "Unknown neck of FasterRCNN: got 'c5'.*'c4'"),
        ({"norm": "grup"}, "Unknown norm of FasterRCNN: got 'grup'.*'group'"),
        ({"backbone": lambda: tiny_backbone("C2", "C3")}, r"returns C2, C3, C4, C5: got \['C2', 'C3'\]"),
        ({"neck": "c4", "backbone": lambda: tiny_backbone("C4")}, r"returns C4 and C5.*got \['C4'\]"),
        ({"neck": "c4", "channels": -1}, r"channels=-1 has no use with neck=\"c4\""),
        ({"neck": "c4", "norm": "group"}, r"norm='group' has no use with neck=\"c4\""),
        ({"neck": "c4", "initializer": "he"}, r"initializer='he' has no use with neck=\"c4\""),
        ({"channels": -1}, "channels must be a whole number of at least 1, got -1"),
        ({"weights": "own.weights.h5", "classes": None}, "neither a file nor published weights .those are: .coco"),
        (
            {"weights": __file__, "classes": None},
            "classes=None takes the number of published weights; of a file of yours",
        ),
        ({"matching_iou_threshold": 1.5}, "Overlaps must rise"),
        ({"input_shape": (16, 64, 3)}, "FasterRCNN: got input_shape.*its last map has stride 32"),
        ({"classes": 0}, "FasterRCNN: classes"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    options = {name: value() if callable(value) else value for name, value in options.items()}
    with pytest.raises(ValueError, match=message):
        A.FasterRCNN(**{"input_shape": SHAPE, "classes": CLASSES} | options)


@pytest.mark.parametrize("name", ["FasterRCNN", "MaskRCNN", "CascadeRCNN"])
def test_each_builder_speaks_in_its_own_name(name):
    with pytest.raises(ValueError, match=rf"^{name} needs a backbone that returns C2, C3, C4, C5"):
        getattr(A, name)(input_shape=SHAPE, classes=CLASSES, backbone=tiny_backbone("C2", "C3"))
