"""Focal loss: easy examples count less, so that many easy anchors do not dominate the few hard ones."""

from keras import ops

from kvision.ops._backend import kernels


def sigmoid_focal_loss(targets, logits, alpha=0.25, gamma=2.0):
    """Focal loss of independent binary classifications, element by element.

    Lin et al. 2017 (https://arxiv.org/abs/1708.02002), equation 5. With p the predicted probability of the target it is
    `-alpha * (1 - p)**gamma * log(p)`, computed from logits, so that it neither overflows nor loses a tiny gradient.

    Nothing is summed or masked here. RetinaNet multiplies by 0 for ignored anchors, sums over all anchors and classes,
    and divides by the number of positive anchors, at least 1.

    Args:
        targets: 1 where the class is present, else 0; `[...]`.
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


@kernels.fuse
def _focal(targets, logits, alpha, gamma):
    signed = (2.0 * targets - 1.0) * logits
    loss = ops.softplus(-signed) * ops.exp(-gamma * ops.softplus(signed))
    return loss if alpha is None else loss * ((2.0 * alpha - 1.0) * targets + (1.0 - alpha))
