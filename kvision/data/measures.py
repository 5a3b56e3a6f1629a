"""What the guard measures of each sample of a data set."""

import dataclasses

import numpy as np
import tensorflow as tf

from kvision.data.duplicates import difference_hash, pixel_hash
from kvision.data.elements import is_batched
from kvision.data.label_maps import IGNORED
from kvision.data.pending import finished
from kvision.data.source import Order

ROUNDING = 1e-5  # of an image's largest value: what scaling makes of one colour


@dataclasses.dataclass(slots=True)
class Sample:
    """One sample, measured.

    Args:
        split: Name of its data set.
        index: In its data set.
        file: Its path, or None.
        error: Why it cannot be read; then the rest is None.
        pixels: Hash of its pixels.
        look: Its perceptual hash, None if it is of one colour.
        low, high: Of its pixels, without padding.
        is_blank: Whether it is of one colour.
        size: (height, width) of the image without padding; of the file where the targets tell its scale.
        label: The class, of a classifier's sample; those that a label map holds.
        boxes_xyxy: [k, 4] float64 of an object detector's, padding left out; None for others.
        labels: [k] of the boxes.
        valid: (height, width) that the boxes lie in.
    """

    split: str
    index: int
    file: str | None
    error: str | None = None
    pixels: bytes | None = None
    look: object = None
    low: float = 0.0
    high: float = 0.0
    is_blank: bool = False
    size: tuple | None = None
    label: object = None
    boxes_xyxy: object = None
    labels: object = None
    valid: tuple | None = None


def measured(split, dataset):
    """Yields the `Sample`s of a data set, those that cannot be read among them."""
    files = list(getattr(dataset, "files", {}).values())
    lost = []
    for index, image, target in _samples(dataset, lost):
        file = files[index] if index < len(files) else None
        yield _sample(split, index, file, image, target)
    source = getattr(dataset, "source", None)
    for index in lost:
        file = files[index] if index < len(files) else None
        yield Sample(split, index, file, error=_reason(source, index))


def length_of(dataset):
    """The number of samples, or None."""
    source = getattr(dataset, "source", None)
    return None if source is None else source.order.length


def read_one(dataset, index):
    """`(image, target)` of a sample as the data set gives it, NumPy."""
    source = getattr(dataset, "source", None)
    if source is not None:
        sample = dataclasses.replace(source, transforms=()).sample(index)
    else:
        sample = next(iter(_single(dataset).skip(index)))
    return _numpy(sample)


def _samples(dataset, lost):
    source = getattr(dataset, "source", None)
    if source is None:
        for index, sample in enumerate(_single(dataset)):
            yield index, *_numpy(sample)
        return
    each = dataclasses.replace(
        source,
        example=lambda index: (index, finished(source.example(index))),
        order=Order(source.order.length),
        drop_remainder=False,
        transforms=(),
        lost=lambda indices: lost.extend(np.asarray(indices).tolist()),
    )
    for index, sample in each.dataset():
        yield int(index), *_numpy(sample)


def _single(dataset):
    """The samples of a data set that may be in batches."""
    return dataset.unbatch() if is_batched("check", dataset) else dataset


def _numpy(sample):
    image, *target = sample if isinstance(sample, tuple) else (sample,)
    target = tf.nest.map_structure(lambda part: np.asarray(part), target[0]) if target else None
    return np.asarray(image), target


def _sample(split, index, file, image, target):
    valid = image.shape[:2]
    sample = Sample(split, index, file)
    if isinstance(target, dict) and "boxes" in target:
        present = target["labels"] != -1
        sample.boxes_xyxy = target["boxes"][present].astype("float64")
        sample.labels = target["labels"][present]
        valid = tuple(target.get("image_size", valid))
    elif target is not None and (target.ndim < 2 or target.shape[:2] != image.shape[:2]):
        sample.label = _class_of(target)
    elif is_label_map(image, target):  # the classes that it holds
        sample.label = tuple(label for label in np.unique(target).tolist() if label != IGNORED)
    sample.valid = tuple(int(side) for side in valid)
    scale = float(target.get("scale", 1.0)) if isinstance(target, dict) else 1.0
    sample.size = tuple(round(side / scale) for side in sample.valid)
    inside = np.asarray(image[: sample.valid[0], : sample.valid[1]], "float32")
    sample.pixels = pixel_hash(inside * 255 if inside.size and inside.max() <= 1 else inside)
    shown = inside if isinstance(target, dict) and "image_size" in target else _without_bars(inside)
    sample.low, sample.high = float(shown.min()), float(shown.max())
    sample.is_blank = _is_blank(shown)
    sample.look = None if sample.is_blank else difference_hash(shown)
    return sample


def is_label_map(image, target):
    """Whether a target is the classes of the image's pixels, [h, w] or [h, w, 1]."""
    is_array = target is not None and not isinstance(target, dict) and target.dtype.kind in "iu"
    return is_array and target.shape in (image.shape[:2], (*image.shape[:2], 1))


def _is_blank(image):
    """Whether an image is of one colour, but for what scaling rounds."""
    if not np.isfinite(image).all():
        return False
    ranges = image.max(axis=(0, 1)) - image.min(axis=(0, 1))
    return bool((ranges <= ROUNDING * np.abs(image).max()).all())


def _without_bars(image):
    """An image without the black bars, above and below or at both sides, that fill it up to a size of another form."""
    lit = image.any(axis=-1)
    for axis in (0, 1):
        filled = np.flatnonzero(lit.any(axis=1 - axis))
        if not len(filled):
            return image
        before, after = filled[0], image.shape[axis] - 1 - filled[-1]
        if min(before, after) and abs(before - after) <= 1 and lit.any(axis=axis).all():
            return image.take(range(filled[0], filled[-1] + 1), axis)
    return image


def _class_of(target):
    """A class index, or for a vector the indices of what is set; a text, which is no class, as it is."""
    if target.dtype.kind not in "iubf":
        texts = tuple(each.decode(errors="replace") if isinstance(each, bytes) else str(each) for each in target.flat)
        return texts if target.ndim else texts[0]
    if target.ndim == 0:
        return int(target) if float(target).is_integer() else float(target)
    return tuple(np.flatnonzero(target > 0.5).tolist())


def _reason(source, index):
    try:
        finished(source.example(tf.constant(index, tf.int64)))
    except tf.errors.OpError as error:
        lines = [line for line in error.message.splitlines() if "Error: " in line] or error.message.splitlines()
        return lines[0].split("Error: ")[-1][:200]
    return "it failed once, but not when tried again"
