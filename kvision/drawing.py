"""Charts of runs by matplotlib, and detections drawn on images by pillow. Loaded on first use."""

import functools
import math
import pathlib

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kvision.contract import MASK_THRESHOLD, paste_masks

# Line styles differ as well as colours: training is solid, validation dashed.
TRAIN, VALIDATION = {"color": "#2f6f9f", "linestyle": "-"}, {"color": "#c2571a", "linestyle": "--"}

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


def curves(history, title=None):
    """The curves of a run, one small chart per metric, training and validation together.

    Args:
        history: `{name: [value of each epoch]}`, as `keras.callbacks.History.history`.
        title: Of the figure, or None.

    Returns:
        A `matplotlib.figure.Figure`; write it with `figure.savefig(path)`.

    >>> curves({"loss": [2.0, 1.0], "val_loss": [2.1, 1.4]}).axes[0].get_title()
    'loss'
    """
    from matplotlib.figure import Figure

    names = [name for name in history if not (name.startswith("val_") and name[4:] in history)]
    columns = min(3, max(1, len(names)))
    rows = math.ceil(len(names) / columns) or 1
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows), layout="constrained")
    for index, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, index + 1)
        epochs = range(1, len(history[name]) + 1)
        axes.plot(epochs, history[name], label="training", **TRAIN)
        if f"val_{name}" in history:
            validated = history[f"val_{name}"]
            axes.plot(range(1, len(validated) + 1), validated, label="validation", **VALIDATION)
            axes.legend(frameon=False, fontsize="small")
        axes.set_title(name, fontsize="medium")
        axes.set_xlabel("epoch", fontsize="small")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    if title:
        figure.suptitle(title)
    return figure


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
    canvas = Image.fromarray(_rgb(image))
    size = canvas.size
    scale = 1.0 if side is None else side / max(size)
    found = _Objects("detections", size, scale, boxes_xyxy, labels, scores, masks)
    truth = {"boxes": (), "labels": ()} if truth is None else truth
    true = _Objects("truth", size, scale, truth["boxes"], truth["labels"], masks=_full_size_masks(truth, size))
    if side is not None:
        method = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
        canvas = canvas.resize([max(1, round(length * scale)) for length in size], method)
    line = max(2, round(max(canvas.size) / 256))
    canvas = Image.fromarray(_with_masks(np.array(canvas), found, true, line))
    draw = ImageDraw.Draw(canvas)
    for box in true.boxes:
        _rectangle(draw, box, LIGHT, line + 2)
    for box, label in zip(found.boxes, found.labels, strict=True):
        _rectangle(draw, box, _colour(label), line)
    labelled = _Labels(draw, canvas.size)
    for row in reversed(range(len(found.labels))):  # the highest score is placed first
        name = _name(found.labels[row], classes)
        text = name if scores is None else f"{name} {found.scores[row]:.2f}"
        labelled.add(text, found.boxes[row], _colour(found.labels[row]))
    if classes is None or len(classes) > 1:
        for box, label in zip(true.boxes, true.labels, strict=True):
            if not any(
                label == other and _iou(box, near) >= 0.5 for near, other in zip(found.boxes, found.labels, strict=True)
            ):
                labelled.add(_name(label, classes), box, LIGHT, below=True)
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
        mask = _resized(mask, shape)
        pixels[mask & ~_eroded(mask, max(1, line // 2) + 1)] = LIGHT
    for mask, label in () if found.masks is None else zip(found.masks, found.labels, strict=True):
        mask, colour = _resized(mask, shape), np.array(_colour(label))
        pixels[mask] = np.round(pixels[mask] * (1 - MASK_OPACITY) + colour * MASK_OPACITY)
        pixels[mask & ~_eroded(mask, max(1, line // 2))] = colour
    return pixels


def _resized(mask, shape):
    rows, columns = (np.arange(n) * m // n for n, m in zip(shape, mask.shape, strict=True))
    return mask[np.ix_(rows, columns)]


def _eroded(mask, times):
    for _ in range(times):
        padded = np.pad(mask, 1)
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask


def _rectangle(draw, box, colour, line):
    """A box with a thin dark line on both sides of its edge, so that it shows on any background."""
    left, top, right, bottom = (round(float(number)) for number in box)
    right, bottom = max(right - 1, left), max(bottom - 1, top)
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=DARK, width=line + 2)
    draw.rectangle((left, top, right, bottom), outline=colour, width=line)


class _Labels:
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


@functools.cache
def font(size):
    """DejaVu Sans, which comes with matplotlib and has most alphabets, `size` pixels high."""
    import matplotlib

    return ImageFont.truetype(pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _colour(label):
    return PALETTE[int(label) % len(PALETTE)]


def _name(label, classes):
    label = int(label)
    return str(classes[label]) if classes is not None and label < len(classes) else str(label)


def _rgb(image):
    """[h, w, 3] uint8."""
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ValueError(f"drawing: an image is [h, w, 3], [h, w, 1] or [h, w] in 0…255, got {image.shape}.")
    if image.dtype != "uint8":
        image = np.clip(np.round(np.nan_to_num(image.astype("float32"))), 0, 255).astype("uint8")
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image


def grid(images, columns=None, captions=None):
    """Images side by side on white.

    Args:
        images: Arrays [h, w, 3], [h, w, 1] or [h, w], 0…255, of any sizes; each cell is as large as the largest.
        columns: Images per row; None makes the result about square.
        captions: One line of text below each image, or None; text that is too long ends in "…".

    Returns:
        [height, width, 3] uint8.

    Raises:
        ValueError: without an image, or with another number of captions.

    >>> grid([np.zeros((10, 20, 3))] * 3, columns=2).shape
    (32, 52, 3)
    """
    images = [_rgb(image) for image in images]
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
    strip = round(1.5 * text_font.size) if text_font else 0
    canvas = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + strip + gap) + gap), LIGHT)
    draw = ImageDraw.Draw(canvas)
    for index, image in enumerate(images):
        x, y = gap + index % columns * (width + gap), gap + index // columns * (height + strip + gap)
        canvas.paste(Image.fromarray(image), (x + (width - image.shape[1]) // 2, y + (height - image.shape[0]) // 2))
        if text_font:
            text = _shortened(str(captions[index]), draw, text_font, width)
            draw.text((x, y + height + strip / 2), text, font=text_font, fill=DARK, anchor="lm")
    return np.array(canvas)


def _shortened(text, draw, text_font, width):
    if draw.textlength(text, font=text_font) <= width:
        return text
    while text and draw.textlength(text + "…", font=text_font) > width:
        text = text[:-1]
    return text + "…"
