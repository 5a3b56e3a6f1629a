"""A folder with one sub-folder per class, as `tf.data`."""

import dataclasses
import pathlib

import numpy as np
import tensorflow as tf

from kvision.data.images import SUFFIXES, decode, image_sizes, is_image


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """What `image_folder` found.

    Args:
        train, validation: `tf.data.Dataset` of batches (images [b, h, w, c] float32 of 0…255, labels [b] int32).
        class_names: Names of the sub-folders, in the order of the labels.
        counts: Images used of each class.
        skipped: `{path: reason}` of the files that could not be read.
    """

    train: tf.data.Dataset
    validation: tf.data.Dataset
    class_names: tuple
    counts: tuple
    skipped: dict


def image_folder(folder, *, image_size=(224, 224), channels=3, batch_size=32, validation_split=0.2, seed=0):
    """Read a folder of class sub-folders; files that cannot be read are left out and named, never fatal.

    Every file is decoded once up front, by the decoder that training uses.

    Args:
        folder: Path; each sub-folder is a class, in alphabetical order.
        image_size: (height, width) in pixels; images keep their aspect ratio and are padded with black.
        channels: 3 for RGB, 1 for grey.
        batch_size: Images per batch.
        validation_split: Fraction of each class that is held out, in (0, 1); at least one image per class.
        seed: Of the split and of the shuffling.

    Returns:
        An `ImageFolder`.

    Raises:
        ValueError: if the folder does not exist, holds no images, fewer than two classes, or a class with fewer than
            two readable images.

    ```python
    found = kvision.data.image_folder("flowers", image_size=(64, 64))
    model.fit(found.train, validation_data=found.validation)
    ```
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"image_folder: {str(folder)!r} is not a folder. Expected a folder with one sub-folder per class."
        )
    if not 0 < validation_split < 1:
        raise ValueError(f"image_folder: validation_split must lie between 0 and 1, got {validation_split}.")
    files, labels, names = _list(folder)
    sizes, unreadable = image_sizes(files, channels=channels)
    skipped = {str(file): reason for file, reason in unreadable.items()}
    labels = np.array([label for label, file in zip(labels, files, strict=True) if file in sizes], "int32")
    files = list(sizes)
    counts = tuple(int((labels == k).sum()) for k in range(len(names)))
    for name, count in zip(names, counts, strict=True):
        if count < 2:
            raise ValueError(
                f"image_folder: class {name!r} in {str(folder)!r} has {count} readable images, at least 2 are needed "
                f"(one to train, one to validate). {_summary(skipped)}"
            )
    held = _hold_out(labels, validation_split, seed)

    def example(path, label):
        return tf.image.resize_with_pad(tf.cast(decode(path, channels), tf.float32), *image_size), label

    def batches(chosen, shuffle):
        rows = np.flatnonzero(chosen)
        data = tf.data.Dataset.from_tensor_slices(([str(files[row]) for row in rows], labels[rows]))
        data = data.shuffle(len(rows), seed=seed) if shuffle else data
        data = data.map(example, tf.data.AUTOTUNE)
        return data.batch(batch_size).prefetch(tf.data.AUTOTUNE)

    return ImageFolder(batches(~held, True), batches(held, False), names, counts, skipped)


def _list(folder):
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = [[file for file in sorted(path.rglob("*")) if is_image(file)] for path in classes]
    if not any(found):
        raise ValueError(
            f"image_folder: no images ({', '.join(SUFFIXES)}) in the sub-folders of {str(folder)!r}. "
            "Expected one sub-folder per class, with its images inside."
        )
    if sum(map(bool, found)) < 2:
        only = next(path.name for path, files in zip(classes, found, strict=True) if files)
        raise ValueError(
            f"image_folder: {str(folder)!r} holds images of one class only ({only!r}); a classifier needs at least two "
            "sub-folders with images."
        )
    pairs = [(path.name, files) for path, files in zip(classes, found, strict=True) if files]
    names = tuple(name for name, _ in pairs)
    return [f for _, files in pairs for f in files], [k for k, (_, files) in enumerate(pairs) for _ in files], names


def _summary(skipped):
    if not skipped:
        return ""
    shown = "; ".join(f"{path}: {reason}" for path, reason in list(skipped.items())[:3])
    return f"{len(skipped)} files could not be read: {shown}."


def _hold_out(labels, fraction, seed):
    """A mask of the rows held out: the same fraction of every class, at least one, never all."""
    order = np.random.default_rng(seed).permutation(len(labels))
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        held[rows[: min(max(1, round(fraction * len(rows))), len(rows) - 1)]] = True
    return held
