"""The data contract of detection, checked before it does harm: NumPy only, for readers and for `Detector.fit` alike.

A batch is `(images, targets)`: images [b, h, w, 3] in 0…255, padded at the right and bottom; targets a dict of
`"boxes"` [b, n, 4], xyxy in pixels of the padded picture, and `"labels"` [b, n], whole numbers from 0 without a
background, padding rows −1; optional `"masks"` [b, n, h, w] or `"box_masks"` [b, n, s, s], `"crowd"`, `"area"` and
`"difficult"` [b, n], `"image_size"` [b, 2], `"scale"` and `"image_id"` [b].
"""

import numpy as np

FEWEST_BOXES_TO_JUDGE = 10
LARGEST_RELATIVE = 1.5

_A_ROW = ("crowd", "area", "difficult")
_AN_IMAGE = {"image_size": (2,), "scale": (), "image_id": ()}


def check_targets(images, targets, classes=None, names=None):
    """Refuse a batch that would train a detector wrongly, and say which picture and which row.

    Args:
        images: [b, h, w, c], or its shape.
        targets: The dict of the data contract, as arrays or tensors.
        classes: Number of classes, without a background; None does not compare.
        names: [b] names of the pictures for the message; None names them by index.

    Raises:
        ValueError: on a missing entry, a wrong rank or size, NaN boxes, boxes turned inside out, labels that are not
            whole or out of range, relative boxes (at least 10 in the batch, all within 1.5), masks of another size.

    >>> check_targets((1, 64, 64, 3), {"boxes": [[[4.0, 8.0, 32.0, 40.0]]], "labels": [[0]]}, classes=1)
    >>> check_targets((1, 64, 64, 3), {"boxes": [[[4.0, 8.0, 2.0, 40.0]]], "labels": [[0]]}, classes=1)
    Traceback (most recent call last):
        ...
    ValueError: 1 box is turned inside out, x2 < x1 or y2 < y1: image 0, row 0: [4, 8, 2, 40]. ...
    """
    shape = tuple(images) if isinstance(images, tuple | list) else tuple(np.shape(images))
    boxes, labels = _entries(targets)
    _check_shapes(shape, boxes, labels, targets)
    real = labels != -1

    def refuse(wrong, what, remedy, values=boxes):
        if not wrong.any():
            return
        rows = [tuple(int(place) for place in row) for row in np.argwhere(wrong)]
        number = "1 box is" if len(rows) == 1 else f"{len(rows)} boxes are"
        shown = "; ".join(_row(row, values, names) for row in rows[:5])
        raise ValueError(f"{number} {what}: {shown}. {remedy}")

    refuse(
        ~np.isfinite(boxes).all(-1) & real, "not finite", "Leave them out, or mark the rows as padding by the label -1."
    )
    refuse(
        (labels != np.floor(labels)) | (labels < -1),
        "labelled by no whole number from 0, nor -1 for padding",
        "Number the classes from 0, without a background class.",
        labels,
    )
    if classes is not None:
        refuse(
            labels >= classes,
            f"labelled beyond the last of {classes} classes, {classes - 1}",
            "Number the classes from 0, without a background class, or build the detector with more.",
            labels,
        )
    inside_out = (boxes[..., 2] < boxes[..., 0]) | (boxes[..., 3] < boxes[..., 1])
    refuse(
        inside_out & real,
        "turned inside out, x2 < x1 or y2 < y1",
        "Boxes are left, top, right, bottom in pixels; are these left, top, width, height?",
    )
    if real.sum() >= FEWEST_BOXES_TO_JUDGE and np.abs(boxes[real]).max() <= LARGEST_RELATIVE:
        raise ValueError(
            f"All {int(real.sum())} boxes of the batch lie within {LARGEST_RELATIVE:g} pixels: they seem to be shares "
            f"of the picture (first: {_row(np.argwhere(real)[0], boxes, names)}). Boxes are in pixels: multiply x by "
            "the width and y by the height (`kvision.ops.relative_to_absolute`)."
        )


def pictures_of(inputs):
    """The pictures of a model's inputs, which are the pictures, or a dict of `"images"` and more."""
    return inputs["images"] if hasattr(inputs, "keys") else inputs


def paste_masks(box_masks, boxes_xyxy, size):
    """Masks of whole pictures out of masks relative to their boxes.

    Args:
        box_masks: [n, s, s], 0 or 1, or shares of 1.
        boxes_xyxy: [n, 4] in pixels.
        size: Height and width of the picture.

    Returns:
        [n, height, width] of the type of `box_masks`; 0 outside the boxes. Each pixel takes the value at its centre.
    """
    box_masks = np.asarray(box_masks)
    masks = np.zeros((len(box_masks), *size), box_masks.dtype)
    for mask, box_mask, box in zip(masks, box_masks, np.asarray(boxes_xyxy, "float64"), strict=True):
        left, top, right, bottom = box
        if not (np.isfinite(box).all() and right > left and bottom > top):
            continue
        y = np.floor((np.arange(size[0]) + 0.5 - top) / (bottom - top) * box_mask.shape[0]).astype(int)
        x = np.floor((np.arange(size[1]) + 0.5 - left) / (right - left) * box_mask.shape[1]).astype(int)
        rows, columns = ((n >= 0) & (n < m) for n, m in zip((y, x), box_mask.shape, strict=True))
        mask[np.ix_(rows, columns)] = box_mask[np.ix_(y[rows], x[columns])]
    return masks


def _entries(targets):
    if not hasattr(targets, "keys") or not {"boxes", "labels"} <= set(targets.keys()):
        got = sorted(targets.keys()) if hasattr(targets, "keys") else type(targets).__name__
        raise ValueError(
            f'Targets of a detector are a dict with "boxes" [b, n, 4] and "labels" [b, n]: got {got}. '
            "The readers of `kvision.data` deliver it."
        )
    return np.asarray(targets["boxes"]), np.asarray(targets["labels"])


def _check_shapes(shape, boxes, labels, targets):
    if len(shape) != 4 or boxes.ndim != 3 or boxes.shape[-1] != 4 or labels.ndim != 2:
        raise ValueError(
            "A batch needs images [b, h, w, c], boxes [b, n, 4] and labels [b, n], dense and padded: got images "
            f"{shape}, boxes {boxes.shape} and labels {labels.shape}."
        )
    batch, height, width = shape[:3]
    wanted = {"boxes": (batch, boxes.shape[1], 4), "labels": (batch, boxes.shape[1])}
    wanted |= dict.fromkeys(_A_ROW, wanted["labels"])
    wanted |= {name: (batch, *rest) for name, rest in _AN_IMAGE.items()}
    wanted["masks"] = (*wanted["labels"], height, width)
    for name, value in targets.items():
        got = tuple(np.shape(value))
        if name == "box_masks":
            fits = len(got) == 4 and got[:2] == wanted["labels"] and got[2] == got[3]
            wish = f"{wanted['labels']} and then twice one size"
        else:
            wish = wanted.get(name, got)
            fits = got == wish
        if not fits:
            raise ValueError(
                f"Targets {name!r} have the shape {got}; with images {shape} and boxes {boxes.shape} it must be {wish}."
            )


def _row(place, values, names):
    image, row = (int(index) for index in place)
    value = values[image, row]
    shown = f"[{', '.join(f'{number:g}' for number in value)}]" if np.ndim(value) else f"{value:g}"
    return f"image {image if names is None else names[image]}, row {row}: {shown}"
