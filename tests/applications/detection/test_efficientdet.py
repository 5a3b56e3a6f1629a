"""EfficientDet: the numbers of its tables, and effdet's outputs, anchors, labels, losses and detections."""

import keras
import numpy as np
import pytest

from kvision import applications as A
from kvision import weights
from kvision.ops import BACKGROUND, encode_deltas
from tests.applications.detection.test_detectors import targets_of
from tests.support import PARITY, assert_close

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # effdet's import

SIZE, CLASSES = 128, 5
# The second box has the centre of an anchor of P3 to the pixel, so that two of its targets are exactly 0; the third is
# one whose best anchors tie; the last two share their best anchor.
BOXES = [
    [(8, 12, 70, 90, 0), (48, 40, 72, 80, 4), (101, 101, 106, 105, 2)],
    [(30, 20, 90, 84, 1), (30, 22, 90, 84, 3)],
    [],
]


def images(count=3):
    return np.random.default_rng(0).uniform(0, 255, size=(count, SIZE, SIZE, 3)).astype("float32")


def theirs(variant, **config):
    """Effdet's network as if trained: with fresh weights nothing would be found."""
    import torch
    from effdet import EfficientDet, get_efficientdet_config
    from omegaconf import open_dict

    torch.manual_seed(0)
    settings = get_efficientdet_config(f"tf_efficientdet_{variant}")
    with open_dict(settings):
        settings.update({"image_size": (SIZE, SIZE), "num_classes": CLASSES} | config)
    model = EfficientDet(settings, pretrained_backbone=False).eval()
    generator = torch.Generator().manual_seed(0)
    for key, tensor in model.state_dict().items():
        if key.endswith("running_var") or (tensor.ndim == 1 and key.endswith("weight")):
            tensor.uniform_(0.5, 1.0, generator=generator)
        elif key.endswith("edge_weights"):
            tensor.uniform_(-0.3, 2.0, generator=generator)  # some of them are cut by the ReLU
        elif tensor.ndim == 1:
            tensor.normal_(0.0, 0.1, generator=generator)
    return model


FORMS = {
    "d0": ({}, {}),
    "d6": (
        {"fpn_channels": 24, "fpn_cell_repeats": 2, "box_class_repeats": 2},
        {"channels": 24, "cells": 2, "depth": 2},
    ),
}


def ours(variant, state, **options):
    model = A.EfficientDet(
        variant,
        input_shape=(SIZE, SIZE, 3),
        classes=CLASSES,
        backbone_norm="frozen_batch",
        norm="frozen_batch",
        **options,
    )
    return weights.load_torch(model, state, source="effdet")


def rows_of(levels, size):
    """Their maps of all levels [b, c, h, w] as rows [b, anchors, size]."""
    return np.concatenate([level.permute(0, 2, 3, 1).reshape(len(level), -1, size) for level in levels], axis=1)


def scaled_close(got, want, tolerance=PARITY):
    want = np.asarray(want)
    scale = np.abs(want).max()
    assert_close(keras.ops.convert_to_numpy(got) / scale, want / scale, tolerance=tolerance)


@pytest.fixture(scope="module", params=FORMS)
def pair(request):
    config, options = FORMS[request.param]
    reference = theirs(request.param, **config)
    return reference, ours(request.param, reference.state_dict(), **options)


def torch_images():
    import torch

    return torch.from_numpy(A.imagenet.preprocess_input(images()).transpose(0, 3, 1, 2).copy())


def torch_targets():
    """Boxes as top, left, bottom, right; labels from 1, −1 for padding."""
    import torch

    targets = targets_of(*BOXES)
    labels = np.where(targets["labels"] >= 0, targets["labels"] + 1, -1)
    return {
        "bbox": torch.from_numpy(targets["boxes"][..., [1, 0, 3, 2]].copy()),
        "cls": torch.from_numpy(labels.astype("int64")),
        "img_scale": torch.ones(len(BOXES)),
        "img_size": torch.full((len(BOXES), 2), float(SIZE)),
    }


@pytest.mark.parity
def test_backbone_pyramid_and_outputs_equal_effdets(pair):
    import torch

    reference, model = pair
    with torch.no_grad():
        maps = reference.backbone(torch_images())
        copies = list(maps)
        levels = reference.fpn(copies)
        logits, deltas = reference(torch_images())
    trunk = model.trunk
    backbone = next(layer for layer in trunk.layers if layer.name.startswith("efficientnet"))
    inner = backbone(A.imagenet.preprocess_input(images()), training=False)
    for name, want in zip(("C3", "C4", "C5"), maps, strict=True):
        scaled_close(inner[name], want.permute(0, 2, 3, 1))
    for name, want in trunk.get_layer("fpn")(inner, training=False).items():
        scaled_close(want, levels[int(name[1:]) - 3].permute(0, 2, 3, 1))
    features = model(images(), training=False)
    scaled_close(features["class_logits"], rows_of(logits, CLASSES))
    scaled_close(features["box_deltas"], rows_of(deltas, 4)[..., [1, 0, 3, 2]])


@pytest.mark.parity
def test_anchors_and_labels_equal_effdets(pair):
    from effdet.anchors import AnchorLabeler, Anchors

    reference, model = pair
    anchors = Anchors.from_config(reference.config)
    head = model.head
    got = np.concatenate(head._anchors)
    assert_close(got, anchors.boxes[:, [1, 0, 3, 2]])
    targets, given = targets_of(*BOXES), torch_targets()
    labels, boxes, positives = AnchorLabeler(anchors, CLASSES).batch_label_anchors(given["bbox"], given["cls"])
    labels = np.concatenate([level.reshape(len(BOXES), -1) for level in labels], axis=1)
    boxes = np.concatenate([level.reshape(len(BOXES), -1, 4) for level in boxes], axis=1)
    matches = keras.ops.convert_to_numpy(head.assigner.match(got, targets))
    positive = matches > BACKGROUND
    assert positive.sum(axis=1).tolist() == positives.int().tolist()
    assert positive.sum() > 20
    rows = np.arange(len(BOXES))[:, None], np.maximum(matches, 0)
    assert np.array_equal(np.where(positive, targets["labels"][rows], -1), labels)
    deltas = keras.ops.convert_to_numpy(encode_deltas(targets["boxes"][rows], got))
    assert_close(np.where(positive[..., None], deltas, 0.0), boxes[..., [1, 0, 3, 2]])
    assert (boxes[positive] == 0).any()  # or the rule of targets of 0 would never be compared


@pytest.mark.parity
def test_losses_and_detections_equal_effdets(pair):
    import torch
    from effdet import DetBenchTrain

    reference, model = pair
    with torch.no_grad():
        want = DetBenchTrain(reference).eval()(torch_images(), torch_targets())
    model.compile("sgd")
    targets = targets_of(*BOXES)
    losses = {}
    for model.head.skip_zero_targets in (True, False):
        losses[model.head.skip_zero_targets] = model.evaluate(
            images(), targets, batch_size=3, verbose=0, return_dict=True
        )
    assert_close(losses[True]["classification_loss"], want["class_loss"].item(), tolerance=PARITY)
    assert_close(losses[True]["box_loss"], 50 * want["box_loss"].item(), tolerance=PARITY)
    assert_close(losses[True]["loss"], want["loss"].item(), tolerance=PARITY)
    assert losses[False]["box_loss"] > losses[True]["box_loss"]

    found = model.predict(images(), verbose=0)
    for image, rows in enumerate(want["detections"].numpy()):
        assert len(rows) == 100
        assert_close(found["scores"][image], rows[:, 4], tolerance=PARITY)
        same = np.abs(found["boxes"][image][:, None] - rows[:, :4]).max(-1) / SIZE
        same += found["labels"][image][:, None] + 1 != rows[:, 5]
        same += np.abs(found["scores"][image][:, None] - rows[:, 4])
        assert (same.min(axis=0) < 1e-3).mean() > 0.97  # rows of equal score at the end may be others
