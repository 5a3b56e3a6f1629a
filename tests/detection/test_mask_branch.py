"""Mask R-CNN's mask branch; torchvision's masks and losses: test_detector_parity.py."""

import keras
import numpy as np
import pytest

from kvision import applications as A
from kvision import data
from kvision.callbacks import DetectionMetrics
from kvision.detection import mask_branch
from kvision.detection.assigner import Sample
from kvision.detection.mask_branch import MaskBranch, check_masks, mask_head
from kvision.layers import GroupNormalization, RoIAlign
from kvision.metrics import COCOAveragePrecision
from kvision.ops.masks import crop_masks
from tests.applications.detection.rows import CLASSES, SHAPE, tiny_two_stage
from tests.applications.detection.test_detectors import targets_of
from tests.ops.differentiation import JIT_IS_SLOW, value_and_gradients
from tests.support import assert_close

BOXES = [(4, 6, 30, 34, 0), (20, 20, 60, 50, 2)]


def branch(norm=None, **options):
    pooling = RoIAlign(14, spatial_scale=1 / 16, aligned=True)
    return MaskBranch(CLASSES, ("C4",), pooling, mask_head(4, norm=norm), **options)


def features():
    return {"C4": np.random.default_rng(0).normal(size=(2, 4, 4, 4)).astype("float32")}


def targets_with_masks():
    """Discs, whole and relative to their boxes."""
    targets = targets_of(BOXES, [(10, 8, 42, 60, 1)])
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]] + 0.5
    left, top, right, bottom = (targets["boxes"][..., side, None, None] for side in range(4))
    width, height = np.maximum(right - left, 1), np.maximum(bottom - top, 1)
    targets["masks"] = (
        ((2 * columns - left - right) / width) ** 2 + ((2 * rows - top - bottom) / height) ** 2 < 1
    ).astype("uint8")
    rows, columns = (np.mgrid[:112, :112] + 0.5) / 56 - 1
    real = (targets["labels"] >= 0)[..., None, None]
    return targets, (real * (rows**2 + columns**2 < 1)).astype("uint8")


@pytest.mark.parametrize(
    ("factor", "message"),
    [(0, "in 'masks' none of an object has a pixel"), (255, r"in 'masks' one has the value 255\. .*masks > 0")],
)
def test_masks_that_show_nothing_or_are_not_of_one_are_refused(factor, message):
    targets, relative = targets_with_masks()
    check_masks(targets)
    check_masks(targets | {"masks": None, "box_masks": relative / 2})
    first_image_empty = targets["masks"] * np.array([0, 1], "uint8")[:, None, None, None]
    check_masks(targets | {"masks": first_image_empty})
    check_masks(targets | {"masks": targets["masks"] * 0, "labels": targets["labels"] * 0 - 1})  # there is no object
    with pytest.raises(ValueError, match=message):
        check_masks(targets | {"masks": targets["masks"] * np.uint8(factor)})


def sample():
    boxes = np.array([[[4, 6, 30, 34], [18, 22, 58, 52], [0, 0, 9, 9]], [[8, 8, 40, 55], [50, 0, 60, 9], [1, 2, 9, 9]]])
    matches = np.array([[0, 1, -1], [0, -1, -1]], "int32")
    return Sample(boxes.astype("float32"), matches, np.array([[True] * 3, [True, True, False]]))


def test_the_one_mask_that_counts_is_the_labels_channel_of_the_whole_head():
    for background in (True, False):
        layer = branch(background=background)
        boxes, labels = sample().boxes, np.array([[0, 1, 2], [2, 2, 0]])
        got = keras.ops.convert_to_numpy(layer.predict(features(), boxes, labels))
        assert got.shape == (2, 3, 28, 28)
        bins = keras.ops.reshape(layer.pooling(features()["C4"], boxes), (6, 14, 14, 4))
        whole = keras.ops.convert_to_numpy(layer.mask_predictor(layer.mask_head(bins)))
        assert whole.shape[-1] == CLASSES + background
        want = whole[np.arange(6), :, :, labels.ravel() + background].reshape(2, 3, 28, 28)
        assert_close(got, want, tolerance=(1e-4, 1e-4))  # another order of sums


def test_the_loss_is_the_mean_over_the_positives():
    layer, (targets, _) = branch(), targets_with_masks()
    chosen = sample()
    labels = np.array([[0, 2, 0], [1, 0, 0]])
    logits = keras.ops.convert_to_numpy(layer.predict(features(), chosen.boxes, labels))
    crops = keras.ops.convert_to_numpy(
        crop_masks(targets["masks"], np.maximum(chosen.matches, 0), chosen.boxes, 28, aligned=True)
    )
    rows = [(0, 0), (0, 1), (1, 0)]
    scores = 1 / (1 + np.exp(-logits.astype("float64")))
    entropy = -(crops * np.log(scores) + (1 - crops) * np.log(1 - scores))
    want = np.mean([entropy[row].mean() for row in rows])
    assert_close(layer.loss(features(), chosen, targets), want)


def test_positives_beyond_num_samples_are_left_out():
    layer, (targets, _) = branch(num_samples=1), targets_with_masks()
    first = Sample(*(rows[:, :1] for rows in sample()))
    assert_close(layer.loss(features(), sample(), targets), layer.loss(features(), first, targets))


@pytest.mark.tensorflow_only
@pytest.mark.parametrize("mode", JIT_IS_SLOW)
@pytest.mark.parametrize(("norm", "fewest"), [(None, 4), ("group", 4), ("frozen_batch", 4), ("batch", 6)])
def test_a_step_computes_no_padding_unless_statistics_are_taken_over_it(norm, fewest, mode, monkeypatch):
    layer, (targets, _), rows = branch(norm), targets_with_masks(), []
    head = layer.mask_head.call

    def counted(x, **options):
        if mode == "eager":
            rows.append(len(x))
        return head(x, **options)

    def loss_and_gradient():
        of_maps = lambda maps: layer.loss({"C4": maps}, sample(), targets, training=True)  # noqa: E731
        return value_and_gradients(of_maps, (features()["C4"],), 1.0, mode)

    monkeypatch.setattr(layer.mask_head, "call", counted)
    loss, (gradient,) = loss_and_gradient()
    monkeypatch.setattr(mask_branch, "without_padding", lambda function, _, *tensors: function(*tensors))
    whole_loss, (whole_gradient,) = loss_and_gradient()
    assert rows == ([fewest, 6] if mode == "eager" else [])  # two of one image, one of the other, as much padding
    assert_close(loss, whole_loss)
    assert_close(gradient, whole_gradient)


@pytest.mark.parametrize("aligned", [False, True])
def test_box_masks_train_towards_the_same(aligned):
    layer, (targets, box_masks) = branch(), targets_with_masks()
    layer.pooling.aligned = aligned
    matches, boxes = np.maximum(sample().matches, 0), sample().boxes
    whole = keras.ops.convert_to_numpy(layer._targets(targets, matches, boxes, 28))
    relative = {"boxes": targets["boxes"], "labels": targets["labels"], "box_masks": box_masks}
    small = keras.ops.convert_to_numpy(layer._targets(relative, matches, boxes, 28))
    for row in [(0, 0), (0, 1), (1, 0)]:
        assert np.abs(whole[row] - small[row]).mean() < 0.04
        assert 0.3 < whole[row].mean() < 0.95
    shifted = keras.ops.convert_to_numpy(layer._targets(relative, matches, boxes + 4, 28))
    assert np.abs(whole[0, 0] - shifted[0, 0]).mean() > 0.08


def test_targets_without_masks_are_refused():
    with pytest.raises(ValueError, match=r'"masks".*or "box_masks".*got \[.*boxes.*labels'):
        branch().loss(features(), sample(), targets_of(BOXES, []))


def test_scores_of_padding_are_zero():
    scores = keras.ops.convert_to_numpy(
        branch().scores(features(), sample().boxes, np.array([[0, 2, -1], [1, -1, -1]]))
    )
    assert ((scores > 0).all(axis=(2, 3)) == [[True, True, False], [True, False, False]]).all()


def test_group_norm_reaches_the_mask_head():
    model = tiny_two_stage(A.MaskRCNN, norm="group")
    layers = [layer for layer in model.head.mask_stages[0]._flatten_layers() if isinstance(layer, GroupNormalization)]
    assert len(layers) == 4


def relative_to_boxes(targets, size=64):
    """The same targets, their masks given as what lies in each box."""
    box_masks = np.zeros((*targets["labels"].shape, size, size), "uint8")
    for place in zip(*np.nonzero(targets["labels"] >= 0), strict=True):
        left, top, right, bottom = targets["boxes"][place]
        middle = (np.arange(size) + 0.5) / size
        rows, columns = (top + middle * (bottom - top)).astype(int), (left + middle * (right - left)).astype(int)
        box_masks[place] = targets["masks"][place][np.ix_(rows, columns)]
    return {name: rows for name, rows in targets.items() if name != "masks"} | {"box_masks": box_masks}


@pytest.mark.slow
def test_average_precision_of_boxes_and_masks_enters_the_logs():
    keras.utils.set_random_seed(0)
    images, targets = data.shapes(8, image_size=SHAPE[:2], classes=CLASSES, masks=True)
    model = tiny_two_stage(A.MaskRCNN, norm="group", num_mask_samples=4, mask_channels=16)
    model.compile(keras.optimizers.Adam(3e-3))
    callback = DetectionMetrics((images, targets), every=15, masks=True, batch_size=4)
    history = model.fit(images, targets, batch_size=4, epochs=15, verbose=0, callbacks=[callback]).history

    metric = COCOAveragePrecision(masks=True)
    metric.update_state(targets, model.predict(images, batch_size=4, verbose=0))
    want = {f"val_{name}": number for name, number in metric.result().items() if number >= 0}
    assert {"val_AP", "val_AP50", "val_mask_AP", "val_mask_AP50"} <= set(want)
    assert {name: history[name][-1] for name in history if name.startswith("val_")} == want
    assert min(want["val_AP50"], want["val_mask_AP50"]) > 0.1  # zeros would be equal as well
    assert want["val_AP"] != want["val_mask_AP"]

    relative = DetectionMetrics((images, relative_to_boxes(targets)), masks=True, batch_size=4)
    assert {f"val_{name}": number for name, number in relative.measure(model).items() if number >= 0} == want
