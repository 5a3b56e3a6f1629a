"""RoI warping: the values of RoIAlign with one sample a bin, and a gradient that reaches the four sides of a box."""

import numpy as np
import pytest
from keras import ops

from kvision.ops import roi_align, roi_warp
from tests.ops.differentiation import JIT_IS_SLOW, central_differences, value_and_gradients
from tests.ops.test_roi import HEIGHT, POSITION_TOLERANCE, SCALE, WIDTH, align_twin, channels_first, example, some_boxes
from tests.support import assert_close

SIZE = 3
# Where no sample lies within a thousandth of a cell of a centre, at which the slope of the interpolation changes.
OFF_THE_KINKS = np.array(
    [
        [[20.3, 30.1, 90.7, 78.8], [33.1, 41.2, 34.0, 41.9], [61.3, 8.7, 150.2, 93.9]],
        [[-30.0, -20.3, 25.1, 35.2], [WIDTH - 21.3, HEIGHT - 25.7, WIDTH + 30.9, HEIGHT + 20.2], [7.7, 9.3, 7.7, 40.1]],
    ],
    "float32",
)
# Sums of 27 products of numbers of up to 6, a position of up to 50 cells known to 4e-6.
GRADIENT_TOLERANCE = (1e-4, 2e-4)


def warp(features, boxes):
    return roi_warp(features, boxes, SIZE, SCALE)


@pytest.mark.parametrize("mode", JIT_IS_SLOW)
def test_gradients_of_map_and_sides_equal_those_of_a_twin(mode):
    features, boxes, upstream = example(boxes=OFF_THE_KINKS, size=SIZE)
    regions, (map_gradient, box_gradient) = value_and_gradients(warp, (features, boxes), upstream, mode)
    want, want_map_gradient = align_twin(features, boxes, upstream, SCALE, 1, True)
    (want_box_gradient,) = central_differences(
        lambda boxes: align_twin(features, boxes, upstream, SCALE, 1, True)[0], (boxes,), upstream
    )
    assert_close(regions, want, tolerance=POSITION_TOLERANCE)
    assert_close(map_gradient, want_map_gradient, tolerance=POSITION_TOLERANCE)
    assert_close(box_gradient, want_box_gradient, tolerance=GRADIENT_TOLERANCE)
    moved = np.abs(want_box_gradient) > 1e-2
    assert moved[0].all()  # of a box inside the map each side


def test_values_are_those_of_alignment_with_one_sample_a_bin():
    features, boxes, _ = example(size=SIZE)
    assert_close(warp(features, boxes), roi_align(features, boxes, SIZE, SCALE, sampling_ratio=1))


@pytest.mark.parametrize("mode", JIT_IS_SLOW)
def test_boxes_outside_the_map_or_without_size_give_finite_numbers(mode):
    features, boxes, upstream = example(boxes=some_boxes(), size=SIZE)
    results = value_and_gradients(warp, (features, boxes), upstream, mode)
    for result in (results[0], *results[1]):
        assert np.isfinite(ops.convert_to_numpy(result)).all()
    far = (boxes[..., 0] > 900) | (boxes == 0).all(-1)
    assert not ops.convert_to_numpy(results[1][1])[far & (boxes[..., 0] > 900)].any()  # outside, nothing changes
    assert far.sum() == 4


def test_without_boxes():
    features, boxes, upstream = example(boxes=np.zeros((2, 0, 4), "float32"), size=SIZE)
    regions, (gradient, _) = value_and_gradients(warp, (features, boxes), upstream)
    assert tuple(regions.shape) == (2, 0, SIZE, SIZE, 3)
    assert_close(gradient, np.zeros(features.shape))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_features_keep_float32_positions_and_box_gradients(dtype):
    features, boxes, upstream = example(boxes=OFF_THE_KINKS, size=SIZE)
    features, upstream = (
        ops.convert_to_numpy(ops.cast(ops.cast(array, dtype), "float32")) for array in (features, upstream)
    )
    want, (_, want_gradient) = value_and_gradients(warp, (features, boxes), upstream)
    got, (_, gradient) = value_and_gradients(
        lambda features, boxes: warp(ops.cast(features, dtype), boxes), (features, boxes), ops.cast(upstream, dtype)
    )
    epsilon = {"float16": 2**-11, "bfloat16": 2**-8}[dtype]
    assert_close(ops.cast(got, "float32"), want, tolerance=(epsilon, 1e-4))  # one rounding, of the result
    assert_close(gradient, want_gradient)  # none: the map's numbers are those of 16 bits already


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, b: roi_warp(x[0], b, 14, 1.0), r"\[b, h, w, c\].*\(27, 50, 3\)"),
        (lambda x, b: roi_warp(x, b[..., :3], 14, 1.0), r"\[b, n, 4\], got \(2, 13, 3\)"),
    ],
)
def test_bad_arguments(call, message):
    features, boxes, _ = example()
    with pytest.raises(ValueError, match=message):
        call(features, boxes)


@pytest.mark.parity
def test_equal_to_torchs_grid_sample_in_values_and_all_gradients():
    """The grid is made of the boxes, so that torch differentiates its sampling by their sides."""
    import torch

    size = 14
    features, boxes, upstream = example(boxes=OFF_THE_KINKS, size=size)
    upstream[1, :2] = 0.0  # more than a cell outside, `grid_sample` repeats the edge
    regions, gradients = value_and_gradients(
        lambda features, boxes: roi_warp(features, boxes, size, SCALE), (features, boxes), upstream
    )
    x = channels_first(features).requires_grad_()
    sides = torch.from_numpy(boxes.copy()).requires_grad_()
    middle = (torch.arange(size) + 0.5) / size
    want = []
    for image, rows in enumerate(sides):
        low, high = rows[:, None, :2], rows[:, None, 2:]
        points = low + middle[:, None] * (high - low)  # [n, size, (x, y)]
        across, down = (2 * points[..., axis] / length - 1 for axis, length in enumerate((WIDTH, HEIGHT)))
        shape = (len(rows), size, size)
        grid = torch.stack([across[:, None].expand(shape), down[:, :, None].expand(shape)], -1)
        maps = x[image][None].expand(len(rows), -1, -1, -1)
        want.append(torch.nn.functional.grid_sample(maps, grid, padding_mode="border", align_corners=False))
    want = torch.stack(want).permute(0, 1, 3, 4, 2)
    map_gradient, box_gradient = torch.autograd.grad((want * torch.from_numpy(upstream)).sum(), [x, sides])
    within = upstream.any(axis=(2, 3, 4))
    assert within.sum() == 4
    want = want.detach().numpy()
    assert_close(ops.convert_to_numpy(regions)[within], want[within], tolerance=POSITION_TOLERANCE)
    assert_close(gradients[0], np.moveaxis(map_gradient.numpy(), 1, -1), tolerance=POSITION_TOLERANCE)
    assert_close(gradients[1], box_gradient.numpy(), tolerance=GRADIENT_TOLERANCE)
