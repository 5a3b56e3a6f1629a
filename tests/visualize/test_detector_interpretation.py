"""Interpretation of detectors: the hand-worked set of errors reaches numbers, images and drawings."""

import keras
import numpy as np
import pytest

from kvision.drawing import ERROR_COLOURS, detection_errors
from kvision.metrics import ERROR_KINDS, DetectionErrors
from kvision.visualize import DetectorInterpretation, Interpretation
from tests.applications.detection.rows import ROWS
from tests.applications.detection.test_detectors import batch_of
from tests.callbacks.test_detection_metrics import Finder
from tests.metrics.test_detection_errors import hand_worked

NAMES = ("cat", "dog")
SIDE = 96


def finder():
    model = Finder()
    model.error.assign(0.0)
    model(scenes()[0][:1])
    return model


def scenes():
    """The hand-worked set, its detections written into the pixels; and a valid size below that of the images."""
    truth, found = hand_worked()
    images = np.zeros((9, SIDE, SIDE, 3), "float32")
    rows = min(2, found["labels"].shape[1])
    images[..., 2] = 90
    images[:, :2, 4:6, 0] = np.array([0, -1])
    for name, columns in (("boxes", slice(0, 4)), ("scores", 4), ("labels", 5)):
        images[:, :rows, columns, 0] = found[name][:, :rows]
    return images, truth | {"image_size": np.tile(np.array([80, SIDE]), (9, 1))}


@pytest.fixture(scope="module")
def found():
    return Interpretation(finder(), scenes(), class_names=NAMES, batch_size=4)


def test_the_numbers_are_those_of_the_metric(found):
    assert isinstance(found, DetectorInterpretation) and found.num_images == 9
    metric = DetectionErrors()
    metric.update_state(*hand_worked())
    assert found.errors.result() == metric.result()
    assert found.counts == dict.fromkeys(ERROR_KINDS, 1)
    assert found.costs == {kind: metric.result()[f"dAP_{kind}"] for kind in ERROR_KINDS}


def test_batches_give_the_same(found):
    images, targets = scenes()
    parts = [slice(0, 4), slice(4, 9)]
    batches = [(images[rows], {name: array[rows] for name, array in targets.items()}) for rows in parts]
    again = Interpretation(finder(), batches)
    assert again.errors.result() == found.errors.result()
    assert [each.index for each in again.worst(6)] == [each.index for each in found.worst(6)]


def test_the_worst_images_come_with_their_pixels_and_errors(found):
    worst = found.worst(9)
    assert [(each.index, each.cost) for each in worst] == found.errors.worst(9)  # all images are kept
    images, targets = scenes()
    for each in worst:
        np.testing.assert_array_equal(each.image, images[each.index][:80])
        np.testing.assert_array_equal(each.targets["boxes"], targets["boxes"][each.index])
    by_index = {each.index: each for each in worst}
    boxes, kinds, texts = found.marked(by_index[1])
    assert (boxes.tolist(), kinds, texts) == ([[10, 10, 20, 20]], ("class",), ("class: dog 0.80, is cat",))
    assert found.marked(by_index[6])[2] == ("missed: cat",)
    assert found.marked(by_index[3])[2] == ("both: dog 0.60, is cat", "cat 0.97")
    assert found.marked(by_index[3], score_threshold=0.7)[2] == ("cat 0.97",)
    assert found.caption(by_index[4]) == "image 4: 1 duplicate"


def test_of_many_images_those_with_most_errors_are_kept():
    few = Interpretation(finder(), scenes(), keep=2)
    assert sorted(each.index for each in few.worst(2)) == [4, 6]  # a score of 0.85, and a missed object
    with pytest.raises(ValueError, match="keep=2"):
        few.worst(3)


def test_it_says_what_stands_out(found):
    lines = str(found).splitlines()
    assert lines[0].startswith("finder: 9 images, AP50 0.")
    most = max(found.costs, key=found.costs.get)
    assert lines[-1].startswith(f"Most is lost to {most} errors, {found.costs[most]:.3f} by 1 of them: ")


def test_it_draws(found):
    sheet = found.draw_worst(6, side=160)
    assert sheet.dtype == "uint8" and sheet.shape[1] >= 3 * 160
    bars = found.draw_errors().axes[0]
    assert [label.get_text() for label in bars.get_yticklabels()] == [*ERROR_KINDS, "false positive", "false negative"]
    widths = [bar.get_width() for bar in bars.patches]
    assert widths[:6] == pytest.approx(list(found.costs.values()))
    assert [text.get_text().split()[-1] for text in bars.texts[:6]] == ["(1)"] * 6


def test_each_kind_is_drawn_in_its_colour():
    grey = np.full((60, 80, 3), 128, "uint8")
    for kind, colour in ERROR_COLOURS.items():
        drawn = detection_errors(grey, [[20, 30, 60, 55]], [kind], [""], legend=False)
        assert drawn.shape == grey.shape
        assert (drawn[45, 20:22] == colour).all() and (drawn[45, 25:55] == 128).all()
    below = detection_errors(grey, [[20, 30, 60, 55]], ["missed"], ["missed: tree"], [[20, 30, 60, 55]])
    assert below.shape[0] > 60 and (below[45, 22] != (128, 128, 128)).any()
    assert detection_errors(grey, [[np.nan, 1, 2, 3]], ["both"], ["a"], legend=False).tolist() == grey.tolist()
    with pytest.raises(ValueError, match="Unknown kind of error: got 'clas'"):
        detection_errors(grey, [[1, 1, 9, 9]], ["clas"], ["a"])
    with pytest.raises(ValueError, match="got 1 boxes, 0 kinds and 0 texts"):
        detection_errors(grey, [[1, 1, 9, 9]], [], [])


def test_without_an_error_there_is_nothing_to_draw():
    images, targets = scenes()
    right = Interpretation(finder(), (images[:1], {name: array[:1] for name, array in targets.items()}))
    assert right.worst() == [] and "No kind of error costs anything." in str(right)
    with pytest.raises(ValueError, match="no image has an error"):
        right.draw_worst()


def classifier():
    return keras.Sequential([keras.Input((SIDE, SIDE, 3)), keras.layers.Flatten(), keras.layers.Dense(2)], name="net")


@pytest.mark.parametrize(
    ("model", "source", "options", "message"),
    [
        (finder, lambda: (scenes()[0], np.zeros((9, 2))), {}, "finder gives"),
        (finder, lambda: (scenes()[0], {"boxes": np.zeros((9, 2, 4))}), {}, 'a dict with "boxes" .* and "labels"'),
        (finder, scenes, {"preprocess": lambda x: x}, "takes images of 0…255: preprocess has no effect"),
        (classifier, scenes, {}, "net is a classifier"),
    ],
)
def test_what_does_not_fit_the_model_is_an_error(model, source, options, message):
    with pytest.raises(ValueError, match=message):
        Interpretation(model(), source(), **options)


@pytest.mark.slow
def test_a_detector_is_measured_as_it_predicts():
    row = next(row for row in ROWS if row.name == "retinanet" or "retina" in row.name.lower())
    detector = row.tiny()
    images, targets = batch_of(row)
    found = Interpretation(detector, (images, targets))
    metric = DetectionErrors()
    metric.update_state(targets, detector.predict(images, verbose=0))
    assert found.errors.result() == metric.result()
    with pytest.raises(ValueError, match="Targets of a detector are a dict"):
        Interpretation(detector, (images, np.zeros((len(images), 64, 64), int)))
    with pytest.raises(ValueError, match="class_names must be as many, got 2"):
        Interpretation(detector, (images, targets), class_names=NAMES)
    with pytest.raises(ValueError, match="labelled beyond the last"):
        Interpretation(detector, (images, targets | {"labels": targets["labels"] * 0 + 7}))
