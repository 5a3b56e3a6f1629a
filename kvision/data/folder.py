"""A folder with one sub-folder a class, as `tf.data`."""

import concurrent.futures
import dataclasses
import pathlib

import numpy as np
import tensorflow as tf

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """What `image_folder` found.

    Args:
        train, validation: `tf.data.Dataset` of batches (images [b, h, w, c] float32 of 0…255, labels [b] int32).
        class_names: Names of the sub-folders, in the order of the labels.
        counts: Pictures used of each class.
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
        image_size: (height, width) in pixels; pictures keep their aspect ratio and are padded with black.
        channels: 3 for RGB, 1 for grey.
        batch_size: Pictures a batch.
        validation_split: Share of each class that is kept apart, in (0, 1); at least one picture a class.
        seed: Of the split and of the shuffling.

    Returns:
        An `ImageFolder`.

    Raises:
        ValueError: if the folder does not exist, holds no pictures, fewer than two classes, or a class with fewer than
            two readable pictures.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise ValueError(f"Pictures: {str(folder)!r} is not a folder. Expected a folder with one sub-folder a class.")
    if not 0 < validation_split < 1:
        raise ValueError(f"Pictures: validation_split must lie between 0 and 1, got {validation_split}.")
    files, labels, names = _list(folder)
    readable, skipped = _readable(files)
    files = [file for file, good in zip(files, readable, strict=True) if good]
    labels = np.array([label for label, good in zip(labels, readable, strict=True) if good], "int32")
    counts = tuple(int((labels == k).sum()) for k in range(len(names)))
    for name, count in zip(names, counts, strict=True):
        if count < 2:
            raise ValueError(
                f"Pictures: class {name!r} in {str(folder)!r} has {count} readable pictures, at least 2 are needed "
                f"(one to train, one to validate). {_tell(skipped)}"
            )
    held = _hold_out(labels, validation_split, seed)

    def batches(chosen, shuffle):
        rows = np.flatnonzero(chosen)
        data = tf.data.Dataset.from_tensor_slices(([str(files[row]) for row in rows], labels[rows]))
        data = data.shuffle(len(rows), seed=seed) if shuffle else data
        data = data.map(lambda path, label: (_read(path, image_size, channels), label), tf.data.AUTOTUNE)
        return data.batch(batch_size).prefetch(tf.data.AUTOTUNE)

    return ImageFolder(batches(~held, True), batches(held, False), names, counts, skipped)


def _list(folder):
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = [[file for file in sorted(path.rglob("*")) if file.suffix.lower() in SUFFIXES] for path in classes]
    if not any(found):
        raise ValueError(
            f"Pictures: no pictures ({', '.join(SUFFIXES)}) in the sub-folders of {str(folder)!r}. "
            "Expected one sub-folder a class, with its pictures inside."
        )
    if sum(map(bool, found)) < 2:
        only = next(path.name for path, files in zip(classes, found, strict=True) if files)
        raise ValueError(
            f"Pictures: {str(folder)!r} holds pictures of one class only ({only!r}); a classifier needs at least two "
            "sub-folders with pictures."
        )
    pairs = [(path.name, files) for path, files in zip(classes, found, strict=True) if files]
    names = tuple(name for name, _ in pairs)
    return [f for _, files in pairs for f in files], [k for k, (_, files) in enumerate(pairs) for _ in files], names


def _readable(files):
    """For each file whether it decodes, and `{path: reason}` of those that do not."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        reasons = list(pool.map(_fault, files))
    skipped = {str(file): reason for file, reason in zip(files, reasons, strict=True) if reason}
    return [not reason for reason in reasons], skipped


def _fault(file):
    try:
        tf.io.decode_image(tf.io.read_file(str(file)), expand_animations=False)
    except tf.errors.OpError as error:
        return error.message.split("\n")[0][:200]
    return None


def _tell(skipped):
    if not skipped:
        return ""
    shown = "; ".join(f"{path}: {reason}" for path, reason in list(skipped.items())[:3])
    return f"{len(skipped)} files could not be read: {shown}."


def _hold_out(labels, share, seed):
    """A mask of the rows kept apart: the same share of every class, at least one, never all."""
    order = np.random.default_rng(seed).permutation(len(labels))
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        held[rows[: min(max(1, round(share * len(rows))), len(rows) - 1)]] = True
    return held


def _read(path, image_size, channels):
    image = tf.io.decode_image(tf.io.read_file(path), channels=channels, expand_animations=False)
    image.set_shape((None, None, channels))
    return tf.image.resize_with_pad(tf.cast(image, tf.float32), *image_size)
