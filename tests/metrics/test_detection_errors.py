"""Errors by kind: one set worked out by hand with each kind once, numbers of the authors' code, and COCO's AP50."""

import numpy as np
import pytest

from kvision.metrics import ERROR_KINDS, COCOAveragePrecision, DetectionErrors, detection_errors
from tests.metrics.scenes import detections, random_scene, targets

A = [10, 10, 20, 20]
NEAR = [10, 10, 20, 13]  # IoU 0.3 with A
AWAY = [60, 60, 70, 80]


def hand_worked():
    """Each kind of error once; image by image the objects, and the detections."""
    images = [
        ([(0, A)], [(0, 0.90, A)]),
        ([(0, A)], [(1, 0.80, A)]),  # class
        ([(0, A)], [(0, 0.70, NEAR)]),  # localization
        ([(0, A)], [(0, 0.97, A), (1, 0.60, NEAR)]),  # both
        ([(0, A)], [(0, 0.95, A), (0, 0.85, A)]),  # duplicate
        ([], [(0, 0.50, A)]),  # background
        ([(0, A)], []),  # missed
        ([(1, A), (1, AWAY)], [(1, 0.99, A), (1, 0.40, AWAY)]),
        ([(0, A)], [(0, 0.20, A)]),
    ]
    return targets(*(each for each, _ in images)), detections(*(each for _, each in images))


def measured(truth, found, **options):
    metric = DetectionErrors(**options)
    metric.update_state(truth, found)
    return metric


# Class 0 has 7 objects and ranks true, true, true, duplicate, localization, background, true; class 1 has 2 and ranks
# true, class, both, true. Recalls 3/7, 4/7, 5/7, 1/2, 2/3, 3/4 reach 43, 58, 72, 51, 67, 76 of the 101 levels.
ONE = 51 + 50 / 2
BY_HAND = {
    "AP50": 43 + 15 * 4 / 7 + ONE,
    "class": (43 + 15 * 4 / 5 + 14 * 5 / 8) + (51 + 50 * 2 / 3),
    "localization": (43 + 15 * 4 / 5 + 14 * 5 / 7) + ONE,
    "both": (43 + 15 * 4 / 7) + (51 + 50 * 2 / 3),
    "duplicate": (43 + 15 * 4 / 6) + ONE,
    "background": (43 + 15 * 4 / 6) + ONE,
    "missed": (51 + 16 * 4 / 7) + ONE,
    "false_positive": 58 + 101,
    "false_negative": (76 + 25 * 4 / 7) + ONE,
}


def test_each_kind_once_by_hand():
    metric = measured(*hand_worked())
    assert metric.counts() == dict.fromkeys(ERROR_KINDS, 1)
    result = metric.result()
    assert result.pop("AP50") == pytest.approx(BY_HAND["AP50"] / 202)
    want = {f"dAP_{kind}": (ap - BY_HAND["AP50"]) / 202 for kind, ap in BY_HAND.items() if kind != "AP50"}
    assert result == pytest.approx(want)
    assert list(result) == [*(f"dAP_{kind}" for kind in ERROR_KINDS), "dAP_false_positive", "dAP_false_negative"]


def test_classes_by_themselves():
    truth, found = hand_worked()
    metric = measured(truth, found, classes=["cat", "dog", "cow"])
    by_class = metric.per_class()
    assert by_class["dog"]["AP50"] == pytest.approx(ONE / 101)
    assert by_class["dog"]["dAP_class"] == pytest.approx((51 + 50 * 2 / 3 - ONE) / 101)
    assert by_class["dog"]["dAP_missed"] == 0
    assert by_class["cow"] == dict.fromkeys(metric.result(), -1)


def test_what_became_of_each_box():
    metric = measured(*hand_worked())
    kinds = [metric.of_image(index).kinds.tolist() for index in range(9)]
    true = "true_positive"
    want = [[true], ["class"], ["localization"], [true, "both"], [true, "duplicate"], ["background"], []]
    assert kinds == [*want, [true, true], [true]]
    assert [metric.of_image(index).missed.tolist() for index in (5, 6, 7)] == [[], [0], []]
    assert metric.of_image(7).objects.tolist() == [0, 1]
    assert metric.of_image(3).objects.tolist() == [0, 0]
    assert metric.of_image(5).objects.tolist() == [-1]
    with pytest.raises(ValueError, match="an image from 0 to 8, got 9"):
        metric.of_image(9)


def test_the_worst_images_first():
    metric = measured(*hand_worked())
    before = BY_HAND["AP50"] / 202
    worst = dict(metric.worst(100))
    assert set(worst) == {1, 2, 3, 4, 5, 6}  # the others have no error
    assert list(worst.values()) == sorted(worst.values(), reverse=True)
    assert worst[1] == pytest.approx(BY_HAND["class"] / 202 - before)  # the only one of its kind
    assert worst[6] == pytest.approx(BY_HAND["missed"] / 202 - before)
    assert [index for index, _ in metric.worst(2)] == list(worst)[:2]
    assert metric.image_costs([1, 0]).tolist() == [worst[1], 0]
    # Of equal costs, here 0, the image with more errors comes first.
    truth = targets([(0, A)], [(0, A)], [(0, A)])
    below = [(0, 0.9, A), (0, 0.3, AWAY)], [(0, 0.9, A), (0, 0.2, AWAY), (0, 0.2, NEAR)], [(0, 0.9, A)]
    assert measured(truth, detections(*below)).worst() == [(1, 0.0), (0, 0.0)]


def test_batches_add_up():
    truth, found = random_scene(3)
    parts = [slice(0, 5), slice(5, 6), slice(6, 12)]
    metric = DetectionErrors()
    for _ in range(2):
        metric.reset_state()
        for rows in parts:
            metric.update_state(*({name: array[rows] for name, array in side.items()} for side in (truth, found)))
        whole = measured(truth, found)
        assert metric.result() == whole.result()
        assert metric.counts() == whole.counts()
        assert metric.worst(5) == whole.worst(5)
        for one, two in zip(metric.of_image(7), whole.of_image(7), strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("seed", range(4))
def test_ap_is_that_of_coco(seed):
    truth, found = random_scene(seed)
    coco = COCOAveragePrecision()
    coco.update_state(truth, found)
    metric = measured(truth, found)
    assert metric.result()["AP50"] == pytest.approx(coco.result()["AP50"], abs=1e-12)
    for label, numbers in metric.per_class().items():
        assert numbers["AP50"] == pytest.approx(coco.per_class()[label]["AP50"], abs=1e-12)


def distinct_scene(seed):
    """Without crowds and ties, every class with objects: where the authors' code and this mean the same."""
    truth, found = random_scene(seed, images=30, classes=3, found=12)
    truth = {name: truth[name] for name in ("boxes", "labels")}
    found["labels"] = np.minimum(found["labels"], 2)
    numbers = np.random.default_rng(seed).permutation(found["scores"].size)
    found["scores"] = ((numbers + 1) / (found["scores"].size + 2)).reshape(found["scores"].shape)
    return truth, found


# tidecv 1.0.1 on `distinct_scene(seed)`: AP and the costs of the six kinds, of false positives and negatives, in
# percent; and the numbers of errors. `tidecv_of` wrote them.
TIDECV = {
    0: (
        [31.387724, 4.371699, 8.822746, 0.700427, 1.75372, 11.444426, 8.717967, 30.988514, 16.240906],
        [17, 35, 11, 38, 91, 30],
    ),
    1: (
        [25.410172, 3.2935, 8.826051, 1.567144, 1.462896, 9.498371, 11.396256, 28.055175, 21.434697],
        [16, 32, 17, 38, 91, 37],
    ),
    2: (
        [27.080889, 4.660769, 7.277746, 1.15057, 1.954827, 11.122108, 9.758593, 36.615481, 15.270589],
        [19, 31, 15, 36, 85, 33],
    ),
}


def tidecv_of(truth, found):
    """What the authors' code gives; in an environment that has it."""
    from tidecv import TIDE, Data

    sides = Data("truth"), Data("found")
    for side, batch, add in (
        (sides[0], truth, lambda i, label, box, _: sides[0].add_ground_truth(i, label, box)),
        (sides[1], found, lambda i, label, box, score: sides[1].add_detection(i, label, score, box)),
    ):
        for image, (boxes, labels) in enumerate(zip(batch["boxes"], batch["labels"], strict=True)):
            side.add_image(image, str(image))
            for row in np.flatnonzero(labels >= 0):
                left, top, right, bottom = boxes[row].astype("float64")
                score = float(batch["scores"][image, row]) if "scores" in batch else 1.0
                add(image, int(labels[row]), [left, top, right - left, bottom - top], score)
    tide = TIDE()
    run = tide.evaluate(*sides, mode=TIDE.BOX)
    main, special, counts = run.fix_main_errors(), run.fix_special_errors(), run.count_errors()
    order = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")
    main, counts = ({kind.short_name: value for kind, value in each.items()} for each in (main, counts))
    numbers = [run.ap, *(main[name] for name in order), *special.values()]
    return [round(float(number), 6) for number in numbers], [counts[name] for name in order]


@pytest.mark.parametrize("seed", TIDECV)
def test_numbers_of_the_authors_code(seed, monkeypatch):
    costs, counts = TIDECV[seed]
    monkeypatch.setattr(detection_errors, "RECALL_LEVELS", np.arange(101) / 100)  # COCO's differ in the last bit
    metric = measured(*distinct_scene(seed))
    assert [100 * value for value in metric.result().values()] == pytest.approx(costs, abs=2e-6)
    assert list(metric.counts().values()) == counts
    assert min(counts) > 0


def test_crowds_are_no_objects_and_excuse_what_lies_within():
    truth = targets([(0, [0, 0, 100, 100]), (0, A)], crowd=np.array([[1, 0, 0]]))
    metric = measured(truth, detections([(0, 0.9, A), (0, 0.8, AWAY), (1, 0.7, AWAY)]))
    assert metric.of_image(0).kinds.tolist() == ["true_positive", "ignored", "background"]
    assert metric.result()["AP50"] == 1
    assert metric.counts() == dict.fromkeys(ERROR_KINDS, 0) | {"background": 1}
    # A crowd alone is no object; what is within it costs nothing.
    alone = measured(targets([(0, A)], crowd=np.array([[1, 0]])), detections([(0, 0.9, A)]))
    assert alone.result()["AP50"] == -1 and sum(alone.counts().values()) == 0


def test_of_several_that_would_take_an_object_the_highest_score_does():
    # Once the class error takes the object, the localization error of the same one is removed.
    truth = targets([(0, A), (1, AWAY)])
    found = detections([(1, 0.9, A), (0, 0.8, NEAR), (1, 0.7, AWAY)])
    metric = measured(truth, found)
    assert metric.counts() == dict.fromkeys(ERROR_KINDS, 0) | {"class": 1, "localization": 1}
    result = metric.result()
    assert result["AP50"] == pytest.approx(0.25)
    assert result["dAP_class"] == pytest.approx(0.75)  # both classes become perfect
    assert result["dAP_localization"] == 0


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ([10, 10, 20, 15], "true_positive"),  # IoU 0.5
        ([10, 10, 20, 14.9], "localization"),
        ([10, 10, 20, 11], "localization"),  # IoU 0.1
        ([10, 10, 20, 10.9], "background"),
    ],
)
def test_thresholds_belong_to_the_better_kind(box, kind):
    assert measured(targets([(0, A)]), detections([(0, 0.9, box)])).of_image(0).kinds.tolist() == [kind]


def test_thresholds_and_detections_can_be_chosen():
    truth, found = targets([(0, A)]), detections([(0, 0.9, AWAY), (0, 0.8, NEAR)])
    metric = measured(truth, found, iou_threshold=0.3, background_threshold=0.2)
    assert next(iter(metric.result())) == "AP30" and metric.result()["AP30"] == pytest.approx(0.5)
    assert measured(truth, found, max_detections=1).counts()["localization"] == 0


def test_nothing_at_all():
    metric = DetectionErrors()
    assert set(metric.result().values()) == {-1} and metric.worst() == [] and sum(metric.counts().values()) == 0
    assert str(metric) == "0 images without an object."
    metric.update_state(targets([(0, A)], []), detections([], []))
    assert metric.result()["AP50"] == 0 and metric.result()["dAP_missed"] == 1
    assert metric.counts()["missed"] == 1
    rows = {"boxes": np.zeros((1, 0, 4)), "labels": np.zeros((1, 0), "int32")}
    metric.update_state(rows, rows | {"scores": np.zeros((1, 0))})
    assert metric.num_images == 3


def test_it_tells_its_numbers():
    lines = str(measured(*hand_worked())).splitlines()
    assert lines[0] == f"9 images, AP50 {BY_HAND['AP50'] / 202:.3f}"
    assert lines[2].split() == ["class", "1", f"{(BY_HAND['class'] - BY_HAND['AP50']) / 202:.3f}"]
    assert lines[-1].split()[:2] == ["false", "negative"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iou_threshold": 0}, "iou_threshold=0"),
        ({"background_threshold": 0.5}, "background_threshold=0.5 and iou_threshold=0.5"),
        ({"max_detections": 0}, "max_detections must be at least 1, got 0"),
    ],
)
def test_impossible_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DetectionErrors(**options)
