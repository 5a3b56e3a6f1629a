"""Smooth L1: the loss of box deltas."""

from keras import ops


def smooth_l1_loss(targets, predictions, beta=1.0):
    """Absolute error, with a parabola within `beta` of zero, element by element.

    Girshick 2015 (Fast R-CNN), equation 3, there with beta 1. It is `keras.losses.Huber(delta=beta)` divided by beta,
    before any mean.

    Nothing is summed or masked here. R-CNNs multiply by 0 for all but the positive rows, sum, and divide by the number
    of rows sampled, positive or not.

    Args:
        targets: `[...]`.
        predictions: `[...]`.
        beta: Where the parabola ends, at least 0; 0 gives the absolute error.

    Returns:
        Losses `[...]`, float32 for any input dtype.

    Raises:
        ValueError: If beta is negative.

    Example:

    >>> keras.ops.convert_to_numpy(smooth_l1_loss([0.0, 0.0], [0.5, 3.0])).tolist()
    [0.125, 2.5]
    """
    if beta < 0:
        raise ValueError(f"Smooth L1 needs beta >= 0: got {beta}.")
    difference = ops.cast(targets, "float32") - ops.cast(predictions, "float32")
    error = difference * ops.sign(difference)  # unlike abs on JAX, no gradient at 0
    if beta == 0:
        return error
    return ops.where(error < beta, 0.5 / beta * ops.square(error), error - 0.5 * beta)
