"""Errors of a detector drawn on an image, each kind in a colour of its own."""

import numpy as np
from PIL import Image, ImageDraw

from kvision.drawing.boxes import Labels, rectangle
from kvision.drawing.canvas import LIGHT, PALETTE, rgb, scaled
from kvision.drawing.label_maps import legend_strip
from kvision.errors import choose

ERROR_COLOURS = {
    "class": PALETTE[0],
    "localization": PALETTE[1],
    "both": PALETTE[2],
    "duplicate": PALETTE[3],
    "background": PALETTE[5],
    "missed": PALETTE[6],
    "true_positive": PALETTE[4],
}


def detection_errors(image, boxes_xyxy, kinds, texts, truth_xyxy=(), side=None, legend=True):
    """Boxes over an image in the colours of their kinds of errors, over the ground truth in white.

    Args:
        image: [h, w, 3], [h, w, 1] or [h, w], 0…255.
        boxes_xyxy: [n, 4] left, top, right, bottom in pixels; the last one is drawn on top, and its text placed first.
        kinds: [n] keys of `ERROR_COLOURS`: `"class"`, `"localization"`, `"both"`, `"duplicate"`, `"background"`,
            `"missed"` or `"true_positive"`.
        texts: [n] what is written beside each; one that finds no free position is left out.
        truth_xyxy: [m, 4] boxes of the objects.
        side: Pixels of the longer side of the image in the result; None keeps its size.
        legend: Whether to add a strip below with the kinds that occur.

    Returns:
        [height, width, 3] uint8.

    Raises:
        ValueError: on other shapes and on unknown kinds.

    >>> detection_errors(np.zeros((64, 96, 3)), [[8, 8, 40, 40]], ["missed"], ["missed: tree"], legend=False).shape
    (64, 96, 3)
    """
    boxes, truth = (np.reshape(np.asarray(each, "float64"), (-1, 4)) for each in (boxes_xyxy, truth_xyxy))
    if not len(boxes) == len(kinds) == len(texts):
        raise ValueError(
            f"drawing.detection_errors: expected a kind and a text for each box, got {len(boxes)} boxes, {len(kinds)} "
            f"kinds and {len(texts)} texts."
        )
    colours = [choose("kind of error", ERROR_COLOURS, kind) for kind in kinds]
    pixels = rgb(image)
    longest = max(pixels.shape[:2])
    scale = 1.0 if side is None else side / longest
    canvas = scaled(Image.fromarray(pixels), side)
    line = max(2, round(max(canvas.size) / 256))
    draw = ImageDraw.Draw(canvas)
    boxes, truth = (np.clip(each, -longest, 2 * longest) * scale for each in (boxes, truth))
    for box in truth[_drawable(truth)]:
        rectangle(draw, box, LIGHT, line + 2)
    rows = np.flatnonzero(_drawable(boxes)).tolist()
    for row in rows:
        rectangle(draw, boxes[row], colours[row], line)
    labels = Labels(draw, canvas.size)
    for row in reversed(rows):
        labels.add(texts[row], boxes[row], colours[row])
    drawn = np.array(canvas)
    if not legend:
        return drawn
    present = [(colour, kind.replace("_", " ")) for kind, colour in ERROR_COLOURS.items() if kind in set(kinds)]
    return np.concatenate([drawn, legend_strip([*present, (LIGHT, "ground truth")], drawn.shape[1])])


def _drawable(boxes):
    return np.isfinite(boxes).all(axis=1) & (boxes[:, :2] < boxes[:, 2:]).all(axis=1)
