"""Maps of importance over images."""

import numpy as np
from PIL import Image

from kvision.drawing.canvas import PALETTE, rgb, scaled

POSITIVE, NEGATIVE = PALETTE[5], PALETTE[6]  # vermilion and blue differ for every kind of colour vision


def heatmap(image, values, percentile=99.0, opacity=0.9, side=None):
    """A map over the grey image: positive values in vermilion, negative ones in blue, the stronger the more opaque.

    Args:
        image: [h, w, 3], [h, w, 1] or [h, w], 0…255.
        values: [h, w], or of another size, such as that of a layer, which is enlarged. 0 and NaN show the image alone.
        percentile: Of the magnitudes, from which on colours are as strong as they get: a few outliers would leave all
            else pale. In (0, 100]; 100 is the largest magnitude.
        opacity: Of the strongest colours, in [0, 1].
        side: Pixels of the longer side of the result; None keeps the size of the image.

    Returns:
        [height, width, 3] uint8.

    Raises:
        ValueError: on arrays of other shapes, and a percentile or opacity out of range.

    >>> heatmap(np.zeros((32, 48, 3)), np.eye(4)).shape
    (32, 48, 3)
    """
    if not (0 < percentile <= 100 and 0 <= opacity <= 1):
        raise ValueError(
            f"drawing.heatmap: percentile lies in (0, 100] and opacity in [0, 1]: got {percentile!r} and {opacity!r}."
        )
    values = np.asarray(values, "float32")
    if values.ndim != 2:
        raise ValueError(
            f"drawing.heatmap: values are [h, w]: got {list(values.shape)}. Of gradients take "
            "kvision.visualize.saliency_map, or the sum over the channels."
        )
    canvas = Image.fromarray(rgb(image))
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    limit = np.percentile(np.abs(values), percentile) or np.abs(values).max() or 1.0
    strengths = np.clip(values / limit, -1, 1)
    canvas = scaled(canvas, side)
    if strengths.shape != (canvas.height, canvas.width):
        strengths = np.array(Image.fromarray(strengths).resize(canvas.size, Image.Resampling.BILINEAR))
    grey = np.asarray(canvas, "float32") @ np.array((0.299, 0.587, 0.114), "float32")
    colours = np.where(strengths[..., None] > 0, np.array(POSITIVE, "float32"), np.array(NEGATIVE, "float32"))
    alpha = opacity * np.abs(strengths)[..., None]
    return np.round(grey[..., None] * (1 - alpha) + colours * alpha).astype("uint8")
