import keras
import numpy as np
import pytest

from kvision.losses import smooth_l1_loss
from tests.ops.differentiation import MODES, central_differences, value_and_gradients
from tests.support import assert_close

BETAS = [1.0, 1 / 9, 2.5, 0.0]


def smooth_l1_twin(targets, predictions, beta):
    losses = np.empty_like(predictions)
    for index in np.ndindex(predictions.shape):
        error = abs(predictions[index] - targets[index])
        losses[index] = error**2 / (2 * beta) if error < beta else error - beta / 2
    return losses


def example():
    return np.random.default_rng(0).normal(0, 1, (2, 3, 5, 4)).astype("float32")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("beta", BETAS)
def test_value_and_gradient_equal_twin(beta, mode):
    targets, predictions = example()
    upstream = example()[0] + 1
    loss, gradients = value_and_gradients(
        lambda *tensors: smooth_l1_loss(*tensors, beta), (targets, predictions), upstream, mode
    )
    assert_close(loss, smooth_l1_twin(targets, predictions, beta))
    want = central_differences(lambda *arrays: smooth_l1_twin(*arrays, beta), (targets, predictions), upstream)
    for got, difference in zip(gradients, want, strict=True):
        assert_close(got, difference)


def test_invariances():
    targets, predictions = example()
    for beta in BETAS:
        loss = smooth_l1_loss(targets, predictions, beta)
        assert_close(smooth_l1_loss(predictions, targets, beta), loss)
        assert_close(smooth_l1_loss(targets + 3, predictions + 3, beta), loss)
        assert_close(smooth_l1_loss(targets * 2, predictions * 2, beta * 2), loss * 2)
    huber = keras.losses.Huber(delta=2.5, reduction="none")(targets, predictions)
    assert_close(keras.ops.mean(smooth_l1_loss(targets, predictions, 2.5), axis=-1) * 2.5, huber)


@pytest.mark.parametrize("beta", BETAS)
def test_no_error_gives_no_loss_and_no_gradient(beta):
    targets, _ = example()
    loss, gradients = value_and_gradients(
        lambda *tensors: smooth_l1_loss(*tensors, beta), (targets, targets), np.ones_like(targets)
    )
    for numbers in (loss, *gradients):
        assert_close(numbers, np.zeros_like(targets))


def test_16_bit_inputs_are_computed_in_float32():
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    targets, predictions = (keras.ops.cast(numbers, "bfloat16") for numbers in example())
    loss = smooth_l1_loss(targets, predictions)
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"
    assert_close(loss, smooth_l1_loss(keras.ops.cast(targets, "float32"), keras.ops.cast(predictions, "float32")))


def test_errors():
    with pytest.raises(ValueError, match="beta >= 0: got -1"):
        smooth_l1_loss(*example(), beta=-1)


@pytest.mark.parity
@pytest.mark.parametrize("beta", BETAS)
def test_equals_torch(beta):
    import torch

    targets, predictions = (torch.from_numpy(numbers) for numbers in example())
    want = torch.nn.functional.smooth_l1_loss(predictions, targets, reduction="none", beta=beta)
    assert_close(smooth_l1_loss(targets.numpy(), predictions.numpy(), beta), want)
