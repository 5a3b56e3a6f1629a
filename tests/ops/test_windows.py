"""Windows against loops over pixels."""

import numpy as np
import pytest

from kvision.ops.windows import (
    relative_position_index,
    shifted_window_mask,
    window_merge,
    window_partition,
    windows_over,
)
from tests.ops.execution import MODES, execute
from tests.support import assert_close

# (size, window, shift): fitting, filled up, one axis in a single window, a window of one pixel
CASES = [((6, 9), 3, (1, 2)), ((7, 5), 3, (1, 1)), ((2, 7), 3, (0, 1)), ((8, 4), 4, (0, 0)), ((2, 3), 1, (0, 0))]


def pixel_at(window, index, size, side, shift):
    """The pixel (row, column) at an index of a window; it may lie in the padding."""
    rows, columns = windows_over(size, side)
    row = (window // columns) * side + index // side
    column = (window % columns) * side + index % side
    return (row + shift[0]) % (rows * side), (column + shift[1]) % (columns * side)


@pytest.mark.parametrize("size, window, shift", CASES)
@pytest.mark.parametrize("mode", MODES[:2])
def test_partition_puts_each_pixel_where_the_loops_do(size, window, shift, mode):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype("float32")
    count = np.prod(windows_over(size, window))
    got = execute(lambda x: window_partition(x, window, shift), x, mode=mode)
    want = np.zeros((2, count, window * window, 3))
    for number in range(count):
        for index in range(window * window):
            row, column = pixel_at(number, index, size, window, shift)
            if row < size[0] and column < size[1]:
                want[:, number, index] = x[:, row, column]
    assert_close(got, want.reshape(-1, window * window, 3))


@pytest.mark.parametrize("size, window, shift", CASES)
def test_merge_undoes_partition(size, window, shift):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype("float32")
    assert_close(window_merge(window_partition(x, window, shift), size, window, shift), x)


@pytest.mark.parametrize("size, window, shift", CASES)
def test_masked_pixels_are_those_that_were_no_neighbours(size, window, shift):
    """Two pixels of a window see each other if neither or both were carried round the edge, along each axis."""
    got = shifted_window_mask(size, window, shift)
    count = np.prod(windows_over(size, window))
    assert got.shape == (count, window**2, window**2)
    for number in range(count):
        pixels = [pixel_at(number, index, size, window, shift) for index in range(window**2)]
        for one, first in enumerate(pixels):
            for other, second in enumerate(pixels):
                near = all(abs(a - b) < window for a, b in zip(first, second, strict=True))
                assert got[number, one, other] == near


@pytest.mark.parametrize("window", [1, 2, 3, 7])
def test_relative_positions_share_an_entry_and_only_they(window):
    index = relative_position_index(window)
    entries = {}
    for one in range(window**2):
        for other in range(window**2):
            step = (one // window - other // window, one % window - other % window)
            assert entries.setdefault(step, index[one, other]) == index[one, other]
    assert len(set(entries.values())) == len(entries) == (2 * window - 1) ** 2
    assert index.min() == 0
    assert index.max() == (2 * window - 1) ** 2 - 1
