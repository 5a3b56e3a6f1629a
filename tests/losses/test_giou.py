import json
import pathlib

import keras
import numpy as np
import pytest

from kvision.losses import GIoULoss, giou_loss
from tests.ops.differentiation import MODES, central_differences, value_and_gradients
from tests.ops.execution import area_twin, random_boxes
from tests.support import assert_close

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "addons.json").read_text())["giou_loss"]


def giou_loss_twin(targets, predictions):
    losses = np.empty(targets.shape[:-1])
    for index in np.ndindex(losses.shape):
        (x1, y1, x2, y2), (u1, v1, u2, v2) = targets[index], predictions[index]
        shared = area_twin([max(x1, u1), max(y1, v1), min(x2, u2), min(y2, v2)])
        union = area_twin(targets[index]) + area_twin(predictions[index]) - shared
        hull = area_twin([min(x1, u1), min(y1, v1), max(x2, u2), max(y2, v2)])
        losses[index] = 1 - shared / union + (hull - union) / hull
    return losses


def example():
    rng = np.random.default_rng(0)
    return random_boxes(rng, 2, 9, size=5) + [0, 0, 1, 1], random_boxes(rng, 2, 9, size=5) + [0, 0, 1, 1]


@pytest.mark.parametrize("mode", MODES)
def test_value_and_gradient_equal_twin(mode):
    boxes = [array.astype("float32") for array in example()]
    upstream = np.random.default_rng(1).normal(size=(2, 9)).astype("float32")
    loss, gradients = value_and_gradients(giou_loss, boxes, upstream, mode)
    assert_close(loss, giou_loss_twin(*boxes))
    for got, want in zip(gradients, central_differences(giou_loss_twin, boxes, upstream), strict=True):
        assert_close(got, want)


def test_equals_tensorflow_addons():
    assert_close(giou_loss(GOLDEN["target"], GOLDEN["output"]), GOLDEN["giou_loss"])
    loss = GIoULoss(reduction="none")(np.array(GOLDEN["target"]), np.array(GOLDEN["output"]))
    assert_close(loss, GOLDEN["giou_loss"])


@pytest.mark.parametrize(
    "target, prediction, want",
    [
        ([0, 0, 2, 2], [0, 0, 2, 2], 0),
        ([0, 0, 2, 2], [1, 1, 3, 3], 1 - 1 / 7 + 2 / 9),
        ([0, 0, 1, 1], [9, 0, 10, 1], 1 + 8 / 10),
    ],
)
def test_closed_form(target, prediction, want):
    assert_close(giou_loss(target, prediction), want)


def test_pulls_on_boxes_that_are_apart():
    target, prediction = [[10.0, 10.0, 30.0, 30.0]], np.array([[50.0, 50.0, 60.0, 60.0]], "float32")
    before, (gradient,) = value_and_gradients(lambda box: giou_loss(target, box), (prediction,), np.ones(1, "float32"))
    after = giou_loss(target, prediction - 100.0 * keras.ops.convert_to_numpy(gradient))
    assert float(after[0]) < float(before[0]) - 1e-3


def test_padding_gives_finite_losses_and_gradients():
    zeros = np.zeros((1, 3, 4), "float32")
    loss, gradients = value_and_gradients(giou_loss, (zeros, zeros), np.zeros((1, 3), "float32"))
    assert_close(loss, np.ones((1, 3)))
    for gradient in gradients:
        assert_close(gradient, zeros)


def test_loss_class():
    targets, predictions = example()
    assert_close(GIoULoss()(targets, predictions), giou_loss_twin(targets, predictions).mean())
    weights = np.random.default_rng(0).integers(0, 2, (2, 9))
    masked = GIoULoss(reduction="mean_with_sample_weight")(targets, predictions, sample_weight=weights)
    assert_close(masked, giou_loss_twin(targets, predictions)[weights > 0].mean())
    copy = keras.losses.deserialize(keras.losses.serialize(GIoULoss(reduction="sum", name="boxes")))
    assert isinstance(copy, GIoULoss) and (copy.reduction, copy.name) == ("sum", "boxes")


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_16_bit_inputs_are_computed_in_float32(policy):
    keras.mixed_precision.set_dtype_policy(policy)
    narrow = [keras.ops.cast(boxes, policy[6:]) for boxes in example()]
    wide = [keras.ops.cast(boxes, "float32") for boxes in narrow]
    for function in (giou_loss, GIoULoss(reduction="none")):
        assert keras.backend.standardize_dtype(function(*narrow).dtype) == "float32"
        assert_close(function(*narrow), function(*wide))


@pytest.mark.parity
def test_equals_torchvision():
    import torch
    import torchvision.ops

    targets, predictions = (torch.from_numpy(boxes) for boxes in example())
    want = torchvision.ops.generalized_box_iou_loss(targets, predictions)
    assert_close(giou_loss(targets.numpy(), predictions.numpy()), want)
