"""Stages put together in every way: names of losses, weights, what is refused. Numbers: test_cascade_rcnn.py."""

import keras
import numpy as np
import pytest

from kvision.detection.anchors import Anchors
from kvision.detection.assigner import Assigner
from kvision.detection.box_branch import BoxBranch, dense_box_head
from kvision.detection.mask_branch import MaskBranch, mask_head
from kvision.detection.proposals import GivenProposals, RegionProposals
from kvision.detection.two_stage import TwoStageHead
from kvision.layers import RoIAlign
from tests.applications.detection.rows import CLASSES, SHAPE
from tests.applications.detection.test_detectors import targets_of
from tests.support import assert_close

TARGETS = targets_of([(4, 6, 30, 34, 0), (20, 20, 60, 50, 2)], [(10, 8, 42, 60, 1)])


def box_stage(number=1, shared=True, num_samples=8, threshold=0.5):
    pooling = RoIAlign(2, spatial_scale=1 / 16)
    head = dense_box_head((2, 2, 4), CLASSES, units=8, shared=shared, prefix=f"stage{number}")
    assigner = Assigner(threshold, num_samples=num_samples, name=f"assigner_{number}")
    return BoxBranch(CLASSES, SHAPE[:2], ("C4",), pooling, head, assigner, num_detections=4, score_threshold=0.0)


def mask_stage(number=1):
    pooling, prefix = RoIAlign(14, spatial_scale=1 / 16), f"stage{number}"
    return MaskBranch(CLASSES, ("C4",), pooling, mask_head(4, width=4, prefix=prefix), num_samples=4, prefix=prefix)


def region_proposals():
    assigner = Assigner(0.7, 0.3, low_quality_matches=True, num_samples=16, positive_fraction=0.5, name="anchors")
    return RegionProposals(Anchors((16,), ((32,),)), assigner, SHAPE[:2], [(4, 4)], (20, 10), (10, 5), name="rpn")


def features():
    rng = np.random.default_rng(0)
    return {
        "C4": rng.normal(size=(2, 4, 4, 4)).astype("float32"),
        "objectness_logits": rng.normal(size=(2, 48)).astype("float32"),
        "anchor_deltas": np.zeros((2, 48, 4), "float32"),
        "proposals": np.concatenate([TARGETS["boxes"][:, :2] + 2, np.zeros((2, 3, 4), "float32")], axis=1),
    }


def with_masks():
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]] + 0.5
    left, top, right, bottom = (TARGETS["boxes"][..., side, None, None] for side in range(4))
    inside = (columns > left) & (columns < right) & (rows > top) & (rows < bottom)
    return TARGETS | {"masks": inside.astype("uint8")}


RPN = ("rpn_objectness_loss", "rpn_box_loss")
BOX = ("classification_loss", "box_loss")
HEADS = {
    "fast": (lambda: TwoStageHead(GivenProposals(SHAPE[:2]), [box_stage(shared=False)]), BOX),
    "fast with masks": (
        lambda: TwoStageHead(GivenProposals(SHAPE[:2]), [box_stage()], [mask_stage()]),
        (*BOX, "mask_loss"),
    ),
    "faster": (lambda: TwoStageHead(region_proposals(), [box_stage(shared=False)]), (*RPN, *BOX)),
    "cascade of given": (
        lambda: TwoStageHead(
            GivenProposals(SHAPE[:2]), [box_stage(1), box_stage(2, num_samples=None, threshold=0.6)], (), (1.0, 0.5)
        ),
        ("classification_loss_1", "box_loss_1", "classification_loss_2", "box_loss_2"),
    ),
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind != "fast with masks")) for kind in HEADS]
)
def test_its_losses_are_named_by_its_parts_and_it_is_saved(kind):
    build, names = HEADS[kind]
    head = build()
    assert head.loss_names == names
    head.check(features(), with_masks())
    losses = head.losses(features(), with_masks(), training=True)
    assert tuple(losses) == names
    assert all(np.isfinite(float(loss)) and float(loss) >= 0 for loss in losses.values())
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(head))
    assert [weight.path for weight in copy.weights] == [weight.path for weight in head.weights]
    assert copy.get_config() == head.get_config()
    for ours, theirs in zip(copy.weights, head.weights, strict=True):
        ours.assign(theirs)
    found, want = (each.decode(features()) for each in (copy, head))
    assert set(found) == set(want) == {"boxes", "scores", "labels"} | ({"box_masks"} if "masks" in kind else set())
    for name in want:
        assert_close(found[name], want[name])


def test_stage_weights_multiply_the_losses_of_their_stage(monkeypatch):
    build, names = HEADS["cascade of given"]
    weighted = build()
    plain = TwoStageHead(weighted.proposals, weighted.box_stages)
    assigner = weighted.box_stages[0].assigner
    sample = assigner.draw_with_targets(features()["proposals"], TARGETS)
    monkeypatch.setattr(assigner, "draw_with_targets", lambda *_: sample)
    got, want = (head.losses(features(), TARGETS, training=False) for head in (weighted, plain))
    for name in names:
        assert_close(got[name], float(want[name]) * (0.5 if name.endswith("_2") else 1.0))
        assert float(want[name]) > 0


def test_a_region_that_leaves_the_image_trains_no_later_stage(monkeypatch):
    """It has no area left to be cut out: as background it would teach what lies at the border of the image."""
    head = HEADS["cascade of given"][0]()
    first, second = head.box_stages
    samples = {}
    for stage in head.box_stages:

        def losses(logits, deltas, sample, targets, stage=stage):
            samples[stage.name] = keras.tree.map_structure(keras.ops.convert_to_numpy, tuple(sample))
            return dict.fromkeys(BOX, 0.0)

        monkeypatch.setattr(stage, "losses", losses)
    deltas = np.zeros((2, 8, 1, 4), "float32")
    deltas[:, 0, :, 0] = 10.0 * 100  # a hundred widths to the right
    for stage in head.box_stages:
        monkeypatch.setattr(stage, "predict", lambda *_: (None, deltas))
    head.losses(features(), TARGETS, training=True)
    (_, _, before), (boxes, _, after) = samples[first.name], samples[second.name]
    assert before[:, :2].all()
    assert (boxes[:, 0, 2] - boxes[:, 0, 0] == 0).all()
    assert not after[:, 0].any()
    assert np.array_equal(after[:, 1:], before[:, 1:])


def test_thresholds_are_those_of_the_last_stage():
    head = HEADS["cascade of given"][0]()
    head.score_threshold, head.num_detections = 0.9, 2
    assert head.box_stages[-1].score_threshold == 0.9
    assert head.score_threshold == 0.9
    assert head.decode(features())["scores"].shape == (2, 2)
    assert not keras.ops.convert_to_numpy(head.decode(features())["scores"]).any()
    assert head.num_changes == 2


def test_an_option_of_a_part_is_not_taken_by_the_whole():
    head = HEADS["fast"][0]()
    with pytest.raises(ValueError, match="no option 'matching_iou_threshold'; its part assigner_1 has: set it there"):
        head.matching_iou_threshold = 0.6


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: TwoStageHead(region_proposals(), []),
            "first stage of TwoStageHead needs an Assigner with num_samples",
        ),
        (lambda: TwoStageHead(region_proposals(), [box_stage(num_samples=None)]), "as it draws the sample"),
        (
            lambda: TwoStageHead(region_proposals(), [box_stage()], [mask_stage()] * 2),
            "1 box stages, but 2 mask_stages",
        ),
        (lambda: TwoStageHead(region_proposals(), [box_stage()], (), (1, 2)), "1 box stages, but 2 stage_weights"),
        (lambda: TwoStageHead(region_proposals(), [box_stage(), box_stage(2, shared=False)]), "with shared=True"),
    ],
)
def test_stages_that_do_not_fit_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_it_checks_what_its_parts_need():
    head = HEADS["fast with masks"][0]()
    with pytest.raises(ValueError, match=r"masks.*got \['boxes', 'crowd', 'labels'\]"):
        head.check(features(), TARGETS)
    with pytest.raises(ValueError, match="looks at given regions"):
        head.check({"images": np.zeros((2, *SHAPE))}, with_masks())


@pytest.mark.tensorflow_only
def test_no_gradient_flows_from_a_stage_to_the_one_before():
    """Not through the boxes that are its regions, nor as what its targets are relative to."""
    import tensorflow as tf

    head = HEADS["cascade of given"][0]()
    with tf.GradientTape() as tape:
        losses = head.losses(features(), TARGETS, training=True)
        total = losses["classification_loss_2"] + losses["box_loss_2"]
    first, second = ([weight.value for weight in stage.trainable_weights] for stage in head.box_stages)
    gradients = tape.gradient(total, [first, second])
    assert gradients[0] == [None] * len(first)
    assert all(gradient is not None for gradient in gradients[1])
