"""What makes an image look like one: total variation, the α-norm, the L2 norm, Gaussian blur.

Mahendran & Vedaldi, "Understanding Deep Image Representations by Inverting Them" (2015), section 3; Yosinski et al.,
"Understanding Neural Networks Through Deep Visualization" (2015), section 4. Deviation: pixels are measured from mid
grey in units of half their range, and the penalties are means over pixels and not sums, so that one weight serves
images of every size and range.
"""

import numpy as np
from keras import ops

from kvision.ops.resize import weigh_rows_and_columns


def centred(pixels):
    """Pixels of 0…255 as values of −1…1 around mid grey."""
    return ops.cast(pixels, "float32") / 127.5 - 1.0


def total_variation(pixels):
    """The mean of (x[i, j+1] − x[i, j])² + (x[i+1, j] − x[i, j])² over pixels and channels (β = 2): [b].

    Args:
        pixels: [b, h, w, c] of 0…255, measured in half ranges.

    >>> [float(value) for value in total_variation(np.reshape([0.0, 255.0, 0.0, 255.0], (1, 2, 2, 1)))]
    [2.0]
    """
    values = centred(pixels)
    count = int(np.prod(values.shape[1:]))
    rows = ops.sum(ops.square(values[:, 1:] - values[:, :-1]), axis=(1, 2, 3))
    columns = ops.sum(ops.square(values[:, :, 1:] - values[:, :, :-1]), axis=(1, 2, 3))
    return (rows + columns) / count


def alpha_norm(pixels, alpha=6):
    """The mean of |x|^α over pixels and channels: [b]. It keeps values from the ends of their range; α = 2 is L2.

    Args:
        pixels: [b, h, w, c] of 0…255, measured from mid grey in half ranges.
        alpha: An even exponent.

    >>> [float(value) for value in alpha_norm(np.full((1, 2, 2, 3), 255.0))]
    [1.0]
    """
    return ops.mean(centred(pixels) ** alpha, axis=(1, 2, 3))


def blurred(pixels, sigma):
    """Images after a Gaussian blur, as NumPy; at the border the weights of what is inside add up to 1.

    Args:
        pixels: [b, h, w, c].
        sigma: Standard deviation of the Gaussian in pixels, > 0.

    >>> blurred(np.ones((1, 4, 5, 3), "float32"), 2.0).shape
    (1, 4, 5, 3)
    """
    rows, columns = (_gaussian(length, sigma) for length in pixels.shape[1:3])
    return np.array(ops.convert_to_numpy(weigh_rows_and_columns(ops.convert_to_tensor(pixels), rows, columns)))


def _gaussian(length, sigma):
    index = np.arange(length)
    weights = np.exp(-0.5 * ((index[:, None] - index) / sigma) ** 2)
    return (weights / weights.sum(axis=1, keepdims=True)).astype("float32")
