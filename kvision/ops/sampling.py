"""A balanced sample of anchors or proposals, of a fixed size."""

import keras
from keras import ops

from kvision.ops.matching import BACKGROUND
from kvision.ops.rows import take_rows


def sample_balanced(matches, num_samples, positive_fraction, seed=None, keys=None):
    """Draw positives and background at random, without replacement, so that positives never exceed their fraction.

    Girshick 2015 (Fast R-CNN), section 2.3; Ren et al. 2015 (Faster R-CNN), section 3.1.3. At most
    `num_samples * positive_fraction` positives are drawn, and background fills the rest. Where both together are too
    few, the sample holds rows to be left out.

    Args:
        matches: `[batch, n]` as `match` returns: 0 and above is positive, -1 background; all else is never drawn.
        num_samples: Size of the sample.
        positive_fraction: Largest fraction of positives, in [0, 1].
        seed: A `keras.random.SeedGenerator`, which draws anew each call, or an integer, which draws the same.
        keys: Instead of a seed, numbers `[batch, n]` in [0, 1): of each kind those with the largest are drawn.

    Returns:
        A pair: indices `[batch, num_samples]`, int32, into the `n`, positives first; and `[batch, num_samples]`, bool,
        whether the row is in the sample. The other rows repeat some index, so that gathering is safe.

    Raises:
        ValueError: If not one of `seed` and `keys` is given, or if numbers or shapes do not fit.

    Example:

    >>> indices, drawn = sample_balanced([[4, -1, -2, 0, 0]], 4, 0.5, keys=[[0.1, 0.9, 0.9, 0.8, 0.7]])
    >>> keras.ops.convert_to_numpy(indices)[0, :3].tolist(), keras.ops.convert_to_numpy(drawn).tolist()
    ([3, 4, 1], [[True, True, True, False]])
    """
    matches = ops.convert_to_tensor(matches)
    if num_samples < 1 or not 0 <= positive_fraction <= 1:
        raise ValueError(
            "Sampling needs num_samples >= 1 and 0 <= positive_fraction <= 1: "
            f"got num_samples={num_samples} and positive_fraction={positive_fraction}."
        )
    if len(matches.shape) != 2 or not matches.shape[1]:
        raise ValueError(f"Sampling needs matches [batch, n] with a fixed n >= 1: got {tuple(matches.shape)}.")
    if (seed is None) == (keys is None):
        raise ValueError("Sampling needs either `seed`, an integer or a keras.random.SeedGenerator, or `keys`.")
    if keys is None:
        keys = keras.random.uniform(ops.shape(matches), dtype="float32", seed=seed)
    keys = ops.stop_gradient(ops.cast(keys, "float32"))
    positives, num_positives = _largest(keys, matches > BACKGROUND, int(num_samples * positive_fraction))
    background, num_background = _largest(keys, matches == BACKGROUND, num_samples)
    row = ops.arange(num_samples, dtype="int32")[None]
    is_positive = row < num_positives
    background_row = ops.clip(row - num_positives, 0, background.shape[1] - 1)
    positives = ops.pad(positives, [(0, 0), (0, num_samples - positives.shape[1])])
    indices = ops.where(is_positive, positives, take_rows(background, background_row))
    return indices, row < num_positives + num_background


def _largest(keys, mask, size):
    """Indices `[batch, up to size]` of the largest keys under the mask, and how many of them are, `[batch, 1]`."""
    size = min(size, keys.shape[1])
    _, indices = ops.top_k(ops.where(mask, keys, -1.0), k=size)
    return indices, ops.minimum(ops.sum(ops.cast(mask, "int32"), axis=1, keepdims=True), size)
