"""COCO's numbers: cases that can be worked out by hand, invariances, and equality with pycocotools."""

import gc
import pickle
import sys

import keras
import numpy as np
import pytest

from kvision.metrics import COCOAveragePrecision
from tests.metrics.coco_numbers import (
    EXACT,
    LARGE,
    MEDIUM,
    SMALL,
    TWELVE,
    assert_numbers,
    block,
    cut,
    many,
    numbers,
    with_masks,
)
from tests.metrics.scenes import detections, random_scene, targets


def test_perfect_detections_are_perfect():
    boxes = [SMALL, [40, 40, 100, 100], LARGE]
    truth = targets([(0, box) for box in boxes], [(1, LARGE)])
    found = detections([(0, 0.5, box) for box in boxes], [(1, 0.1, LARGE)])
    got = numbers((truth, found))
    assert list(got) == TWELVE
    assert all(isinstance(value, float) for value in got.values())
    # One detection an image finds one of three objects of class 0, and the one of class 1.
    assert_numbers(got, **dict.fromkeys(TWELVE, 1.0) | {"AR1": (1 / 3 + 1) / 2})


@pytest.mark.parametrize("bottom, ap, ap75", [(62, 0.3, 0), (73, 0.5, 0), (77, 0.6, 1), (97, 1, 1), (49, 0, 0)])
def test_an_overlap_counts_at_the_thresholds_below_it(bottom, ap, ap75):
    got = numbers((targets([(0, [0, 0, 100, 100])]), detections([(0, 0.9, [0, 0, 100, bottom])])))
    same = dict.fromkeys(["AP", "AP_large", "AR1", "AR10", "AR100", "AR_large"], ap)
    assert_numbers(got, AP50=float(ap > 0), AP75=ap75, AP_small=-1.0, **same)


def test_each_threshold_by_itself():
    box = [0, 0, 100, 60]
    truth = with_masks(targets([(0, box)]), block(0, 0, 60, 50))
    found = with_masks(detections([(0, 0.9, [0, 0, 100, 44])]), block(0, 0, 60, 31))
    for masks, reached in ((False, 0.7), (True, 0.6)):  # overlaps of 0.73 and of 0.62
        metric = COCOAveragePrecision(masks=masks)
        assert set(metric.by_threshold().values()) == {-1.0}
        metric.update_state(truth, found)
        thresholds = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
        assert list(metric.by_threshold()) == thresholds
        assert metric.by_threshold() == pytest.approx({at: float(at <= reached) for at in thresholds}, abs=EXACT)


def test_precision_is_interpolated_at_101_recalls():
    truth = targets([(0, SMALL), (0, LARGE)])
    found = detections([(0, 0.9, SMALL), (0, 0.8, [300, 300, 320, 320]), (0, 0.7, LARGE)])
    # Recall 0 … 0.50 at precision 1, 0.51 … 1 at 2/3. Among small ones the false detection comes after the true one,
    # among large ones a false small one is not counted.
    want = (51 + 50 * 2 / 3) / 101
    assert_numbers(
        numbers((truth, found)), AP=want, AP50=want, AP75=want, AP_small=1.0, AP_large=1.0, AR1=0.5, AR10=1.0
    )


def test_scores_rank_over_all_images():
    truth = targets([(0, SMALL)], [(0, SMALL)], [])
    found = detections([(0, 0.6, SMALL)], [(0, 0.9, SMALL)], [(0, 0.8, LARGE)])
    assert_numbers(numbers((truth, found)), AP50=(51 + 50 * 2 / 3) / 101, AR1=1.0)


def test_a_second_detection_of_an_object_is_false():
    found = detections([(0, 0.9, SMALL), (0, 0.8, SMALL), (0, 0.7, [100, 100, 120, 120])])
    truth = targets([(0, SMALL), (0, [100, 100, 120, 120])])
    assert_numbers(numbers((truth, found)), AP=(51 + 50 * 2 / 3) / 101)


def test_classes_do_not_mix():
    got = numbers((targets([(0, SMALL), (2, LARGE)]), detections([(1, 0.9, SMALL), (2, 0.8, LARGE)])))
    assert_numbers(got, AP=0.5, AR100=0.5, AP_small=0.0, AP_large=1.0)


def test_detections_within_a_crowd_count_neither_way():
    inside = [[10 + 20 * step, 10, 25 + 20 * step, 25] for step in range(4)]
    truth = targets([(0, [0, 0, 200, 40]), (0, [300, 300, 340, 340])], crowd=np.array([[1, 0, 0]]))
    found = detections([*((0, 0.9, box) for box in inside), (0, 0.5, [300, 300, 340, 340])])
    got = numbers((truth, found))
    assert_numbers(got, AP=1.0, AR100=1.0, AR1=0.0)
    assert numbers((truth | {"crowd": np.zeros((1, 3), "int32")}, found))["AP"] < 0.5


def test_a_class_of_crowds_alone_is_undefined():
    truth = targets([(0, LARGE), (1, SMALL)], crowd=np.array([[1, 0, 0]]))
    metric = COCOAveragePrecision(classes=["crowd", "one"])
    metric.update_state(truth, detections([(0, 0.9, LARGE), (1, 0.8, SMALL)]))
    assert_numbers(metric.result(), AP=1.0, AP_large=-1.0)
    assert metric.per_class()["crowd"]["AP"] == -1


@pytest.mark.parametrize(
    "entries, size",
    [
        ({}, "medium"),
        ({"scale": [2.0]}, "small"),
        ({"scale": [0.5]}, "large"),
        ({"area": [[900.0, 0.0]]}, "small"),
        ({"area": [[9000.0, 0.0]], "scale": [0.25]}, "medium"),
    ],
)
def test_areas_are_those_of_the_original_image(entries, size):
    truth = targets([(0, MEDIUM)], **{name: np.array(value) for name, value in entries.items()})
    got = numbers((truth, detections([(0, 0.9, MEDIUM)])))
    want = {
        f"{what}_{other}": float(other == size) * 2 - 1
        for what in ("AP", "AR")
        for other in ("small", "medium", "large")
    }
    assert_numbers(got, AP=1.0, **want)


@pytest.mark.parametrize("scale, counted", [(1.0, True), (2.0, False)])
def test_false_detections_count_in_the_range_of_their_own_area(scale, counted):
    # A false detection of 40x40 network pixels: medium as it is, small in an image that was enlarged twice.
    truth = targets([(0, LARGE), (0, [300, 300, 380, 380])], scale=np.array([scale]), area=np.array([[4e4, 2e3, 0]]))
    found = detections([(0, 0.9, [500, 500, 540, 540]), (0, 0.8, LARGE), (0, 0.7, [300, 300, 380, 380])])
    assert_numbers(numbers((truth, found)), AP_medium=0.5 if counted else 1.0, AP_large=1.0)


@pytest.mark.parametrize(
    "rank, limits", [(1, "AR1 AR10 AR100"), (10, "AR10 AR100"), (11, "AR100"), (100, "AR100"), (101, "")]
)
def test_at_most_100_detections_of_a_class_in_an_image(rank, limits):
    away = [(0, 0.9, [300 + step, 300, 310 + step, 310]) for step in range(rank - 1)]
    other_class = [(1, 0.95, SMALL)] * 5
    got = numbers((targets([(0, SMALL)]), detections([*other_class, *away, (0, 0.5, SMALL)])))
    assert_numbers(
        got, AP=1 / rank if rank <= 100 else 0.0, **{name: float(name in limits.split()) for name in TWELVE[6:9]}
    )


def test_nothing_found_is_0_and_nothing_to_find_is_undefined():
    nothing, something = detections([], []), detections([(0, 0.9, SMALL)], [])
    assert_numbers(
        numbers((targets([(0, SMALL)], []), nothing)), AP=0.0, AP50=0.0, AP_small=0.0, AP_large=-1.0, AR1=0.0
    )
    for found in (nothing, something):
        assert numbers((targets([], []), found)) == dict.fromkeys(TWELVE, -1.0)
    assert COCOAveragePrecision().result() == dict.fromkeys(TWELVE, -1.0)
    assert COCOAveragePrecision(["a"]).per_class() == {"a": dict.fromkeys(TWELVE, -1.0)}


def no_rows(labels, **entries):
    return {"boxes": np.zeros((*labels, 4)), "labels": np.zeros(labels, "int32"), **entries}


def test_batches_may_have_no_rows_at_all():
    metric = COCOAveragePrecision()
    metric.update_state(no_rows((2, 0)), no_rows((2, 0), scores=np.zeros((2, 0))))
    metric.update_state(no_rows((0, 3)), no_rows((0, 5), scores=np.zeros((0, 5))))
    assert metric.result()["AP"] == -1
    metric.update_state(targets([(0, SMALL)]), detections([(0, 0.5, SMALL)]))
    assert metric.result()["AP"] == pytest.approx(1, abs=EXACT)


def test_each_class_by_itself():
    truth = targets([(0, SMALL), (2, LARGE), (2, [300, 300, 360, 360])])
    found = detections([(0, 0.9, SMALL), (2, 0.9, LARGE), (1, 0.3, SMALL)])
    metric = COCOAveragePrecision()
    metric.update_state(truth, found)
    assert set(metric.per_class()) == {0, 2}
    metric = COCOAveragePrecision(classes=["cat", "dog", "cow"])
    metric.update_state(truth, found)
    by_class = metric.per_class()
    assert list(by_class) == ["cat", "dog", "cow"]
    assert list(by_class["cow"]) == TWELVE
    assert_numbers(by_class["cat"], AP=1.0, AP_small=1.0, AP_large=-1.0)
    assert_numbers(by_class["cow"], AP=51 / 101, AP_large=1.0, AP_medium=0.0)
    assert by_class["dog"] == dict.fromkeys(TWELVE, -1.0)
    assert metric.result()["AP"] == pytest.approx((1 + 51 / 101) / 2, abs=EXACT)
    assert list(COCOAveragePrecision(classes=2).per_class()) == [0, 1]


def test_a_target_without_area_is_padding():
    """Rows of zeros, labelled 0 instead of −1, would count as objects that are never found."""
    boxes = np.zeros((1, 8, 4), "float32")
    boxes[0, :2] = SMALL, LARGE
    truth = {"boxes": boxes, "labels": np.zeros((1, 8), "int32"), "area": np.ones((1, 8))}
    found = detections([(0, 0.9, SMALL), (0, 0.8, LARGE)])
    assert_numbers(numbers((truth, found)), AP=1.0, AR100=1.0)
    masks = {"box_masks": np.ones((1, 8, 4, 4), "uint8")}
    got = numbers((truth | masks, found | {"box_masks": np.ones((1, 3, 4, 4), "float32")}), masks=True)
    assert_numbers(got, AP=1.0)
    assert got["mask_AP"] > 0.9  # edges of scores are read between the cells


def test_more_than_100_objects_need_more_detections():
    batch = many(300)
    with pytest.warns(
        UserWarning, match="300 objects of one class, but 100 detections.*below 0.33.*max_detections=300"
    ):
        got = numbers(batch)
    assert_numbers(got, AP=34 / 101, AR100=1 / 3)
    got = numbers(batch, max_detections=300)
    assert_numbers(got, AP=1.0, AR1=1 / 300, AR10=1 / 30, AR300=1.0)
    assert list(got) == [name.replace("100", "300") for name in TWELVE]


@pytest.mark.parametrize("number", [10, 0, 100.0, "all"])
def test_numbers_of_detections_that_cannot_be_are_refused(number):
    with pytest.raises(ValueError, match="max_detections is a whole number above 10"):
        COCOAveragePrecision(max_detections=number)


# Invariances


def test_batches_of_any_size_give_the_same_numbers():
    truth, found = random_scene(3)
    whole = numbers((truth, found), masks=True)
    parts = [slice(0, 1), slice(1, 6), slice(6, 12)]
    batches = []
    for rows in parts:
        part, guess = cut(truth, rows), cut(found, rows)
        used = 1 + max(np.nonzero(part["labels"] >= 0)[1], default=0)  # less padding
        batches.append(({name: array[:, :used] if array.ndim > 1 else array for name, array in part.items()}, guess))
    assert numbers(*batches, masks=True) == whole


def test_order_of_objects_and_numbering_of_classes_do_not_matter():
    truth, found = random_scene(4)
    found["scores"] = np.random.default_rng(0).permutation(found["scores"].size).reshape(found["scores"].shape)
    want = numbers((truth, found))
    rng = np.random.default_rng(1)
    for side in (truth, found):
        order = rng.permutation(side["labels"].shape[1])
        side |= {name: array[:, order] if array.ndim > 1 else array for name, array in side.items()}
        side["labels"] = np.where(side["labels"] < 0, -1, 9 - side["labels"]).astype("int32")
    assert numbers((truth, found)) == pytest.approx(want, abs=1e-12)


def test_reset_forgets_and_update_after_a_result_counts():
    first, second = (targets([(0, SMALL)]), detections([])), (targets([(0, SMALL)]), detections([(0, 0.5, SMALL)]))
    metric = COCOAveragePrecision()
    metric.update_state(*first)
    assert_numbers(metric.result(), AP=0.0)
    metric.update_state(*second)
    assert_numbers(metric.result(), AP=51 / 101)
    metric.reset_state()
    assert metric.result()["AP"] == -1
    metric.update_state(*second)
    assert_numbers(metric.result(), AP=1.0)


def test_tensors_and_lists_are_taken_and_arrays_left_alone():
    truth, found = random_scene(5)
    before = pickle.dumps((truth, found))
    want = numbers((truth, found), masks=True)
    assert pickle.dumps((truth, found)) == before
    tensors = [{name: keras.ops.convert_to_tensor(array) for name, array in side.items()} for side in (truth, found)]
    assert numbers(tensors, masks=True) == want
    lists = [{name: array.tolist() for name, array in side.items() if name != "masks"} for side in (truth, found)]
    assert numbers(lists) == {name: want[name] for name in TWELVE}


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collection_is_left_as_it_was(enabled, monkeypatch):
    metric, seen = COCOAveragePrecision(), []
    metric.update_state(targets([(0, SMALL)]), detections([(0, 0.5, SMALL)]))

    def fail(*arguments, **options):
        seen.append(gc.isenabled())
        raise RuntimeError

    monkeypatch.setattr("faster_coco_eval.COCO", fail)
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(RuntimeError):
            metric.result()
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
    assert seen == [False]


# What it says


def test_it_prints_nothing(capfd):
    numbers(random_scene(0), masks=True)
    numbers((targets([]), detections([])))
    assert capfd.readouterr() == ("", "")


def test_a_missing_library_is_told_at_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(ImportError, match=r"faster-coco-eval.*pip install 'kvision\[coco\]'"):
        COCOAveragePrecision()


BOX = [[[10.0, 10.0, 30.0, 30.0]]]
TRUTH, FOUND = {"boxes": BOX, "labels": [[0]]}, {"boxes": BOX, "scores": [[0.5]], "labels": [[0]]}


@pytest.mark.parametrize(
    "truth, found, message",
    [
        ({"boxes": BOX}, FOUND, r"Targets are a dict with 'boxes', 'labels': got \['boxes'\]"),
        (BOX, FOUND, "Targets are a dict .* got list"),
        (TRUTH, TRUTH, r"Detections are a dict with 'boxes', 'scores', 'labels': got \['boxes', 'labels'\]"),
        (TRUTH, {name: value * 2 for name, value in FOUND.items()}, "targets of 1 images and detections of 2"),
        (TRUTH | {"boxes": [[[1.0, 2.0, 3.0]]]}, FOUND, r"Targets have shapes that do not fit.*boxes \(1, 1, 3\)"),
        (TRUTH | {"crowd": [0]}, FOUND, r"Targets have shapes that do not fit.*crowd \(1,\)"),
        (TRUTH | {"scale": [[1.0]]}, FOUND, r"Targets have shapes that do not fit.*scale \(1, 1\)"),
        (TRUTH, FOUND | {"scores": [[0.5, 0.4]]}, r"Detections have shapes that do not fit.*scores \(1, 2\)"),
        (TRUTH | {"labels": [[2]]}, FOUND, "Targets hold the label 2, expected labels from 0 to 1"),
        (TRUTH, FOUND | {"labels": [[7]]}, "Detections hold the label 7"),
        (TRUTH, FOUND | {"scores": [[np.nan]]}, "Detections hold scores that are not finite: image 0 .* row 0: nan"),
        (TRUTH, FOUND | {"boxes": [[[0.0, 0.0, np.inf, 1.0]]]}, "Detections hold boxes that are not finite.*diverged"),
        (TRUTH | {"boxes": [[[np.nan] * 4]]}, FOUND, "Targets hold boxes that are not finite"),
    ],
)
def test_bad_input_is_an_error_and_changes_nothing(truth, found, message):
    metric = COCOAveragePrecision(classes=2)
    with pytest.raises(ValueError, match=message):
        metric.update_state(truth, found)
    metric.update_state(TRUTH, FOUND)
    assert_numbers(metric.result(), AP=1.0)


def test_what_stands_in_the_padding_need_not_be_finite():
    truth, found = targets([(0, SMALL)]), detections([(0, 0.5, SMALL)])
    truth["boxes"][:, 1:] = np.nan
    found["boxes"][:, 1:], found["scores"][:, 1:] = np.inf, np.nan
    assert_numbers(numbers((truth, found)), AP=1.0)


# pycocotools


def by_pycocotools(truth, found, kind, recalls=None):
    """The twelve numbers, from annotations written as COCO's files have them, at COCO's recall levels or others."""
    from pycocotools import mask as codes
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images, size = len(truth["labels"]), truth["masks"].shape[2:]
    scale = truth.get("scale", np.ones(images)).astype("float64")
    sides = []
    for side in (truth, found):
        rows = []
        for image, row in np.argwhere(side["labels"] >= 0):
            left, top, right, bottom = (float(edge) / scale[image] for edge in side["boxes"][image, row])
            code = codes.encode(np.asfortranarray(side["masks"][image, row]))
            area = (right - left) * (bottom - top) if kind == "bbox" else codes.area(code) / scale[image] ** 2
            rows.append(
                {
                    "id": len(rows) + 1,
                    "image_id": int(image),
                    "category_id": int(side["labels"][image, row]),
                    "bbox": [left, top, right - left, bottom - top],
                    "segmentation": code,
                    "area": float(side["area"][image, row]) if "area" in side else float(area),
                    "iscrowd": int(side["crowd"][image, row]) if "crowd" in side else 0,
                    "score": float(side["scores"][image, row]) if "scores" in side else None,
                }
            )
        coco = COCO()
        coco.dataset = {
            "images": [{"id": image, "height": size[0], "width": size[1]} for image in range(images)],
            "categories": [{"id": label} for label in range(9)],
            "annotations": rows,
        }
        coco.createIndex()
        sides.append(coco)
    evaluation = COCOeval(*sides, kind)
    evaluation.params.recThrs = evaluation.params.recThrs if recalls is None else recalls
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return dict(zip(TWELVE, evaluation.stats.tolist(), strict=True))


SCENES = {
    "everything": ({}, ()),
    "no crowd": ({}, ("crowd",)),
    "areas of boxes and masks": ({}, ("area",)),
    "network pixels": ({}, ("area", "scale")),
    "one class, more than 100 detections": ({"classes": 1, "found": 150, "images": 5}, ("area",)),
    "large and small": ({"size": (300, 400), "images": 6, "found": 12}, ("area", "scale")),
    "many objects": ({"most": 30, "found": 60, "images": 5, "classes": 2}, ()),
}


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scene", SCENES)
def test_equal_to_pycocotools(scene, seed):
    options, without = SCENES[scene]
    truth, found = random_scene(seed, **options)
    truth = {name: array for name, array in truth.items() if name not in without}
    got = numbers(
        (cut(truth, slice(0, 2)), cut(found, slice(0, 2))),
        (cut(truth, slice(2, None)), cut(found, slice(2, None))),
        masks=True,
    )
    for kind, prefix in (("bbox", ""), ("segm", "mask_")):
        want = by_pycocotools(truth, found, kind)
        assert {name: got[prefix + name] for name in TWELVE} == pytest.approx(want, abs=1e-6)
        assert want["AP"] > 0.01
