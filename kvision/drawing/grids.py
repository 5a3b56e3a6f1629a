"""Images side by side."""

import math

import numpy as np
from PIL import Image, ImageDraw

from kvision.drawing.canvas import DARK, LIGHT, font, rgb


def grid(images, columns=None, captions=None):
    """Images side by side on white.

    Args:
        images: Arrays [h, w, 3], [h, w, 1] or [h, w], 0…255, of any sizes; each cell is as large as the largest.
        columns: Images per row; None makes the result about square.
        captions: Text below each image, of one line or several, or None; a line that is too long ends in "…".

    Returns:
        [height, width, 3] uint8.

    Raises:
        ValueError: without an image, or with another number of captions.

    >>> grid([np.zeros((10, 20, 3))] * 3, columns=2).shape
    (32, 52, 3)
    """
    images = [rgb(image) for image in images]
    if not images:
        raise ValueError("drawing.grid: there is no image; give at least one.")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"drawing.grid: {len(images)} images need as many captions, got {len(captions)}.")
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    columns = columns or math.ceil(math.sqrt(len(images) * height / width))
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    gap = max(4, round(width / 64))
    text_font = font(max(11, round(width / 28))) if captions is not None else None
    lines = [str(caption).split("\n") for caption in captions] if text_font else [[]]
    step = round(1.5 * text_font.size) if text_font else 0
    strip = step * max(map(len, lines))
    canvas = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + strip + gap) + gap), LIGHT)
    draw = ImageDraw.Draw(canvas)
    for index, image in enumerate(images):
        x, y = gap + index % columns * (width + gap), gap + index // columns * (height + strip + gap)
        canvas.paste(Image.fromarray(image), (x + (width - image.shape[1]) // 2, y + (height - image.shape[0]) // 2))
        for row, line in enumerate(lines[index] if text_font else ()):
            text = _shortened(line, draw, text_font, width)
            draw.text((x, y + height + (row + 0.5) * step), text, font=text_font, fill=DARK, anchor="lm")
    return np.array(canvas)


def _shortened(text, draw, text_font, width):
    if draw.textlength(text, font=text_font) <= width:
        return text
    while text and draw.textlength(text + "…", font=text_font) > width:
        text = text[:-1]
    return text + "…"
