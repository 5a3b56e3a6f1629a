"""Deformable convolution: v1 (Dai et al. 2017, "Deformable Convolutional Networks"), v2 (Zhu et al. 2018).

Equal to `torchvision.ops.deform_conv2d` in values and gradients, channels last.
"""

import functools
import typing

import numpy as np
from keras import ops

from kvision.errors import unknown
from kvision.ops._backend import kernels


def deform_conv2d(x, offsets, kernel, bias=None, mask=None, strides=1, padding="valid", dilation=1, offset_groups=1):
    """2-D convolution whose taps are displaced by learned offsets.

    Dai et al. 2017, section 2.1; with `mask` Zhu et al. 2018, section 3.2.

    A tap samples the map bilinearly, and zero outside it. Positions are computed in float32 whatever
    the dtype of the arguments. Every argument gets its gradient.

    Args:
        x: [b, h, w, c] with static h, w and c.
        offsets: [b, oh, ow, offset_groups · kh · kw · 2], in cells: for every group of channels, for every tap of the
            kernel row by row, first y, then x. Torchvision's order of channels.
        kernel: [kh, kw, c, filters].
        bias: [filters] or None.
        mask: [b, oh, ow, offset_groups · kh · kw], a factor on every tap (v2), or None (v1).
        strides: Of the kernel, an int or (rows, columns).
        padding: `"valid"`, `"same"`, or the cells of zero padding on every side, an int or (rows, columns).
        dilation: Distance of neighbouring taps, an int or (rows, columns).
        offset_groups: Number of groups of channels with offsets (and masks) of their own; divides c.

    Returns:
        [b, oh, ow, filters] in the dtype of `x`.

    Raises:
        ValueError: on shapes that do not fit together, naming the one expected.

    >>> x, kernel = keras.ops.ones((1, 8, 8, 4)), keras.ops.ones((3, 3, 4, 6))
    >>> tuple(kvision.ops.deform_conv2d(x, keras.ops.zeros((1, 8, 8, 18)), kernel, padding=1).shape)
    (1, 8, 8, 6)
    """
    x, offsets, kernel = (ops.convert_to_tensor(tensor) for tensor in (x, offsets, kernel))
    geometry = _geometry(x.shape, kernel.shape, strides, padding, dilation)
    taps = offset_groups * kernel.shape[0] * kernel.shape[1]
    if x.shape[-1] % offset_groups:
        raise ValueError(f"offset_groups must divide the {x.shape[-1]} channels of x, got {offset_groups}.")
    _check_shape("offsets", offsets, (*geometry.size, 2 * taps))
    inputs = [x, offsets]
    if mask is not None:
        inputs.append(ops.convert_to_tensor(mask))
        _check_shape("mask", inputs[-1], (*geometry.size, taps))
    columns = _sampler(geometry, offset_groups)(*inputs)
    filters = kernel.shape[-1]
    y = ops.matmul(columns, ops.cast(ops.reshape(kernel, (-1, filters)), x.dtype))
    y = ops.reshape(y, (-1, *geometry.size, filters))
    return y if bias is None else y + ops.cast(bias, x.dtype)


class _Geometry(typing.NamedTuple):
    """Positions of the kernel: its size, strides and dilation, the padding above and to the left, the output's size."""

    kernel: tuple
    strides: tuple
    dilation: tuple
    before: tuple
    size: tuple

    def grid(self, axis):
        """The row (axis 0) or column (axis 1) in x of every tap without its offset: [oh, ow, kh · kw, 1], float32."""
        position = np.arange(self.size[axis]) * self.strides[axis] - self.before[axis]
        tap = np.indices(self.kernel)[axis].ravel() * self.dilation[axis]
        position = np.expand_dims(position[:, None] + tap, 1 - axis)
        return np.broadcast_to(position, (*self.size, tap.size))[..., None].astype("float32")


def _geometry(shape, kernel_shape, strides, padding, dilation):
    if len(shape) != 4 or None in shape[1:] or len(kernel_shape) != 4 or kernel_shape[2] != shape[3]:
        raise ValueError(
            f"Expected x of shape [b, h, w, c] with static h, w and c and a kernel [kh, kw, c, filters], "
            f"got {tuple(shape)} and {tuple(kernel_shape)}."
        )
    size, kernel = tuple(shape[1:3]), tuple(kernel_shape[:2])
    strides, dilation = _pair(strides), _pair(dilation)
    window = tuple((taps - 1) * step + 1 for taps, step in zip(kernel, dilation, strict=True))
    axes = tuple(zip(size, window, strides, strict=True))
    if padding == "same":  # as Keras: an odd number of zero cells puts the larger half at the end
        added = tuple(max((-(-n // step) - 1) * step + span - n, 0) for n, span, step in axes)
        before = tuple(total // 2 for total in added)
    elif padding == "valid":
        added = before = (0, 0)
    elif isinstance(padding, str):
        raise unknown("padding", padding, ["valid", "same"])
    else:
        before = _pair(padding)
        added = tuple(2 * cells for cells in before)
    output = tuple((n + extra - span) // step + 1 for (n, span, step), extra in zip(axes, added, strict=True))
    if min(output) < 1:
        raise ValueError(f"The kernel spans {window} cells, more than the map of {size} with padding={padding!r} has.")
    return _Geometry(kernel, strides, dilation, before, output)


@functools.cache
def _sampler(geometry, groups):
    """The function (x, offsets[, mask]) → [b · oh · ow, kh · kw · c]: the sample of each tap of each window."""
    taps = geometry.kernel[0] * geometry.kernel[1]
    positions = (*geometry.size, groups, taps)

    @kernels.fuse_and_recompute
    def sample(x, offsets, mask=None):
        batch, height, width, channels = ops.shape(x)[0], *x.shape[1:]
        dtype, x = x.dtype, ops.cast(x, "float32")
        offsets = ops.reshape(ops.cast(offsets, "float32"), (-1, *positions, 2))
        rows = _neighbours(ops.swapaxes(offsets[..., 0], -1, -2) + geometry.grid(0), height)
        columns = _neighbours(ops.swapaxes(offsets[..., 1], -1, -2) + geometry.grid(1), width)
        # Two cells of zero padding on every side: a sample outside is zero, and so is its gradient.
        table = ops.reshape(ops.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0))), (-1, channels // groups))
        image = ops.arange(batch, dtype="int32")[:, None, None, None, None] * (height + 4)
        values = 0.0
        for row, row_weight in rows:
            for column, column_weight in columns:
                cell = ((image + row) * (width + 4) + column) * groups + np.arange(groups, dtype="int32")
                values = values + ops.take(table, cell, axis=0) * (row_weight * column_weight)[..., None]
        if mask is not None:
            mask = ops.reshape(ops.cast(mask, "float32"), (-1, *positions))
            values = values * ops.swapaxes(mask, -1, -2)[..., None]
        return ops.cast(ops.reshape(values, (-1, taps * channels)), dtype)

    return sample


def _neighbours(points, size):
    """The two cells beside each point, indices into the map padded by two cells, with their weights."""
    low = ops.stop_gradient(ops.floor(points))
    fraction = points - low
    index = ops.cast(ops.clip(low, -2, size), "int32") + 2
    return (index, 1.0 - fraction), (index + 1, fraction)


def _pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def _check_shape(name, tensor, expected):
    if tuple(tensor.shape[1:]) != expected:
        raise ValueError(f"Expected {name} of shape {['b', *expected]}, got {tuple(tensor.shape)}.")
