"""Fast R-CNN's parts against NumPy twins and laws; torchvision's outputs: test_detector_parity.py."""

import keras
import numpy as np
import pytest

from kvision import applications as A
from kvision.applications.detection.fast_rcnn import BoxBranch, Sample, dense_box_head
from kvision.layers import RoIAlign
from kvision.ops import BACKGROUND, IGNORED
from tests.applications.detection.rows import CLASSES, SHAPE, tiny_backbone
from tests.applications.detection.test_detectors import batch_of, targets_of
from tests.support import assert_close

BOXES = [(4, 6, 30, 34, 0), (20, 20, 60, 50, 2)]


def branch(shared=False, **options):
    head = dense_box_head((2, 2, 4), CLASSES, units=8, shared=shared)
    return BoxBranch(CLASSES, SHAPE[:2], ("C4",), RoIAlign(2, spatial_scale=1 / 16), head, **options)


def numpy(tensors):
    return keras.tree.map_structure(keras.ops.convert_to_numpy, tensors)


def test_boxes_of_the_targets_join_the_proposals_and_padding_is_never_drawn():
    sample = numpy(branch(num_samples=12).sample(np.zeros((1, 5, 4), "float32"), targets_of(BOXES)))
    drawn = sample.boxes[sample.drawn]
    assert sorted(drawn.tolist()) == sorted([list(map(float, box[:4])) for box in BOXES])
    assert (sample.matches[sample.drawn] >= 0).all()


def test_crowds_are_neither_drawn_nor_background():
    proposals = np.array([[[21, 21, 40, 40], [0, 50, 10, 60]]], "float32")
    targets = targets_of(BOXES)
    targets["crowd"][0, 1] = 1
    sample = numpy(branch(num_samples=12).sample(proposals, targets))
    assert sorted(sample.boxes[sample.drawn].tolist()) == [[0, 50, 10, 60], [4, 6, 30, 34]]


def test_background_comes_from_the_ring_around_the_boxes():
    """Section 2.3: overlaps in [0.1, 0.5) are background, less is not used, unless the image has no boxes."""
    regions = np.array([[[4, 6, 30, 34], [4, 6, 15, 34], [40, 0, 60, 10], [0, 0, 0, 0]]], "float32")
    layer = branch(background_threshold=0.1)
    assert numpy(layer.match(regions, targets_of(BOXES)))[0].tolist() == [0, BACKGROUND, IGNORED, IGNORED]
    assert numpy(layer.match(regions, targets_of([])))[0].tolist() == [BACKGROUND] * 3 + [IGNORED]
    assert numpy(branch().match(regions, targets_of(BOXES)))[0].tolist() == [0, BACKGROUND, BACKGROUND, IGNORED]


def twin_of_losses(logits, deltas, sample, targets, weights, beta):
    """Row by row, as section 2.3 says."""
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
        wanted = [
            weights[0] * ((x1 + x2) - (a1 + a2)) / 2 / width,
            weights[1] * ((y1 + y2) - (b1 + b2)) / 2 / height,
            weights[2] * np.log((x2 - x1) / width),
            weights[3] * np.log((y2 - y1) / height),
        ]
        given = deltas[image, row, 0 if deltas.shape[2] == 1 else label]
        for error in np.abs(given - wanted):
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
    found = numpy(branch(num_detections=6).detect(scores, np.zeros((1, 4, CLASSES + 1, 4), "float32"), boxes))
    assert found["labels"][0].tolist() == [0, 1, 2, -1, -1, -1]  # the twin of the first gives way, per class
    assert_close(found["scores"][0], [0.8, 0.1, 0.1, 0, 0, 0])
    assert found["boxes"][0, 0].tolist() == [4, 6, 30, 34]


def test_detections_are_moved_by_the_deltas_of_their_class_and_clipped():
    deltas = np.zeros((1, 1, CLASSES + 1, 4), "float32")
    deltas[0, 0, 2] = [10 * 0.5, 0, 5 * np.log(2), 0]
    scores = np.array([[[0.2, 0.0, 0.8, 0.0]]], "float32")
    found = numpy(branch().detect(scores, deltas, np.array([[[20, 10, 40, 30]]], "float32")))
    assert found["labels"][0, 0] == 1
    assert_close(found["boxes"][0, 0], [20, 10, 60, 30])
    found = numpy(branch().detect(scores, deltas, np.array([[[40, 10, 60, 30]]], "float32")))
    assert_close(found["boxes"][0, 0], [40, 10, 64, 30])


def test_the_last_stage_becomes_the_head_with_its_weights():
    backbone = tiny_backbone("C4", "C5", norm="batch")
    model = A.FastRCNN(input_shape=SHAPE, classes=CLASSES, backbone=backbone, head="conv5", num_samples=8)
    head = {weight.path: weight for weight in model.head.box_branch.box_head.weights}
    stage = [weight for weight in backbone.weights if weight.path.startswith("layer4")]
    assert len(stage) > 10
    for weight in stage:
        assert_close(head[weight.path], weight)
    assert not any(weight.path.startswith("layer4") for weight in model.trunk.weights)
    x, targets = batch_of(next(row for row in detector_rows() if row.proposals))
    losses = model.head.losses(model(x, training=True), targets, training=True)
    assert all(np.isfinite(float(loss)) for loss in losses.values())


def detector_rows():
    from tests.applications.detection.rows import ROWS

    return ROWS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "conv6"}, "Unknown head of FastRCNN: got 'conv6'.*'conv5'"),
        ({"head": "conv5", "backbone": lambda: tiny_backbone("C4")}, r"returns C4 and C5.*got \['C4'\]"),
        ({"backbone": lambda: tiny_backbone("C3")}, r"needs a backbone that returns C4: got \['C3'\]"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    options = {name: value() if callable(value) else value for name, value in options.items()}
    with pytest.raises(ValueError, match=message):
        A.FastRCNN(input_shape=SHAPE, classes=CLASSES, **options)
