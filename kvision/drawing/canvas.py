"""What all drawings share: colours, letters, images as pixels, and their size."""

import functools
import pathlib

import numpy as np
from PIL import Image, ImageFont

# Distinguishable with any colour vision: Okabe & Ito 2008, https://jfly.uni-koeln.de/color/.
PALETTE = (
    (230, 159, 0),
    (86, 180, 233),
    (204, 121, 167),
    (240, 228, 66),
    (0, 158, 115),
    (213, 94, 0),
    (0, 114, 178),
)
DARK, LIGHT = (20, 20, 20), (255, 255, 255)
MASK_OPACITY = 0.45


@functools.cache
def font(size):
    """DejaVu Sans, which comes with matplotlib and has most alphabets, `size` pixels high."""
    import matplotlib

    return ImageFont.truetype(pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def colour_of(label):
    """The colour of a class of boxes."""
    return PALETTE[int(label) % len(PALETTE)]


def name_of(label, classes):
    """The name of a class, or its label where it has none."""
    label = int(label)
    return str(classes[label]) if classes is not None and label < len(classes) else str(label)


def rgb(image):
    """[h, w, 3] uint8."""
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ValueError(f"drawing: an image is [h, w, 3], [h, w, 1] or [h, w] in 0…255, got {image.shape}.")
    if image.dtype != "uint8":
        image = np.clip(np.round(np.nan_to_num(image.astype("float32"))), 0, 255).astype("uint8")
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image


def resized(mask, shape):
    """A mask or label map [h, w] of another size, by the nearest pixel."""
    rows, columns = (np.arange(n) * m // n for n, m in zip(shape, mask.shape, strict=True))
    return mask[np.ix_(rows, columns)]


def scaled(canvas, side):
    """A pillow image whose longer side has `side` pixels; None keeps its size."""
    if side is None:
        return canvas
    scale = side / max(canvas.size)
    method = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    return canvas.resize([max(1, round(length * scale)) for length in canvas.size], method)
