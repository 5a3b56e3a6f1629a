"""Which boxes are trained on: matching, the ring of the background, crowds, the sample."""

import keras
import numpy as np
import pytest

from kvision.detection.assigner import Assigner
from kvision.ops import BACKGROUND, IGNORED
from tests.applications.detection.test_detectors import targets_of

BOXES = [(4, 6, 30, 34, 0), (20, 20, 60, 50, 2)]


def numpy(tensors):
    return keras.tree.map_structure(keras.ops.convert_to_numpy, tensors)


def test_boxes_of_the_targets_join_the_proposals_and_padding_is_never_drawn():
    proposals = np.zeros((1, 5, 4), "float32")
    sample = numpy(Assigner(num_samples=12).draw_with_targets(proposals, targets_of(BOXES)))
    drawn = sample.boxes[sample.drawn]
    assert sorted(drawn.tolist()) == sorted([list(map(float, box[:4])) for box in BOXES])
    assert (sample.matches[sample.drawn] >= 0).all()


def test_crowds_are_neither_drawn_nor_background():
    proposals = np.array([[[21, 21, 40, 40], [0, 50, 10, 60]]], "float32")
    targets = targets_of(BOXES)
    targets["crowd"][0, 1] = 1
    sample = numpy(Assigner(num_samples=12).draw_with_targets(proposals, targets))
    assert sorted(sample.boxes[sample.drawn].tolist()) == [[0, 50, 10, 60], [4, 6, 30, 34]]


def test_background_comes_from_the_ring_around_the_boxes():
    """Girshick 2015, section 2.3: overlaps in [0.1, 0.5) are background, less is not used unless no box is there."""
    regions = np.array([[[4, 6, 30, 34], [4, 6, 15, 34], [40, 0, 60, 10], [0, 0, 0, 0]]], "float32")
    ring = Assigner(min_background_iou=0.1)
    assert numpy(ring.match(regions, targets_of(BOXES)))[0].tolist() == [0, BACKGROUND, IGNORED, IGNORED]
    assert numpy(ring.match(regions, targets_of([])))[0].tolist() == [BACKGROUND] * 3 + [IGNORED]
    assert numpy(Assigner().match(regions, targets_of(BOXES)))[0].tolist() == [0, BACKGROUND, BACKGROUND, IGNORED]


def test_between_the_thresholds_a_box_is_ignored_and_every_target_may_get_its_best():
    anchors = np.array([[4, 6, 30, 34], [4, 6, 19, 34], [4, 6, 9, 34], [20, 20, 32, 50]], "float32")
    targets = targets_of(BOXES)
    assert numpy(Assigner(0.7, 0.3).match(anchors, targets))[0].tolist() == [0, IGNORED, BACKGROUND, IGNORED]
    best = Assigner(0.7, 0.3, low_quality_matches=True)
    assert numpy(best.match(anchors, targets))[0].tolist() == [0, IGNORED, BACKGROUND, 1]


def test_a_drawn_sample_is_that_of_its_indices():
    anchors = np.array([[4, 6, 30, 34], [20, 20, 60, 50], [0, 40, 9, 60], [50, 0, 60, 9]], "float32")
    assigner = Assigner(num_samples=3, positive_fraction=0.5)
    indices, sample = numpy(assigner.draw(anchors, targets_of(BOXES, [])))
    assert np.array_equal(sample.boxes, anchors[indices])
    assert (sample.matches >= 0).sum(axis=1).tolist() == [1, 0]
    assert sample.drawn.all()


@pytest.mark.parametrize("options", [(0.3, 0.7), (0.5, 0.0), (1.2,), (0.5, 0.4, False, 0.4)], ids=str)
def test_overlaps_out_of_order_are_refused(options):
    with pytest.raises(ValueError, match="Overlaps must rise from min_background_iou"):
        Assigner(*options)


def test_a_crowd_alone_leaves_the_rest_as_background():
    """The ring is one of objects: without any, all that lies outside the crowd is background."""
    regions = np.array([[[5, 7, 29, 33], [40, 40, 60, 60], [0, 50, 20, 64]]], "float32")
    alone = targets_of(BOXES[:1], crowd=True)
    for assigner in (Assigner(min_background_iou=0.1), Assigner()):
        assert numpy(assigner.match(regions, alone))[0].tolist() == [IGNORED, BACKGROUND, BACKGROUND]
    beside = targets_of(BOXES)
    beside["crowd"][0, 0] = 1
    ring = numpy(Assigner(min_background_iou=0.1).match(regions, beside))
    assert ring[0].tolist() == [IGNORED, BACKGROUND, IGNORED]
    _, sample = numpy(Assigner(min_background_iou=0.1, num_samples=4).draw(regions, alone))
    assert sample.drawn.sum() == 2


def test_a_box_without_area_is_padding():
    """Rows of zeros that are labelled 0 instead of −1, and boxes that an augmentation has squeezed."""
    good, careless = targets_of(BOXES), targets_of(BOXES)
    careless["labels"][0, 2:] = 0
    careless["boxes"][0, 5] = [40, 0, 40, 64]
    anchors = np.array([[4, 6, 30, 34], [0, 0, 9, 9], [39, 0, 41, 64]], "float32")
    assigner = Assigner(0.5, low_quality_matches=True, min_background_iou=0.1)
    assert numpy(assigner.match(anchors, careless)).tolist() == numpy(assigner.match(anchors, good)).tolist()
    sample = numpy(Assigner(num_samples=12).draw_with_targets(np.zeros((1, 5, 4), "float32"), careless))
    assert sample.drawn.sum() == 2
    nothing = targets_of([])
    nothing["labels"][:] = 0
    assert numpy(assigner.match(anchors, nothing)).tolist() == [[BACKGROUND] * 3]  # no object has a ring
