import keras
import numpy as np
import pytest

from kvision import ops
from kvision.ops.matching import CROWD_FRACTION
from tests.ops.differentiation import JIT_IS_SLOW
from tests.ops.execution import area_twin, execute, iou_twin, random_boxes

# low, high, allow_low_quality: region proposals, RetinaNet, the second stage, EfficientDet
SETTINGS = [(0.3, 0.7, True), (0.4, 0.5, True), (0.5, 0.5, False), (0.5, 0.5, "single")]
CROWD = np.array([[0, 1, 1, 0, 1, 0], [1, 0, 0, 1, 0, 0], [1] * 6] * 2, "uint8")


def matrix_twin(boxes, anchors):
    return np.array([[iou_twin(box, anchor) for anchor in anchors] for box in boxes], "float32")


def match_twin(boxes, labels, anchors, low, high, allow_low_quality, crowd=None):
    """One image: the definition, anchor by anchor, over the whole matrix."""
    crowd = np.zeros(len(labels), bool) if crowd is None else np.asarray(crowd, bool)
    matrix = matrix_twin(boxes, anchors)
    real = [row for row in range(len(labels)) if labels[row] >= 0 and not crowd[row]]
    matches = []
    for column, anchor in enumerate(anchors):
        best = max(real, key=lambda row: (matrix[row, column], -row), default=None)
        overlap = 0.0 if best is None else matrix[best, column]
        is_top = any(matrix[row, column] == matrix[row].max() > 0 for row in real)
        forced = [row for row in real if matrix[row].argmax() == column and matrix[row].max() > 0]
        if allow_low_quality == "single" and forced:
            matches.append(forced[0])
        elif overlap >= high or (allow_low_quality is True and is_top):
            matches.append(best)
        elif overlap >= low:
            matches.append(-2)
        else:
            matches.append(-1)
            for row in np.flatnonzero(crowd & (np.asarray(labels) >= 0)):
                (x1, y1, x2, y2), (u1, v1, u2, v2) = boxes[row], anchor
                inside = area_twin([max(x1, u1), max(y1, v1), min(x2, u2), min(y2, v2)])
                if inside >= CROWD_FRACTION * area_twin(anchor) > 0:
                    matches[-1] = -2
    return matches


def example():
    """Six images of up to six boxes, padding in between, one without any; 60 anchors, some equal to boxes.

    Half of the images and anchors lie on pixels, where overlaps tie. Every test has these shapes where it can: a new
    shape is a new compilation.
    """
    rng = np.random.default_rng(0)
    boxes = np.concatenate([random_boxes(rng, 3, 6, size=9), random_boxes(rng, 3, 6, size=9, whole=True)])
    boxes[3, 3], boxes[4, 4] = boxes[3, 0], boxes[4, 0]  # two truths tie for their anchors
    labels = np.array([[3, 0, -1, 5, -1, -1], [1, 1, 1, -1, 2, 0], [-1] * 6] * 2, "int32")
    anchors = [
        boxes[0, :5],
        boxes[3, :2],
        boxes[4, :3],
        random_boxes(rng, 20, size=9),
        random_boxes(rng, 30, size=9, whole=True),
    ]
    return boxes, labels, np.concatenate(anchors)


def run(boxes, labels, anchors, low=0.3, high=0.7, allow_low_quality=True):
    return keras.ops.convert_to_numpy(ops.match(boxes, labels, anchors, low, high, allow_low_quality))


def twins(boxes, labels, anchors, *settings, crowd=(None,) * 6):
    return [match_twin(*image[:2], anchors, *settings, image[2]) for image in zip(boxes, labels, crowd, strict=True)]


@pytest.mark.parametrize("mode", JIT_IS_SLOW)
def test_equals_twin(mode):
    boxes, labels, anchors = example()
    got = execute(lambda boxes, labels: ops.match(boxes, labels, anchors, *SETTINGS[0]), boxes, labels, mode=mode)
    assert got.dtype == "int32"
    np.testing.assert_array_equal(got, twins(boxes, labels, anchors, *SETTINGS[0]))


@pytest.mark.parametrize("settings", SETTINGS[1:])
def test_settings_equal_twin(settings):
    np.testing.assert_array_equal(run(*example(), *settings), twins(*example(), *settings))


@pytest.mark.parametrize("mode", JIT_IS_SLOW)
def test_crowds_equal_twin(mode):
    boxes, labels, anchors = example()
    got = execute(
        lambda boxes, labels, crowd: ops.match(boxes, labels, anchors, *SETTINGS[0], crowd=crowd),
        *(boxes, labels, CROWD),
        mode=mode,
    )
    np.testing.assert_array_equal(got, twins(boxes, labels, anchors, *SETTINGS[0], crowd=CROWD))
    without = labels.copy()
    without[CROWD > 0] = -1
    assert (got != run(boxes, without, anchors)).any(), "no anchor lies in a crowd: the example shows nothing"


def test_proposals_by_picture_equal_one_by_one():
    boxes, labels, anchors = example()
    proposals = np.stack([np.roll(anchors, image, axis=0) for image in range(6)])
    got = run(boxes, labels, proposals)
    for image in range(6):
        np.testing.assert_array_equal(
            got[image], match_twin(boxes[image], labels[image], proposals[image], *SETTINGS[0])
        )


def test_an_overlap_equal_to_a_threshold_is_not_below_it():
    boxes, labels, anchors = example()
    boxes, labels, anchors = np.zeros_like(boxes), np.full_like(labels, -1), np.zeros_like(anchors)
    boxes[:, 2], labels[:, 2] = (0, 0, 10, 10), 0
    anchors[:4] = [(0, 0, 10, height) for height in (10, 7, 3, 2)]
    np.testing.assert_array_equal(run(boxes, labels, anchors)[:, :4], [[2, 2, -2, -1]] * 6)


def test_laws():
    boxes, labels, anchors = example()
    matches = run(boxes, labels, anchors)
    np.testing.assert_array_equal(run(boxes * 4, labels, anchors * 4), matches)
    order = np.random.default_rng(0).permutation(len(anchors))
    np.testing.assert_array_equal(run(boxes, labels, anchors[order]), matches[:, order])
    np.testing.assert_array_equal(run(boxes[::-1], labels[::-1], anchors), matches[::-1])
    boxes, anchors = np.round(boxes * 8) / 8, np.round(anchors * 8) / 8  # so that shifting is exact
    np.testing.assert_array_equal(run(boxes + 32, labels, anchors + 32), run(boxes, labels, anchors))


def test_padding_changes_nothing():
    boxes, labels, anchors = example()
    matches = run(boxes, labels, anchors)
    wild = np.where((labels >= 0)[..., None], boxes, np.nan)
    np.testing.assert_array_equal(run(wild, labels, anchors), matches)
    wider = np.pad(boxes, [(0, 0), (0, 7), (0, 0)], constant_values=5)
    np.testing.assert_array_equal(run(wider, np.pad(labels, [(0, 0), (0, 7)], constant_values=-1), anchors), matches)


@pytest.mark.parametrize("rows", [0, 6])
def test_pictures_without_boxes_are_background(rows):
    boxes, labels, anchors = example()
    got = run(boxes[:, :rows], np.full_like(labels[:, :rows], -1), anchors)
    np.testing.assert_array_equal(got, np.full((6, 60), -1))


def test_a_box_without_any_overlap_takes_no_anchor():
    boxes, labels, anchors = example()
    got = run(boxes + 1000, np.zeros_like(labels), anchors)
    np.testing.assert_array_equal(got, np.full((6, 60), -1))


def test_16_bit_inputs_are_computed_in_float32():
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    boxes, labels, anchors = example()
    narrow = [keras.ops.cast(numbers, "bfloat16") for numbers in (boxes, anchors)]
    wide = [keras.ops.cast(numbers, "float32") for numbers in narrow]
    np.testing.assert_array_equal(run(narrow[0], labels, narrow[1]), run(wide[0], labels, wide[1]))


@pytest.mark.parametrize("low, high", [(0.7, 0.3), (0.0, 0.5), (0.5, 1.1)])
def test_thresholds_out_of_order(low, high):
    with pytest.raises(ValueError, match="0 < low <= high <= 1"):
        ops.match(*example(), low, high)


def test_shapes_that_do_not_fit():
    boxes, labels, anchors = example()
    with pytest.raises(ValueError, match=r"got boxes \(6, 4\)"):
        ops.match(boxes[0], labels, anchors, 0.3, 0.5)


@pytest.mark.parity
@pytest.mark.parametrize("low, high, allow_low_quality", SETTINGS[:3])  # it has no "single"
@pytest.mark.parametrize("size, whole", [(100, False), (20, True), (6, True)])
def test_equals_torchvision(low, high, allow_low_quality, size, whole):
    import torch
    from torchvision.models.detection._utils import Matcher
    from torchvision.ops import box_iou

    rng = np.random.default_rng(0)
    anchors = random_boxes(rng, 3000, size=size, whole=whole)
    boxes = random_boxes(rng, 4, 12, size=size, whole=whole)
    boxes += [-0.5, -0.5, 0.5, 0.5]  # a box that overlaps no anchor, as one without area, would match all of them there
    got = keras.ops.convert_to_numpy(ops.match(boxes, np.zeros((4, 12)), anchors, low, high, allow_low_quality))
    assert (got >= 0).any()
    matcher = Matcher(high, low, allow_low_quality)
    for image in range(4):
        matrix = np.nan_to_num(box_iou(torch.from_numpy(boxes[image]), torch.from_numpy(anchors)))
        np.testing.assert_array_equal(got[image], matcher(torch.from_numpy(matrix)).numpy())


def test_an_unknown_rule_of_low_quality_matches_is_refused():
    with pytest.raises(ValueError, match="True, False or 'single': got 'one'"):
        run(*example(), allow_low_quality="one")


def test_a_box_may_have_one_anchor_alone_even_if_that_overlaps_another_box_more():
    boxes = [[[0, 0, 10, 10], [0, 0, 10, 12], [20, 20, 24, 24]]]
    anchors = [[0, 0, 10, 11], [50, 0, 60, 9], [19, 19, 27, 27], [18, 18, 26, 26]]
    both, single = (run(boxes, [[0, 1, 2]], anchors, 0.9, 0.95, rule)[0].tolist() for rule in (True, "single"))
    assert both == [1, -1, 2, 2]  # two anchors tie for the third box, and the first anchor takes the box it likes best
    assert single == [0, -1, 2, -1]
