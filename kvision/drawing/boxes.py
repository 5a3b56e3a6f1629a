"""Detections drawn on images by pillow."""

import functools
import math

import numpy as np
from PIL import Image, ImageDraw

from kvision.contract import MASK_THRESHOLD, paste_masks
from kvision.drawing.canvas import DARK, LIGHT, MASK_OPACITY, colour_of, font, name_of, resized, rgb, scaled


def detections(image, boxes_xyxy, labels, scores=None, masks=None, classes=None, truth=None, side=None):
    """Boxes, masks, class names and scores over an image; with `truth`, over the ground truth.

    Each class has a colour of its own (seven, then again from the first). The ground truth is a broad white line below:
    a coloured box with a white rim is a true positive, a white box a false negative, a coloured box without a rim a
    false positive. Where there are several classes, an object that no detection of its class overlaps (IoU at least
    0.5) is labelled in white. Labels that find no free position are left out, and so are those of the lowest scores
    where all would hide too much of the image.

    Args:
        image: [h, w, 3], [h, w, 1] or [h, w], 0…255.
        boxes_xyxy: [n, 4] left, top, right, bottom in pixels; rows that are not finite or have no area are left out.
        labels: [n] classes from 0; rows of −1 are left out.
        scores: [n] in [0, 1], or None. The highest is drawn on top.
        masks: [n, h, w], true from 0.5 on, or None.
        classes: Names of the classes, in the order of the labels; None writes the label.
        truth: The ground truth in the data contract: a dict with `"boxes"` and `"labels"`, and, optional, `"masks"` or
            `"box_masks"`; or None.
        side: Pixels of the longer side of the result; the image is scaled before anything is drawn, so lines and
            text stay sharp. None keeps its size.

    Returns:
        [height, width, 3] uint8.

    Raises:
        ValueError: on arrays of other shapes.

    >>> drawn = detections(np.zeros((64, 96, 3)), [[8, 8, 40, 40]], [0], scores=[0.9], classes=["tree"])
    >>> drawn.shape
    (64, 96, 3)
    """
    canvas = Image.fromarray(rgb(image))
    size = canvas.size
    scale = 1.0 if side is None else side / max(size)
    found = _Objects("detections", size, scale, boxes_xyxy, labels, scores, masks)
    truth = {"boxes": (), "labels": ()} if truth is None else truth
    true = _Objects("truth", size, scale, truth["boxes"], truth["labels"], masks=_full_size_masks(truth, size))
    canvas = scaled(canvas, side)
    line = max(2, round(max(canvas.size) / 256))
    canvas = Image.fromarray(_with_masks(np.array(canvas), found, true, line))
    draw = ImageDraw.Draw(canvas)
    for box in true.boxes:
        rectangle(draw, box, LIGHT, line + 2)
    for box, label in zip(found.boxes, found.labels, strict=True):
        rectangle(draw, box, colour_of(label), line)
    labelled = Labels(draw, canvas.size)
    for row in reversed(range(len(found.labels))):  # the highest score is placed first
        name = name_of(found.labels[row], classes)
        text = name if scores is None else f"{name} {found.scores[row]:.2f}"
        labelled.add(text, found.boxes[row], colour_of(found.labels[row]))
    if classes is None or len(classes) > 1:
        for box, label in zip(true.boxes, true.labels, strict=True):
            if not any(
                label == other and _iou(box, near) >= 0.5 for near, other in zip(found.boxes, found.labels, strict=True)
            ):
                labelled.add(name_of(label, classes), box, LIGHT, below=True)
    return np.array(canvas)


class _Objects:
    """The boxes that can be drawn, with their labels, scores and masks, by rising score, in pixels of the result."""

    def __init__(self, what, size, scale, boxes, labels, scores=None, masks=None):
        boxes, labels = np.asarray(boxes, "float64"), np.asarray(labels)
        boxes = boxes.reshape(-1, 4) if boxes.size == 0 else boxes
        n = len(boxes)
        scores = None if scores is None else np.asarray(scores, "float64")
        masks = None if masks is None else np.asarray(masks)
        expected = {"boxes": (n, 4), "labels": (n,), "scores": (n,), "masks": (n, *reversed(size))}
        for (name, shape), value in zip(expected.items(), (boxes, labels, scores, masks), strict=True):
            if value is not None and value.shape != shape:
                raise ValueError(f"drawing.detections: {name} of the {what} must be {shape}, got {value.shape}.")
        starts, ends = boxes[:, :2], boxes[:, 2:]
        usable = np.isfinite(boxes).all(axis=1) & (labels >= 0)
        usable &= ((starts < ends) & (starts < size) & (ends > 0)).all(axis=1)
        order = np.arange(n) if scores is None else np.argsort(scores, kind="stable")
        rows = order[usable[order]]
        self.boxes = np.clip(boxes[rows], -max(size), 2 * max(size)) * scale
        self.labels = labels[rows].astype(int)
        self.scores = None if scores is None else scores[rows]
        self.masks = None if masks is None else masks[rows] >= MASK_THRESHOLD


def _full_size_masks(targets, size):
    if "masks" in targets or "box_masks" not in targets:
        return targets.get("masks")
    return paste_masks(targets["box_masks"], targets["boxes"], size[::-1])


def _with_masks(pixels, found, true, line):
    """Masks as a translucent fill with a rim; those of the ground truth as a white rim below."""
    shape = pixels.shape[:2]
    for mask in () if true.masks is None else true.masks:
        mask = resized(mask, shape)
        pixels[mask & ~_eroded(mask, max(1, line // 2) + 1)] = LIGHT
    for mask, label in () if found.masks is None else zip(found.masks, found.labels, strict=True):
        mask, colour = resized(mask, shape), np.array(colour_of(label))
        pixels[mask] = np.round(pixels[mask] * (1 - MASK_OPACITY) + colour * MASK_OPACITY)
        pixels[mask & ~_eroded(mask, max(1, line // 2))] = colour
    return pixels


def _eroded(mask, times):
    for _ in range(times):
        padded = np.pad(mask, 1)
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask


def rectangle(draw, box, colour, line):
    """A box with a thin dark line on both sides of its edge, so that it shows on any background."""
    left, top, right, bottom = (round(float(number)) for number in box)
    right, bottom = max(right - 1, left), max(bottom - 1, top)
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=DARK, width=line + 2)
    draw.rectangle((left, top, right, bottom), outline=colour, width=line)


class Labels:
    """Labels beside boxes that do not overlap; the first few, and then as long as they hide little of the image."""

    num_always = 8
    max_hidden = 0.15  # fraction of the image, for all labels together

    def __init__(self, draw, size):
        self.draw = draw
        self.size = size
        self.font = font(max(11, round(max(size) / 48)))
        self.taken = []

    def add(self, text, box, colour, below=False):
        pad = max(1, self.font.size // 6)
        _, top, _, bottom = self.draw.textbbox((0, 0), "Ag" + text, font=self.font)
        width = math.ceil(self.draw.textlength(text, font=self.font)) + 2 * pad
        height = math.ceil(bottom - top) + 2 * pad
        hidden = width * height + sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in self.taken)
        if len(self.taken) >= self.num_always and hidden > self.max_hidden * math.prod(self.size):
            return
        left, upper, right, lower = (round(float(number)) for number in box)
        corners = [(left, upper - height), (right - width, upper - height), (left, lower), (right - width, lower)]
        corners += [(left, upper), (left, lower - height)]
        for x, y in reversed(corners) if below else corners:
            x = min(max(x, 0), self.size[0] - width)
            area = (x, y, x + width, y + height)
            if x < 0 or y < 0 or area[3] > self.size[1] or any(map(functools.partial(_overlap, area), self.taken)):
                continue
            self.taken.append(area)
            self.draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
            bright = np.dot(colour, (0.299, 0.587, 0.114)) > 120
            self.draw.text((x + pad, y + pad - top), text, font=self.font, fill=DARK if bright else LIGHT)
            return


def _iou(one, two):
    sides = np.minimum(one[2:], two[2:]) - np.maximum(one[:2], two[:2])
    intersection = np.prod(np.maximum(sides, 0))
    return intersection / (np.prod(one[2:] - one[:2]) + np.prod(two[2:] - two[:2]) - intersection)


def _overlap(one, two):
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]
