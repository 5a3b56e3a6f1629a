"""A data set prepared once and kept as arrays in files: what every epoch would decode and resize again."""

import dataclasses
import itertools
import json
import os
import pathlib
import shutil
import tempfile
import zlib

import keras
import numpy as np
import tensorflow as tf

from kvision._keras import print_message
from kvision.data.annotations import Problem
from kvision.data.source import Order, Source

MANIFEST, CHECKSUMS = "records.json", "checksums.npy"
DAMAGED = "its bytes are not those that were written. Remove this folder and call write_records again."
FACTS = ("class_names", "counts")  # what the records go on to tell of the data set


def write_records(dataset, directory, *, shard_size=1024, verbose=1):
    """Write the samples of a data set, as training would see them, into files that `records` reads.

    A shard is a folder with one NumPy file (`.npy`) for each part of a sample, and a checksum for each sample. It is
    written beside the others and renamed when it is whole: called again after a stop, the function goes on at the first
    shard that is missing.

    Args:
        dataset: What a reader of kvision gave, or `augment` made of it (the augmentation of epoch 0 is kept). Batched
            or not; its samples are written one by one, in the order of their indices.
        directory: Of the records; made where it is missing.
        shard_size: Samples a shard, at least 1.
        verbose: 1 shows a progress bar, 0 nothing.

    Returns:
        The number of samples.

    Raises:
        ValueError: If the data set is not one of kvision's readers, the samples differ in shape, or the directory holds
            records of another data set.

    ```python
    train = kvision.data.image_folder("flowers", image_size=(224, 224))
    kvision.data.write_records(train, "flowers-224")
    model.fit(kvision.data.records("flowers-224", batch_size=32, shuffle=True))
    ```
    """
    source = getattr(dataset, "source", None)
    if source is None:
        raise ValueError(
            f"write_records: expected what a reader of kvision gives, whose samples can be read by their index, got "
            f"{type(dataset).__name__}. Pass the reader's own data set."
        )
    if shard_size < 1:
        raise ValueError(f"write_records: shard_size must be at least 1, got {shard_size}.")
    length = source.order.length
    single = dataclasses.replace(source, order=Order(length), drop_remainder=False, lost=None)
    samples = single.dataset()
    spec = samples.element_spec
    for part in keras.tree.flatten(spec):
        if not part.shape.is_fully_defined():
            raise ValueError(
                f"write_records: samples of one shape are kept as one array, got {part.shape}. Read the images with "
                "image_size=(height, width)."
            )
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    manifest = {
        "version": 1,
        "samples": length,
        "shard_size": int(shard_size),
        "structure": _structure(spec),
        "parts": [[part.dtype.name, list(part.shape)] for part in keras.tree.flatten(spec)],
        "first_sample": _checksum([part.numpy() for part in keras.tree.flatten(single.sample(0))]),
        "facts": {name: list(source.facts[name]) for name in FACTS if source.facts.get(name) is not None},
    }
    _claim(directory, manifest)
    missing = [shard for shard in range(-(-length // shard_size)) if not _shard(directory, shard).is_dir()]
    progress = keras.utils.Progbar(length, unit_name="sample", verbose=verbose)
    progress.update(length - sum(_size(manifest, shard) for shard in missing))
    following = None
    for shard in missing:
        if shard != following:  # else the iterator stands there already
            single.order.start(0, shard * shard_size)
            iterator = iter(samples)
        _write_shard(directory, shard, iterator, spec, _size(manifest, shard), progress)
        following = shard + 1
    return length


def records(directory, *, batch_size=32, shuffle=False, seed=0, shard=(0, 1), drop_remainder=False):
    """Read what `write_records` wrote: no decoding, no resizing; every sample is checked by its checksum.

    Without `shuffle` the files are read in sequence.

    Args:
        directory: Of the records.
        batch_size: Samples a batch; None gives single samples.
        shuffle: Whether each epoch has an order of its own, a function of the seed and the epoch.
        seed: Of the orders.
        shard: `(index, count)`: this process reads every `count`-th sample of the epoch, from `index` on.
        drop_remainder: Whether to leave out the last batch where it is smaller, so that shapes are wholly static.

    Returns:
        A `tf.data.Dataset` of what was written, with `class_names`, `counts`, `problems` and `source`.

    Raises:
        ValueError: If the directory holds no records or not all of them, or a file is cut short.
        tf.errors.InvalidArgumentError: While it is read, on a damaged sample: its shard and row are printed, and are
            in `problems`.
    """
    directory = pathlib.Path(directory)
    manifest = _manifest(directory)
    if manifest is None:
        raise ValueError(f"records: there is no {MANIFEST} in {str(directory)!r}. Write it by write_records.")
    length, size = manifest["samples"], manifest["shard_size"]
    shards = range(-(-length // size))
    missing = [shard for shard in shards if not _shard(directory, shard).is_dir()]
    if missing:
        raise ValueError(
            f"records: {len(missing)} of {len(shards)} shards are missing in {str(directory)!r}, the first is "
            f"{_shard(directory, missing[0]).name}. Call write_records again: it goes on where it stopped."
        )
    names = keras.tree.flatten(manifest["structure"])
    files = [[_opened(_shard(directory, k) / f"{name}.npy", mmap_mode="r") for name in names] for k in shards]
    checksums = [_opened(_shard(directory, k) / CHECKSUMS) for k in shards]
    problems = []

    def read(index):
        shard, row = divmod(int(index), size)
        parts = [np.array(file[row]) for file in files[shard]]
        if _checksum(parts) != checksums[shard][row]:
            problem = Problem(str(_shard(directory, shard)), f"row {row}", f"the record is damaged: {DAMAGED}")
            if problem not in problems:  # in plain words, before the many that TensorFlow puts around an error
                problems.append(problem)
                print_message(f"kvision.data.records: {problem}")
            raise ValueError(f"records: {problem}")
        return parts

    def example(index):
        parts = tf.numpy_function(read, [index], [file.dtype for file in files[0]])
        parts = [tf.ensure_shape(part, file.shape[1:]) for part, file in zip(parts, files[0], strict=True)]
        return keras.tree.pack_sequence_as(_tupled(manifest["structure"]), parts)

    order = Order(length, batch_size=batch_size, shuffle=shuffle, seed=seed, shard=shard)
    facts = {name: tuple(fact) for name, fact in manifest["facts"].items()} | {"problems": problems}
    return Source(example, order, drop_remainder, facts).dataset()


def _opened(path, **options):
    try:
        return np.load(path, **options)
    except (OSError, ValueError, EOFError):
        raise ValueError(f"records: {str(path)!r} is damaged or missing: {DAMAGED}") from None


def _write_shard(directory, shard, samples, spec, size, progress):
    names = keras.tree.flatten(_structure(spec))
    partial = pathlib.Path(tempfile.mkdtemp(prefix=".partial-", dir=directory))
    try:
        files = [
            np.lib.format.open_memmap(partial / f"{name}.npy", "w+", part.dtype.as_numpy_dtype, (size, *part.shape))
            for name, part in zip(names, keras.tree.flatten(spec), strict=True)
        ]
        checksums = np.zeros(size, "uint32")
        for row, sample in enumerate(itertools.islice(samples, size)):
            parts = [part.numpy() for part in keras.tree.flatten(sample)]
            for file, part in zip(files, parts, strict=True):
                file[row] = part
            checksums[row] = _checksum(parts)
            progress.add(1)
        for file in files:
            file.flush()
        np.save(partial / CHECKSUMS, checksums)
        os.replace(partial, _shard(directory, shard))
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _structure(spec):
    """The structure of a sample with the name of a file in the place of each part; tuples as lists, as in JSON."""

    def named(part, name):
        if isinstance(part, dict):
            return {key: named(part[key], f"{name}-{key}" if name else key) for key in sorted(part)}
        if isinstance(part, tuple | list):
            return [named(one, f"{name}-{index}" if name else str(index)) for index, one in enumerate(part)]
        return name or "x"

    return named(spec, "")


def _tupled(structure):
    if isinstance(structure, dict):
        return {key: _tupled(part) for key, part in structure.items()}
    return tuple(map(_tupled, structure)) if isinstance(structure, list) else structure


def _claim(directory, manifest):
    """Write the manifest, or see that it is the one that is there."""
    there = _manifest(directory)
    if there is not None and there != manifest:
        differing = ", ".join(key for key in manifest if there.get(key) != manifest[key])
        raise ValueError(
            f"write_records: {str(directory)!r} holds records that differ in {differing}. Choose another directory, or "
            "remove that one."
        )
    if there is None:
        partial = directory / f".{MANIFEST}.partial"
        partial.write_text(json.dumps(manifest), encoding="utf-8")
        os.replace(partial, directory / MANIFEST)


def _manifest(directory):
    try:
        return json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ValueError(f"records: {str(directory / MANIFEST)!r} cannot be read: {error}.") from None


def _shard(directory, shard):
    return directory / f"shard-{shard:05d}"


def _size(manifest, shard):
    return min(manifest["shard_size"], manifest["samples"] - shard * manifest["shard_size"])


def _checksum(parts):
    value = 0
    for part in parts:
        value = zlib.crc32(np.ascontiguousarray(part).tobytes(), value)
    return value
