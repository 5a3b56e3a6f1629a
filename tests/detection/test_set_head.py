"""Set prediction: matching against scipy, losses against a NumPy twin, decoding, padding, what is refused."""

import keras
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from kvision.detection.set_head import SetHead
from kvision.part import Part
from tests.support import assert_close

LAYERS, BATCH, QUERIES, CLASSES, SIZE = 3, 4, 6, 3, (64, 96)
IMAGE_SIZE = np.array([(64, 96), (40, 60), (64, 50), (33, 96)], "int32")


@keras.saving.register_keras_serializable("test")
class Given(Part):
    """A network whose predictions are given as features."""

    def __init__(self, num_queries=QUERIES, map_size=(4, 6), **options):
        super().__init__(**options)
        self.num_queries = num_queries
        self.map_size = map_size
        self.seen = None
        self.complete()

    def predict(self, features, valid_size=None, training=False, return_weights=False):
        self.__dict__["seen"] = valid_size
        found = {name: keras.ops.convert_to_tensor(features[name]) for name in ("class_logits", "boxes_cxcywh")}
        return found | ({"attention": keras.ops.convert_to_tensor(features["attention"])} if return_weights else {})


def head(**options):
    return SetHead(Given(), CLASSES, SIZE, **options)


def features(seed=0):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0.1, 0.9, (LAYERS, BATCH, QUERIES, 2))
    return {
        "class_logits": rng.normal(0, 2, (LAYERS, BATCH, QUERIES, CLASSES + 1)).astype("float32"),
        "boxes_cxcywh": np.concatenate([corners, rng.uniform(0.05, 0.6, corners.shape)], -1).astype("float32"),
        "attention": rng.uniform(0, 1, (BATCH, QUERIES, 4, 6)).astype("float32"),
    }


def targets():
    """Three objects; none; as many as there are queries, with padding in between; a crowd and an object."""
    boxes, labels = np.zeros((BATCH, 8, 4), "float32"), np.full((BATCH, 8), -1, "int32")
    rng = np.random.default_rng(1)
    for image, rows in enumerate(((0, 1, 2), (), (0, 2, 3, 5, 6, 7), (1, 4))):
        height, width = IMAGE_SIZE[image]
        for row in rows:
            left, top = rng.uniform(0, (width - 12, height - 12))
            boxes[image, row] = left, top, *rng.uniform((left + 4, top + 4), (width, height))
            labels[image, row] = row % CLASSES
    crowd = np.zeros_like(labels)
    crowd[3, 1] = 1
    return {"boxes": boxes, "labels": labels, "crowd": crowd, "image_size": IMAGE_SIZE}


def xyxy(boxes):
    return np.concatenate([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)


def giou(one, other):
    """Of all pairs, by the definition."""
    one, other = xyxy(one)[:, None], xyxy(other)[None]
    sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    hull = np.maximum(one[..., 2:], other[..., 2:]) - np.minimum(one[..., :2], other[..., :2])
    intersection = np.prod(np.maximum(sides, 0), -1)
    area = [np.prod(boxes[..., 2:] - boxes[..., :2], -1) for boxes in (one, other)]
    union = area[0] + area[1] - intersection
    return intersection / union - (np.prod(hull, -1) - union) / np.prod(hull, -1)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def twin(found, wanted, no_object_weight=0.1, class_cost=1, box_cost=5, giou_cost=2):
    """Losses by layer, weighed, and the costs of the assignments, one image after the other."""
    results, costs = [], []
    for logits, boxes in zip(found["class_logits"].astype(float), found["boxes_cxcywh"].astype(float), strict=True):
        entropy = weight = error = apart = number = 0
        for image in range(BATCH):
            real = (wanted["labels"][image] >= 0) & (wanted["crowd"][image] == 0)
            height, width = wanted["image_size"][image]
            box = wanted["boxes"][image, real] / [width, height, width, height]
            box = np.concatenate([(box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2]], -1)
            label, probability = wanted["labels"][image, real], softmax(logits[image])
            distance = np.abs(boxes[image][:, None] - box).sum(-1)
            overlap = giou(boxes[image], box)
            cost = box_cost * distance - class_cost * probability[:, label] - giou_cost * overlap
            queries, rows = linear_sum_assignment(cost)
            costs.append(cost[queries, rows].sum())
            classes = np.full(QUERIES, CLASSES)
            classes[queries] = label[rows]
            weights = np.where(classes == CLASSES, no_object_weight, 1.0)
            entropy -= (weights * np.log(probability[np.arange(QUERIES), classes])).sum()
            weight += weights.sum()
            error += distance[queries, rows].sum()
            apart += (1 - overlap[queries, rows]).sum()
            number += len(label)
        results.append((entropy / weight, 5 * error / max(number, 1), 2 * apart / max(number, 1)))
    names = ("classification_loss", "box_loss", "giou_loss")
    return dict(zip(names, np.transpose(results), strict=True)), np.reshape(costs, (LAYERS, BATCH))


@pytest.mark.parametrize("options", [{}, {"no_object_weight": 1.0, "class_cost": 3.0, "box_cost": 1.0}], ids=str)
def test_losses_equal_the_twin(options):
    want, _ = twin(features(), targets(), **options)
    part = head(**options)
    got = part.layer_losses(part.predict(features()), targets(), IMAGE_SIZE)
    for name, values in want.items():
        assert_close(got[name], values)
    losses = part.losses(features(), targets())
    assert tuple(losses) == part.loss_names
    for name, values in want.items():
        assert_close(losses[name], values[-1])
    assert_close(losses["auxiliary_loss"], sum(values[:-1].sum() for values in want.values()))


def test_without_auxiliary_losses_the_last_layer_alone_counts():
    part = head(auxiliary_losses=False)
    losses = part.losses(features(), targets())
    assert tuple(losses) == part.loss_names == ("classification_loss", "box_loss", "giou_loss")
    whole = head().losses(features(), targets())
    for name, value in losses.items():
        assert_close(value, whole[name])


def test_the_assignment_costs_what_scipys_costs():
    part, wanted = head(), targets()
    found = part.predict(features(3))
    labels, boxes = part._relative_targets(wanted, IMAGE_SIZE)
    cost = keras.ops.convert_to_numpy(part.cost(found, labels, boxes))
    queries = keras.ops.convert_to_numpy(part.assign(found, labels, boxes))
    _, want = twin(features(3), wanted)
    for layer in range(LAYERS):
        for image in range(BATCH):
            rows = np.flatnonzero(queries[layer, image] >= 0)
            assert (rows == np.flatnonzero((wanted["labels"][image] >= 0) & (wanted["crowd"][image] == 0))).all()
            taken = queries[layer, image, rows]
            assert len(set(taken)) == len(taken)
            assert_close(cost[layer, image, taken, rows].sum(), want[layer, image])


def test_the_order_of_queries_and_of_targets_does_not_matter():
    part, order, rows = head(), [4, 2, 0, 5, 1, 3], [7, 0, 3, 1, 2, 6, 5, 4]
    shuffled = {name: values[:, :, order] for name, values in features().items() if name != "attention"}
    wanted = {name: values if name == "image_size" else values[:, rows] for name, values in targets().items()}
    for value, other in zip(
        part.losses(features(), targets()).values(), part.losses(shuffled, wanted).values(), strict=True
    ):
        assert_close(value, other)


def test_a_perfect_prediction_costs_nothing():
    part, wanted = head(), targets()
    labels, boxes = part._relative_targets(wanted, IMAGE_SIZE)
    labels, boxes = map(keras.ops.convert_to_numpy, (labels, boxes))
    logits = np.zeros((1, BATCH, QUERIES, CLASSES + 1), "float32")
    predicted = np.full((1, BATCH, QUERIES, 4), 0.5, "float32")
    for image in range(BATCH):
        real = np.flatnonzero(labels[image] >= 0)
        classes = np.append(labels[image, real], np.full(QUERIES - len(real), CLASSES))
        logits[0, image, np.arange(QUERIES), classes] = 50.0
        predicted[0, image, : len(real)] = boxes[image, real]
    losses = part.losses({"class_logits": logits, "boxes_cxcywh": predicted}, wanted)
    assert_close(list(losses.values()), [0.0] * 4)


def test_more_boxes_than_queries_are_refused_with_both_numbers():
    wanted = targets()
    wanted["labels"][2] = 1
    with pytest.raises(ValueError, match=r"image 2 has 8 boxes, and 6 queries.*num_queries of at least 8"):
        head().check(None, wanted)
    wanted["crowd"][2, :2] = 1  # which are nobody's
    head().check(None, wanted)


def test_cells_are_padding_where_their_first_pixel_is():
    part = head()
    part.predict(features(), np.array([(64, 96), (48, 33), (49, 32), (1, 1)]))
    assert keras.ops.convert_to_numpy(part.network.seen).tolist() == [[4, 6], [3, 3], [4, 2], [1, 1]]
    part.predict(features())
    assert part.network.seen is None


def test_detections_are_all_queries_by_falling_score():
    found = features()
    detections = head(attention_maps=True).decode(found | {"image_size": IMAGE_SIZE})
    detections = {name: keras.ops.convert_to_numpy(value) for name, value in detections.items()}
    scores = softmax(found["class_logits"][-1])[..., :-1]
    order = np.argsort(-scores.max(-1), axis=1)
    assert_close(detections["scores"], np.take_along_axis(scores.max(-1), order, 1))
    assert (detections["labels"] == np.take_along_axis(scores.argmax(-1), order, 1)).all()
    limits = np.tile(IMAGE_SIZE[:, None, ::-1], (1, 1, 2))
    boxes = np.clip(xyxy(found["boxes_cxcywh"][-1]) * limits, 0, limits)
    assert_close(detections["boxes"], np.take_along_axis(boxes, order[..., None], 1), tolerance=(1e-5, 1e-3))  # pixels
    assert_close(detections["attention_maps"], np.take_along_axis(found["attention"], order[..., None, None], 1))


def test_a_threshold_leaves_padding():
    detections = head(score_threshold=0.5, attention_maps=True).decode(features())
    scores = keras.ops.convert_to_numpy(detections["scores"])
    padding = scores == 0
    assert padding.any() and not padding.all()
    assert (scores[~padding] > 0.5).all()
    assert (keras.ops.convert_to_numpy(detections["labels"])[padding] == -1).all()
    for name in ("boxes", "attention_maps"):
        assert (keras.ops.convert_to_numpy(detections[name])[padding] == 0).all()


BAD = {
    "negative weight": {"box_weight": -1.0},
    "no costs": {"class_cost": 0, "box_cost": 0, "giou_cost": 0},
    "not finite": {"no_object_weight": float("nan")},
    "threshold": {"score_threshold": 1.5},
}


@pytest.mark.parametrize("options", BAD.values(), ids=list(BAD))
def test_refuses_numbers_that_train_nothing(options):
    with pytest.raises(ValueError, match="costs are finite numbers|score_threshold lies in"):
        head(**options)


def test_options_come_back_from_the_config():
    part = head(no_object_weight=0.3, giou_weight=1.0, attention_maps=True)
    again = SetHead.from_config(part.get_config())
    assert (again.no_object_weight, again.giou_weight, again.attention_maps, again.classes) == (0.3, 1.0, True, CLASSES)
    assert part.chance_losses(None) == {"classification_loss": pytest.approx(np.log(CLASSES + 1))}
