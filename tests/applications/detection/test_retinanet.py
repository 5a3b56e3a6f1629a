"""RetinaNet: what its paper says of it, and torchvision's outputs, losses and detections from the same weights."""

import keras
import numpy as np
import pytest

from kvision import applications as A
from kvision import weights
from kvision.detection.anchors import Anchors
from kvision.detection.assigner import Assigner
from kvision.detection.dense_head import DenseDecoder, DenseHead
from kvision.ops import BACKGROUND, IGNORED, RETINANET_SIZES
from tests.applications.detection.rows import tiny_backbone
from tests.applications.detection.test_detectors import random_images, targets_of
from tests.applications.detection.torch_reference import randomise
from tests.support import PARITY, assert_close

SIZE, CLASSES = 128, 5
BOXES = [[(8, 12, 70, 90, 0), (40, 30, 120, 101, 4), (100, 100, 109, 107, 2)], []]


def detector(**options):
    shape = (SIZE, SIZE, 3)
    return A.RetinaNet(input_shape=shape, classes=CLASSES, **options)


def images(count=2):
    return np.random.default_rng(0).uniform(0, 255, size=(count, SIZE, SIZE, 3)).astype("float32")


def same_detections(ours, theirs, size):
    """Equal row by row; rows whose scores tie may have changed places.

    Torchvision gives boxes too that lie outside the image, without area: ours has the next ones there.
    """
    theirs = {name: np.asarray(values) for name, values in theirs.items()}
    inside = (theirs["boxes"][:, 2:] > theirs["boxes"][:, :2]).all(axis=1)
    theirs = {name: values[inside] for name, values in theirs.items()}
    assert len(theirs["scores"]) <= (ours["labels"] >= 0).sum() <= len(inside)
    real = np.arange(len(ours["labels"])) < len(theirs["scores"])
    assert_close(ours["scores"][real], theirs["scores"], tolerance=PARITY)
    boxes, labels = np.asarray(theirs["boxes"]) / size, np.asarray(theirs["labels"])
    apart = np.abs(ours["boxes"][real][:, None] / size - boxes).max(-1) + (ours["labels"][real][:, None] != labels)
    apart += 10 * np.abs(ours["scores"][real][:, None] - np.asarray(theirs["scores"]))
    assert sorted(apart.argmin(axis=0)) == list(range(len(labels)))
    assert apart.min(axis=0).max() < 2e-3


def test_every_anchor_starts_at_the_prior():
    model = A.RetinaNet(
        input_shape=(64, 64, 3), classes=3, backbone=tiny_backbone("C3", "C4", "C5"), channels=16, norm="group"
    )
    scores = keras.ops.sigmoid(model(random_images())["class_logits"])
    assert_close(keras.ops.mean(scores), 0.01, tolerance=(0.02, 0.0))


def head(**options):
    """One level of four cells, 36 anchors, and four of one cell."""
    anchors, cells = Anchors((64, 128, 128, 128, 128), RETINANET_SIZES), [(2, 2), (1, 1), (1, 1), (1, 1), (1, 1)]
    assigner = Assigner(0.5, 0.4, low_quality_matches=True)
    return DenseHead(2, (128, 128), cells, anchors, assigner, DenseDecoder(**options))


def features_of(layer, logits, deltas=None):
    count = sum(len(level) for level in layer._anchors)
    rows = np.full((1, count, 2), -20.0, "float32")
    for (anchor, label), value in logits.items():
        rows[0, anchor, label] = value
    return {"class_logits": rows, "box_deltas": np.zeros((1, count, 4), "float32") if deltas is None else deltas}


def test_detections_stand_by_score_and_padding_is_marked():
    layer = head(num_detections=4)
    found = layer.decode(features_of(layer, {(0, 1): 2.0, (36, 0): 3.0}))
    labels, scores, boxes = (keras.ops.convert_to_numpy(found[name])[0] for name in ("labels", "scores", "boxes"))
    assert labels.tolist() == [0, 1, -1, -1]
    assert_close(scores, [1 / (1 + np.exp(-3.0)), 1 / (1 + np.exp(-2.0)), 0, 0])
    assert_close(boxes[1], np.clip(layer._anchors[0][0], 0, 128))
    assert (boxes[2:] == 0).all()


def test_suppression_is_per_class():
    layer = head(num_detections=4)
    same = layer.decode(features_of(layer, {(0, 1): 2.0, (3, 1): 1.0}))  # the same shape, one third octave apart
    other = layer.decode(features_of(layer, {(0, 1): 2.0, (0, 0): 1.0}))
    assert [int(keras.ops.sum(found["labels"] >= 0)) for found in (same, other)] == [1, 2]


def test_scores_at_the_threshold_are_dropped():
    layer = head(score_threshold=0.5)
    found = layer.decode(features_of(layer, {(0, 0): 0.0, (1, 0): 0.1}))
    assert int(keras.ops.sum(found["labels"] >= 0)) == 1


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.4, 1.0)])
def test_losses_are_sums_over_the_positives_of_each_image(alpha, gamma):
    """Twin: focal loss of every anchor that is not ignored, by the formula of the paper."""
    from kvision.ops import encode_deltas, match

    layer = head()
    layer.focal_alpha, layer.focal_gamma = alpha, gamma
    anchors = np.concatenate(layer._anchors)
    rng = np.random.default_rng(0)
    features = {
        "class_logits": rng.normal(size=(2, len(anchors), 2)).astype("float32"),
        "box_deltas": rng.normal(size=(2, len(anchors), 4)).astype("float32"),
    }
    targets = targets_of([(8, 8, 56, 56, 1), (64, 40, 128, 100, 0)], [])
    matches = keras.ops.convert_to_numpy(match(targets["boxes"], targets["labels"], anchors, 0.4, 0.5, True))
    assert (matches[0] >= 0).sum() >= 2
    assert (matches[0] == IGNORED).any()  # or that case would never be compared
    focal, distance = [], []
    for image in range(2):
        positives = max(1, (matches[image] >= 0).sum())
        total = moved = 0.0
        for anchor, matched in enumerate(matches[image]):
            for label in range(2):
                if matched < BACKGROUND:
                    continue
                p = 1 / (1 + np.exp(-features["class_logits"][image, anchor, label]))
                truth = matched >= 0 and targets["labels"][image, matched] == label
                p, weight = (p, alpha) if truth else (1 - p, 1 - alpha)  # of what is true
                total -= weight * (1 - p) ** gamma * np.log(p)
            if matched >= 0:
                deltas = keras.ops.convert_to_numpy(encode_deltas(targets["boxes"][image, matched], anchors[anchor]))
                moved += np.abs(deltas - features["box_deltas"][image, anchor]).sum()
        focal.append(total / positives)
        distance.append(moved / positives)
    losses = layer.losses(features, targets)
    assert_close(losses["classification_loss"], np.mean(focal))
    assert_close(losses["box_loss"], np.mean(distance))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"matching_iou_threshold": 0.3}, "Overlaps must rise"),
        ({"focal_alpha": 1.5}, "focal_alpha in 0 to 1"),
        ({"focal_gamma": -1}, "focal_gamma of at least 0"),
        ({"score_threshold": 2}, "score_threshold lies in 0 to 1"),
        ({"nms_threshold": -1}, "nms_threshold lies in 0 to 1"),
        ({"num_detections": 0}, "num_detections must be at least 1"),
        ({"norm": "frozen_batch"}, "RetinaNet: norm=.frozen_batch. would freeze"),
        ({"anchor_sizes": ((32,), (64,))}, "sizes for every level"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options, message):
    backbone = tiny_backbone("C3", "C4", "C5")
    with pytest.raises(ValueError, match=message):
        A.RetinaNet(input_shape=(64, 64, 3), classes=CLASSES, backbone=backbone, channels=8, **options)


def test_arguments_reach_the_parts():
    options = {"matching_iou_threshold": 0.6, "background_iou_threshold": 0.3}
    options |= {"score_threshold": 0.2, "num_candidates": 7, "nms_threshold": 0.4, "num_detections": 9}
    options |= {"focal_alpha": 0.3, "focal_gamma": 1.0}
    backbone = tiny_backbone("C3", "C4", "C5")
    model = A.RetinaNet(input_shape=(64, 64, 3), classes=3, backbone=backbone, channels=8, **options)
    for name, value in options.items():
        part = next(part for part in (model.head, model.head.assigner, model.head.decoder) if hasattr(part, name))
        assert getattr(part, name) == value
    assert model.predict(random_images(), verbose=0)["scores"].shape == (2, 9)


def theirs(depth="resnet50"):
    import torch
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.models.detection.retinanet import RetinaNet
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7
    from torchvision.ops.misc import FrozenBatchNorm2d

    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name=depth,
        weights=None,
        norm_layer=FrozenBatchNorm2d,
        trainable_layers=5,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    model = RetinaNet(backbone, CLASSES, min_size=SIZE, max_size=SIZE)
    return randomise(model, {"head": 0.03})


def ours(model):
    built = detector(backbone_norm="frozen_batch", anchor_strides="torchvision")
    return weights.load_torch(built, model.state_dict())


@pytest.mark.parity
def test_outputs_losses_and_detections_equal_torchvisions():
    import torch

    reference = theirs()
    built = ours(reference)
    batch = [torch.from_numpy(image.transpose(2, 0, 1).copy() / 255) for image in images()]
    targets = targets_of(*BOXES)
    truth = [
        {
            "boxes": torch.from_numpy(boxes[labels >= 0]),
            "labels": torch.from_numpy(labels[labels >= 0].astype("int64")),
        }
        for boxes, labels in zip(targets["boxes"], targets["labels"], strict=True)
    ]
    with torch.no_grad():
        normal, _ = reference.transform(batch)
        raw = reference.head(list(reference.backbone(normal.tensors).values()))
        losses = reference.train()(batch, truth)
        found = reference.eval()(batch)

    features = built(images(), training=False)
    for name, key in (("class_logits", "cls_logits"), ("box_deltas", "bbox_regression")):
        scale = raw[key].abs().max().item()
        assert_close(keras.ops.convert_to_numpy(features[name]) / scale, raw[key].numpy() / scale, tolerance=PARITY)
    built.compile("sgd")
    logs = built.evaluate(images(), targets, batch_size=2, verbose=0, return_dict=True)
    assert_close(logs["classification_loss"], losses["classification"].item(), tolerance=PARITY)
    assert_close(logs["box_loss"], losses["bbox_regression"].item(), tolerance=PARITY)
    detections = built.predict(images(), verbose=0)
    for image, want in enumerate(found):
        assert len(want["scores"]) > 20
        same_detections({name: value[image] for name, value in detections.items()}, want, SIZE)


@pytest.mark.parity
def test_weights_of_another_detector_change_nothing():
    state = {key: value for key, value in theirs().state_dict().items() if "fpn" not in key}
    built = detector(backbone_norm="frozen_batch")
    before = [keras.ops.convert_to_numpy(weight) for weight in built.weights[:20]]
    with pytest.raises(ValueError, match="nothing was changed"):
        weights.load_torch(built, state)
    assert all(np.array_equal(a, b) for a, b in zip(before, built.weights[:20], strict=True))
