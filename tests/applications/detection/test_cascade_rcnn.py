"""Cascade R-CNN's stages against a NumPy twin that is given the outputs of the heads."""

import keras
import numpy as np
import pytest

from kvision import applications as A
from kvision.applications.detection.cascade_rcnn import DELTA_WEIGHTS, MATCHING_IOU_THRESHOLDS
from kvision.detection.assigner import Sample
from tests.applications.detection.rows import CLASSES, SHAPE, tiny_two_stage
from tests.applications.detection.test_detectors import random_images, targets_of
from tests.detection.test_box_branch import twin_of_losses
from tests.support import assert_close

TARGETS = targets_of([(4, 6, 30, 34, 0), (20, 20, 60, 50, 2)], [(10, 8, 42, 60, 1)])
COUNT = 8


def iou(one, other):
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    area1, area2 = ((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return shared / (area1 + area2 - shared)


def moved(box, deltas, weights):
    x, y, width, height = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]
    dx, dy, dw, dh = (delta / weight for delta, weight in zip(deltas, weights, strict=True))
    x, y, width, height = x + dx * width, y + dy * height, width * np.exp(dw), height * np.exp(dh)
    corners = np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    return np.clip(corners, 0, SHAPE[0])


def answers(seed):
    """What the heads of three stages say of eight regions in two images."""
    rng = np.random.default_rng(seed)
    return [
        (
            rng.normal(size=(2, COUNT, CLASSES + 1)).astype("float32"),
            rng.normal(scale=0.7, size=(2, COUNT, 1, 4)).astype("float32"),
        )
        for _ in range(3)
    ]


def regions():
    """Around the targets, near and far, the last one padding."""
    rng = np.random.default_rng(1)
    boxes = TARGETS["boxes"][[0, 0, 0, 0, 0, 0, 0, 0], [0, 1] * 4]
    boxes = np.stack([boxes, TARGETS["boxes"][[1] * 8, [0] * 8]])
    boxes = np.clip(boxes + rng.normal(scale=3.0, size=boxes.shape), 0, SHAPE[0]).astype("float32")
    boxes[:, -1] = 0
    return boxes


@pytest.fixture
def staged(monkeypatch):
    """A cascade whose heads give known answers, and whose first sample is known."""
    model = tiny_two_stage(A.CascadeRCNN)
    head, said, seen = model.head, answers(0), []
    for branch, answer in zip(head.box_stages, said, strict=True):

        def predict(features, boxes, training=False, answer=answer):
            seen.append(keras.ops.convert_to_numpy(boxes))
            return tuple(keras.ops.convert_to_tensor(part) for part in answer)

        monkeypatch.setattr(branch, "predict", predict)
    boxes = regions()
    matches = np.full((2, COUNT), -1, "int32")
    for image, row in np.ndindex(2, COUNT - 1):
        overlaps = [iou(boxes[image, row], box) if label >= 0 else 0 for box, label in rows(image)]
        matches[image, row] = np.argmax(overlaps) if max(overlaps) >= 0.5 else -1
    sample = Sample(boxes, matches, boxes.any(-1))
    monkeypatch.setattr(head.box_stages[0].assigner, "draw_with_targets", lambda proposals, targets: sample)
    monkeypatch.setattr(head.proposals, "losses", lambda features, targets: {})
    monkeypatch.setattr(head.proposals, "propose", lambda *_, **options: keras.ops.convert_to_tensor(boxes))
    return head, said, sample, seen


def rows(image):
    return list(zip(TARGETS["boxes"][image], TARGETS["labels"][image], strict=True))


@pytest.mark.slow
def test_stages_train_on_the_boxes_of_the_one_before(staged):
    head, said, sample, seen = staged
    got = head.losses({}, TARGETS, training=True)
    positives = []
    for stage, (logits, deltas) in enumerate(said):
        entropy, distance = twin_of_losses(logits, deltas, sample, TARGETS, DELTA_WEIGHTS[stage], 1 / 9)
        weight = (1.0, 0.5, 0.25)[stage]
        assert_close(got[f"classification_loss_{stage + 1}"], weight * entropy, tolerance=(1e-4, 1e-5))
        assert_close(got[f"box_loss_{stage + 1}"], weight * distance, tolerance=(1e-4, 1e-5))
        assert_close(seen[stage], sample.boxes, tolerance=(1e-4, 1e-4))
        positives.append(int((sample.matches >= 0).sum()))
        if stage == 2:
            break
        boxes, matches = np.zeros_like(sample.boxes), np.full_like(sample.matches, -2)
        for image, row in np.argwhere(sample.drawn):
            box = moved(sample.boxes[image, row], deltas[image, row, 0], DELTA_WEIGHTS[stage])
            overlaps = [iou(box, other) if label >= 0 else 0 for other, label in rows(image)]
            boxes[image, row] = box
            matches[image, row] = np.argmax(overlaps) if max(overlaps) >= MATCHING_IOU_THRESHOLDS[stage + 1] else -1
        sample = Sample(boxes, matches, boxes.any(-1))
    assert len(set(positives)) > 1 and min(positives) > 0  # the thresholds were told apart
    assert len(got) == 6


def test_detections_are_the_last_boxes_with_the_mean_scores(staged):
    head, said, _, seen = staged
    last = head.box_stages[-1]
    last.nms_threshold, last.score_threshold, last.num_detections = 1.0, 0.0, COUNT * CLASSES
    found = keras.tree.map_structure(keras.ops.convert_to_numpy, head.decode({}))
    scores = np.mean([np.exp(logits) / np.exp(logits).sum(-1, keepdims=True) for logits, _ in said], axis=0)
    boxes = regions()
    for image in range(2):
        want = []
        for row in range(COUNT - 1):
            box = boxes[image, row]
            for (_, deltas), weights in zip(said, DELTA_WEIGHTS, strict=True):
                box = moved(box, deltas[image, row, 0], weights)
            want += [(scores[image, row, label + 1], label, *box) for label in range(CLASSES)]
        want = np.array(sorted(want, reverse=True))
        count = len(want)
        assert (found["labels"][image, count:] == -1).all()
        assert_close(found["scores"][image, :count], want[:, 0])
        assert (found["labels"][image, :count] == want[:, 1]).all()
        assert_close(found["boxes"][image, :count], want[:, 2:], tolerance=(1e-4, 1e-3))
    assert len(seen) == 3


def test_stages_are_named_apart_and_keep_the_options_of_the_first():
    model = tiny_two_stage(A.CascadeRCNN, masks=True, score_threshold=0.2)
    assert model.head.loss_names == (
        "rpn_objectness_loss",
        "rpn_box_loss",
        *(f"{kind}_loss_{stage}" for stage in (1, 2, 3) for kind in ("classification", "box", "mask")),
    )
    assert [branch.assigner.matching_iou_threshold for branch in model.head.box_stages] == [0.5, 0.6, 0.7]
    assert [branch.score_threshold for branch in model.head.box_stages] == [0.2] * 3
    assert [branch.num_detections for branch in model.head.box_stages] == [8] * 3
    assert model.head.mask_stages[0].mask_predictor.filters == CLASSES


@pytest.mark.slow
def test_masks_are_the_mean_of_the_stages():
    model = tiny_two_stage(A.CascadeRCNN, masks=True, score_threshold=0.0)
    features = model(random_images(), training=True)
    found = model.head.decode(features)
    parts = [branch.scores(features, found["boxes"], found["labels"]) for branch in model.head.mask_stages]
    assert_close(found["box_masks"], np.mean([keras.ops.convert_to_numpy(part) for part in parts], axis=0))
    assert float(keras.ops.max(found["box_masks"])) > 0


@pytest.mark.parametrize("argument", ["num_mask_samples", "mask_channels"])
def test_numbers_of_masks_are_refused_without_masks(argument):
    with pytest.raises(ValueError, match=f"CascadeRCNN: {argument}=4 is of mask heads: pass masks=True"):
        A.CascadeRCNN(**{argument: 4})
