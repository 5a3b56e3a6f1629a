"""Sinusoidal position encodings: of tokens (Vaswani et al. 2017, section 3.5) and of maps (Carion et al. 2020)."""

import math

from keras import ops


def sinusoidal_encoding(positions, channels, temperature=10_000.0):
    """Sines and cosines of geometrically growing wavelengths, 2π to 2π·temperature.

    Channel 2i holds sin(p / temperature^(2i / channels)), channel 2i + 1 its cosine.

    Args:
        positions: Tensor of any shape: integers as in the paper, or coordinates.
        channels: Even number of channels.
        temperature: Of the longest wavelength.

    Returns:
        `[..., channels]` float32.

    Raises:
        ValueError: if `channels` is odd.

    >>> sinusoidal_encoding(keras.ops.arange(50), 16).shape
    TensorShape([50, 16])
    """
    if channels < 2 or channels % 2:
        raise ValueError(f"sinusoidal_encoding: channels come in pairs of sine and cosine, got {channels}.")
    frequencies = ops.exp(ops.arange(0, channels, 2, dtype="float32") * (-math.log(temperature) / channels))
    angles = ops.cast(positions, "float32")[..., None] * frequencies
    pairs = ops.stack([ops.sin(angles), ops.cos(angles)], axis=-1)
    return ops.reshape(pairs, (*ops.shape(angles)[:-1], channels))


def sinusoidal_map_encoding(size, channels, valid_size=None, temperature=10_000.0):
    """Encodings of the cells of a map: the row in the first half of the channels, the column in the second.

    Carion et al. 2020, appendix A.4. Cells are counted from 1 and divided by the number of valid ones, times 2π: the
    last valid row has the same encoding in images of every size. What lies behind it has the last one's.

    Args:
        size: (rows, columns) of the map.
        channels: A multiple of 4.
        valid_size: [b, 2], the rows and columns of each image that are no padding; None: all.
        temperature: Of the longest wavelength.

    Returns:
        `[b, rows·columns, channels]` float32; b is 1 without a `valid_size`.

    Raises:
        ValueError: if 4 does not divide the channels.

    >>> sinusoidal_map_encoding((5, 7), 16).shape
    TensorShape([1, 35, 16])
    """
    if channels < 4 or channels % 4:
        raise ValueError(f"sinusoidal_map_encoding: channels must be a multiple of 4, got {channels}.")
    valid = ops.convert_to_tensor([size] if valid_size is None else valid_size)
    valid = ops.cast(valid, "float32")
    halves = []
    for axis, cells in enumerate(size):
        last = valid[:, axis, None]
        position = ops.minimum(ops.arange(1, cells + 1, dtype="float32"), last) * (2 * math.pi) / (last + 1e-6)
        halves.append(sinusoidal_encoding(position, channels // 2, temperature))
    rows, columns = halves[0][:, :, None], halves[1][:, None]
    rows = ops.repeat(rows, size[1], axis=2)
    columns = ops.repeat(columns, size[0], axis=1)
    return ops.reshape(ops.concatenate([rows, columns], axis=-1), (-1, size[0] * size[1], channels))
