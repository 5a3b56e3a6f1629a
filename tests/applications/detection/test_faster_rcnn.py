"""Faster R-CNN's proposals and options; torchvision's outputs and losses: test_detector_parity.py."""

import keras
import numpy as np
import pytest

from kvision import applications as A
from kvision.applications.detection.faster_rcnn import RegionProposals
from kvision.layers import BatchNormalization, GroupNormalization
from kvision.ops import encode_deltas
from tests.applications.detection.rows import CLASSES, SHAPE, tiny_backbone, tiny_two_stage
from tests.applications.detection.test_detectors import pictures, targets_of
from tests.support import assert_close

BOXES = [(4, 6, 30, 34, 0), (20, 20, 60, 50, 2)]


def proposals_layer(**options):
    """Two levels, 192 and 48 anchors."""
    sizes = {"feature_sizes": [(8, 8), (4, 4)], "anchor_sizes": ((8,), (16,))}
    return RegionProposals(SHAPE[:2], **sizes, **options)


def features_of(layer, boxes, logits):
    """Features by which single anchors propose these boxes, all others nothing."""
    anchors = np.concatenate(layer._anchors)
    values = np.full((1, len(anchors)), -20.0, "float32")
    deltas = np.zeros((1, len(anchors), 4), "float32")
    for (place, box), logit in zip(boxes.items(), logits, strict=True):
        values[0, place] = logit
        deltas[0, place] = keras.ops.convert_to_numpy(encode_deltas(np.array(box, "float32"), anchors[place]))
    return {"objectness_logits": values, "anchor_deltas": deltas}


def test_proposals_fall_by_objectness_are_suppressed_per_level_and_clipped():
    layer = proposals_layer(num_proposals=(3, 3))
    boxes = {30: (10, 10, 30, 30), 31: (10, 10, 30, 29), 200: (10, 10, 30, 30), 100: (40, 40, 90, 80)}
    got = keras.ops.convert_to_numpy(layer.propose(features_of(layer, boxes, [3, 5, 4, 2])))[0]
    assert_close(got, [[10, 10, 30, 29], [10, 10, 30, 30], [40, 40, 64, 64]], tolerance=(1e-4, 1e-4))


def test_in_training_proposals_end_at_the_valid_picture():
    layer = proposals_layer(num_proposals=(2, 2))
    features = features_of(layer, {30: (10, 10, 60, 60), 100: (50, 50, 62, 62)}, [5, 4])
    got = keras.ops.convert_to_numpy(layer.propose(features, True, np.array([[40, 32]])))[0]
    assert_close(got[0], [10, 10, 32, 40], tolerance=(1e-4, 1e-4))
    assert (got[:, 2] <= 32).all() and (got[:, 3] <= 40).all()


def test_numbers_differ_between_training_and_inference():
    layer = proposals_layer(num_candidates=(300, 5), num_proposals=(40, 20))
    features = {
        "objectness_logits": np.random.default_rng(0).normal(size=(2, 240)).astype("float32"),
        "anchor_deltas": np.zeros((2, 240, 4), "float32"),
    }
    training, inference = (keras.ops.convert_to_numpy(layer.propose(features, mode)) for mode in (True, False))
    assert training.shape[1] == 40 and inference.shape[1] == 10  # five of either level
    assert training.any(-1).all()


def test_levels_of_a_real_picture():
    model = A.FasterRCNN(input_shape=SHAPE, classes=CLASSES, backbone=tiny_backbone("C2", "C3", "C4", "C5"), channels=8)
    assert [len(level) for level in model.head.proposals._anchors] == [768, 192, 48, 12, 3]
    assert set(model.trunk.output) == {"P2", "P3", "P4", "P5", "objectness_logits", "anchor_deltas"}


@pytest.mark.tensorflow_only
def test_no_gradient_flows_through_the_proposals():
    import tensorflow as tf

    model = tiny_two_stage(A.FasterRCNN)
    with tf.GradientTape() as tape:
        losses = model.head.losses(model(pictures(), training=True), targets_of(BOXES, []), training=True)
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


@pytest.mark.parametrize("backbone", BACKBONES)
def test_any_backbone_with_named_levels(backbone):
    levels = BACKBONES[backbone](("C2", "C3", "C4", "C5"))
    few = {"num_candidates": (60, 40), "num_proposals": (40, 20), "num_samples": 24}
    model = A.FasterRCNN(input_shape=SHAPE, classes=CLASSES, backbone=levels, norm=None, channels=8, **few)
    losses = model.head.losses(model(pictures(), training=True), targets_of(BOXES, []), training=True)
    assert all(np.isfinite(float(loss)) for loss in losses.values())


def kinds(part):
    layers = list(part._flatten_layers())
    batch = sum(isinstance(layer, BatchNormalization) for layer in layers)
    return batch, sum(isinstance(layer, GroupNormalization) for layer in layers)


@pytest.mark.parametrize(
    ("norm", "in_neck", "in_head"),
    [
        ("group", (0, 8), (0, 4)),
        ("sync_batch", (8, 0), (4, 0)),
        ("frozen_batch", (0, 0), (0, 0)),
        (None, (0, 0), (0, 0)),
    ],
)
def test_norms_that_train_from_scratch_reach_neck_and_head(norm, in_neck, in_head):
    model = tiny_two_stage(A.FasterRCNN, norm=norm)
    neck = next(layer for layer in model.trunk.layers if layer.name == "backbone.fpn")
    assert kinds(neck) == in_neck
    assert kinds(model.head.box_branch.box_head) == in_head
    if norm == "sync_batch":
        assert all(layer.synchronized for layer in model._flatten_layers() if isinstance(layer, BatchNormalization))
    if norm is None:
        assert kinds(model) == (0, 0)


def test_heads_start_as_the_papers_say():
    model = A.FasterRCNN(
        input_shape=SHAPE, classes=80, backbone=tiny_backbone("C2", "C3", "C4", "C5"), norm="group", channels=64
    )
    deviation = {
        weight.path: float(np.std(keras.ops.convert_to_numpy(weight)))
        for weight in model.trainable_weights
        if weight.name == "kernel"
    }
    assert_close(deviation["roi_heads.box_head.0.0/kernel"], np.sqrt(2 / (9 * 64)), tolerance=(0.05, 0))  # He's law
    assert_close(deviation["rpn.head.conv.0.0/kernel"], 0.01, tolerance=(0.05, 0))
    assert_close(deviation["roi_heads.box_predictor.cls_score/kernel"], 0.01, tolerance=(0.05, 0))
    assert_close(deviation["roi_heads.box_predictor.bbox_pred/kernel"], 0.001, tolerance=(0.05, 0))


def test_on_c4_it_trains_and_is_saved(tmp_path):
    model = A.FasterRCNN(
        input_shape=SHAPE,
        classes=CLASSES,
        backbone=tiny_backbone("C4", "C5", norm="frozen_batch"),
        neck="c4",
        num_candidates=(60, 40),
        num_proposals=(40, 20),
        num_samples=24,
    )
    assert set(model.trunk.output) == {"C4", "objectness_logits", "anchor_deltas"}
    assert len(model.head.proposals._anchors[0]) == 4 * 4 * 15
    model.compile("sgd")
    logs = model.train_on_batch(pictures(), targets_of(BOXES, []), return_dict=True)
    assert np.isfinite(list(logs.values())).all()
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    assert [weight.path for weight in copy.weights] == [weight.path for weight in model.weights]
    assert len({weight.path for weight in copy.weights}) == len(copy.weights)
    features = model(pictures(), training=True)
    assert_close(copy(pictures(), training=True)["C4"], features["C4"])
    assert_close(copy.head.detect(features)["boxes"], model.head.detect(features)["boxes"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neck": "c5"}, "Unknown neck: got 'c5'.*'c4'"),
        ({"norm": "grup"}, "Unknown norm: got 'grup'.*'group'"),
        ({"backbone": lambda: tiny_backbone("C2", "C3")}, r"returns C2, C3, C4, C5: got \['C2', 'C3'\]"),
        ({"neck": "c4", "backbone": lambda: tiny_backbone("C4")}, r"returns C4 and C5.*got \['C4'\]"),
        ({"input_shape": (16, 64, 3)}, "its last map has stride 32"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    options = {name: value() if callable(value) else value for name, value in options.items()}
    with pytest.raises(ValueError, match=message):
        A.FasterRCNN(**{"input_shape": SHAPE, "classes": CLASSES} | options)
