"""Focal loss: easy examples count less, so that many easy anchors do not dominate the few hard ones."""

from keras import ops

from kvision.ops._backend import kernels

_TINY = 1e-37  # about the smallest float32, below which a probability counts as 0


def sigmoid_focal_loss(targets, logits, alpha=0.25, gamma=2.0):
    """Focal loss of independent binary classifications, element by element.

    Lin et al. 2017 (https://arxiv.org/abs/1708.02002), equation 5. With p the predicted probability of the target it is
    `-alpha * (1 - p)**gamma * log(p)`, computed from logits, so that it neither overflows nor loses a tiny gradient.

    Nothing is summed or masked here. RetinaNet multiplies by 0 for ignored anchors, sums over all anchors and classes,
    and divides by the number of positive anchors, at least 1.

    Args:
        targets: 1 where the class is present, else 0; `[...]`. In between (label smoothing) the loss is cross-entropy
            times (1 - p_t)**gamma with p_t = t p + (1 - t)(1 - p), as in Keras and torchvision. No gradient flows to
            them.
        logits: Predictions before the sigmoid; `[...]`.
        alpha: Weight in [0, 1] of the targets 1; targets 0 have the weight `1 - alpha`. None gives both the weight 1.
        gamma: How strongly easy examples are down-weighted, at least 0; 0 gives cross-entropy.

    Returns:
        Losses `[...]`, float32 for any input dtype.

    Raises:
        ValueError: If alpha or gamma is out of range.

    Example:

    >>> round(float(sigmoid_focal_loss(1.0, 0.0)), 4)
    0.0433
    """
    if (alpha is not None and not 0 <= alpha <= 1) or gamma < 0:
        raise ValueError(f"Focal loss needs alpha in [0, 1] or None, and gamma >= 0: got alpha={alpha}, gamma={gamma}.")
    return _focal(ops.cast(targets, "float32"), ops.cast(logits, "float32"), alpha, gamma)


def _focal(targets, logits, alpha, gamma):
    @ops.custom_gradient
    def focal(targets, logits):
        def gradient(*upstream_args, upstream=None):
            upstream = upstream_args[0] if upstream is None else upstream
            return ops.zeros_like(targets), upstream * _gradient(targets, logits, alpha, gamma)

        return _loss(targets, logits, alpha, gamma), gradient

    return focal(targets, logits)


@kernels.fuse
def _loss(targets, logits, alpha, gamma):
    _, _, error, entropy = _parts(targets, logits)
    return _weights(targets, alpha) * _power(error, gamma) * entropy


@kernels.fuse
def _gradient(targets, logits, alpha, gamma):
    """With respect to the logits: dCE = (1 - t) p - t q and d error = (1 - 2t) p q, without cancellation."""
    p, q, error, entropy = _parts(targets, logits)
    slope = (1.0 - 2.0 * targets) * p * q / ops.maximum(error, _TINY)
    steepness = (1.0 - targets) * p - targets * q + gamma * slope * entropy
    return _weights(targets, alpha) * _power(error, gamma) * steepness


def _parts(targets, logits):
    """p = sigmoid(logits), q = 1 - p, the error 1 - p_t and the cross-entropy, each exact for large logits."""
    tail = ops.exp(-ops.abs(logits))
    small, large = tail / (1.0 + tail), 1.0 / (1.0 + tail)
    p, q = ops.where(logits >= 0, large, small), ops.where(logits >= 0, small, large)
    rest = ops.log1p(tail)
    entropy = targets * ops.maximum(-logits, 0.0) + (1.0 - targets) * ops.maximum(logits, 0.0) + rest
    return p, q, targets * q + (1.0 - targets) * p, entropy


def _power(error, gamma):
    if gamma in (0, 1, 2):
        return (1.0, error, error * error)[int(gamma)]
    return ops.exp(gamma * ops.log(ops.maximum(error, _TINY)))


def _weights(targets, alpha):
    return 1.0 if alpha is None else (2.0 * alpha - 1.0) * targets + (1.0 - alpha)
