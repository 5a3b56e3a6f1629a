"""Sinusoidal position encodings (Vaswani et al. 2017, section 3.5)."""

import math

from keras import ops


def sinusoidal_encoding(positions, channels, temperature=10_000.0):
    """Sines and cosines of geometrically growing wavelengths, 2π to 2π·temperature.

    Channel 2i holds sin(p / temperature^(2i / channels)), channel 2i + 1 its cosine. For maps, encode rows and columns
    by half the channels each and concatenate.

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
