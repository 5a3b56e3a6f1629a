"""Pixels are counted, and boundaries found, as loops over pixels do it, whatever runs the loops."""

import functools

import numpy as np
import pytest

from kvision.ops import boundaries, confusion_matrix
from tests.ops.execution import MODES, execute


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ignored", [None, 255, 1])
def test_confusion_matrix_equals_a_loop(mode, ignored):
    rng = np.random.default_rng(0)
    labels, predictions = (rng.choice([0, 1, 2, 3, -1, 255], (2, 9, 11)).astype("int32") for _ in range(2))
    want, invalid = np.zeros((3, 3), int), 0
    for label, prediction in zip(labels.ravel(), predictions.ravel(), strict=True):
        if label == ignored:
            continue
        if 0 <= label < 3 and 0 <= prediction < 3:
            want[label, prediction] += 1
        else:
            invalid += 1
    count = functools.partial(confusion_matrix, num_classes=3, ignore_class=ignored)
    got, got_invalid = execute(count, labels, predictions, mode=mode)
    np.testing.assert_array_equal(got, want)
    assert got_invalid == invalid and got.dtype == "int32"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("distance", [1, 2, 5])
def test_boundaries_equal_a_loop(mode, distance):
    rng = np.random.default_rng(1)
    labels = rng.integers(-1, 2, (2, 3, 4)).repeat(4, 1).repeat(4, 2).astype("int32")
    want = np.zeros(labels.shape, bool)
    for image, row, column in np.ndindex(labels.shape):
        rows, columns = (np.arange(at - distance, at + distance + 1) for at in (row, column))
        inside = min(rows[0], columns[0]) >= 0 and rows[-1] < labels.shape[1] and columns[-1] < labels.shape[2]
        around = labels[image][np.ix_(rows, columns)] if inside else np.array([-2])
        want[image, row, column] = (around != labels[image, row, column]).any()
    got = execute(functools.partial(boundaries, distance=distance), labels, mode=mode)
    np.testing.assert_array_equal(got, want)
