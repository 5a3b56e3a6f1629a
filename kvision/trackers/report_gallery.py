"""Images inside the local report: small, few, and the newest."""

import base64
import io

import keras
import numpy as np
from PIL import Image

SIDE = 640  # pixels of the longer side, at most
ONE = 80_000  # bytes of an image
ALL = 450_000  # bytes of all


class Gallery:
    """The newest image of each name, the oldest dropped where they are too many."""

    def __init__(self):
        self._images = {}

    def add(self, event):
        """Take in the images of an `Images` event."""
        for name, image in event.images.items():
            kind, content, size = encoded(image)
            self._images.pop(name, None)
            self._images[name] = (event.step, kind, content, size)
        while sum(len(content) for _, _, content, _ in self._images.values()) > ALL:
            del self._images[next(iter(self._images))]

    def page(self):
        """As JSON can hold it, images as data addresses; the newest step first, its images as they came."""
        newest_first = sorted(self._images.items(), key=lambda item: -item[1][0])
        return [
            {
                "name": str(name),
                "step": int(step),
                "width": width,
                "height": height,
                "source": f"data:image/{kind};base64,{base64.b64encode(content).decode()}",
            }
            for name, (step, kind, content, (width, height)) in newest_first
        ]


def encoded(image):
    """An image as PNG or JPEG, whichever is smaller, scaled down until it is small enough.

    Args:
        image: A matplotlib figure, or an array [height, width] or [height, width, 3], uint8 or float in [0, 1].

    Returns:
        `"png"` or `"jpeg"`, the file's bytes, and its width and height in pixels.
    """
    image = _opened(image)
    side = SIDE
    while True:
        image.thumbnail((side, side))
        files = {kind: io.BytesIO() for kind in ("png", "jpeg")}
        for kind, file in files.items():
            image.save(file, kind)
        kind, file = min(files.items(), key=lambda item: item[1].tell())
        if file.tell() <= ONE:
            return kind, file.getvalue(), image.size
        side = max(image.size) * 3 // 4


def _opened(image):
    if hasattr(image, "savefig"):
        file = io.BytesIO()
        image.savefig(file, format="png")
        return Image.open(file).convert("RGB")
    array = np.asarray(keras.ops.convert_to_numpy(image))
    if array.dtype.kind == "f":
        array = np.clip(array, 0, 1) * 255
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    return Image.fromarray(array.astype("uint8")).convert("RGB")
