"""A page in one file: a template, styles, scripts, and the data that they show."""

import base64
import functools
import html
import importlib.resources
import io
import json
import re

import keras
import numpy as np
from PIL import Image

SIDE = 640  # pixels of the longer side of an image, at most
ONE = 80_000  # bytes of an image


def page_of(template, title, scripts, data):
    """The text of a page that loads nothing.

    Args:
        template: File in `page_files/`, which begins with `{{head}}`.
        title: Of the browser's window.
        scripts: Names of the scripts in `page_files/`, in order.
        data: What they find as `data`; JSON without NaN.
    """
    parts = {
        "title": html.escape(title),
        "style": _resource("page.css"),
        "script": "\n".join(_resource(f"{name}.js") for name in scripts),
        "data": json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    text = _resource(template).replace("{{head}}\n", _resource("head.html"))
    return re.sub(r"{{(\w+)}}", lambda match: parts[match[1]], text)


@functools.cache
def _resource(name):
    return (importlib.resources.files("kvision") / "page_files" / name).read_text(encoding="utf-8")


def address(kind, content):
    """The bytes of an image file as an address that a page can hold."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def encoded(image, side=SIDE, most=ONE):
    """An image as PNG or JPEG, whichever is smaller, scaled down until it is small enough.

    Args:
        image: A matplotlib figure, or an array [height, width] or [height, width, 3], uint8 or float in [0, 1].
        side: Pixels of the longer side, at most.
        most: Bytes of the file, at most.

    Returns:
        `"png"` or `"jpeg"`, the file's bytes, and its width and height in pixels.
    """
    image = _opened(image)
    while True:
        image.thumbnail((side, side))
        files = {kind: io.BytesIO() for kind in ("png", "jpeg")}
        for kind, file in files.items():
            image.save(file, kind)
        kind, file = min(files.items(), key=lambda item: item[1].tell())
        if file.tell() <= most:
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
