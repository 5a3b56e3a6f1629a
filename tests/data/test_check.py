"""Labels that have no output are refused, by their row."""

import numpy as np
import pytest

from kvision.data import check_labels

pytestmark = pytest.mark.tensorflow_only


def test_good_labels_pass_as_int32():
    labels = check_labels(np.array([0.0, 2.0, 1.0]), classes=3)
    assert labels.dtype == "int32"
    assert labels.tolist() == [0, 2, 1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 3, 1], "1 of 3 labels.*0 to 2.*row 1: 3"),
        ([-1, 0, 7], r"2 of 3 labels.*row 0: -1, row 2: 7"),
        ([0.5, 1, 2], "row 0: 0.5"),
        ([np.nan, 1, 2], "row 0: nan"),
        ([[1, 0], [0, 1]], r"got shape \(2, 2\). One-hot"),
    ],
)
def test_others_are_named(labels, message):
    with pytest.raises(ValueError, match=message):
        check_labels(labels, classes=3)


def test_rows_carry_their_file_names():
    with pytest.raises(ValueError, match=r"b.png: 9"):
        check_labels([0, 9], classes=3, names=["a.png", "b.png"])
