"""The data contract of detection, checked before it does harm: NumPy only, for readers and for `Detector.fit` alike.

A batch is `(images, targets)`: images [b, h, w, 3] in 0…255, padded at the right and bottom; targets a dict of
`"boxes"` [b, n, 4], xyxy in pixels of the padded image, and `"labels"` [b, n], integers from 0 without a
background, padding rows −1; optional `"masks"` [b, n, h, w] or `"box_masks"` [b, n, s, s], `"crowd"`, `"area"` and
`"difficult"` [b, n], `"image_size"` [b, 2], `"scale"` and `"image_id"` [b].
A box without area is no object: the check refuses it, and in batches that were not checked it counts as padding.
"""

import difflib
import itertools
import warnings

import numpy as np

MASK_THRESHOLD = 0.5  # a pixel belongs to a mask from this score on
MIN_BOXES_FOR_RELATIVE_CHECK = 10
MAX_RELATIVE_COORDINATE = 1.5

_PER_BOX = ("crowd", "area", "difficult")
_PER_IMAGE = {"image_size": (2,), "scale": (), "image_id": ()}


def check_targets(images, targets, classes=None, names=None):
    """Refuse a batch that would train a detector wrongly, and say which image and which row.

    Args:
        images: [b, h, w, c], or its shape.
        targets: The dict of the data contract, as arrays or tensors.
        classes: Number of classes, without a background; None does not compare.
        names: [b] names of the images for the message; None names them by index.

    Raises:
        ValueError: on a missing entry, one whose name is nearly one of the contract's, a wrong rank or size, boxes that
            are NaN, inverted, without area, wholly outside or wholly in the padding beyond `"image_size"`, labels that
            are not integers or out of range, an `"image_size"` beyond the images, relative boxes (at least 10 in the
            batch, all within 1.5), and masks of another size.

    >>> check_targets((1, 64, 64, 3), {"boxes": [[[4.0, 8.0, 32.0, 40.0]]], "labels": [[0]]}, classes=1)
    >>> check_targets((1, 64, 64, 3), {"boxes": [[[4.0, 8.0, 2.0, 40.0]]], "labels": [[0]]}, classes=1)
    Traceback (most recent call last):
        ...
    ValueError: 1 box is inverted, x2 < x1 or y2 < y1: image 0, row 0: [4, 8, 2, 40]. ...
    """
    shape = tuple(images) if isinstance(images, tuple | list) else tuple(np.shape(images))
    boxes, labels = _entries(targets)
    _check_shapes(shape, boxes, labels, targets)
    present = labels != -1

    def refuse(invalid, what, remedy, values=boxes):
        if not invalid.any():
            return
        rows = [tuple(int(index) for index in row) for row in np.argwhere(invalid)]
        number = "1 box is" if len(rows) == 1 else f"{len(rows)} boxes are"
        shown = "; ".join(_row(row, values, names) for row in rows[:5])
        raise ValueError(f"{number} {what}: {shown}. {remedy}")

    refuse(
        ~np.isfinite(boxes).all(-1) & present,
        "not finite",
        "Leave them out, or mark the rows as padding by the label -1.",
    )
    refuse(
        (labels != np.floor(labels)) | (labels < -1),
        "labelled by neither an integer from 0 nor -1 for padding",
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
    inverted = (boxes[..., 2] < boxes[..., 0]) | (boxes[..., 3] < boxes[..., 1])
    refuse(
        inverted & present,
        "inverted, x2 < x1 or y2 < y1",
        "Boxes are left, top, right, bottom in pixels; are these left, top, width, height?",
    )
    empty = (boxes[..., 2] == boxes[..., 0]) | (boxes[..., 3] == boxes[..., 1])
    refuse(
        empty & present,
        "without area",
        "Leave them out, or mark the rows as padding by the label -1 (not 0, which is the first class).",
    )
    height, width = shape[1:3]
    outside = (boxes[..., 2:] <= 0).any(-1)
    for side, limit in enumerate((width, height)):
        outside |= False if limit is None else boxes[..., side] >= limit
    remedy = "Scale and cut boxes with their images, or mark the rows as padding by the label -1."
    refuse(outside & present, f"wholly outside the images of {height}x{width} pixels", remedy)
    if "image_size" in targets:
        sizes = _image_sizes(targets["image_size"], (height, width), names)
        padding = (boxes[..., :2] >= sizes[:, None, ::-1]).any(-1) & present
        first = ", ".join(str(size.tolist()) for size in sizes[padding.any(axis=1)][:1])
        refuse(padding, f"wholly in the padding beyond image_size, of the first {first}", remedy)
    if present.sum() >= MIN_BOXES_FOR_RELATIVE_CHECK and np.abs(boxes[present]).max() <= MAX_RELATIVE_COORDINATE:
        raise ValueError(
            f"All {int(present.sum())} boxes of the batch lie within {MAX_RELATIVE_COORDINATE:g} pixels: they seem to "
            f"be fractions of the image size (first: {_row(np.argwhere(present)[0], boxes, names)}). Boxes are in "
            "pixels: multiply x by the width and y by the height (`kvision.ops.relative_to_absolute`)."
        )


def wrong_labels(labels, classes, ignored=None):
    """Which class numbers are none of `classes`, counted from 0, nor the ignored one: bool, as many as labels.

    >>> wrong_labels(np.array([0, 3, 255, 0.5]), classes=3, ignored=255)
    array([False,  True, False,  True])
    """
    wrong = ~((labels >= 0) & (labels < classes))
    if labels.dtype.kind == "f":
        wrong |= labels != np.floor(labels)
    return wrong if ignored is None else wrong & (labels != ignored)


def check_labels(labels, classes, ignored, who, what="batch"):
    """Refuse class numbers that a model does not have: an accelerator would train on them and say nothing.

    Args:
        labels: [b] or [b, 1], the class of each image; what has another shape is left to the loss.
        classes: Number of classes.
        ignored: The label of images that do not count, or None.
        who, what: Who asks, and the name of the data, for the message.

    Raises:
        ValueError: at the first label that is no class.

    >>> check_labels(np.array([1, 3, 2]), classes=3, ignored=None, who="resnet")
    Traceback (most recent call last):
        ...
    ValueError: resnet: row 1 of the batch has the label 3; the model has 3 classes, counted from 0. All labels lie ...
    """
    labels = np.asarray(labels)
    if labels.ndim not in (1, 2) or labels.size != len(labels) or labels.dtype.kind not in "biuf":
        return
    wrong = wrong_labels(labels.reshape(-1), classes, ignored)
    if wrong.any():
        row = int(np.argmax(wrong))
        cure = "Mend the labels, or build the model with more classes."
        if labels.min() >= 1 and labels.max() == classes:
            cure = f"All labels lie in 1…{classes}: subtract 1."
        raise ValueError(
            f"{who}: row {row} of the {what} has the label {labels.reshape(-1)[row]}; the model has {classes} classes, "
            f"counted from 0. {cure}"
        )


def check_label_maps(maps, size, classes, ignored, who, what="batch"):
    """Refuse label maps that no network learns segmentation from, and say which image and which pixel.

    Args:
        maps: [b, h, w] or [b, h, w, 1], the class of each pixel.
        size: (height, width) of the images in pixels; None in place of either does not compare.
        classes: Number of classes, the background among them.
        ignored: The label of pixels that do not count, or None.
        who, what: Who asks, and the name of the data, for the message.

    Raises:
        ValueError: on colours or one-hot maps, maps of another size than the images, and labels that are no class.

    >>> check_label_maps(np.array([[[0, 1], [255, 2]]]), (2, 2), classes=2, ignored=255, who="fcn")
    Traceback (most recent call last):
        ...
    ValueError: fcn: image 0 of the batch has the label 2 at row 1, column 1; the model has 2 classes, counted ...
    """
    shape = tuple(maps.shape)
    if len(shape) == 4 and shape[-1] > 1:
        raise ValueError(
            f"{who}: the label maps of the {what} are {shape}, expected [b, h, w], one number for each pixel. Colours "
            "become numbers by `kvision.data.masks(…, palette=…)`, one-hot maps by `maps.argmax(-1)`."
        )
    pairs = list(zip(shape[1:3], size, strict=False))
    if len(shape) not in (3, 4) or any(None not in pair and pair[0] != pair[1] for pair in pairs):
        raise ValueError(
            f"{who}: the label maps of the {what} are {shape}, expected [b, {size[0]}, {size[1]}], as large as the "
            "images. Resize both, the maps to their nearest pixel; `kvision.data.masks` does."
        )
    for image, labels in enumerate(maps):  # one at a time: of all at once the masks would be as large as the data
        labels = np.asarray(labels).reshape(shape[1:3])
        wrong = wrong_labels(labels, classes, ignored)
        if wrong.any():
            row, column = np.unravel_index(np.argmax(wrong), wrong.shape)
            also = "none is ignored" if ignored is None else f"{ignored} is ignored"
            raise ValueError(
                f"{who}: image {image} of the {what} has the label {labels[row, column]} at row {row}, column "
                f"{column}; the model has {classes} classes, counted from 0, and {also}. Mend the labels, or build "
                "the model with more classes; pixels that do not count need a label that the loss ignores, such as "
                "ignore_class=255."
            )


def check_class_names(data, names, who):
    """Refuse a data set whose labels mean other classes than a detector's; where either has no names, nothing is said.

    Args:
        data: Anything; the data sets of the readers have `class_names`, in the order of the labels.
        names: Those of the detector, or None.
        who: Name of the detector, for the message.

    Raises:
        ValueError: at the first label that has two names.

    >>> train = type("Data", (), {"class_names": ("dog",)})
    >>> check_class_names(train, ("cat", "dog"), "detector")
    Traceback (most recent call last):
        ...
    ValueError: detector: label 0 is 'dog' in the data (1 class) and 'cat' in the detector (2 classes). ...
    """
    theirs = getattr(data, "class_names", None)
    if theirs is None or names is None or tuple(theirs) == tuple(names):
        return
    pairs = enumerate(itertools.zip_longest(theirs, names))
    label, (given, own) = next((label, pair) for label, pair in pairs if pair[0] != pair[1])
    numbers = _numbers(theirs, names)
    raise ValueError(
        f"{who}: label {label} is {given!r} in the data ({numbers[0]}) and {own!r} in the detector ({numbers[1]}). "
        "Read the data with classes=detector.class_names, which gives them the detector's labels; if it is to learn "
        "those of the data, set detector.class_names = data.class_names."
    )


def _numbers(*each):
    return ["1 class" if len(names) == 1 else f"{len(names)} classes" for names in each]


def check_same_classes(train, validation, who):
    """Refuse validation data in which a label means another class than in the training data.

    Args:
        train, validation: Anything; the data sets of the readers have `class_names`, in the order of the labels.
        who: Name of the model, for the message.

    Raises:
        ValueError: at the first label that has two names.

    >>> train, validation = (type("Data", (), {"class_names": names}) for names in (("cat", "dog"), ("dog", "cat")))
    >>> check_same_classes(train, validation, "detector")
    Traceback (most recent call last):
        ...
    ValueError: detector: label 0 is 'dog' in the validation data (2 classes) and 'cat' in the training data ...
    """
    own, theirs = (getattr(data, "class_names", None) or () for data in (train, validation))
    for label, (name, other) in enumerate(zip(own, theirs, strict=False)):
        if name != other:
            numbers = _numbers(theirs, own)
            raise ValueError(
                f"{who}: label {label} is {other!r} in the validation data ({numbers[0]}) and {name!r} in the training "
                f"data ({numbers[1]}). Read the validation data with classes=train.class_names."
            )


def images_of(inputs):
    """The images in a model's inputs: the inputs themselves, or the entry `"images"` of a dict of several."""
    return inputs["images"] if hasattr(inputs, "keys") else inputs


def check_pixels(images, who):
    """Refuse images that are not finite, and warn where they look prepared for 0…1 or −1…1.

    A network that prepares its images itself sees prepared ones as black.

    Args:
        images: [b, h, w, c]; of whole numbers, or beyond the first 8 images, nothing is looked at.
        who: Name of the network, for the message.

    Raises:
        ValueError: on pixels that are NaN or infinite.

    >>> check_pixels(np.full((2, 8, 8, 3), 255.0), "detector")
    >>> check_pixels(np.full((2, 8, 8, 3), np.nan), "detector")
    Traceback (most recent call last):
        ...
    ValueError: detector: image 0 has 192 pixel values of 192 that are NaN or infinite. ...
    """
    images = np.asarray(images[:8])
    if images.dtype.kind in "iub":
        return
    broken = ~np.isfinite(images.astype("float32"))
    if broken.any():
        image = int(np.argwhere(broken)[0][0])
        raise ValueError(
            f"{who}: image {image} has {int(broken[image].sum())} pixel values of {broken[image].size} that are NaN or "
            "infinite. Give RGB images of 0…255; a division by a deviation of 0 makes such, and so does a broken file."
        )
    found = unit_range(images, lowest=-1)
    if found:
        remedy = "Multiply them by 255." if found[0] >= 0 else "Give them as they were read, or (images + 1) * 127.5."
        warnings.warn(
            f"{who}: the images lie within {found[0]:.3g} to {found[1]:.3g}. Detectors take RGB images of 0…255 and "
            f"prepare them themselves: all of these look black to it. {remedy}",
            stacklevel=3,
        )


def unit_range(images, lowest=0):
    """(lowest, highest) of the first 8 images where they look prepared for 0…1, else None; whole numbers never do.

    With `lowest=-1` also where they look prepared for −1…1.
    """
    images = np.asarray(images[:8])
    if images.dtype.kind in "iub" or not images.size:
        return None
    low, high = images.min(), images.max()
    return (low, high) if low >= lowest and 0 < high <= 1 else None


def paste_masks(box_masks, boxes_xyxy, size):
    """Masks of the size of the image from masks relative to their boxes: those of targets, 0 or 1.

    Args:
        box_masks: [n, s, s], 0 or 1, or values in [0, 1].
        boxes_xyxy: [n, 4] in pixels.
        size: Height and width of the image.

    Returns:
        [n, height, width] of the type of `box_masks`; 0 outside the boxes. Each pixel takes the value at its centre.

    >>> paste_masks(np.ones((1, 7, 7), int), [[1, 0, 3, 2]], (2, 4)).tolist()
    [[[0, 1, 1, 0], [0, 1, 1, 0]]]
    """
    box_masks = np.asarray(box_masks)
    masks = np.zeros((len(box_masks), *size), box_masks.dtype)
    for mask, box_mask, box in zip(masks, box_masks, np.asarray(boxes_xyxy, "float64"), strict=True):
        left, top, right, bottom = box
        if not _has_area(box):
            continue
        y = np.floor((np.arange(size[0]) + 0.5 - top) / (bottom - top) * box_mask.shape[0]).astype(int)
        x = np.floor((np.arange(size[1]) + 0.5 - left) / (right - left) * box_mask.shape[1]).astype(int)
        rows, columns = ((n >= 0) & (n < m) for n, m in zip((y, x), box_mask.shape, strict=True))
        mask[np.ix_(rows, columns)] = box_mask[np.ix_(y[rows], x[columns])]
    return masks


def paste_mask_scores(box_masks, boxes_xyxy, size):
    """Masks of the size of the image from the `"box_masks"` of detections: bilinear, 1 from a score of 0.5 on.

    He et al. 2017, "Mask R-CNN", section 3.1, "Inference". As torchvision: the mask gets a padding of one empty cell,
    the box grows with it and is cut to whole pixels.

    Args:
        box_masks: [n, s, s] scores in 0…1.
        boxes_xyxy: [n, 4] in pixels.
        size: Height and width of the image.

    Returns:
        [n, height, width] uint8, 0 or 1; 0 around the boxes.

    >>> masks = paste_mask_scores(np.ones((1, 28, 28)), [[4, 4, 32, 32]], (40, 40))
    >>> masks.shape, bool(masks[0, 6:30, 6:30].all()), bool(masks[0, :3].any())
    ((1, 40, 40), True, False)
    """
    box_masks, boxes = np.asarray(box_masks, "float32"), np.asarray(boxes_xyxy, "float32")
    masks = np.zeros((len(box_masks), *size), "uint8")
    for mask, scores, box in zip(masks, box_masks, boxes, strict=True):
        if not _has_area(box):
            continue
        left, top, right, bottom = box
        rows, down = _weights_of_cells(top, bottom, len(scores), size[0])
        columns, across = _weights_of_cells(left, right, len(scores), size[1])
        mask[rows, columns] = down @ scores @ across.T >= MASK_THRESHOLD
    return masks


def _weights_of_cells(low, high, cells, length):
    """The pixels of an axis that a mask between two edges reaches, and what each of its cells gives to each of them."""
    centre, half = (low + high) / 2, (high - low) / 2 * np.float32((cells + 2) / cells)
    low, high = np.trunc(centre - half), np.trunc(centre + half)
    pixels = np.arange(max(low, 0), min(high + 1, length), dtype="float32")
    points = (pixels - low + 0.5) * ((cells + 2) / max(high - low + 1, 1)) - 0.5
    points = np.clip(points, 0, cells + 1)[:, None] - 1
    first = int(max(low, 0))
    weights = np.maximum(1 - np.abs(points - np.arange(cells, dtype="float32")), 0)
    return slice(first, first + len(pixels)), weights.astype("float32")


def _has_area(box):
    left, top, right, bottom = box
    return np.isfinite(box).all() and right > left and bottom > top


def _entries(targets):
    if not hasattr(targets, "keys") or not {"boxes", "labels"} <= set(targets.keys()):
        got = sorted(targets.keys()) if hasattr(targets, "keys") else type(targets).__name__
        raise ValueError(
            f'Targets of a detector are a dict with "boxes" [b, n, 4] and "labels" [b, n]: got {got}. '
            "The readers of `kvision.data` deliver it."
        )
    ragged = [name for name in targets if hasattr(targets[name], "to_tensor")]
    if ragged:
        raise ValueError(
            f"Ragged targets: {', '.join(ragged)}. A batch has as many rows for every image: batch by "
            'padded_batch(size, padding_values=(0.0, {"boxes": 0.0, "labels": -1})), or make them dense by '
            "boxes.to_tensor() and labels.to_tensor(-1)."
        )
    return np.asarray(targets["boxes"]), np.asarray(targets["labels"])


def _check_shapes(shape, boxes, labels, targets):
    if len(shape) != 4 or boxes.ndim != 3 or boxes.shape[-1] != 4 or labels.ndim != 2:
        raise ValueError(
            "A batch needs images [b, h, w, c], boxes [b, n, 4] and labels [b, n], dense and padded: got images "
            f"{shape}, boxes {boxes.shape} and labels {labels.shape}."
        )
    batch, height, width = shape[:3]
    expected = {"boxes": (batch, boxes.shape[1], 4), "labels": (batch, boxes.shape[1])}
    expected |= dict.fromkeys(_PER_BOX, expected["labels"])
    expected |= {name: (batch, *rest) for name, rest in _PER_IMAGE.items()}
    expected["masks"] = (*expected["labels"], height, width)
    known = {*expected, "box_masks"}
    for name, value in targets.items():
        near = difflib.get_close_matches(name, known, 1, cutoff=0.85) if name not in known else ()
        if near:
            raise ValueError(f"The targets have {name!r}, which nothing reads: did you mean {near[0]!r}?")
        got = tuple(np.shape(value))
        if name == "box_masks":
            fits = len(got) == 4 and got[:2] == expected["labels"] and got[2] == got[3]
            shape_expected = f"{expected['labels']} and then twice one size"
        else:
            shape_expected = expected.get(name, got)
            fits = got == shape_expected
        if not fits:
            raise ValueError(
                f"Targets {name!r} have the shape {got}; with images {shape} and boxes {boxes.shape} it must be "
                f"{shape_expected}."
            )


def _image_sizes(sizes, size, names):
    sizes = np.asarray(sizes)
    most = [np.inf if length is None else length for length in size]
    wrong = ~((sizes >= 1) & (sizes <= most)).all(axis=1)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(
            "image_size, the (height, width) of an image without its padding, lies within the images of "
            f"{size[0]}x{size[1]} pixels: got {sizes[first].tolist()} for {_image(first, names)}. The sizes of the "
            "files are other numbers: `kvision.data.letterbox` and the readers give those of the scaled images."
        )
    return sizes


def _image(index, names):
    return f"image {index if names is None else names[index]}"


def _row(position, values, names):
    image, row = (int(index) for index in position)
    value = values[image, row]
    shown = f"[{', '.join(f'{number:g}' for number in value)}]" if np.ndim(value) else f"{value:g}"
    return f"{_image(image, names)}, row {row}: {shown}"
