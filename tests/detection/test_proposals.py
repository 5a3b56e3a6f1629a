"""Proposals, the network's own and given ones; torchvision's: test_detector_parity.py."""

import keras
import numpy as np
import pytest

from kvision.detection.anchors import Anchors
from kvision.detection.assigner import Assigner
from kvision.detection.proposals import GivenProposals, RegionProposals, limit_gradient, proposal_network
from kvision.ops import encode_deltas
from tests.applications.detection.rows import SHAPE
from tests.ops.differentiation import value_and_gradients
from tests.support import assert_close


def proposals_layer(**options):
    """Two levels, 192 and 48 anchors."""
    assigner = Assigner(0.7, 0.3, low_quality_matches=True, num_samples=16, positive_fraction=0.5)
    return RegionProposals(Anchors((8, 16), ((8,), (16,))), assigner, SHAPE[:2], [(8, 8), (4, 4)], **options)


def features_of(layer, boxes, logits):
    """Features by which single anchors propose these boxes, all others nothing."""
    anchors = np.concatenate(layer._anchors)
    values = np.full((1, len(anchors)), -20.0, "float32")
    deltas = np.zeros((1, len(anchors), 4), "float32")
    for (anchor, box), logit in zip(boxes.items(), logits, strict=True):
        values[0, anchor] = logit
        deltas[0, anchor] = keras.ops.convert_to_numpy(encode_deltas(np.array(box, "float32"), anchors[anchor]))
    return {"objectness_logits": values, "anchor_deltas": deltas}


def test_proposals_fall_by_objectness_are_suppressed_per_level_and_clipped():
    layer = proposals_layer(num_proposals=(3, 3))
    boxes = {30: (10, 10, 30, 30), 31: (10, 10, 30, 29), 200: (10, 10, 30, 30), 100: (40, 40, 90, 80)}
    got = keras.ops.convert_to_numpy(layer.propose(features_of(layer, boxes, [3, 5, 4, 2])))[0]
    assert_close(got, [[10, 10, 30, 29], [10, 10, 30, 30], [40, 40, 64, 64]], tolerance=(1e-4, 1e-4))


def test_in_training_proposals_end_at_the_valid_image():
    layer = proposals_layer(num_proposals=(2, 2))
    features = features_of(layer, {30: (10, 10, 60, 60), 100: (50, 50, 62, 62)}, [5, 4])
    got = keras.ops.convert_to_numpy(layer.propose(features, True, np.array([[40, 32]])))[0]
    assert_close(got[0], [10, 10, 32, 40], tolerance=(1e-4, 1e-4))
    assert (got[:, 2] <= 32).all() and (got[:, 3] <= 40).all()


def test_numbers_differ_between_training_and_inference():
    layer = proposals_layer(num_candidates=(300, 5), num_proposals=(40, 20))
    features = {
        "objectness_logits": np.random.default_rng(0).normal(size=(2, 240)).astype("float32"),
        "anchor_deltas": np.zeros((2, 240, 4), "float32"),
    }
    training, inference = (keras.ops.convert_to_numpy(layer.propose(features, mode)) for mode in (True, False))
    assert training.shape[1] == 40 and inference.shape[1] == 10  # five of either level
    assert training.any(-1).all()


def test_the_network_starts_as_the_paper_says():
    """Ren 2015, section 3.1.3."""
    maps = {level: keras.Input((8, 8, 64), name=level) for level in ("P3", "P4")}
    model = keras.Model(maps, proposal_network(maps, 3))
    for layer in ("rpn.head.conv.0.0", "rpn.head.cls_logits", "rpn.head.bbox_pred"):
        kernel = keras.ops.convert_to_numpy(model.get_layer(layer).kernel)
        assert_close(np.std(kernel), 0.01, tolerance=(0.15, 0))


@pytest.mark.parametrize("beta", [1 / 9, 0.7])
def test_losses_equal_a_twin(monkeypatch, beta):
    """Ren 2015, equation 1 as torchvision reads it: both losses over all anchors drawn, ignored ones in neither."""
    layer = proposals_layer(beta=beta)
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(1, 240)).astype("float32")
    deltas = rng.normal(size=(1, 240, 4)).astype("float32")
    targets = {"boxes": np.array([[[4, 4, 20, 20]]], "float32"), "labels": np.array([[1]], "int32")}
    anchors = np.concatenate(layer._anchors)
    seen = {}
    draw = layer.assigner.draw

    def watched(boxes, targets):
        seen["indices"], seen["sample"] = draw(boxes, targets)
        return seen["indices"], seen["sample"]

    monkeypatch.setattr(layer.assigner, "draw", watched)
    got = layer.losses({"objectness_logits": logits, "anchor_deltas": deltas}, targets)
    indices = keras.ops.convert_to_numpy(seen["indices"])[0]
    matches = keras.ops.convert_to_numpy(seen["sample"].matches)[0]
    assert 0 < (matches >= 0).sum() < len(matches) == 16
    entropy = distance = 0.0
    for index, match in zip(indices, matches, strict=True):
        p = 1 / (1 + np.exp(-logits[0, index]))
        entropy -= np.log(p if match >= 0 else 1 - p)
        if match >= 0:
            want = keras.ops.convert_to_numpy(encode_deltas(targets["boxes"][0, 0], anchors[index]))
            for error in np.abs(want - deltas[0, index]):
                distance += error**2 / 2 / beta if error < beta else error - beta / 2
    assert_close(got["rpn_objectness_loss"], entropy / 16)
    assert_close(got["rpn_box_loss"], distance / 16)


def test_given_proposals_are_cut_to_the_image_and_padding_stays_padding():
    layer = GivenProposals(SHAPE[:2])
    boxes = np.array([[[-4, 3, 80, 30], [70, 70, 90, 90], [0, 0, 0, 0]]], "float32")
    got = keras.ops.convert_to_numpy(layer.propose({"proposals": boxes}))[0]
    assert got.tolist() == [[0, 3, 64, 30], [0, 0, 0, 0], [0, 0, 0, 0]]
    got = keras.ops.convert_to_numpy(layer.propose({"proposals": boxes}, True, np.array([[20, 40]])))[0]
    assert got[0].tolist() == [0, 3, 40, 20]
    assert layer.loss_names == () and layer.losses({}, {}) == {}


def test_a_gradient_is_limited_and_the_numbers_stay():
    x = np.array([1.0, -2.0, 3.0], "float32")
    got, (gradient,) = value_and_gradients(
        lambda x: limit_gradient(x, 0.5), (x,), np.array([-2.0, 0.1, 3.0], "float32")
    )
    assert_close(got, x)
    assert_close(gradient, [-0.5, 0.1, 0.5])
