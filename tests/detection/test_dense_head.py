"""Heads shared by levels: one set of kernels, statistics of each level its own; and the decoder on made-up outputs."""

import keras
import numpy as np
import pytest

from kvision.detection.anchors import Anchors
from kvision.detection.assigner import Assigner
from kvision.detection.dense_head import DenseDecoder, DenseHead, flatten_outputs, shared_convolutions
from kvision.ops import encode_deltas
from tests.support import assert_close


def head(norm):
    levels = {level: keras.Input((size, size, 4), name=level) for level, size in (("P3", 4), ("P4", 2))}
    last = {"out": ("last", 6, 3, -2.0)}
    maps = shared_convolutions(levels, depth=2, last=last, norm=norm, initializer="he", name="head")["out"]
    return keras.Model(levels, {"maps": list(maps.values()), "rows": flatten_outputs(maps, 2)})


@pytest.mark.parametrize(("norm", "norms"), [(None, 0), ("group", 2), ("batch", 4), ("sync_batch", 4)])
def test_convolutions_are_shared_and_batch_norms_are_not(norm, norms):
    layers = head(norm).layers
    assert sum("Conv2D" in type(layer).__name__ for layer in layers) == 3
    names = [layer.name for layer in layers if "Normalization" in type(layer).__name__]
    assert len(names) == norms
    if norms == 4:
        assert sorted(names) == ["head.0.1.P3", "head.0.1.P4", "head.1.1.P3", "head.1.1.P4"]


def test_outputs_stand_in_the_order_of_the_anchors_and_start_at_the_bias():
    model = head(None)
    x = {"P3": np.ones((2, 4, 4, 4), "float32"), "P4": np.zeros((2, 2, 2, 4), "float32")}
    outputs = model(x)
    want = np.concatenate([keras.ops.convert_to_numpy(level).reshape(2, -1, 2) for level in outputs["maps"]], axis=1)
    assert_close(outputs["rows"], want)
    assert (want[:, -12:] == -2).all()


def test_separable_convolutions_have_a_bias_and_the_last_starts_at_its_own():
    levels = {level: keras.Input((size, size, 4), name=level) for level, size in (("P3", 4), ("P4", 2))}
    last = {"out": ("last", 6, 3, -2.0)}
    maps = shared_convolutions(
        levels, depth=1, last=last, norm="batch", activation="silu", initializer="he", separable=True, momentum=0.7
    )
    model = keras.Model(levels, list(maps["out"].values()))
    shapes = {weight.path: tuple(weight.shape) for weight in model.trainable_weights if "bn" not in weight.path}
    names = ("head.0.0.conv_dw", "head.0.0.conv_pw", "last.conv_dw", "last.conv_pw")
    assert {name: shapes[f"{name}/kernel"] for name in names} == {
        "head.0.0.conv_dw": (3, 3, 4, 1),
        "head.0.0.conv_pw": (1, 1, 4, 4),
        "last.conv_dw": (3, 3, 4, 1),
        "last.conv_pw": (1, 1, 4, 6),
    }
    assert {path for path in shapes if path.endswith("bias")} == {"head.0.0.conv_pw/bias", "last.conv_pw/bias"}
    assert_close(model.get_layer("last.conv_pw").bias, np.full(6, -2.0))
    assert model.get_layer("head.0.1.P4").momentum == 0.7


@pytest.mark.parametrize("norm", ["batch", "sync_batch"])
def test_it_evaluates_as_it_was_trained(norm):
    """One batch norm for all levels cannot: RetinaNet trained to a loss of 0.06 and evaluated at 35."""
    model = head(norm)
    for layer in model.layers:
        if hasattr(layer, "momentum"):
            layer.momentum = 0.5  # of few steps
    rng = np.random.default_rng(0)
    shapes = {"P3": (8, 4, 4, 4), "P4": (8, 2, 2, 4)}
    x = {level: rng.normal(scale, scale, shapes[level]) for level, scale in (("P3", 1.0), ("P4", 50.0))}
    x = {level: values.astype("float32") for level, values in x.items()}
    for _ in range(30):
        trained = model(x, training=True)["rows"]
    assert_close(model(x, training=False)["rows"], trained, tolerance=(0.05, 0.05))  # N − 1 instead of N


ANCHORS = [np.array([[0, 0, 10, 10], [20, 20, 30, 30]], "float32"), np.array([[0, 0, 10, 9]], "float32")]


def decode(decoder, logits, deltas=None):
    logits = np.array([logits], "float32")
    deltas = np.zeros((1, 3, 4), "float32") if deltas is None else deltas
    found = decoder.decode(logits, deltas, ANCHORS, (32, 32))
    return {name: keras.ops.convert_to_numpy(values)[0] for name, values in found.items()}


def test_levels_are_joined_and_suppressed_by_class():
    found = decode(DenseDecoder(num_detections=4), [[2, -9], [-9, 1], [3, 0]])
    assert found["labels"].tolist() == [0, 1, 1, -1]
    assert_close(found["scores"], [1 / (1 + np.exp(-3.0)), 1 / (1 + np.exp(-1.0)), 0.5, 0])
    assert found["boxes"].tolist() == [[0, 0, 10, 9], [20, 20, 30, 30], [0, 0, 10, 9], [0, 0, 0, 0]]


def test_only_the_best_candidates_of_each_level_go_on():
    found = decode(DenseDecoder(num_detections=4, num_candidates=1), [[2, -9], [-9, 1], [3, 0]])
    assert found["labels"].tolist() == [0, -1, -1, -1]


def test_the_best_candidates_may_be_those_of_all_levels_together():
    """The second level's best has a lower score than both of the first level's."""
    logits = [[4, -9], [-9, 3], [2, 1]]
    found = decode(DenseDecoder(num_detections=4, num_candidates=2, candidates_of="image"), logits)
    assert found["labels"].tolist() == [0, 1, -1, -1]
    assert found["boxes"][1].tolist() == [20, 20, 30, 30]
    found = decode(DenseDecoder(num_detections=4, num_candidates=2), logits)
    assert found["labels"].tolist() == [0, 1, 1, -1]


def test_a_softmax_has_the_background_first():
    logits = [[0, 0, 2], [4, 0, 0], [0, 3, 0]]
    found = decode(DenseDecoder(activation="softmax", num_detections=3), logits)
    assert found["labels"].tolist() == [0, 1, 0] or found["labels"].tolist() == [0, 1, -1]
    assert_close(found["scores"][:2], [np.exp(3) / (np.exp(3) + 2), np.exp(2) / (np.exp(2) + 2)])


def test_deltas_move_the_anchor_of_the_candidate():
    deltas = np.zeros((1, 3, 4), "float32")
    deltas[0, 1] = [2.0, 0, 0, 0]
    found = decode(DenseDecoder(delta_weights=(10, 10, 5, 5), num_detections=1), [[-9, -9], [-9, 1], [-9, -9]], deltas)
    assert_close(found["boxes"][0], [22, 20, 32, 30])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score_threshold": -0.1}, "score_threshold lies in 0 to 1"),
        ({"nms_threshold": 2}, "nms_threshold lies in 0 to 1: got 2"),
        ({"num_candidates": 0}, "num_candidates must be at least 1"),
        ({"activation": "tanh"}, "'sigmoid' or 'softmax': got 'tanh'"),
        ({"candidates_of": "all"}, "Unknown candidates_of: got 'all'.*'level', 'image'"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        DenseDecoder(**options)


BOXES = np.array([[[2, 2, 14, 14], [16, 8, 32, 32]], [[4, 4, 12, 12], [0, 0, 0, 0]], [[0] * 4] * 2], "float32")
LABELS = np.array([[1, 0], [1, -1], [-1, -1]], "int32")


def losses_of(**options):
    """Of three images, of which the last is empty; and what a twin needs."""
    anchors = Anchors((8,), ((8, 14),), ((1.0, 1.0),), rounded=False)
    head = DenseHead(2, (32, 32), [(4, 4)], anchors, Assigner(low_quality_matches="single"), DenseDecoder(), **options)
    rng = np.random.default_rng(0)
    features = {"class_logits": rng.normal(size=(3, 32, 2)), "box_deltas": rng.normal(size=(3, 32, 4))}
    features = {name: values.astype("float32") for name, values in features.items()}
    targets = {"boxes": BOXES, "labels": LABELS}
    losses = {name: float(value) for name, value in head.losses(features, targets).items()}
    (anchors,) = head._anchors
    return losses, features, anchors, keras.ops.convert_to_numpy(head.assigner.match(anchors, targets))


@pytest.mark.parametrize("skip", [False, True])
def test_losses_of_a_batch_are_divided_by_all_its_positives_and_one(skip):
    """Twin of the authors' code: Huber's loss of the mean component, 50 times; focal loss by the paper's formula."""
    losses, features, anchors, matches = losses_of(
        focal_gamma=1.5, box_beta=0.1, box_weight=50 * 0.1 / 4, positives_of="batch", skip_zero_targets=skip
    )
    focal = huber = zeros = 0.0
    for image, anchor in np.ndindex(*matches.shape):
        box = matches[image, anchor]
        for label in range(2):
            truth = box >= 0 and LABELS[image, box] == label
            p = 1 / (1 + np.exp(-features["class_logits"][image, anchor, label]))
            p, alpha = (p, 0.25) if truth else (1 - p, 0.75)
            focal -= alpha * (1 - p) ** 1.5 * np.log(p)
        if box >= 0:
            deltas = keras.ops.convert_to_numpy(encode_deltas(BOXES[image, box], anchors[anchor]))
            error = np.abs(deltas - features["box_deltas"][image, anchor])
            parts = np.where(error < 0.1, error**2 / 2, 0.1 * (error - 0.05))
            zeros += (np.abs(deltas) < 1e-6).sum()
            huber += parts[np.abs(deltas) >= 1e-6].sum() if skip else parts.sum()
    number = (matches >= 0).sum() + 1
    assert number > 3
    assert zeros > 0
    assert_close(losses["classification_loss"], focal / number, tolerance=(1e-4, 1e-5))
    assert_close(losses["box_loss"], 50 * huber / (4 * number), tolerance=(1e-4, 1e-5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"box_beta": -0.1}, "a beta of at least 0"),
        ({"box_weight": 0}, "a weight above 0"),
        ({"positives_of": "level"}, "Unknown positives_of: got 'level'"),
    ],
)
def test_bad_arguments_of_the_head(options, message):
    with pytest.raises(ValueError, match=message):
        losses_of(**options)
