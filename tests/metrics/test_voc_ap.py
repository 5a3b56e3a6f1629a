"""VOC's AP: cases worked out by hand, and a slow twin after the development kit's definition, in its own pixels."""

import fractions
import itertools
import pickle

import keras
import numpy as np
import pytest

from kvision.metrics import COCOAveragePrecision, VOCAveragePrecision
from tests.metrics.scenes import detections, random_scene, targets

A, B, C = [10, 10, 20, 20], [40, 10, 60, 30], [10, 60, 90, 90]
NOWHERE = [200, 200, 210, 210]


def average_precision(truth, found, **options):
    metric = VOCAveragePrecision(**options)
    metric.update_state(truth, found)
    return metric.result()["AP"]


def both(truth, found):
    """By area and at eleven points."""
    return average_precision(truth, found), average_precision(truth, found, eleven_points=True)


def test_a_ranking_by_hand():
    # True, false, true among three objects: precision 1 up to recall 1/3, 2/3 up to recall 2/3, then none.
    truth = targets([(0, A), (0, B)], [(0, C)])
    found = detections([(0, 0.7, B), (0, 0.8, NOWHERE)], [(0, 0.9, C)])
    assert both(truth, found) == pytest.approx((5 / 9, (4 + 3 * 2 / 3) / 11))


def test_perfect_and_nothing():
    truth, perfect = targets([(0, A), (0, B)], []), detections([(0, 0.3, B), (0, 0.2, A)], [])
    assert both(truth, perfect) == (1, 1)
    assert both(truth, detections([], [])) == (0, 0)
    assert both(truth, detections([(0, 0.9, NOWHERE)], [(0, 0.8, A)])) == (0, 0)
    assert both(targets([], []), perfect) == (-1, -1)
    assert VOCAveragePrecision().result() == {"AP": -1}
    assert VOCAveragePrecision(classes=["a"]).per_class() == {"a": {"AP": -1}}


def test_batches_may_have_no_rows_at_all():
    metric = VOCAveragePrecision()
    rows = {"boxes": np.zeros((2, 0, 4)), "labels": np.zeros((2, 0), "int32")}
    metric.update_state(rows, detections([(0, 0.9, A)], []))
    metric.update_state(
        targets([(0, A)]), {name: array[:1] for name, array in rows.items()} | {"scores": np.zeros((1, 0))}
    )
    metric.update_state(targets([(0, A)]), detections([(0, 0.5, A)]))
    assert metric.result()["AP"] == 0.25


def test_every_recall_level_is_reached_by_whole_numbers():
    # Three of ten objects: 0.3 is reached, though 3/10 lies below the sum of three tenths in floating point.
    boxes = [[30 * step, 0, 30 * step + 20, 20] for step in range(10)]
    found = detections([(0, 0.5, box) for box in boxes[:3]])
    assert both(targets([(0, box) for box in boxes]), found) == pytest.approx((0.3, 4 / 11))


def test_of_two_detections_of_an_object_the_lower_score_is_false():
    close, exact = (0, 0.9, [10, 10, 20, 18]), (0, 0.8, A)
    found = detections([exact, close, (0, 0.7, B)])
    assert average_precision(targets([(0, A), (0, B)]), found) == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)


def test_equal_scores_rank_as_they_come():
    truth = targets([(0, A)], [(0, A)])
    found = detections([(0, 0.5, NOWHERE), (0, 0.5, A)], [(0, 0.5, A)])
    assert average_precision(truth, found) == pytest.approx(2 / 3)
    flipped = {name: array[::-1] for name, array in found.items()}
    assert average_precision(truth, flipped) == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)


@pytest.mark.parametrize("bottom, true", [(15, True), (14.99, False)])
def test_the_threshold_itself_suffices(bottom, true):
    assert average_precision(targets([(0, A)]), detections([(0, 0.5, [10, 10, 20, bottom])])) == true


def test_the_threshold_can_be_chosen():
    truth, found = targets([(0, A)]), detections([(0, 0.5, [10, 10, 20, 17])])
    assert average_precision(truth, found, iou_threshold=0.69) == 1
    assert average_precision(truth, found, iou_threshold=0.71) == 0
    with pytest.raises(ValueError, match=r"\(0, 1\]: got 0"):
        VOCAveragePrecision(iou_threshold=0)


def test_difficult_objects_count_neither_way():
    truth = targets([(0, A), (0, B)], difficult=np.array([[1, 0, 0]]))
    # Twice the difficult one, then the other: all that counts is true.
    found = detections([(0, 0.9, A), (0, 0.8, A), (0, 0.7, B)])
    assert both(truth, found) == (1, 1)
    assert average_precision({**truth, "difficult": np.zeros((1, 3))}, found) == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)
    # What overlaps the difficult one too little is false.
    assert average_precision(truth, detections([(0, 0.9, [10, 10, 20, 14]), (0, 0.7, B)])) == 0.5


def test_a_detection_stands_for_the_object_it_overlaps_most():
    # Of a difficult and an ordinary object, both beyond the threshold, the difficult one is nearer: not counted.
    truth = targets([(0, [0, 0, 100, 100]), (0, [0, 0, 100, 80])], difficult=np.array([[1, 0, 0]]))
    assert average_precision(truth, detections([(0, 0.9, [0, 0, 100, 95])])) == 0
    assert average_precision(truth, detections([(0, 0.9, [0, 0, 100, 85])])) == 1
    # An object already taken is not left for the second nearest.
    truth = targets([(0, [0, 0, 100, 100]), (0, [0, 0, 100, 80])])
    found = detections([(0, 0.9, [0, 0, 100, 100]), (0, 0.8, [0, 0, 100, 95])])
    assert average_precision(truth, found) == 0.5


def test_a_class_of_difficult_objects_alone_is_undefined():
    metric = VOCAveragePrecision(classes=["dog", "cat", "cow"])
    truth = targets([(0, A), (1, B)], difficult=np.array([[1, 0, 0]]))
    metric.update_state(truth, detections([(0, 0.9, NOWHERE), (1, 0.8, B), (2, 0.7, C)]))
    assert metric.per_class() == {"dog": {"AP": -1}, "cat": {"AP": 1}, "cow": {"AP": -1}}
    assert metric.result() == {"AP": 1}


def test_classes_do_not_mix():
    metric = VOCAveragePrecision()
    metric.update_state(targets([(0, A), (3, B)]), detections([(3, 0.9, A), (3, 0.8, B), (1, 0.7, A)]))
    assert metric.per_class() == {0: {"AP": 0}, 3: {"AP": 0.5}}
    assert metric.result() == {"AP": 0.25}


# The development kit


def kit(truth, found, label, eleven_points):
    """AP of a class as the kit describes it: boxes in whole pixels, counted from 1, the last one inside."""
    ranking = [tuple(index) for index in np.argwhere(found["labels"] == label)]
    ranking.sort(key=lambda index: -found["scores"][index])
    to_find = int(((truth["labels"] == label) & (truth["difficult"] == 0)).sum())
    if not to_find:
        return None
    taken, true, false, curve = set(), 0, 0, []
    for image, row in ranking:
        best, best_overlap = None, -1
        for other in np.flatnonzero(truth["labels"][image] == label):
            one, two = found["boxes"][image, row].tolist(), truth["boxes"][image, other].tolist()
            width = min(one[2], two[2]) - max(one[0], two[0]) + 1
            height = min(one[3], two[3]) - max(one[1], two[1]) + 1
            if width > 0 and height > 0:
                areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (one, two)]
                overlap = fractions.Fraction(width * height, sum(areas) - width * height)
                if overlap > best_overlap:
                    best, best_overlap = (image, other), overlap
        if best_overlap >= 0.5 and truth["difficult"][best]:
            continue
        if best_overlap >= 0.5 and best not in taken:
            true += 1
            taken.add(best)
        else:
            false += 1
        curve.append((fractions.Fraction(true, to_find), fractions.Fraction(true, true + false)))

    def highest(recall):
        return max((precision for reached, precision in curve if reached >= recall), default=0)

    if eleven_points:
        return float(sum(highest(fractions.Fraction(level, 10)) for level in range(11)) / 11)
    recalls = sorted({fractions.Fraction(0), *(recall for recall, _ in curve)})
    return float(sum((high - low) * highest(high) for low, high in itertools.pairwise(recalls)))


def in_pixels(arrays):
    """The boxes as VOC's files write them."""
    boxes = np.floor(arrays["boxes"]).astype("int64")
    boxes[..., :2] += 1
    boxes[..., 2:] = np.maximum(boxes[..., 2:], boxes[..., :2])
    return {name: array for name, array in arrays.items() if name != "masks"} | {"boxes": boxes}


def as_edges(arrays, scale):
    """The same boxes in the data contract, in an image resized by `scale`."""
    boxes = (arrays["boxes"] - [1, 1, 0, 0]) * scale
    return arrays | {"boxes": boxes}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("eleven_points", [False, True])
def test_equal_to_the_kit(seed, scale, eleven_points):
    truth, found = (in_pixels(side) for side in random_scene(seed, images=16, size=(30, 40)))
    metric = VOCAveragePrecision(eleven_points=eleven_points)
    for rows in (slice(0, 3), slice(3, 16)):  # the first two have nothing to find
        parts = ({name: array[rows] for name, array in as_edges(side, scale).items()} for side in (truth, found))
        metric.update_state(*parts)
    want = {label: kit(truth, found, label, eleven_points) for label in range(4)}
    got = metric.per_class()
    assert {label: entry["AP"] for label, entry in got.items()} == pytest.approx(want, abs=1e-12)
    assert metric.result()["AP"] == pytest.approx(np.mean(list(want.values())), abs=1e-12)
    assert 0.02 < metric.result()["AP"] < 0.98


def test_reset_forgets_and_update_after_a_result_counts():
    metric = VOCAveragePrecision()
    metric.update_state(targets([(0, A)]), detections([]))
    assert metric.result() == {"AP": 0}
    metric.update_state(targets([(0, A)]), detections([(0, 0.5, A)]))
    assert metric.result() == {"AP": 0.5}
    metric.reset_state()
    assert metric.result() == {"AP": -1}


def test_tensors_are_taken_and_arrays_left_alone():
    truth, found = random_scene(2)
    before = pickle.dumps((truth, found))
    want = average_precision(truth, found)
    assert pickle.dumps((truth, found)) == before
    tensors = [{name: keras.ops.convert_to_tensor(array) for name, array in side.items()} for side in (truth, found)]
    assert average_precision(*tensors) == want


def test_what_stands_in_the_padding_need_not_be_finite():
    truth, found = targets([(0, A)]), detections([(0, 0.5, A)])
    truth["boxes"][:, 1:] = np.nan
    found["boxes"][:, 1:], found["scores"][:, 1:] = np.inf, np.nan
    assert average_precision(truth, found) == 1


def test_bad_input_is_an_error():
    truth, found = targets([(0, A)]), detections([(0, 0.5, A)])
    with pytest.raises(ValueError, match="Detections hold the label 4, expected labels from 0 to 1"):
        average_precision(truth, detections([(4, 0.5, A)]), classes=["dog", "cat"])
    with pytest.raises(ValueError, match=r"difficult \(1,\)"):
        average_precision(truth | {"difficult": np.zeros(1)}, found)


# Regions


def with_masks(arrays, *masks):
    """One image of 60 x 60 pixels; each mask is (top, left, bottom, right)."""
    whole = np.zeros((1, arrays["labels"].shape[1], 60, 60), "uint8")
    for row, (top, left, bottom, right) in enumerate(masks):
        whole[0, row, top:bottom, left:right] = 1
    return arrays | {"masks": whole}


def region_numbers(truth, found, kind=VOCAveragePrecision):
    metric = kind(masks=True)
    metric.update_state(truth, found)
    return metric.result()


def test_regions_are_matched_by_their_masks_and_the_volume_is_over_nine_thresholds():
    truth = with_masks(targets([(0, A), (0, B)]), (10, 10, 20, 20), (10, 40, 30, 60))
    # Of equal boxes, one whose mask overlaps by 0.6, and one whose mask lies beside.
    found = with_masks(detections([(0, 0.9, A), (0, 0.8, B)]), (10, 10, 16, 20), (31, 40, 50, 60))
    got = region_numbers(truth, found)
    assert got == pytest.approx({"AP": 1, "mask_AP": 0.5, "mask_AP_vol": 0.5 * 6 / 9})
    metric = VOCAveragePrecision(masks=True, classes=["x", "y"])
    assert metric.result() == {"AP": -1, "mask_AP": -1, "mask_AP_vol": -1}
    metric.update_state(truth, found)
    assert metric.by_threshold((0.6, 0.61)) == {0.6: 0.5, 0.61: 0.0}
    assert metric.per_class()["x"] == got and metric.per_class()["y"]["mask_AP"] == -1
    with pytest.raises(ValueError, match=r"lie in \(0, 1\]: got \(0,\)"):
        metric.by_threshold((0,))


def test_coco_gives_a_detection_the_best_object_that_is_free_and_hariharan_does_not():
    box = [10, 10, 30, 20]
    truth = with_masks(targets([(0, box), (0, box)]), (10, 10, 20, 20), (10, 20, 20, 30))
    found = with_masks(detections([(0, 0.9, box), (0, 0.8, box)]), (10, 10, 20, 20), (10, 10, 20, 30))
    assert region_numbers(truth, found)["mask_AP"] == 0.5
    assert region_numbers(truth, found, COCOAveragePrecision)["mask_AP50"] == pytest.approx(1)


def disjoint(seed):
    """A scene of which no pixel is in two objects: at an overlap above one half, only one object can be meant."""
    truth, found = random_scene(seed)
    before = np.cumsum(truth["masks"] * (truth["labels"] >= 0)[..., None, None], axis=1) - truth["masks"]
    truth["masks"] = truth["masks"] * (before <= 0)
    return {name: truth[name] for name in ("boxes", "labels", "masks")}, found


@pytest.mark.parametrize("seed", range(3))
def test_the_area_is_near_the_mean_over_101_recalls(seed):
    got, theirs = (region_numbers(*disjoint(seed), kind) for kind in (VOCAveragePrecision, COCOAveragePrecision))
    assert got["mask_AP"] == pytest.approx(theirs["mask_AP50"], abs=1 / 101) and 0.02 < got["mask_AP"] < 0.98


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(3))
def test_regions_equal_pycocotools_at_ever_more_recalls(seed):
    from tests.metrics.test_coco_ap import by_pycocotools

    truth, found = disjoint(seed)
    want = by_pycocotools(truth, found, "segm", recalls=np.linspace(0, 1, 20001))["AP50"]
    assert region_numbers(truth, found)["mask_AP"] == pytest.approx(want, abs=1e-4)
    assert abs(by_pycocotools(truth, found, "segm")["AP50"] - want) > 1e-4  # COCO's own number differs


def test_regions_need_masks_on_both_sides():
    with pytest.raises(ValueError, match="masks=True needs masks on both sides"):
        region_numbers(targets([(0, A)]), with_masks(detections([(0, 0.5, A)]), (0, 0, 9, 9)))
