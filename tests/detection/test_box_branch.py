"""The box branch against NumPy twins and laws; torchvision's outputs: test_detector_parity.py."""

import keras
import numpy as np
import pytest

from kvision.detection.assigner import Assigner, Sample
from kvision.detection.box_branch import BoxBranch, dense_box_head
from kvision.layers import RoIAlign
from tests.applications.detection.rows import CLASSES, SHAPE
from tests.applications.detection.test_detectors import targets_of
from tests.support import assert_close

BOXES = [(4, 6, 30, 34, 0), (20, 20, 60, 50, 2)]


def branch(shared=False, **options):
    head = dense_box_head((2, 2, 4), CLASSES, units=8, shared=shared)
    pooling = RoIAlign(2, spatial_scale=1 / 16)
    return BoxBranch(CLASSES, SHAPE[:2], ("C4",), pooling, head, Assigner(num_samples=12), **options)


def numpy(tensors):
    return keras.tree.map_structure(keras.ops.convert_to_numpy, tensors)


def twin_of_losses(logits, deltas, sample, targets, weights, beta):
    """Row by row, as section 2.3 of Fast R-CNN says."""
    total = entropy = distance = 0
    for image, row in np.argwhere(sample.drawn):
        total += 1
        match = sample.matches[image, row]
        label = 0 if match < 0 else targets["labels"][image, match] + 1
        scores = np.exp(logits[image, row]) / np.exp(logits[image, row]).sum()
        entropy -= np.log(scores[label])
        if match < 0:
            continue
        (x1, y1, x2, y2), (a1, b1, a2, b2) = targets["boxes"][image, match], sample.boxes[image, row]
        width, height = a2 - a1, b2 - b1
        target = [
            weights[0] * ((x1 + x2) - (a1 + a2)) / 2 / width,
            weights[1] * ((y1 + y2) - (b1 + b2)) / 2 / height,
            weights[2] * np.log((x2 - x1) / width),
            weights[3] * np.log((y2 - y1) / height),
        ]
        delta = deltas[image, row, 0 if deltas.shape[2] == 1 else label]
        for error in np.abs(delta - target):
            distance += error**2 / 2 / beta if error < beta else error - beta / 2
    return entropy / total, distance / total


@pytest.mark.parametrize("shared", [False, True])
def test_losses_equal_a_twin(shared):
    rng = np.random.default_rng(0)
    targets = targets_of(BOXES, [(10, 8, 42, 60, 1)])
    boxes = np.concatenate([rng.uniform(0, 30, (2, 6, 2)), rng.uniform(34, 64, (2, 6, 2))], axis=-1).astype("float32")
    matches = np.array([[1, 0, 0, -1, -1, 0], [0, -1, -1, 0, -1, -1]], "int32")
    drawn = np.array([[True] * 5 + [False], [True, True, True, False, False, True]])
    sample = Sample(boxes, matches, drawn)
    logits = rng.normal(size=(2, 6, CLASSES + 1)).astype("float32")
    deltas = rng.normal(size=(2, 6, 1 if shared else CLASSES + 1, 4)).astype("float32")
    layer = branch(shared, delta_weights=(10, 10, 5, 5), beta=0.7)
    got = layer.losses(logits, deltas, sample, targets)
    entropy, distance = twin_of_losses(logits, deltas, sample, targets, (10, 10, 5, 5), 0.7)
    assert_close(got["classification_loss"], entropy)
    assert_close(got["box_loss"], distance, tolerance=(1e-4, 1e-5))


def test_detections_leave_out_the_background_and_padding():
    boxes = np.array([[[4, 6, 30, 34], [4, 6, 31, 34], [40, 40, 60, 60], [0, 0, 0, 0]]], "float32")
    scores = np.array(
        [[[0.1, 0.8, 0.06, 0.04], [0.1, 0.7, 0.1, 0.1], [0.9, 0.04, 0.03, 0.03], [0, 1, 0, 0]]], "float32"
    )
    found = numpy(branch(num_detections=6).decode(scores, np.zeros((1, 4, CLASSES + 1, 4), "float32"), boxes))
    assert found["labels"][0].tolist() == [0, 1, 2, -1, -1, -1]  # the twin of the first gives way, per class
    assert_close(found["scores"][0], [0.8, 0.1, 0.1, 0, 0, 0])
    assert found["boxes"][0, 0].tolist() == [4, 6, 30, 34]


def test_detections_are_moved_by_the_deltas_of_their_class_and_clipped():
    deltas = np.zeros((1, 1, CLASSES + 1, 4), "float32")
    deltas[0, 0, 2] = [10 * 0.5, 0, 5 * np.log(2), 0]
    scores = np.array([[[0.2, 0.0, 0.8, 0.0]]], "float32")
    found = numpy(branch().decode(scores, deltas, np.array([[[20, 10, 40, 30]]], "float32")))
    assert found["labels"][0, 0] == 1
    assert_close(found["boxes"][0, 0], [20, 10, 60, 30])
    found = numpy(branch().decode(scores, deltas, np.array([[[40, 10, 60, 30]]], "float32")))
    assert_close(found["boxes"][0, 0], [40, 10, 64, 30])


def test_heads_start_as_the_papers_say():
    head = dense_box_head((7, 7, 64), 80, norm="group")
    deviation = {
        weight.path: float(np.std(keras.ops.convert_to_numpy(weight)))
        for weight in head.trainable_weights
        if weight.name == "kernel"
    }
    assert_close(deviation["roi_heads.box_head.0.0/kernel"], np.sqrt(2 / (9 * 64)), tolerance=(0.05, 0))  # He 2015
    assert_close(deviation["roi_heads.box_predictor.cls_score/kernel"], 0.01, tolerance=(0.05, 0))
    assert_close(deviation["roi_heads.box_predictor.bbox_pred/kernel"], 0.001, tolerance=(0.05, 0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score_threshold": 1.5}, "score_threshold lies in 0 to 1: got 1.5"),
        ({"nms_threshold": -0.1}, "nms_threshold lies in 0 to 1: got -0.1"),
        ({"num_detections": 0}, "num_detections must be at least 1: got 0"),
    ],
)
def test_numbers_that_select_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        branch(**options)


@pytest.mark.tensorflow_only
def test_padding_is_not_computed_in_inference():
    """Of 50 regions the head sees those up to the last real one of the batch."""
    import tensorflow as tf

    seen, layer = [], branch()
    features = {"C4": tf.random.normal((2, 4, 4, 4), seed=0)}
    boxes = np.zeros((2, 50, 4), "float32")
    boxes[0, [0, 2]], boxes[1, :2] = [4, 6, 30, 34], [[8, 8, 40, 55], [50, 0, 60, 9]]
    head = layer.box_head
    layer.box_head = lambda regions, training: seen.append(regions.shape[0]) or head(regions, training=training)
    logits, deltas = layer.predict(features, boxes)
    whole = layer.predict(features, boxes, training=True)
    assert seen == [2 * 3, 2 * 50]
    for got, want in zip((logits, deltas), whole, strict=True):
        assert got.shape == want.shape
        assert_close(got[:, :3], want[:, :3])
    traced = tf.function(lambda boxes: layer.predict(features, boxes), autograph=False)
    assert [tuple(output.shape) for output in traced(boxes)] == [tuple(output.shape) for output in whole]
    assert_close(traced(boxes)[0], logits)
    assert_close(traced(0 * boxes)[0][:, 1:], 0 * logits[:, 1:])  # no region at all
