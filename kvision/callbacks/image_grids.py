"""What callbacks that draw images share: images as bytes, and a few grids of them for the report."""

import numpy as np

from kvision.drawing import grid

GRIDS = 4  # images for the report, each a grid


def image_bytes(image):
    """An image [h, w, 3] or [h, w, 1] of 0…255 as [h, w, 3] uint8."""
    image = np.clip(np.round(image), 0, 255).astype("uint8")
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image


def grids(kind, images, captions, columns=None):
    """At most `GRIDS` grids of images, by a name that begins with `kind`."""
    size = -(-len(images) // GRIDS)
    return {
        f"{kind} {start + 1}-{min(start + size, len(images))}": grid(
            images[start : start + size], columns, captions[start : start + size]
        )
        for start in range(0, len(images), size)
    }
