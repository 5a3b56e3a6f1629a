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
from kvision.data.files import relative
from kvision.data.reader import Options, Reading
from kvision.data.source import Order, Source

MANIFEST, CHECKSUMS = "records.json", "checksums.npy"
DAMAGED = "its bytes are not those that were written. Remove this folder and call write_records again."
REMEDY = "Remove the directory and call write_records again."
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
        "files": _names(source),
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


def records(
    directory,
    *,
    split=None,
    classes=None,
    batch_size=32,
    shuffle=False,
    seed=0,
    shard=(0, 1),
    drop_remainder=False,
):
    """Read what `write_records` wrote: no decoding, no resizing; every sample is checked by its checksum.

    Without `shuffle` the files are read in sequence.

    Args:
        directory: Of the records.
        split: As of all readers, of the files that were written: None, a range of their hashes such as `(0, 0.8)`, or
            a list of their names. An image is in the part in which the reader of the files has it.
        classes: Names of the classes, in the order of the labels; None takes those that were written. Images of others
            are left out; of records with boxes all names have to be there.
        batch_size: Samples a batch; None gives single samples.
        shuffle: Whether each epoch has an order of its own, a function of the seed and the epoch.
        seed: Of the orders.
        shard: `(index, count)`: this process reads every `count`-th sample of the epoch, from `index` on.
        drop_remainder: Whether to leave out the last batch where it is smaller, so that shapes are wholly static.

    Returns:
        A `tf.data.Dataset` of what was written, with `class_names`, `counts`, `files` (`{index: name}`, or by the id of
        the image as in the data set that was written; names relative to it), `problems` and `source`.

    Raises:
        ValueError: If the directory holds no records or not all of them, a file is cut short, or there is no such
            file or class.
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
    reading = _reading(split=split, classes=classes, batch_size=batch_size, seed=seed, drop_remainder=drop_remainder)
    problems, labels = reading.problems, _Labels(reading, manifest, files)
    kept, known = _kept(reading, manifest, labels), manifest.get("files")
    for line in reading.notes:
        print_message(f"kvision.data.records: {line}")

    def read(index):
        shard, row = divmod(index, size)
        parts = [np.array(file[row]) for file in files[shard]]
        if _checksum(parts) != checksums[shard][row]:
            problem = Problem(str(_shard(directory, shard)), f"row {row}", f"the record is damaged: {DAMAGED}")
            if problem not in problems:  # in plain words, before the many that TensorFlow puts around an error
                problems.append(problem)
                print_message(f"kvision.data.records: {problem}")
            raise ValueError(f"records: {problem}")
        return labels.renamed(parts)

    specs = labels.renamed_specs([(file.dtype, file.shape[1:]) for file in files[0]])

    def read_all(indices):
        return [np.stack(parts) for parts in zip(*map(read, indices.tolist()), strict=True)]

    def example(index):
        return keras.tree.map_structure(lambda part: part[0], of_many(index[None]))

    def of_many(indices):
        parts = tf.numpy_function(read_all, [tf.gather(kept, indices)], [dtype for dtype, _ in specs])
        parts = [tf.ensure_shape(part, (None, *shape)) for part, (_, shape) in zip(parts, specs, strict=True)]
        return keras.tree.pack_sequence_as(_tupled(manifest["structure"]), parts)

    example.of_many = of_many
    order = Order(len(kept), batch_size=batch_size, shuffle=shuffle, seed=seed, shard=shard)
    facts = {name: tuple(fact) for name, fact in manifest["facts"].items()} | labels.facts(kept)
    if "class_names" in facts:
        facts["classes"] = len(facts["class_names"])
    facts |= {} if known is None else {"files": {known[index][0]: known[index][1] for index in kept.tolist()}}
    return Source(example, order, drop_remainder, facts | {"problems": problems}).dataset()


def _reading(**options):
    try:
        return Reading("records", Options(**options))
    except ValueError as error:
        raise ValueError(f"records: {error}") from None


def _kept(reading, manifest, labels):
    """The indices of the samples of the split and of the classes, int64."""
    indices = np.arange(manifest["samples"])
    reading.refuse_named_split("Pass a range such as split=(0, 0.8), or a list of files.")
    if reading.options.split is not None:
        if manifest.get("files") is None:
            raise ValueError(f"records: these records do not know the files of their samples, got split=. {REMEDY}")
        paths = [pathlib.Path(name) for _, name in manifest["files"]]
        chosen = set(reading.chosen(paths, pathlib.Path()))
        indices = np.array([index for index, path in enumerate(paths) if path in chosen], "int64")
    indices = indices[labels.known(indices)]
    reading.require(indices.tolist())
    return indices


class _Labels:
    """The labels in records, in the order of `classes=`.

    Args:
        reading: The `Reading`, with `classes` among its options.
        manifest: Of the records.
        files: The arrays of each shard.
    """

    def __init__(self, reading, manifest, files):
        names = keras.tree.flatten(manifest["structure"])
        self.written = written = tuple(manifest["facts"].get("class_names") or ())
        self.at = next((names.index(name) for name in ("1-labels", "1") if name in names), None)
        spec = None if self.at is None else (files[0][self.at].dtype.kind, files[0][self.at].ndim - 1)
        kinds = {("i", 0): "label", ("u", 0): "label", ("f", 1): "soft", ("i", 1): "rows"}
        self.kind = kinds.get(spec) if written else None
        self.kind = None if self.kind == "rows" and "1-labels" not in names else self.kind
        self.columns = [] if self.kind is None else [shard[self.at] for shard in files]
        self.names = self.table = None
        if reading.options.classes is None:
            return
        if self.kind is None:
            raise ValueError("records: these have no labels of classes with names, got classes=. Leave it out.")
        self.names = reading.class_names(written)
        self.table = np.array([self.names.index(name) if name in self.names else -1 for name in written])
        if self.kind == "rows" and (self.table < 0).any():
            raise ValueError(
                f"records: of records with boxes, classes= has to hold all of {', '.join(written)}: got "
                f"{', '.join(self.names)}. Leave classes out where the files are read, before write_records."
            )

    def known(self, indices):
        """Which of the samples are of a class that is asked for."""
        if self.table is None or self.kind != "label":
            return np.ones(len(indices), bool)
        return self.table[np.concatenate(self.columns)[indices]] >= 0

    def renamed(self, parts):
        """The parts of a sample with the labels asked for."""
        if self.table is None:
            return parts
        new = (self._of_soft if self.kind == "soft" else self._of_indices)(parts[self.at])
        return [new if index == self.at else part for index, part in enumerate(parts)]

    def renamed_specs(self, specs):
        """Types and shapes of the parts."""
        if self.table is None or self.kind != "soft":
            return specs
        return [(part, (len(self.names),) if index == self.at else shape) for index, (part, shape) in enumerate(specs)]

    def facts(self, kept):
        """`class_names` and `counts` of a part of the samples, or in another order of the classes."""
        names = self.names or self.written
        if self.kind is None or (self.table is None and len(kept) == sum(map(len, self.columns))):
            return {}
        labels = np.concatenate(self.columns)[kept]
        if self.kind == "soft":
            counts = (labels > 0.5).sum(axis=0)
            counts = counts if self.table is None else self._of_soft(counts)
        else:
            counts = np.bincount(self._of_indices(labels[labels >= 0]), minlength=len(names))
        return {"class_names": names, "counts": tuple(counts.tolist())}

    def _of_indices(self, labels):
        if self.table is None:
            return labels
        return np.where(labels >= 0, self.table[np.maximum(labels, 0)], labels).astype(labels.dtype)

    def _of_soft(self, labels):
        new = np.zeros(len(self.names), labels.dtype)
        new[self.table[self.table >= 0]] = labels[self.table >= 0]
        return new


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


def _names(source):
    """Id and name, relative to the data set, of the file of each sample; None where there are no files."""
    files = source.facts.get("files")
    if files is None or source.folder is None:
        return None
    return [[key, relative(path, source.folder)] for key, path in files.items()]


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
    """What the records are, a dict; None if there are none."""
    path = directory / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"records: {str(path)!r} cannot be read: {error}.") from None
    numbers = [found.get(name) for name in ("samples", "shard_size")] if isinstance(found, dict) else [None]
    whole = all(isinstance(number, int) and number > 0 for number in numbers)
    if not whole or not isinstance(found.get("facts"), dict) or not found.get("structure"):
        raise ValueError(f"records: {str(path)!r} cannot be read: it is not what write_records wrote. {REMEDY}")
    return found


def _shard(directory, shard):
    return directory / f"shard-{shard:05d}"


def _size(manifest, shard):
    return min(manifest["shard_size"], manifest["samples"] - shard * manifest["shard_size"])


def _checksum(parts):
    value = 0
    for part in parts:
        value = zlib.crc32(np.ascontiguousarray(part).tobytes(), value)
    return value
