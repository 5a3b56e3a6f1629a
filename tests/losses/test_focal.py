import keras
import numpy as np
import pytest

from kvision.losses import sigmoid_focal_loss
from tests.ops.differentiation import MODES, SLOW, central_differences, value_and_gradients
from tests.support import assert_close

SETTINGS = [(0.25, 2.0), (None, 2.0), (0.5, 0.0), (1.0, 0.5), (0.0, 5.0)]


def focal_twin(targets, logits, alpha, gamma):
    """The paper's equations 3 to 5, number by number."""
    losses = np.empty_like(logits)
    for index in np.ndindex(logits.shape):
        p = 1 / (1 + np.exp(-logits[index]))
        p_t, alpha_t = (p, alpha) if targets[index] == 1 else (1 - p, None if alpha is None else 1 - alpha)
        losses[index] = -(1.0 if alpha is None else alpha_t) * (1 - p_t) ** gamma * np.log(p_t)
    return losses


def example():
    rng = np.random.default_rng(0)
    return rng.integers(0, 2, (3, 7)).astype("float32"), rng.normal(0, 3, (3, 7)).astype("float32")


@pytest.mark.parametrize(
    "alpha, gamma, mode",
    [
        pytest.param(*setting, mode, marks=SLOW if mode != "eager" and setting != SETTINGS[0] else [])
        for setting in SETTINGS
        for mode in MODES
    ],
)
def test_value_and_gradient_equal_twin(alpha, gamma, mode):
    targets, logits = example()
    upstream = np.random.default_rng(1).normal(size=logits.shape).astype("float32")
    loss, (gradient,) = value_and_gradients(
        lambda logits: sigmoid_focal_loss(targets, logits, alpha, gamma), (logits,), upstream, mode
    )
    assert_close(loss, focal_twin(targets, logits.astype("float64"), alpha, gamma))
    (want,) = central_differences(lambda logits: focal_twin(targets, logits, alpha, gamma), (logits,), upstream)
    assert_close(gradient, want)


def test_closed_form():
    # p = 1/2: alpha * (1/2)^2 * log 2, and with 1 - alpha for the absent class
    assert_close(sigmoid_focal_loss([1.0, 0.0], [0.0, 0.0]), [0.25 / 4 * np.log(2), 0.75 / 4 * np.log(2)])


def test_invariances():
    targets, logits = example()
    cross_entropy = keras.ops.binary_crossentropy(targets, logits, from_logits=True)
    assert_close(sigmoid_focal_loss(targets, logits, alpha=None, gamma=0.0), cross_entropy)
    mirrored = sigmoid_focal_loss(1 - targets, -logits, alpha=0.75)
    assert_close(mirrored, sigmoid_focal_loss(targets, logits, alpha=0.25))
    steep, flat = sigmoid_focal_loss(targets, logits, gamma=5.0), sigmoid_focal_loss(targets, logits, gamma=1.0)
    assert (keras.ops.convert_to_numpy(steep) <= keras.ops.convert_to_numpy(flat)).all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_extreme_logits_give_finite_losses_and_gradients(gamma):
    logits = np.array([-1e4, -200, -90, -50, 0, 50, 90, 200, 1e4], "float32")
    for targets in (np.zeros_like(logits), np.ones_like(logits)):
        loss, (gradient,) = value_and_gradients(
            lambda logits, targets=targets: sigmoid_focal_loss(targets, logits, None, gamma),
            (logits,),
            np.ones_like(logits),
        )
        wrong = np.maximum(logits * (1 - 2 * targets), 0)  # what cross-entropy tends to
        assert_close(loss, np.where(wrong > 0, wrong, np.where(logits == 0, 0.5**gamma * np.log(2), 0)))
        assert np.isfinite(keras.ops.convert_to_numpy(gradient)).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_inputs_are_computed_in_float32(dtype):
    keras.mixed_precision.set_dtype_policy(f"mixed_{dtype}")
    targets, logits = (keras.ops.cast(numbers, dtype) for numbers in example())
    loss = sigmoid_focal_loss(targets, logits)
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"
    assert_close(loss, sigmoid_focal_loss(keras.ops.cast(targets, "float32"), keras.ops.cast(logits, "float32")))


@pytest.mark.parametrize("alpha, gamma", [(0.25, 2.0), (None, 0.0), (0.6, 1.5)])
def test_soft_targets_equal_keras(alpha, gamma):
    """Keras's loss takes the mean over the last axis and forgets about tiny probabilities."""
    rng = np.random.default_rng(0)
    targets, logits = rng.uniform(size=(3, 7)).astype("float32"), rng.normal(0, 3, (3, 7)).astype("float32")
    upstream = rng.normal(size=logits.shape).astype("float32")
    options = {"apply_class_balancing": alpha is not None, "alpha": alpha or 0.5, "gamma": gamma, "from_logits": True}

    def theirs(logits):
        return keras.losses.binary_focal_crossentropy(targets[..., None], logits[..., None], **options)

    got, (gradient,) = value_and_gradients(
        lambda logits: sigmoid_focal_loss(targets, logits, alpha, gamma), (logits,), upstream
    )
    want, (want_gradient,) = value_and_gradients(theirs, (logits,), upstream)
    assert_close(got, want)
    assert_close(gradient, want_gradient)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_tiny_gradients_of_easy_examples_are_not_lost(gamma):
    logits = np.array([12.0, 20.0], "float32")
    _, (gradient,) = value_and_gradients(
        lambda logits: sigmoid_focal_loss(np.ones(2, "float32"), logits, None, gamma), (logits,), np.ones(2, "float32")
    )
    tail = np.exp(-logits.astype("float64"))  # 1 - p, and -log(p) as well, to the first order
    want = -(1 + gamma) * tail ** (1 + gamma)
    assert_close(keras.ops.convert_to_numpy(gradient) / want, np.ones(2), tolerance=(1e-4, 0))


def test_integer_targets():
    targets, logits = example()
    assert_close(sigmoid_focal_loss(targets.astype("int32"), logits), sigmoid_focal_loss(targets, logits))


@pytest.mark.parametrize("alpha, gamma", [(1.5, 2.0), (-0.1, 2.0), (0.25, -1.0)])
def test_errors(alpha, gamma):
    with pytest.raises(ValueError, match=f"got alpha={alpha}, gamma={gamma}"):
        sigmoid_focal_loss(*example(), alpha, gamma)


@pytest.mark.parity
@pytest.mark.parametrize("alpha, gamma", SETTINGS)
def test_equals_torchvision(alpha, gamma):
    import torch
    import torchvision.ops

    targets, logits = (torch.from_numpy(numbers) for numbers in example())
    want = torchvision.ops.sigmoid_focal_loss(logits, targets, -1 if alpha is None else alpha, gamma)
    assert_close(sigmoid_focal_loss(targets.numpy(), logits.numpy(), alpha, gamma), want)
