"""Images in pixels of 0…255 while they are optimised, whatever range a model takes."""

import dataclasses

import numpy as np
from keras import ops

from kvision.network import Preprocessing
from kvision.visualize.images import rescales

TOLERANCE = 0.01  # of the range, by which images may leave it: rounding of a preprocessing


@dataclasses.dataclass(frozen=True, eq=False)
class PixelScale:
    """The images of a model as pixels of 0…255 and back, so that steps, blurs and priors have one unit for all models.

    Args:
        low, high: What pixels of 0 and 255 are in the units of the images, one number or one per channel.

    >>> scale = PixelScale(-1.0, 1.0)
    >>> scale.to_pixels(np.zeros((1, 2, 2, 3)))[0, 0, 0].tolist()
    [127.5, 127.5, 127.5]
    >>> float(scale.from_pixels(np.full((1, 1, 1, 1), 255.0)).max())
    1.0
    """

    low: object
    high: object

    def to_pixels(self, images):
        """Pixels of 0…255 of images, a new float32 array."""
        span = np.subtract(self.high, self.low, dtype="float64")
        return np.clip((np.asarray(images, "float64") - self.low) * (255 / span), 0, 255).astype("float32")

    def from_pixels(self, pixels):
        """Images of pixels of 0…255, a new float32 array that shares nothing with them."""
        span = np.subtract(self.high, self.low, dtype="float64")
        return (np.asarray(pixels, "float64") * (span / 255) + self.low).astype("float32")

    def before(self, preprocess=None):
        """A function of pixels, as tensors, to what a model takes: to images, then through `preprocess`."""
        step = np.asarray(np.subtract(self.high, self.low, dtype="float64") / 255, "float32")
        low = np.asarray(self.low, "float32")

        def run(pixels):
            images = ops.cast(pixels, "float32") * step + low
            return images if preprocess is None else preprocess(images)

        return run


def pixel_scale(model, preprocess=None, bounds=None, images=None):
    """The range of the images of a model, told or known, as a `PixelScale`.

    It is known with a `preprocess` (0…255), of a model that begins with a Rescaling layer or carries a `preprocessing`,
    and of images between 0 and 1 or 0 and 255.

    Args:
        model: A built `keras.Model`.
        preprocess: What the images go through first, or None.
        bounds: (low, high) of the images, each a number or one per channel; None: as is known.
        images: [b, h, w, c], which have to lie within; None: there are none yet.

    Raises:
        ValueError: on bounds that are not in rising order, a range that is not known, and images outside.
    """
    if bounds is not None:
        try:
            low, high = (np.asarray(end, "float32") for end in bounds)
        except (TypeError, ValueError):
            low, high = np.zeros(()), np.zeros(())
        if not np.all(np.isfinite(low) & np.isfinite(high)) or not np.all(high > low):
            raise ValueError(f"bounds are (low, high) of the images in rising order, such as (0, 255): got {bounds!r}.")
    else:
        low, high = _known_range(model, preprocess, images)
    if images is not None:
        slack = TOLERANCE * (high - low)
        if np.any(images < low - slack) or np.any(images > high + slack):
            ends = (np.asarray(end).round(3).tolist() for end in (low, high))
            raise ValueError(
                f"Expected images from {' to '.join(map(str, ends))}: got values from {float(images.min()):.3g} to "
                f"{float(images.max()):.3g}. Rescale them, or give bounds=(low, high) and what they go through as "
                "preprocess=."
            )
    return PixelScale(low, high)


def _known_range(model, preprocess, images):
    if preprocess is not None or rescales(model):
        return np.float32(0), np.float32(255)
    carried = getattr(model, "preprocessing", None)
    if isinstance(carried, Preprocessing):
        # one channel beyond those of the model's mean would not be told apart: as many as it has, or one for all
        channels = max(np.size(carried.mean), np.size(carried.deviation))
        low, high = carried(np.stack([np.zeros(channels), np.full(channels, 255.0)]))
        return (low, high) if channels > 1 else (low[0], high[0])
    if images is not None and images.min() >= 0 and images.max() <= 255:
        return np.float32(0), np.float32(1 if images.max() <= 1 else 255)
    raise ValueError(
        f"{model.name} does not tell which range its images have: give bounds=(low, high), such as (0, 1), or "
        "preprocess=, which takes images of 0…255."
    )
