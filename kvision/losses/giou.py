"""GIoU loss: boxes trained by their overlap, with a gradient even where they are disjoint."""

import keras

from kvision.ops.boxes import giou_xyxy


def giou_loss(targets_xyxy, predictions_xyxy):
    """One minus the generalised intersection over union, box by box.

    Rezatofighi et al. 2019 (https://arxiv.org/abs/1902.09630), algorithm 1.

    Nothing is summed or masked here. Multiply by 0 for padding and divide by the number of boxes that are not padding;
    boxes without area, such as rows of zeros, give finite losses and gradients.

    Args:
        targets_xyxy: Boxes `[..., 4]`.
        predictions_xyxy: Boxes `[..., 4]`.

    Returns:
        Losses `[...]` in [0, 2], float32 for any input dtype.

    Example:

    >>> round(float(giou_loss([0, 0, 2, 2], [0, 0, 2, 1])), 4)
    0.5
    """
    return 1.0 - giou_xyxy(targets_xyxy, predictions_xyxy, pairwise=False)


@keras.saving.register_keras_serializable("kvision")
class GIoULoss(keras.losses.Loss):
    """GIoU loss for `compile`, as in tensorflow-addons.

    Rezatofighi et al. 2019 (https://arxiv.org/abs/1902.09630), algorithm 1. Labels and predictions are boxes `[..., 4]`
    in corner form: two opposite corners, x before y or y before x, the smaller numbers first. One value per box is
    reduced by `reduction`; a `sample_weight` [...] of 0 leaves padding out.

    Args:
        reduction: As in every Keras loss. The default, `"sum_over_batch_size"`, is the mean over all boxes, padding
            included; `"mean_with_sample_weight"` divides by the weights instead.
        name: Optional name.
        dtype: Optional dtype of the result; boxes are always compared in float32.

    Example:

    >>> loss = GIoULoss()
    >>> round(float(loss([[0, 0, 2, 2]], [[0, 0, 2, 1]])), 4)
    0.5
    """

    def __init__(self, reduction="sum_over_batch_size", name="giou", dtype=None):
        super().__init__(name=name, reduction=reduction, dtype=dtype)

    def call(self, y_true, y_pred):
        return giou_loss(y_true, y_pred)
