"""The confusion matrix of detections by hand, and the file of results that COCO reads."""

import json

import numpy as np
import pytest

from kvision.metrics import COCOAveragePrecision
from tests.metrics.coco_numbers import LARGE, MEDIUM, SMALL, TWELVE, cut
from tests.metrics.scenes import detections, random_scene, targets

APART = [200, 10, 240, 60]


def test_the_confusion_matrix_by_hand():
    metric = COCOAveragePrecision(classes=["cat", "dog", "cow"])
    assert metric.confusion_matrix().tolist() == [[0] * 4] * 4
    truth = targets([(0, SMALL), (1, MEDIUM), (2, APART)], [], [(1, SMALL)])
    found = detections(
        [
            (0, 0.9, SMALL),  # right
            (2, 0.8, [12, 10, 60, 60]),  # the dog is a cow
            (1, 0.7, MEDIUM),  # and taken already: background
            (2, 0.6, [300, 300, 320, 320]),  # background
        ],
        [(0, 0.95, SMALL)],
        [(1, 0.4, SMALL)],  # below the threshold
    )
    metric.update_state(truth, found)
    want = [[1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1], [1, 1, 1, 0]]
    assert metric.confusion_matrix().tolist() == want
    lower = metric.confusion_matrix(score_threshold=0.4)
    assert lower[1].tolist() == [0, 1, 1, 0]
    strict = metric.confusion_matrix(iou_threshold=0.97)
    assert strict[1].tolist() == [0, 1, 0, 1]  # the second, exact one takes it
    assert strict.dtype == "int64"


def test_of_equal_overlaps_a_detection_takes_its_own_class():
    metric = COCOAveragePrecision()
    metric.update_state(targets([(0, SMALL), (1, SMALL)]), detections([(0, 0.9, SMALL), (1, 0.8, SMALL)]))
    assert metric.confusion_matrix().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_crowds_are_not_in_the_confusion_matrix():
    truth = targets([(0, [0, 0, 200, 40]), (0, LARGE)], crowd=np.array([[1, 0, 0]]))
    found = detections([(0, 0.9, [10, 10, 25, 25]), (1, 0.8, LARGE), (1, 0.7, [190, 10, 215, 30])])
    metric = COCOAveragePrecision(classes=2)
    metric.update_state(truth, found)
    assert metric.confusion_matrix().tolist() == [[0, 1, 0], [0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("options", [{"score_threshold": 2}, {"iou_threshold": 0}, {"iou_threshold": 1.5}])
def test_thresholds_of_the_confusion_matrix_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=r"score_threshold lies in \[0, 1\] and iou_threshold in \(0, 1\]"):
        COCOAveragePrecision().confusion_matrix(**options)


def test_results_are_what_coco_reads(tmp_path):
    """faster-coco-eval reads them beside the truth in original pixels, and measures what the metric measured."""
    import faster_coco_eval

    truth, found = random_scene(3)
    truth["image_id"] = 100 + 7 * np.arange(12)
    metric = COCOAveragePrecision()
    metric.update_state(cut(truth, slice(0, 5)), cut(found, slice(0, 5)))
    metric.update_state(cut(truth, slice(5, 12)), cut(found, slice(5, 12)))
    ids = [3, 17, 90, 91, 95]
    results = metric.coco_results(tmp_path / "results.json", category_ids=ids)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert len(results) == (found["labels"] >= 0).sum()
    content = {"images": [{"id": int(number)} for number in truth["image_id"]], "annotations": []}
    content["categories"] = [{"id": number, "name": str(number)} for number in ids]
    for image, row in np.argwhere(truth["labels"] >= 0):
        left, top, right, bottom = (truth["boxes"][image, row].astype("float64") / truth["scale"][image]).tolist()
        content["annotations"].append(
            {
                "id": len(content["annotations"]) + 1,
                "image_id": int(truth["image_id"][image]),
                "category_id": ids[truth["labels"][image, row]],
                "bbox": [left, top, right - left, bottom - top],
                "area": float(truth["area"][image, row]),
                "iscrowd": int(truth["crowd"][image, row]),
            }
        )
    quiet = {"print_function": lambda *_: None}
    coco = faster_coco_eval.COCO(content, **quiet)
    evaluation = faster_coco_eval.COCOeval_faster(coco, coco.loadRes(results), "bbox", **quiet)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert metric.result() == pytest.approx(dict(zip(TWELVE, evaluation.stats[:12], strict=True)), abs=1e-6)


def test_results_need_to_know_images_and_categories():
    metric = COCOAveragePrecision()
    assert metric.coco_results() == []
    metric.update_state(targets([(0, SMALL)], image_id=np.array([4])), detections([(2, 0.5, SMALL)]))
    assert metric.coco_results()[0]["category_id"] == 2
    with pytest.raises(ValueError, match="hold the label 2, but category_ids has 2 entries"):
        metric.coco_results(category_ids=[1, 2])
    metric.update_state(targets([(0, SMALL)]), detections([]))
    with pytest.raises(ValueError, match='came without "image_id"'):
        metric.coco_results()
