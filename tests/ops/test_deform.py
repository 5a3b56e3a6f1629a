"""Deformable convolution: equal to a slow twin and its differences, to torchvision, and to the plain convolution."""

import keras
import numpy as np
import pytest
from keras import ops

from kvision.ops import deform_conv2d
from tests.ops.differentiation import GRAPHS_ARE_SLOW, MODES, SLOW, value_and_gradients
from tests.support import assert_close

# x's height, width and channels; kernel; options
ROWS = {
    "plain": ((4, 5, 2), (3, 3), {"padding": "same"}),
    "strides": ((5, 6, 2), (2, 3), {"strides": (2, 3), "padding": 1}),
    "dilation": ((6, 5, 1), (3, 2), {"dilation": (2, 3), "padding": (2, 1)}),
    "groups": ((4, 4, 4), (2, 2), {"offset_groups": 2}),
    "everything": ((7, 6, 4), (2, 2), {"strides": 2, "dilation": 2, "padding": (1, 2), "offset_groups": 4}),
}


def size_and_pads(shape, kernel, strides=1, padding="valid", dilation=1, offset_groups=1):
    """Rows and columns of the output, zero rows above and zero columns to the left."""
    strides, dilation = np.broadcast_to(strides, 2), np.broadcast_to(dilation, 2)
    window = (np.array(kernel) - 1) * dilation + 1
    if padding == "same":
        size = -(-np.array(shape[:2]) // strides)
        return size, np.maximum((size - 1) * strides + window - shape[:2], 0) // 2
    pads = np.broadcast_to(0 if padding == "valid" else padding, 2)
    return (np.array(shape[:2]) + 2 * pads - window) // strides + 1, pads


def twin(x, offsets, kernel, mask=None, **options):
    """One output cell, one tap, one group after the other."""
    (rows, columns), pads = size_and_pads(x.shape[1:], kernel.shape[:2], **options)
    strides, dilation = np.broadcast_to(options.get("strides", 1), 2), np.broadcast_to(options.get("dilation", 1), 2)
    groups, width = options.get("offset_groups", 1), x.shape[-1] // options.get("offset_groups", 1)
    taps = kernel.shape[0] * kernel.shape[1]
    y = np.zeros((x.shape[0], rows, columns, kernel.shape[-1]))
    for image, row, column, group, tap in np.ndindex(x.shape[0], rows, columns, groups, taps):
        position = np.array([row, column]) * strides - pads + np.array(divmod(tap, kernel.shape[1])) * dilation
        number = group * taps + tap
        position = position + offsets[image, row, column, 2 * number : 2 * number + 2]
        channels = slice(group * width, (group + 1) * width)
        low = np.floor(position).astype(int)
        value = np.zeros(width)
        for corner in np.ndindex(2, 2):
            cell = low + corner
            if (cell >= 0).all() and (cell < x.shape[1:3]).all():
                value += np.prod(1 - np.abs(position - cell)) * x[image, cell[0], cell[1], channels]
        factor = 1.0 if mask is None else mask[image, row, column, number]
        y[image, row, column] += factor * value @ kernel[tap // kernel.shape[1], tap % kernel.shape[1], channels]
    return y


def example(name, images=1, filters=2, spread=1.5, seed=0):
    """x, offsets, kernel, mask, upstream and the options of a row."""
    shape, kernel, options = ROWS[name]
    rng = np.random.default_rng(seed)
    size, _ = size_and_pads(shape, kernel, **options)
    taps = kernel[0] * kernel[1] * options.get("offset_groups", 1)
    arrays = (
        rng.normal(size=(images, *shape)),
        spread * rng.normal(size=(images, *size, 2 * taps)),
        rng.normal(size=(*kernel, shape[-1], filters)),
        rng.uniform(0, 2, size=(images, *size, taps)),
        rng.normal(size=(images, *size, filters)),
    )
    return [array.astype("float32") for array in arrays], options


def slope(function, arguments, index, direction, upstream, step=1e-6):
    """Of `sum(upstream * function)` when one argument moves in a direction, by a central difference in float64."""
    arguments = [np.asarray(argument, "float64") for argument in arguments]
    ahead, behind = list(arguments), list(arguments)
    ahead[index], behind[index] = arguments[index] + step * direction, arguments[index] - step * direction
    return np.sum(upstream * (function(*ahead) - function(*behind))) / (2 * step)


def modes_of(names):
    """The row with everything in all modes, the others in one: compiling is slow."""
    jit_is_slow = [(mode, SLOW if mode == "jit" else []) for mode in MODES]
    return [
        pytest.param(name, mode, marks=marks)
        for name in names
        for mode, marks in (jit_is_slow if name == "everything" else jit_is_slow[:1])
    ]


@pytest.mark.parametrize("modulated", [True, False], ids=["v2", "v1"])
@pytest.mark.parametrize(("name", "mode"), modes_of(ROWS))
def test_equals_its_twin_and_its_differences(name, mode, modulated):
    (x, offsets, kernel, mask, upstream), options = example(name)
    arguments = (x, offsets, kernel, mask) if modulated else (x, offsets, kernel)

    def ours(x, offsets, kernel, mask=None):
        return deform_conv2d(x, offsets, kernel, mask=mask, **options)

    y, gradients = value_and_gradients(ours, arguments, upstream, mode)
    assert_close(y, twin(*(np.asarray(array, "float64") for array in arguments), **options))
    for index, gradient in enumerate(gradients):
        gradient = np.asarray(ops.convert_to_numpy(gradient), "float64")
        for direction in np.random.default_rng(index).normal(size=(3, *gradient.shape)):
            want = slope(lambda *arrays: twin(*arrays, **options), arguments, index, direction, upstream)
            assert_close(np.sum(gradient * direction) / np.linalg.norm(gradient), want / np.linalg.norm(gradient))


def test_several_images_and_a_bias():
    (x, offsets, kernel, mask, _), options = example("everything", images=3)
    bias = np.array([5.0, -7.0], "float32")
    y = deform_conv2d(x, offsets, kernel, bias=bias, mask=mask, **options)
    assert_close(y, twin(x, offsets, kernel, mask, **options) + bias)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("strides", "dilation"), [(1, 1), (2, 1), (3, 1), (1, 2)])
@pytest.mark.parametrize("kernel_size", [(3, 3), (2, 5), (1, 1)])
def test_without_offsets_it_is_the_plain_convolution(kernel_size, strides, dilation, padding):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 11, 12, 4)).astype("float32")
    kernel = rng.normal(size=(*kernel_size, 4, 3)).astype("float32")
    want = ops.conv(x, kernel, strides=strides, padding=padding, dilation_rate=dilation)
    offsets = np.zeros((*want.shape[:3], 2 * kernel_size[0] * kernel_size[1]), "float32")
    got = deform_conv2d(x, offsets, kernel, strides=strides, padding=padding, dilation=dilation)
    assert_close(got, want)


def test_integer_offsets_shift_the_map():
    (x, _, kernel, _, _), _ = example("plain")
    x = np.pad(x, ((0, 0), (6, 6), (6, 6), (0, 0)))
    offsets = np.tile(np.array([2.0, -1.0], "float32"), (*x.shape[:3], 9))  # two down, one to the left
    shifted = np.roll(x, (-2, 1), axis=(1, 2))
    got = deform_conv2d(x, offsets, kernel, padding=1)
    assert_close(got, ops.conv(shifted, kernel, padding="same"))


@pytest.mark.parametrize("distance", [30.0, -30.0, 1e6, -1e6])
def test_taps_outside_the_map_have_values_and_gradients_of_zero(distance):
    (x, offsets, kernel, mask, upstream), options = example("plain")
    offsets = np.full_like(offsets, distance)
    y, gradients = value_and_gradients(
        lambda *tensors: deform_conv2d(*tensors[:3], mask=tensors[3], **options), (x, offsets, kernel, mask), upstream
    )
    for tensor in (y, *gradients):
        assert_close(tensor, np.zeros(tensor.shape))


def test_groups_of_channels_are_separate_convolutions():
    (x, offsets, kernel, mask, _), options = example("groups")
    taps = mask.shape[-1] // 2
    parts = [
        deform_conv2d(
            x[..., 2 * group : 2 * group + 2],
            offsets[..., 2 * taps * group : 2 * taps * (group + 1)],
            kernel[:, :, 2 * group : 2 * group + 2],
            mask=mask[..., taps * group : taps * (group + 1)],
        )
        for group in range(2)
    ]
    assert_close(deform_conv2d(x, offsets, kernel, mask=mask, **options), parts[0] + parts[1])


@pytest.mark.parametrize("mode", GRAPHS_ARE_SLOW)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_keeps_float32_positions(dtype, mode):
    width = 3000  # neither 16-bit format counts so far
    x = ops.cast(np.random.default_rng(0).normal(size=(1, 2, width, 1)), dtype)
    offsets, kernel = ops.zeros((1, 2, width, 2), dtype), ops.ones((1, 1, 1, 1), dtype)
    y, (gradient, *_) = value_and_gradients(deform_conv2d, (x, offsets, kernel), x, mode)
    for tensor in (y, gradient):
        assert keras.backend.standardize_dtype(tensor.dtype) == dtype
        assert_close(ops.cast(tensor, "float32"), ops.cast(x, "float32"), tolerance=(0, 0))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_is_near_float32(dtype):
    (x, offsets, kernel, mask, _), options = example("everything")
    rounded = [ops.cast(ops.cast(array, dtype), "float32") for array in (x, offsets, kernel, mask)]
    want = deform_conv2d(*rounded[:3], mask=rounded[3], **options)
    got = deform_conv2d(*(ops.cast(array, dtype) for array in rounded[:3]), mask=rounded[3], **options)
    largest = float(ops.max(ops.abs(want)))
    assert_close(ops.cast(got, "float32") / largest, want / largest, dtype)


@pytest.mark.tensorflow_only
@pytest.mark.parametrize("jit", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_batch_of_unknown_size(jit):
    import tensorflow as tf

    (x, offsets, kernel, _, upstream), options = example("plain", images=3)

    @tf.function(jit_compile=jit, input_signature=[tf.TensorSpec([None, *a.shape[1:]]) for a in (x, offsets, upstream)])
    def run(x, offsets, upstream):
        with tf.GradientTape() as tape:
            tape.watch([x, offsets])
            y = deform_conv2d(x, offsets, kernel, **options)
        return y, *tape.gradient(y, [x, offsets], upstream)

    y, gradients = value_and_gradients(
        lambda *tensors: deform_conv2d(*tensors, kernel, **options), (x, offsets), upstream
    )
    for count in (3, 1):
        for got, want in zip(run(x[:count], offsets[:count], upstream[:count]), (y, *gradients), strict=True):
            assert_close(got, want[:count])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offsets": (1, 4, 5, 9)}, r"offsets of shape \['b', 4, 5, 18\], got \(1, 4, 5, 9\)"),
        ({"offsets": (1, 4, 4, 18)}, r"got \(1, 4, 4, 18\)"),
        ({"mask": (1, 4, 5, 18)}, r"mask of shape \['b', 4, 5, 9\]"),
        ({"kernel": (3, 3, 3, 2)}, r"kernel \[kh, kw, c, filters\], got \(1, 4, 5, 2\) and \(3, 3, 3, 2\)"),
        ({"x": (4, 5, 2)}, r"got \(4, 5, 2\)"),
        ({"offset_groups": 3}, "divide the 2 channels of x, got 3"),
        ({"padding": "full"}, r"padding: got 'full'.*'valid', 'same'"),
        ({"padding": 0, "dilation": 3}, r"spans \(7, 7\) cells"),
    ],
)
def test_bad_arguments(change, message):
    shapes = {"x": (1, 4, 5, 2), "offsets": (1, 4, 5, 18), "kernel": (3, 3, 2, 2)}
    arguments = {"padding": "same", **shapes, **change}
    arguments = {k: np.zeros(v, "float32") if k in (*shapes, "mask") else v for k, v in arguments.items()}
    with pytest.raises(ValueError, match=message):
        deform_conv2d(**arguments)


@pytest.mark.parity
@pytest.mark.parametrize("mode", ["graph", "jit"])
@pytest.mark.parametrize("modulated", [True, False], ids=["v2", "v1"])
@pytest.mark.parametrize("spread", [1.5, 20.0, 0.0, "whole cells"])
@pytest.mark.parametrize("name", ["plain", "strides", "everything"])
def test_equal_to_torchvision(name, spread, modulated, mode):
    import torch
    from torchvision.ops import deform_conv2d as theirs

    whole = spread == "whole cells"
    (x, offsets, kernel, mask, upstream), options = example(name, images=2, filters=3, spread=2.0 if whole else spread)
    offsets = np.round(offsets) if whole else offsets
    arguments = (x, offsets, kernel, mask) if modulated else (x, offsets, kernel)

    def ours(x, offsets, kernel, mask=None):
        return deform_conv2d(x, offsets, kernel, mask=mask, **options)

    y, gradients = value_and_gradients(ours, arguments, upstream, mode)

    def first(array):
        return torch.from_numpy(array.transpose(0, 3, 1, 2).copy()).requires_grad_()

    their_kernel = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()).requires_grad_()
    inputs = [first(x), first(offsets), their_kernel, *([first(mask)] if modulated else [])]
    padding = {"same": 1}.get(options["padding"], options["padding"])
    want = theirs(
        *inputs[:3],
        stride=options.get("strides", 1),
        padding=padding,
        dilation=options.get("dilation", 1),
        mask=inputs[3] if modulated else None,
    )
    want.backward(first(upstream).detach())
    assert_close(y, want.detach().numpy().transpose(0, 2, 3, 1))
    for got, tensor, axes in zip(gradients, inputs, [(0, 2, 3, 1)] * 2 + [(2, 3, 1, 0), (0, 2, 3, 1)], strict=False):
        assert_close(got, tensor.grad.numpy().transpose(axes))
