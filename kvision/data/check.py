"""Guards that speak before training starts."""

import numpy as np

from kvision.contract import check_targets as check_targets
from kvision.contract import wrong_labels


def check_labels(labels, classes, names=None):
    """Refuse class labels that a network of `classes` outputs cannot predict.

    On a GPU such a label gives a loss of NaN without a word; here it is named by its row.

    Args:
        labels: [n] integer class indices.
        classes: Number of classes; labels run from 0 to `classes` − 1.
        names: [n] names of the rows (files) for the message; None names them by index.

    Returns:
        The labels as int32 array.

    Raises:
        ValueError: on labels that are not integers, not one-dimensional, or out of range; lists the first five.

    >>> check_labels([0, 2, 1], classes=3)
    array([0, 2, 1], dtype=int32)
    """
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(f"Labels must be class indices of shape [n], got shape {labels.shape}. One-hot? Take argmax.")
    wrong = wrong_labels(labels, classes)
    if wrong.any():
        rows = np.flatnonzero(wrong)
        shown = ", ".join(f"{names[row] if names is not None else f'row {row}'}: {labels[row]}" for row in rows[:5])
        raise ValueError(
            f"{len(rows)} of {len(labels)} labels are not integers from 0 to {classes - 1} ({shown}). "
            "Number the classes from 0, without a background class, or give the network more classes."
        )
    return labels.astype("int32")
