"""The head of a multi-task network cascade: twins of its parts, and the gradient from the classes to the boxes."""

import functools

import keras
import numpy as np
import PIL.Image
import pytest

from kvision.detection.anchors import Anchors
from kvision.detection.assigner import Assigner, Sample
from kvision.detection.network_cascade import (
    MASK_THRESHOLD,
    NetworkCascadeHead,
    dense_mask_head,
    joint_class_head,
    mask_loss,
    mask_overlaps,
    masked_features,
)
from kvision.detection.proposals import GivenProposals, RegionProposals
from kvision.layers import RoIWarp
from kvision.ops import iou_xyxy, operations_for, sample_balanced, vote_masks
from tests.applications.detection.rows import CLASSES, SHAPE
from tests.applications.detection.test_detectors import targets_of
from tests.ops.differentiation import value_and_gradients
from tests.support import SLOW, assert_close

BOXES = [(4, 6, 32, 34, 0), (20, 20, 48, 62, 2)], [(8, 4, 36, 60, 1)]
CHANNELS = 4
RNG = np.random.default_rng(0)


def cascade(stages=3, proposals=None, assigner=None, **options):
    shape = (14, 14, CHANNELS)
    return NetworkCascadeHead(
        proposals or GivenProposals(SHAPE[:2], name="proposals"),
        assigner or Assigner(num_samples=8, positive_fraction=0.5),
        CLASSES,
        SHAPE[:2],
        "C4",
        RoIWarp(14, spatial_scale=1 / 16),
        dense_mask_head(shape, 28, units=8),
        joint_class_head(shape, CLASSES, units=8, box=stages == 5),
        stages=stages,
        **options,
    )


def all_drawn(count):
    """An assigner whose sample is all there is: the same loss each time."""
    return Assigner(num_samples=count, positive_fraction=1.0)


@pytest.fixture
def drawn_in_order(monkeypatch):
    """No random numbers, whose state JAX would trace."""

    def in_order(matches, num_samples, positive_fraction, seed=None):
        keys = keras.ops.broadcast_to(keras.ops.linspace(0.0, 0.999, matches.shape[1]), keras.ops.shape(matches))
        return sample_balanced(matches, num_samples, positive_fraction, keys=keys)

    monkeypatch.setattr("kvision.detection.assigner.sample_balanced", in_order)


def features():
    rng = np.random.default_rng(1)
    given = np.zeros((2, 6, 4), "float32")
    given[:, :2] = targets_with_masks()["boxes"][:, :2] + np.array([1.3, -1.2, 2.1, 0.7], "float32")
    given[:, 2:4] = [[3.1, 2.2, 40.7, 50.9], [30.2, 1.1, 62.3, 20.7]]
    return {"C4": rng.normal(size=(2, 4, 4, CHANNELS)).astype("float32"), "proposals": given}


@functools.cache
def targets_with_masks():
    """A disc in every box."""
    targets = targets_of(*BOXES)
    targets = {name: values[:, :3] for name, values in targets.items()}
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]] + 0.5
    left, top, right, bottom = (targets["boxes"][..., side, None, None] for side in range(4))
    width, height = np.maximum(right - left, 1), np.maximum(bottom - top, 1)
    inside = ((2 * columns - left - right) / width) ** 2 + ((2 * rows - top - bottom) / height) ** 2 < 1
    return targets | {"masks": inside.astype("uint8")}


def numpy(tensors):
    return keras.tree.map_structure(keras.ops.convert_to_numpy, tensors)


@pytest.mark.parametrize("size", [28, 21])
def test_masked_features_are_regions_times_the_mask_as_pillow_resizes_it(size):
    regions = RNG.normal(size=(3, 14, 14, CHANNELS)).astype("float32")
    masks = RNG.uniform(size=(3, size, size)).astype("float32")
    small = [np.asarray(PIL.Image.fromarray(mask).resize((14, 14), PIL.Image.Resampling.BILINEAR)) for mask in masks]
    assert_close(masked_features(regions, masks), regions * np.stack(small)[..., None])


def test_the_type_of_masked_features_is_that_of_the_regions():
    masked = masked_features(keras.ops.ones((1, 14, 14, 2), "bfloat16"), keras.ops.ones((1, 28, 28)))
    assert keras.backend.standardize_dtype(masked.dtype) == "bfloat16"


def rows_of_masks():
    logits = RNG.normal(size=(2, 3, 7, 7)).astype("float32") * 3
    inside = RNG.uniform(size=(2, 3, 7, 7)).astype("float32")
    return logits, inside, np.array([[True, False, True], [False, True, False]])


def test_the_loss_of_masks_is_the_mean_over_the_positives():
    logits, inside, positive = rows_of_masks()
    scores = 1 / (1 + np.exp(-logits.astype("float64")))
    entropy = -(inside * np.log(scores) + (1 - inside) * np.log(1 - scores))
    assert_close(mask_loss(logits, inside, positive), entropy[positive].mean())
    assert float(mask_loss(logits, inside, np.zeros_like(positive))) == 0.0


@pytest.mark.parity
def test_the_loss_of_masks_equals_torchs():
    import torch

    logits, inside, positive = rows_of_masks()
    want = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.from_numpy(logits[positive]), torch.from_numpy(inside[positive])
    )
    assert_close(mask_loss(logits, inside, positive), want)


def test_the_overlap_of_masks_is_that_of_their_pixels():
    """Boxes whose cells are one or two whole pixels; what of the true mask lies outside counts in the union."""
    head, targets = cascade(), targets_with_masks()
    boxes = np.array([[[6, 2, 34, 58], [20, 24, 48, 52]], [[4, 4, 60, 60], [0, 0, 28, 28]]], "float32")
    matches = np.array([[0, 1], [0, 0]], "int32")
    scores = RNG.uniform(size=(2, 2, 28, 28)).astype("float32")
    scores[0, 0] = np.mgrid[:28, :28][0] < 14
    want, inside = np.zeros((2, 2)), np.zeros((2, 2, 28, 28), "float32")
    for image, row in np.ndindex(2, 2):
        left, top, right, bottom = boxes[image, row].astype(int)
        whole = targets["masks"][image, matches[image, row]].astype(bool)
        down, across = (bottom - top) // 28, (right - left) // 28
        cells = whole[top:bottom, left:right].reshape(28, down, 28, across)
        inside[image, row] = cells.mean(axis=(1, 3))
        estimated = np.zeros_like(whole)
        estimated[top:bottom, left:right] = np.kron(scores[image, row] >= MASK_THRESHOLD, np.ones((down, across)))
        want[image, row] = (estimated & whole).sum() / (estimated | whole).sum()
    areas = numpy(head._mask_areas(targets))
    pixels = targets["masks"].sum(axis=(2, 3))
    assert_close(areas, pixels, tolerance=(2e-2, 0))  # read between pixels where bins are no whole ones
    got = mask_overlaps(scores, inside, boxes, np.take_along_axis(pixels, matches, axis=1).astype("float32"))
    assert_close(got, want)
    assert want.min() > 0.1


def test_a_positive_box_with_a_poor_mask_is_background_for_the_classes_of_masks_alone():
    """Section 6: two classifications, of which that of boxes trains while masks are poor."""
    head, targets = cascade(stages=5), targets_with_masks()
    boxes = np.concatenate([targets["boxes"][:, :2], features()["proposals"][:, 2:4]], axis=1)
    sample = Sample(
        boxes, np.array([[0, 1, -1, -1], [0, 0, -1, -1]], "int32"), np.array([[True] * 4, [True, False] * 2])
    )
    inside = targets["masks"][:, :2]
    good = np.array([[True, False, False, False], [True, False, False, False]])
    disc = (np.mgrid[:28, :28][0] - 13.5) ** 2 + (np.mgrid[:28, :28][1] - 13.5) ** 2 < 14**2
    outputs = {
        "mask_logits": np.where(good[..., None, None] == disc, 9.0, -9.0).astype("float32"),  # a hole where not good
        "class_logits": RNG.normal(size=(2, 4, CLASSES + 1)).astype("float32"),
        "box_class_logits": RNG.normal(size=(2, 4, CLASSES + 1)).astype("float32"),
        "box_deltas": RNG.normal(size=(2, 4, CLASSES + 1, 4)).astype("float32"),
    }
    losses = numpy(head._pass_losses(outputs, sample, targets, head._mask_areas(targets)))
    labels = np.array([[1, 3, 0, 0], [2, 0, 0, 0]])
    for kind, wanted in (("class_logits", np.where(good, labels, 0)), ("box_class_logits", labels)):
        logits = outputs[kind].astype("float64")
        entropy = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, wanted[..., None], -1)[..., 0]
        name = kind.replace("class_logits", "classification_loss")
        assert_close(losses[name], entropy[sample.drawn].mean())
    deltas = np.take_along_axis(outputs["box_deltas"], labels[..., None, None], axis=2)[:, :, 0]
    error = np.abs(deltas[np.asarray(sample.positive) & (boxes == targets["boxes"][:, [0, 1, 0, 0]]).all(-1)])
    assert len(error) == 3  # their boxes are the targets' own: a delta of 0
    assert_close(losses["box_loss"], np.where(error < 1, error**2 / 2, error - 0.5).sum() / sample.drawn.sum())
    assert inside.any()


def proposing(box_gradient=True):
    assigner = Assigner(0.7, 0.3, low_quality_matches=True, num_samples=16, positive_fraction=0.5, name="anchors")
    anchors = Anchors((16,), ((22, 30),), (0.8, 1.4))
    return RegionProposals(anchors, assigner, SHAPE[:2], [(4, 4)], box_gradient=box_gradient, name="rpn")


def proposing_features():
    rng = np.random.default_rng(2)
    return {
        "C4": rng.normal(size=(2, 4, 4, CHANNELS)).astype("float32") * 3,
        "objectness_logits": rng.normal(size=(2, 64)).astype("float32"),
        "anchor_deltas": rng.normal(size=(2, 64, 4)).astype("float32") * 0.1,
    }


@pytest.mark.parametrize("box_gradient", [True, False])
def test_the_gradient_of_stage_three_reaches_the_boxes_of_stage_one(box_gradient, drawn_in_order):
    """What the classes cost changes with the deltas of the anchors as the gradient says; without it, not at all."""
    head = cascade(proposals=proposing(box_gradient), assigner=all_drawn(64))
    for weight in head.class_head.weights:  # scores that depend on the region
        weight.assign(np.random.default_rng(3).normal(0, 0.15, weight.shape))
    given, targets = proposing_features(), targets_with_masks()

    def loss(deltas):
        return head.losses(given | {"anchor_deltas": deltas}, targets, training=True)["classification_loss"]

    deltas = given["anchor_deltas"]
    _, (gradient,) = value_and_gradients(loss, (deltas,), np.float32(1.0))
    if not box_gradient:
        assert gradient is None or not numpy(gradient).any()
        return
    gradient = numpy(gradient)
    assert np.isfinite(gradient).all()
    assert (gradient != 0).any(axis=(1, 2)).all()  # in either image
    steepest = np.abs(gradient) >= np.sort(np.abs(gradient), axis=None)[-6]
    step = 3e-4 * np.sign(gradient) * steepest  # smaller than what would let another proposal survive suppression
    change = float(loss(deltas + step)) - float(loss(deltas - step))
    assert_close(change, 2 * (gradient * step).sum(), tolerance=(3e-2, 0))  # kinks of the interpolation lie between


def test_the_second_pass_has_a_gradient_for_the_boxes_it_is_given():
    head = cascade(stages=5)
    given = features()
    boxes = given["proposals"][:, [0, 2, 3]]  # with centres of cells inside
    outputs = numpy(head.predict(given, boxes))
    assert outputs["box_deltas"].shape == (2, 3, CLASSES + 1, 4)

    def loss(deltas):
        moved = head.refine(outputs | {"box_deltas": deltas}, boxes)
        return keras.ops.sum(head.predict(given, moved)["class_logits"])

    _, (gradient,) = value_and_gradients(loss, (outputs["box_deltas"],), np.float32(1.0))
    moved = numpy(gradient).any(axis=-1)
    best = outputs["class_logits"][..., 1:].argmax(-1) + 1
    assert (moved == (np.arange(CLASSES + 1) == best[..., None])).all()  # those of the best class alone


@SLOW
def test_stage_four_sees_the_boxes_that_stage_three_moved(monkeypatch):
    head, given, targets = cascade(stages=5, assigner=all_drawn(9)), features(), targets_with_masks()
    seen = []
    predict = head.predict

    def watched(features, boxes, training=False):
        seen.append((numpy(boxes), outputs := predict(features, boxes, training)))
        return outputs

    monkeypatch.setattr(head, "predict", watched)
    losses = head.losses(given, targets, training=True)
    assert tuple(losses) == head.loss_names
    assert {name[-2:] for name in losses} == {"_1", "_2"}
    (before, outputs), (after, _) = seen
    real = (before[..., 2] > before[..., 0]) & (before[..., 3] > before[..., 1])
    assert real.any() and not after[~real].any()
    deltas = numpy(outputs["box_deltas"]) / np.array([10, 10, 5, 5])
    best = numpy(outputs["class_logits"])[..., 1:].argmax(-1) + 1
    moves = np.take_along_axis(deltas, best[..., None, None], axis=2)[:, :, 0]
    sides, centre = before[..., 2:] - before[..., :2], (before[..., 2:] + before[..., :2]) / 2
    centre, sides = centre + moves[..., :2] * sides, sides * np.exp(moves[..., 2:])
    want = np.clip(np.concatenate([centre - sides / 2, centre + sides / 2], axis=-1), 0, 64)
    assert_close(after[real], want[real], tolerance=(1e-4, 1e-4))
    assert np.abs(after - before).max() > 1e-4


def test_detections_are_suppressed_by_class_and_keep_their_own_masks():
    head = cascade(score_threshold=0.2, nms_threshold=0.3, num_detections=6, voting_iou_threshold=None)
    rng = np.random.default_rng(5)
    corner = rng.uniform(0, 12, (2, 9, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(8, 30, (2, 9, 2))], axis=-1).astype("float32")
    boxes[1, 8] = 0
    scores = rng.dirichlet(np.ones(CLASSES + 1) / 2, (2, 9))[..., 1:].astype("float32")
    masks = rng.uniform(size=(2, 9, 28, 28)).astype("float32")
    found = numpy(head.select(boxes, scores, masks))
    for image in range(2):
        overlaps = numpy(iou_xyxy(boxes[image], boxes[image]))
        candidates = [
            (score, region, label)
            for (region, label), score in np.ndenumerate(scores[image])
            if score > 0.2 and boxes[image, region].any()
        ]
        kept = []
        for score, region, label in sorted(candidates, reverse=True):
            if all(other != label or overlaps[region, before] <= 0.3 for _, before, other in kept):
                kept.append((score, region, label))
        assert 1 < len(kept) < len(candidates)
        kept = kept[:6]
        padding = 6 - len(kept)
        assert found["labels"][image].tolist() == [label for *_, label in kept] + [-1] * padding
        assert_close(found["scores"][image], [score for score, *_ in kept] + [0.0] * padding)
        regions = [region for _, region, _ in kept]
        assert_close(found["boxes"][image, : len(kept)], boxes[image, regions])
        assert_close(found["box_masks"][image, : len(kept)], masks[image, regions])
        assert not found["box_masks"][image, len(kept) :].any()


def test_by_default_all_regions_vote_on_the_masks_of_detections():
    head, rng = cascade(score_threshold=0.1, num_detections=6), np.random.default_rng(6)
    corner = rng.uniform(0, 12, (2, 9, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(20, 30, (2, 9, 2))], axis=-1).astype("float32")
    scores = rng.dirichlet(np.ones(CLASSES + 1), (2, 9))[..., 1:].astype("float32")
    masks = rng.uniform(size=(2, 9, 28, 28)).astype("float32")
    found = numpy(head.select(boxes, scores, masks))
    assert_close(found["box_masks"], vote_masks(found["boxes"], found["labels"], boxes, masks, scores, 0.5))
    assert found["box_masks"][:, 0].std() < 0.8 * masks.std()  # a mean of several


@pytest.mark.tensorflow_only
def test_no_operation_is_asked_of_other_runtimes_that_they_lack():
    """Lists of tensors of phones, the bits of floats of ONNX; the whole files take 10 and 20 s a network."""
    import tensorflow as tf

    head, given = cascade(stages=5), features()
    with operations_for("litert"):
        graph = tf.function(lambda: head.decode(given)).get_concrete_function().graph.as_graph_def()
    kinds = {node.op for node in graph.node} | {node.op for part in graph.library.function for node in part.node_def}
    assert "While" in kinds or "StatelessWhile" in kinds
    assert not {kind for kind in kinds if kind.startswith("TensorList") or kind == "Bitcast"}


@pytest.mark.parametrize("kind", ["masks", "box_masks"])
def test_masks_relative_to_boxes_train_towards_the_same(kind):
    head, targets = cascade(assigner=all_drawn(9)), targets_with_masks()
    if kind == "box_masks":
        disc = (np.mgrid[:112, :112][0] - 55.5) ** 2 + (np.mgrid[:112, :112][1] - 55.5) ** 2 < 56**2
        real = (targets["labels"] >= 0)[..., None, None]
        targets = {name: values for name, values in targets.items() if name != "masks"}
        targets["box_masks"] = (real * disc).astype("uint8")
    areas = numpy(head._mask_areas(targets))
    real = targets["labels"] >= 0
    sides = targets["boxes"][..., 2:] - targets["boxes"][..., :2]
    assert_close(areas[real], (np.pi / 4 * sides.prod(-1))[real], tolerance=(0.02, 0))  # discs of pixels
    assert not areas[~real].any()


def test_what_does_not_fit_is_refused():
    shape = (14, 14, CHANNELS)
    with pytest.raises(ValueError, match=r"stages is 3 .* or 5 .*got 4"):
        cascade(stages=4)
    with pytest.raises(ValueError, match="needs an Assigner with num_samples"):
        cascade(assigner=Assigner())
    with pytest.raises(ValueError, match=r"matching_mask_iou lies in \(0, 1\]: got 0"):
        cascade(matching_mask_iou=0)
    with pytest.raises(ValueError, match=r"voting_iou_threshold lies in \(0, 1\], or is None.*got 0"):
        cascade(voting_iou_threshold=0)
    with pytest.raises(
        ValueError, match=r"stages=5 and the outputs \['box_class_logits', 'class_logits'\].*box=stages"
    ):
        NetworkCascadeHead(
            GivenProposals(SHAPE[:2]),
            Assigner(num_samples=4),
            CLASSES,
            SHAPE[:2],
            "C4",
            RoIWarp(14, 1 / 16),
            dense_mask_head(shape, 7, units=2),
            joint_class_head(shape, CLASSES, units=2),
            stages=5,
        )
    with pytest.raises(ValueError, match=r'needs targets with "masks"'):
        cascade().check(features(), {"boxes": 0, "labels": 0})
