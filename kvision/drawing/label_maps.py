"""Label maps over images: the classes of the pixels, and where a prediction is wrong."""

import numpy as np
from PIL import Image, ImageDraw

from kvision.drawing.canvas import DARK, LIGHT, PALETTE, font, name_of, resized, rgb, scaled

OPACITY = 0.55
IGNORED = 255  # the label of pixels of no class
RIGHT, WRONG = PALETTE[1], PALETTE[5]  # sky blue and vermilion differ for every kind of colour vision


def segmentation(
    image, labels, class_names=None, background=None, ignored_label=IGNORED, opacity=OPACITY, legend=True, side=None
):
    """The classes of a label map as colours over an image, each region with an outline.

    Seven colours that differ for any colour vision, then the same darker, then lighter, then again from the first.
    Ignored pixels stay as they are.

    Args:
        image: [h, w, 3], [h, w, 1] or [h, w], 0…255.
        labels: [h, w] integers, the class of each pixel, from 0.
        class_names: Names of the classes, in the order of the labels; None writes the label.
        background: A class that gets neither colour nor outline; None colours all.
        ignored_label: The label of pixels of no class, such as 255.
        opacity: Of the colours, in [0, 1]; outlines are opaque.
        legend: Whether to add a strip with the names of the classes that the map holds, below the image.
        side: Pixels of the longer side of the image in the result; None keeps its size.

    Returns:
        [height, width, 3] uint8.

    Raises:
        ValueError: on arrays of other shapes, labels that are neither integers from 0 nor ignored, or another opacity.

    >>> labels = np.zeros((64, 96), int)
    >>> labels[16:48, 16:48] = 1
    >>> segmentation(np.zeros((64, 96, 3)), labels, ("ground", "tree"), legend=False).shape
    (64, 96, 3)
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"drawing.segmentation: opacity lies in [0, 1]: got {opacity!r}.")
    canvas, labels = _prepared("segmentation", image, labels, ignored_label, side)
    coloured = (labels != ignored_label) & (labels != (-1 if background is None else background))
    present = np.unique(labels[coloured])
    for label in present.tolist():
        region = labels == label
        canvas[region] = np.round(canvas[region] * (1 - opacity) + np.array(class_colour(label)) * opacity)
    outlines = _outlines(labels, max(1, round(max(labels.shape) / 320))) & coloured
    for label in present.tolist():
        canvas[outlines & (labels == label)] = class_colour(label)
    if not legend:
        return canvas
    entries = [(class_colour(label), name_of(label, class_names)) for label in present.tolist()]
    return np.concatenate([canvas, legend_strip(entries, canvas.shape[1])]) if entries else canvas


def segmentation_errors(image, labels, truth, ignored_label=IGNORED, opacity=0.7, legend=True, side=None):
    """Where a label map is wrong: the image in grey, wrong pixels in vermilion, ignored ones veiled in white.

    Args:
        image: [h, w, 3], [h, w, 1] or [h, w], 0…255.
        labels: [h, w] integers, the predicted class of each pixel.
        truth: [h, w] integers, the true class.
        ignored_label: Where `truth` has it, nothing is right or wrong.
        opacity: Of the colours, in [0, 1].
        legend: Whether to add a strip with the fractions of right and wrong pixels, below the image.
        side: Pixels of the longer side of the image in the result; None keeps its size.

    Returns:
        [height, width, 3] uint8.

    Raises:
        ValueError: on arrays of other shapes, or labels that are no integers.

    >>> truth = np.zeros((64, 96), int)
    >>> int(segmentation_errors(np.zeros((64, 96, 3)), truth, truth, legend=False).max())
    0
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"drawing.segmentation_errors: opacity lies in [0, 1]: got {opacity!r}.")
    canvas, labels = _prepared("segmentation_errors", image, labels, None, side)
    _, truth = _prepared("segmentation_errors", image, truth, ignored_label, side)
    canvas = np.repeat(np.round(canvas @ (0.299, 0.587, 0.114))[..., None], 3, axis=-1).astype("uint8")
    ignored = truth == ignored_label
    wrong = ~ignored & (labels != truth)
    for pixels, colour in ((ignored, LIGHT), (wrong, WRONG)):
        canvas[pixels] = np.round(canvas[pixels] * (1 - opacity) + np.array(colour) * opacity)
    if not legend:
        return canvas
    counted = max(1, (~ignored).sum())
    entries = [
        (DARK, f"right {1 - wrong.sum() / counted:.1%}"),
        (WRONG, f"wrong {wrong.sum() / counted:.1%}"),
        *([(LIGHT, "ignored")] if ignored.any() else []),
    ]
    return np.concatenate([canvas, legend_strip(entries, canvas.shape[1])])


def class_colour(label):
    """The colour (r, g, b) of a class: those of `PALETTE`, then darker, then lighter ones, then again."""
    colour, shade = np.array(PALETTE[label % len(PALETTE)]), label // len(PALETTE) % 3
    shaded = (colour, colour * 0.55, colour + (255 - colour) * 0.55)[shade]
    return tuple(int(number) for number in np.round(shaded))


def legend_strip(entries, width):
    """Patches of colour, each with its name, in as many lines as they need.

    Args:
        entries: Pairs of a colour (r, g, b) and a text.
        width: Of the strip in pixels.

    Returns:
        [height, width, 3] uint8.

    >>> legend_strip([((255, 0, 0), "tree"), ((0, 255, 0), "house")], 200).shape[1]
    200
    """
    letters = font(max(11, round(width / 36)))
    gap, patch = letters.size // 2, letters.size
    line = round(1.5 * letters.size)
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    x, y, places = gap, gap, []
    for colour, text in entries:
        taken = patch + gap + round(measure.textlength(text, font=letters))
        if x + taken > width - gap and x > gap:
            x, y = gap, y + line
        places.append((x, y, colour, text))
        x += taken + 2 * gap
    canvas = Image.new("RGB", (width, y + line), LIGHT)
    draw = ImageDraw.Draw(canvas)
    for x, y, colour, text in places:
        draw.rectangle((x, y, x + patch - 1, y + patch - 1), fill=colour, outline=DARK)
        draw.text((x + patch + gap, y + patch / 2), text, font=letters, fill=DARK, anchor="lm")
    return np.array(canvas)


def _prepared(who, image, labels, ignored_label, side):
    """The pixels and the labels, [h, w] int, in the size of the result."""
    pixels, labels = rgb(image), np.asarray(labels)
    labels = labels[..., 0] if labels.ndim == 3 and labels.shape[-1] == 1 else labels
    if labels.shape != pixels.shape[:2] or labels.dtype.kind not in "iub":
        raise ValueError(
            f"drawing.{who}: labels are integers of the size of the image, {pixels.shape[:2]}: got {labels.dtype} "
            f"{labels.shape}. Of logits, take `logits.argmax(-1)`."
        )
    labels = labels.astype("int64")
    if ignored_label is not None and (labels[labels != ignored_label] < 0).any():
        raise ValueError(
            f"drawing.{who}: labels count from 0: got {labels.min()}, which is not the ignored_label {ignored_label}."
        )
    canvas = np.array(scaled(Image.fromarray(pixels), side))
    return canvas, resized(labels, canvas.shape[:2])


def _outlines(labels, width):
    """The pixels within `width` of another label, on the inner side of each region; the border is none."""
    outlines = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        for step in range(1, width + 1):
            ahead, behind = ((slice(None),) * axis + (cut,) for cut in (slice(step, None), slice(None, -step)))
            differs = labels[ahead] != labels[behind]
            outlines[ahead] |= differs
            outlines[behind] |= differs
    return outlines
