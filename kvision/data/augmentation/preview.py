"""A look at what augmentation makes of samples."""

import itertools
import numbers

import numpy as np
import tensorflow as tf

from kvision.contract import paste_masks
from kvision.data.augmentation.samples import LABEL_MAP_FILL, take_apart
from kvision.drawing import class_colour, detections, grid, legend_strip, segmentation
from kvision.drawing.canvas import name_of
from kvision.errors import checked_names


def preview(dataset, count=6, *, classes=None):
    """Samples before and after augmentation, side by side, with their boxes and masks, label maps or labels.

    Args:
        dataset: What `augment` returned.
        count: Number of samples.
        classes: Names of the classes; None takes those of the data set, or numbers.

    Returns:
        [height, width, 3] uint8, a row for each sample: as it was, as it becomes; below label maps, drawn as by
        `kvision.drawing.segmentation`, a legend of the classes in them. `PIL.Image.fromarray(...).save(path)`
        keeps it, `matplotlib.pyplot.imshow` shows it.

    Raises:
        ValueError: If the data set is not `augment`'s or is empty, or has labels beyond the classes.

    >>> images = np.random.default_rng(0).integers(0, 255, (4, 32, 48, 3)).astype("float32")
    >>> data = tf.data.Dataset.from_tensor_slices((images, [0, 1, 0, 1]))
    >>> preview(kvision.data.augment(data, [kvision.data.HorizontalFlip()]), count=2).ndim
    3
    """
    pairs = getattr(dataset, "before_and_after", None)
    if pairs is None:
        raise ValueError(
            "preview: expected the data set that kvision.data.augment returned, as it is: `batch`, `map` and the like "
            "make another, which no longer knows what its samples were. Of a data set of kvision's readers, give "
            "augment(dataset, [])."
        )
    if not isinstance(count, numbers.Integral) or count < 1:
        raise ValueError(f"preview: count is a number of samples, at least 1, got {count!r}.")
    classes = checked_names("preview", getattr(dataset, "class_names", None) if classes is None else classes)
    pairs = list(itertools.islice(_samples(pairs()), count))
    if not pairs:
        raise ValueError("preview: the data set has no samples. Look at how it was made.")
    if classes is not None:
        _check_labels(pairs, classes)
    drawn = [draw(sample, classes) for pair in pairs for sample in pair]
    images, captions = zip(*drawn, strict=True)
    drawn = grid(images, columns=2, captions=captions)
    entries = [(class_colour(label), name_of(label, classes)) for label in _mapped_labels(pairs)]
    return np.concatenate([drawn, legend_strip(entries, drawn.shape[1])]) if entries else drawn


def _mapped_labels(pairs):
    """The labels that the label maps hold, ascending."""
    maps = [take_apart(sample)[1].get("label_map", LABEL_MAP_FILL) for pair in pairs for sample in pair]
    return sorted(set().union(*(np.unique(labels).tolist() for labels in maps)) - {LABEL_MAP_FILL})


def _check_labels(pairs, classes):
    """Raises unless each label has a name."""
    for pair in pairs:
        for sample in pair:
            _, targets, _ = take_apart(sample)
            soft = targets["soft_label"].shape[0] - 1 if "soft_label" in targets else -1
            labels = np.append(targets.get("labels", targets.get("label", -1)), soft)
            if labels.max() >= len(classes):
                raise ValueError(
                    f"preview: there is a label {int(labels.max())}, and names of {len(classes)} classes: {classes}. "
                    "Pass classes= with a name for each label."
                )


def _samples(pairs):
    """Pairs of single samples, of samples or of batches."""
    for before, after in pairs:
        if tf.nest.flatten(before)[0].shape.rank == 3:
            yield before, after
            continue
        for index in range(len(tf.nest.flatten(before)[0])):
            yield tuple(
                tf.nest.map_structure(lambda tensor, index=index: tensor[index], part) for part in (before, after)
            )


def draw(sample, classes=None):
    """A sample as an image, and a line about it."""
    image, targets, _ = take_apart(sample)
    targets = {name: value.numpy() for name, value in targets.items()}
    image = np.asarray(image, "float32")
    size = f"{image.shape[1]} x {image.shape[0]}"
    if "labels" in targets:
        rows = targets["labels"] >= 0
        masks = targets.get("masks")
        if masks is None and "box_masks" in targets:
            masks = paste_masks(targets["box_masks"], targets["boxes"], image.shape[:2])
        masks = None if masks is None else masks[rows]
        image = detections(image, targets["boxes"][rows], targets["labels"][rows], masks=masks, classes=classes)
        return image, f"{size}, {rows.sum()} objects"
    if "label_map" in targets:
        return segmentation(image, targets["label_map"], ignored_label=LABEL_MAP_FILL, legend=False), size
    if "soft_label" in targets:
        best = np.argsort(-targets["soft_label"])[:2]
        parts = (f"{_name(k, classes)} {targets['soft_label'][k]:.2f}" for k in best if targets["soft_label"][k] > 0)
        return image, f"{size}, {', '.join(parts)}"
    return image, f"{size}, {_name(targets['label'], classes)}" if "label" in targets else size


def _name(label, classes):
    return str(classes[int(label)]) if classes is not None else str(int(label))
