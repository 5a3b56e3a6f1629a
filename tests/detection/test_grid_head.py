"""The head of YOLO against twins that go through images, cells and boxes one by one, as `detection_layer.c` does."""

import keras
import numpy as np
import pytest

from kvision.detection.grid_head import GridHead
from tests.ops.differentiation import value_and_gradients
from tests.support import assert_close

CLASSES, GRID, PER_CELL = 3, 4, 2
HEIGHT, WIDTH = 64, 96
CELL_HEIGHT, CELL_WIDTH = HEIGHT / GRID, WIDTH / GRID


def head_of(**options):
    options = {"boxes_per_cell": PER_CELL, "score_threshold": 0.1, "num_detections": 40} | options
    return GridHead(CLASSES, (HEIGHT, WIDTH), GRID, **options)


def features_of(images, scale=0.5, seed=0, per_cell=PER_CELL):
    rng = np.random.default_rng(seed)
    ends = {"class_scores": (CLASSES,), "confidences": (per_cell,), "cell_boxes": (per_cell, 4)}
    return {
        name: rng.normal(scale=scale, size=(images, GRID, GRID, *end)).astype("float32") for name, end in ends.items()
    }


def targets_of(*images, crowds=()):
    """Targets from `[(x1, y1, x2, y2, label), …]` of each image; `crowds` are pairs (image, row)."""
    count = max(1, *map(len, images)) + 1
    boxes, labels = np.full((len(images), count, 4), np.nan, "float32"), np.full((len(images), count), -1, "int32")
    crowd = np.zeros_like(labels)
    for image, rows in enumerate(images):
        for index, (*box, label) in enumerate(rows):
            boxes[image, index], labels[image, index] = box, label
    for place in crowds:
        crowd[place] = 1
    return {"boxes": boxes, "labels": labels, "crowd": crowd}


def overlap(first, second):
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return width * height / (sum(areas) - width * height)


def box_of(features, image, row, column, index):
    """A predicted box in pixels, and centre and sides as fractions of the image."""
    x, y, root_width, root_height = map(float, features["cell_boxes"][image, row, column, index])
    across, down = (column + x) * CELL_WIDTH, (row + y) * CELL_HEIGHT
    width, height = WIDTH * root_width**2, HEIGHT * root_height**2
    pixels = (across - width / 2, down - height / 2, across + width / 2, down + height / 2)
    return pixels, (across / WIDTH, down / HEIGHT, width / WIDTH, height / HEIGHT)


def twin_losses(features, targets, coordinate_weight=5.0, no_object_weight=0.5):
    """Losses of a batch, and the responsible box of every cell with an object, `{(image, row, column): index}`."""
    names = "box_loss", "object_loss", "no_object_loss", "classification_loss"
    losses, chosen = dict.fromkeys(names, 0.0), {}
    for image, (boxes, labels) in enumerate(zip(targets["boxes"], targets["labels"], strict=True)):
        owners, crowds = {}, []
        for box, label, crowd in zip(boxes, labels, targets["crowd"][image], strict=True):
            if label < 0:
                continue
            if crowd:
                crowds.append(box)
                continue
            column = min(int((box[0] + box[2]) / 2 // CELL_WIDTH), GRID - 1)
            row = min(int((box[1] + box[3]) / 2 // CELL_HEIGHT), GRID - 1)
            owners.setdefault((row, column), (box, label))
        for row, column in np.ndindex(GRID, GRID):
            confidences = features["confidences"][image, row, column].astype("float64")
            if (row, column) not in owners:
                x, y = (column + 0.5) * CELL_WIDTH, (row + 0.5) * CELL_HEIGHT
                if not any(box[0] < x < box[2] and box[1] < y < box[3] for box in crowds):
                    losses["no_object_loss"] += no_object_weight * sum(confidences**2)
                continue
            truth, label = owners[row, column]
            centre = (truth[0] + truth[2]) / 2, (truth[1] + truth[3]) / 2
            sides = (truth[2] - truth[0]) / WIDTH, (truth[3] - truth[1]) / HEIGHT
            relative = centre[0] / WIDTH, centre[1] / HEIGHT, *sides
            best, best_overlap, least = None, 0.0, np.inf
            for index in range(len(confidences)):
                pixels, fractions = box_of(features, image, row, column, index)
                shared = overlap(pixels, truth)
                apart = np.sqrt(sum((a - b) ** 2 for a, b in zip(fractions, relative, strict=True)))
                if shared > best_overlap or (best_overlap == shared == 0 and apart < least):
                    best, best_overlap, least = index, shared, apart
            chosen[image, row, column] = best
            for index, confidence in enumerate(confidences):
                if index == best:
                    losses["object_loss"] += (best_overlap - confidence) ** 2
                else:
                    losses["no_object_loss"] += no_object_weight * confidence**2
            wanted = centre[0] / CELL_WIDTH - column, centre[1] / CELL_HEIGHT - row, *np.sqrt(sides)
            for value, prediction in zip(wanted, features["cell_boxes"][image, row, column, best], strict=True):
                losses["box_loss"] += coordinate_weight * (value - float(prediction)) ** 2
            for name, score in enumerate(features["class_scores"][image, row, column]):
                losses["classification_loss"] += ((name == label) - float(score)) ** 2
    return {name: loss / len(targets["labels"]) for name, loss in losses.items()}, chosen


def equal_losses(head, features, targets, **weights):
    want, chosen = twin_losses(features, targets, **weights)
    got = head.losses(features, targets)
    assert set(got) == set(want) == set(head.loss_names)
    for name in want:
        assert_close(got[name], want[name], tolerance=(1e-4, 1e-5))
    return want, chosen


TWO_IN_ONE = [(10, 4, 22, 14, 1), (2, 3, 12, 15, 0), (50, 20, 90, 60, 2)]  # the first two are centred in one cell
SCENES = {
    "objects": targets_of([(1, 1, 20, 30, 0), (30, 10, 80, 40, 1), (70, 40, 95, 63, 2)], [(0, 0, 96, 64, 2)]),
    "two in one cell": targets_of(TWO_IN_ONE, [(40, 30, 44, 33, 1)]),
    "an empty image": targets_of([], [(30, 10, 80, 40, 1)]),
    "all empty": targets_of([], []),
    "ends at the border": targets_of([(60, 40, 96, 64, 0), (0, 0, 96, 64, 1)], [(48, 32, 96, 64, 2), (0, 0, 4, 4, 0)]),
    "centred on the border": targets_of([(80, 50, 112, 78, 0)], [(-5, -5, 5, 5, 1)]),
    "crowds": targets_of(TWO_IN_ONE, [(0, 0, 50, 40, 1), (40, 30, 44, 33, 1)], crowds=[(0, 2), (1, 0)]),
    "one pixel": targets_of([(7, 9, 8, 10, 1)], [(95, 63, 96, 64, 2)]),
}


@pytest.mark.parametrize("name", SCENES)
def test_losses_equal_the_twin(name):
    head = head_of()
    for seed, scale in enumerate((0.5, 0.02, 2.0)):  # overlapping, hardly any, far too large
        equal_losses(head, features_of(2, scale, seed), SCENES[name])


def test_random_scenes_choose_by_overlap_and_by_distance():
    rng = np.random.default_rng(3)
    scenes = []
    for _ in range(6):
        corners = rng.uniform(0, 1, (9, 2, 2))
        low, high = corners.min(axis=1) * (WIDTH, HEIGHT), corners.max(axis=1) * (WIDTH, HEIGHT) + 0.5
        scenes.append([(*a, *np.minimum(b, (WIDTH, HEIGHT)), rng.integers(3)) for a, b in zip(low, high, strict=True)])
    features = features_of(6, 0.4, per_cell=3)
    weights = {"coordinate_weight": 2.0, "no_object_weight": 0.25}
    _, chosen = equal_losses(head_of(boxes_per_cell=3, **weights), features, targets_of(*scenes), **weights)
    assert set(chosen.values()) == {0, 1, 2}


def with_boxes(*rows, confidences=(0.5, 0.2)):
    """Features of one image whose cell (0, 0) predicts these boxes, and everything else 0."""
    features = {name: np.zeros_like(value) for name, value in features_of(1).items()}
    features["cell_boxes"][0, 0, 0], features["confidences"][0, 0, 0] = rows, confidences
    return features


TRUTH = (6, 4, 18, 12, 1)  # in the middle of the first cell; width an eighth of the image, as is the height
ROOT = 0.125**0.5


@pytest.mark.parametrize(
    ("rows", "responsible"),
    [
        ([(0.5, 0.5, ROOT, ROOT), (0.5, 0.5, ROOT, ROOT)], 0),  # equal overlap: the first
        ([(0.9, 0.5, ROOT, ROOT), (0.5, 0.5, ROOT, ROOT)], 1),  # more overlap
        ([(3.0, 3.0, 0.1, 0.1), (2.0, 2.0, 0.1, 0.1)], 1),  # none overlaps: the nearest
        ([(2.0, 2.0, 0.1, 0.1), (2.0, 2.0, 0.1, 0.1)], 0),  # none, equally near: the first
        ([(0.5, 0.5, 0.0, 0.0), (0.5, 0.5, -ROOT, ROOT)], 1),  # a negative root is squared as well
        ([(0.5, 0.5, ROOT, 0.9), (1.3, 0.5, ROOT, ROOT)], 0),  # overlap counts, however far
    ],
)
def test_which_box_is_responsible(rows, responsible):
    features, targets = with_boxes(*rows), targets_of([TRUTH])
    _, chosen = equal_losses(head_of(), features, targets)
    assert chosen == {(0, 0, 0): responsible}


def test_a_perfect_network_has_no_loss():
    features = with_boxes((0.5, 0.5, ROOT, ROOT), (0, 0, 0, 0), confidences=(1.0, 0.0))
    features["class_scores"][0, 0, 0, 1] = 1.0
    assert all(abs(float(loss)) < 1e-9 for loss in head_of().losses(features, targets_of([TRUTH])).values())
    (found,) = head_of().decode(features)["boxes"][:, :1]
    assert_close(found, [TRUTH[:4]])


def test_the_target_of_a_confidence_is_the_overlap_itself():
    half = 0.0625**0.5  # half as wide
    losses = head_of().losses(
        with_boxes((0.5, 0.5, half, ROOT), (3, 3, 0.1, 0.1), confidences=(0.0, 0.0)), targets_of([TRUTH])
    )
    assert_close(losses["object_loss"], 0.25)


def gradients_of(features, targets):
    """Of the sum of all losses, for boxes, confidences and class scores."""
    head, order = head_of(), ("cell_boxes", "confidences", "class_scores")

    def total(*given):
        return sum(head.losses(dict(zip(order, given, strict=True)), targets).values())

    _, gradients = value_and_gradients(total, [features[name] for name in order], np.float32(1))
    return map(keras.ops.convert_to_numpy, gradients)


@pytest.mark.parametrize(
    "rows",
    [
        [(0.2, 0.4, 0.3, -0.3), (3.0, 3.0, 0.1, 0.1)],  # overlaps: nothing flows through the overlap, a target
        [(0.2, 0.4, 0.0, -0.3), (0.6, 0.5, 0.0, 0.0)],  # a root of these would have no finite gradient
    ],
)
def test_gradients_are_twice_those_of_the_authors(rows):
    """Theirs are weight x (target − output)."""
    features, targets = with_boxes(*rows), targets_of([TRUTH])
    of_boxes, of_confidences, of_scores = gradients_of(features, targets)
    _, chosen = twin_losses(features, targets)
    best = chosen[0, 0, 0]
    wanted = np.zeros_like(of_boxes)
    wanted[0, 0, 0, best] = 2 * 5 * (features["cell_boxes"][0, 0, 0, best] - (0.5, 0.5, ROOT, ROOT))
    assert_close(of_boxes, wanted)
    assert_close(of_confidences[0, 0, 0, 1 - best], 2 * 0.5 * features["confidences"][0, 0, 0, 1 - best])
    assert_close(of_scores[0, 0, 0], [0, -2, 0])


def test_whatever_padding_holds_gradients_are_finite():
    assert np.isnan(SCENES["an empty image"]["boxes"][0]).all()
    for gradient in gradients_of(features_of(2), SCENES["an empty image"]):
        assert np.isfinite(gradient).all()


def twin_detections(features, threshold, nms_threshold, size=(HEIGHT, WIDTH)):
    """`[(score, label, box), …]` of one image, best first: every class of every box, suppressed greedily."""
    candidates = []
    for row, column, index in np.ndindex(*features["confidences"].shape[1:]):
        confidence = max(float(features["confidences"][0, row, column, index]), 0.0)
        (left, top, right, bottom), _ = box_of(features, 0, row, column, index)
        box = max(left, 0), max(top, 0), min(right, size[1]), min(bottom, size[0])
        if box[2] <= box[0] or box[3] <= box[1]:
            continue
        for label, score in enumerate(features["class_scores"][0, row, column]):
            if confidence * max(float(score), 0.0) > threshold:
                candidates.append((confidence * float(score), label, box))
    kept = []
    for score, label, box in sorted(candidates, key=lambda row: -row[0]):
        if all(label != other or overlap(box, theirs) <= nms_threshold for _, other, theirs in kept):
            kept.append((score, label, box))
    return kept


@pytest.mark.parametrize(("threshold", "nms_threshold"), [(0.1, 0.5), (0.3, 0.2)])
def test_detections_equal_the_twin(threshold, nms_threshold):
    features = features_of(1, scale=0.6, seed=4)
    head = head_of(score_threshold=threshold, nms_threshold=nms_threshold, num_detections=60)
    found = {name: keras.ops.convert_to_numpy(value)[0] for name, value in head.decode(features).items()}
    want = twin_detections(features, threshold, nms_threshold)
    assert len(want) > 3
    count = min(60, len(want))
    assert (found["labels"] >= 0).sum() == count
    assert found["labels"][:count].tolist() == [label for _, label, _ in want[:count]]
    assert_close(found["scores"][:count], [score for score, _, _ in want[:count]])
    assert_close(found["boxes"][:count], [box for _, _, box in want[:count]], tolerance=(1e-4, 1e-3))


def test_boxes_are_cut_to_the_valid_image_and_candidates_are_few_if_asked():
    features = features_of(1, scale=0.6, seed=4)
    size = np.array([[40, 50]])
    found = head_of(num_candidates=20).decode(features | {"image_size": size})
    boxes, labels = keras.ops.convert_to_numpy(found["boxes"])[0], keras.ops.convert_to_numpy(found["labels"])[0]
    assert 1 <= (labels >= 0).sum() <= 20
    assert (boxes <= np.array([50, 40, 50, 40])).all()


def test_two_negative_outputs_make_no_score():
    features = with_boxes((0.5, 0.5, ROOT, ROOT), (0.5, 0.5, ROOT, ROOT), confidences=(-0.9, -0.8))
    features["class_scores"] -= 0.9
    assert (keras.ops.convert_to_numpy(head_of(score_threshold=0.0).decode(features)["labels"]) == -1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid_size": 7}, "A grid of 7x7 cells does not divide an image of 64x96 .*images of 63x98, or another"),
        ({"grid_size": 0}, "grid_size is a whole number of at least 1: got 0"),
        ({"grid_size": 4.0}, "grid_size is a whole number of at least 1: got 4.0"),
        ({"boxes_per_cell": 0}, "boxes_per_cell is a whole number of at least 1: got 0"),
        ({"coordinate_weight": -1}, "at least 0: got coordinate_weight=-1"),
        ({"no_object_weight": float("nan")}, "no_object_weight=nan"),
        ({"score_threshold": 1.5}, "score_threshold lies in 0 to 1"),
        ({"num_candidates": 0}, "num_candidates must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GridHead(CLASSES, (HEIGHT, WIDTH), **({"grid_size": GRID} | options))


@pytest.mark.parametrize(
    ("box", "size", "message"),
    [
        ((90, 10, 110, 30), None, r"1 box has its centre outside .*image 1, row 0: \[90, 10, 110, 30\].*height 64 and"),
        ((-30, 10, 10, 30), None, r"image 1, row 0: \[-30, 10, 10, 30\]"),
        ((50, 20, 70, 30), (64, 50), "height 64 and width 50.*padding by the label -1"),
    ],
)
def test_boxes_outside_the_image_are_refused(box, size, message):
    targets = targets_of([(0, 0, 10, 10, 0)], [(*box, 1)])
    if size is not None:
        targets["image_size"] = np.array([(64, 96), size])
    with pytest.raises(ValueError, match=message):
        head_of().check(np.zeros((2, HEIGHT, WIDTH, 3)), targets)


def test_a_box_that_reaches_beyond_the_border_is_none_of_them():
    head_of().check(np.zeros((1, HEIGHT, WIDTH, 3)), targets_of([(80, 40, 112, 70, 0)]))


def test_chance_is_one_for_the_class_of_every_object():
    assert head_of().chance_losses(SCENES["two in one cell"]) == {"classification_loss": 1.5}
