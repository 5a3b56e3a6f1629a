"""Random access to the samples of a data set, and the order in which `fit` sees them.

A reader finds files and makes a `Source`; `Source.dataset` is the `tf.data.Dataset` that `fit` takes. The order is a
function of seed and epoch, so a run can go on at batch k of epoch e without reading what came before, two processes
can read disjoint shards, and what a random transform does to a sample depends on seed, epoch and sample alone.
"""

import dataclasses
import numbers
import os
import threading
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from kvision.data.pending import finished

SEEDS_A_SAMPLE = 1_009  # by which the seeds of a sample's transforms lie apart from those of the next
FEWEST_THREADS = 4  # of a pipeline
CHUNK, CHUNK_BYTES = 32, 2**20  # samples read at once, at most, and their bytes unless one alone has more


class Order:
    """The order of the samples in each epoch: a function of (seed, epoch).

    Each iterator over the data set is an epoch; they count on from 0, or from where `start` says.

    Args:
        length: Samples of the whole data set.
        batch_size: Samples a batch; None where the data set is not batched.
        shuffle: Whether each epoch has an order of its own.
        seed: Of the orders.
        shard: `(index, count)`: this process reads every `count`-th sample of the epoch, from `index` on.

    Raises:
        ValueError: If `batch_size` or the shard is out of range.

    >>> order = Order(5, batch_size=2, shuffle=True, seed=1)
    >>> order.indices(0).tolist(), order.indices(1).tolist()
    ([4, 0, 1, 2, 3], [1, 4, 0, 3, 2])
    >>> order.batches
    3
    """

    def __init__(self, length, *, batch_size=None, shuffle=False, seed=0, shard=(0, 1)):
        index, count = shard
        if not 0 <= index < count or index >= length:
            raise ValueError(
                f"shard is (index, count) with 0 <= index < count, and each shard needs a sample: got {shard!r} of "
                f"{length} samples. Pass (process, number of processes)."
            )
        if batch_size is not None and (not isinstance(batch_size, numbers.Integral) or batch_size < 1):
            raise ValueError(
                f"batch_size must be a whole number, at least 1, or None for single samples, got {batch_size!r}."
            )
        self.length = length
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.shard = (index, count)
        self.begun = None  # indices of the samples of the last iterator that began
        self._next = (0, 0)
        self._lock = threading.Lock()

    def __len__(self):
        """Samples an epoch of this shard."""
        return len(range(self.shard[0], self.length, self.shard[1]))

    @property
    def batches(self):
        """Batches an epoch, the last of them perhaps smaller; samples where nothing is batched."""
        return -(-len(self) // (self.batch_size or 1))

    def indices(self, epoch):
        """The indices of the samples of an epoch, in order: int64 [samples]."""
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(self.length) if self.shuffle else np.arange(self.length)
        return order[self.shard[0] :: self.shard[1]].astype("int64")

    @property
    def position(self):
        """`(epoch, batch)` at which the next iterator begins."""
        return self._next

    def start(self, epoch, batch=0):
        """Let the next iterator begin at a batch of an epoch.

        Raises:
            ValueError: If the epoch has no such batch.
        """
        if not 0 <= batch < self.batches or epoch < 0:
            raise ValueError(
                f"Order.start: expected an epoch from 0 and a batch from 0 to {self.batches - 1}, got epoch {epoch} "
                f"and batch {batch}."
            )
        with self._lock:
            self._next = (int(epoch), int(batch))

    def begin(self):
        """What the iterator that begins now reads: int64 [samples, 4] of index, epoch, place and number of samples."""
        with self._lock:
            (epoch, batch), self._next = self._next, (self._next[0] + 1, 0)
        indices = self.begun = self.indices(epoch)[batch * (self.batch_size or 1) :]
        count = len(indices)
        return np.stack([indices, np.full(count, epoch), np.arange(count), np.full(count, count)], axis=1)


def _threads():
    """Threads of a pipeline, and how many samples are made at a time."""
    return max(FEWEST_THREADS, os.cpu_count() or 1)


def _options():
    """A pipeline has threads of its own and is not tuned as it runs.

    On two cores it would have TensorFlow's two, of which one at times waits for a whole epoch, and a core with it. What
    tunes it wakes 10, 30, 70, 150 … ms after the start, and the end of an epoch at times waits for that: as long again
    as the epoch took, up to a minute.
    """
    options = tf.data.Options()
    options.threading.private_threadpool_size = _threads()
    options.autotune.enabled = False
    return options


@dataclasses.dataclass(frozen=True)
class Source:
    """The samples of a data set by their index, and what is known of them.

    Args:
        example: A function of `tf.data` from the index of a sample (int64 scalar) to the sample, of static shapes, or
            to a `Pending` of it. One with the attribute `of_many`, a function from indices, int64 [n], to n samples in
            a batch, is called by that: a call of Python costs more than what it reads. It has no `lost`.
        order: The `Order` of the samples.
        drop_remainder: Whether to leave out the last batch where it is smaller, so that shapes are wholly static.
        facts: Attributes that the data set gets: `class_names`, `files`, `counts`, `problems`.
        transforms: Functions `(sample, seed) -> sample` of `tf.data`, applied in order to each sample; `seed` is an
            int64 [2], a function of the order's seed, the epoch and the sample's index, for TensorFlow's stateless
            random functions. One with the attribute `takes_pending` may get a `Pending` sample and give one.
        lost: A function of the indices, int64 [n], of samples that could not be made, which are then left out of the
            epoch, in batches of the usual size; it may raise instead. None lets TensorFlow's error end the epoch.
        annotated: Of a data set with boxes, the `FileObjects` of each sample, by its index; None of others.
        folder: To which the names of `files` are relative where a split is taken by them; None where there are none.
    """

    example: Callable
    order: Order
    drop_remainder: bool = False
    facts: dict = dataclasses.field(default_factory=dict)
    transforms: tuple = ()
    lost: Callable | None = None
    annotated: tuple | None = None
    folder: object = None

    def transformed(self, transform):
        """This source with one more transform `(sample, seed) -> sample`."""
        return dataclasses.replace(self, transforms=(*self.transforms, transform))

    def sample(self, index, epoch=0):
        """One sample, transformed as in an epoch, in `tf.data` or outside; `index` and `epoch` are int64 scalars."""
        return finished(self.unfinished(index, epoch))

    def unfinished(self, index, epoch=0):
        """As `sample`, or the `Pending` of it."""
        index, epoch = tf.cast(index, tf.int64), tf.cast(epoch, tf.int64)
        return self._changed(self.example(index), index, epoch)

    def _changed(self, sample, index, epoch):
        for position, transform in enumerate(self.transforms):
            seed = tf.stack([epoch * 1_000_003 + self.order.seed, index * SEEDS_A_SAMPLE + position])
            sample = transform(sample if getattr(transform, "takes_pending", False) else finished(sample), seed)
        return sample

    def dataset(self):
        """The `tf.data.Dataset` of the samples in batches; it carries `source` and the facts as attributes."""
        order = self.order
        rows = tf.data.Dataset.range(1).map(
            lambda _: tf.ensure_shape(tf.numpy_function(order.begin, [], tf.int64), (None, 4))
        )
        # Not by `flat_map`: what is built within is optimised with it, and again as it begins, at every epoch.
        data, batches = self._made(rows.unbatch()), order.batches
        if order.batch_size is not None and self.drop_remainder:
            batches = len(order) // order.batch_size
        data = _of_length(data, batches).prefetch(tf.data.AUTOTUNE).with_options(_options())
        for name, fact in {**self.facts, "source": self}.items():
            setattr(data, name, fact)
        return data

    def _made(self, rows):
        """The batches, or samples, of the rows of `Order.begin`."""
        if hasattr(self.example, "of_many"):
            return self._in_batches(self._read_in_chunks(rows), self.drop_remainder)
        if self.lost is None:
            return self._in_batches(rows.map(lambda row: self.sample(row[0], row[1]), _threads()), self.drop_remainder)
        made = rows.map(  # in order whatever the options say, since a gap in it is what was lost
            lambda row: (row, self.sample(row[0], row[1])), _threads(), deterministic=True
        )
        return self._told(self._in_batches(made.ignore_errors()))

    def _in_batches(self, samples, drop_remainder=False):
        if self.order.batch_size is None:
            return samples
        samples = samples.map(_of_one_size) if _differ_in_size(samples) else samples
        return samples.batch(self.order.batch_size, drop_remainder=drop_remainder)

    def _told(self, made):
        """The batches, or samples, that come with their rows; those that do not come are told."""
        size, spec = self.order.batch_size, made.element_spec
        nothing = lambda part: tf.zeros([side or 0 for side in part.shape], part.dtype)  # noqa: E731
        end = tf.data.Dataset.range(1).map(lambda _: tf.nest.map_structure(nothing, spec))

        def after(state, rows, made):
            rows = tf.reshape(rows, [-1, 4])
            return tf.ensure_shape(tf.numpy_function(self._tell, [state, rows], tf.int64), (3,)), (rows, made)

        def stays(rows, _):
            whole = tf.shape(rows)[0] == size if self.drop_remainder else True
            return tf.reduce_any(rows[:, 3] > 0) & whole

        def of_known_size(part):
            return tf.ensure_shape(part, (size, *part.shape[1:])) if self.drop_remainder else part

        start = tf.constant([-1, 0, -1], tf.int64)
        made = made.concatenate(end).scan(start, lambda state, element: after(state, *element))
        return made.filter(stays).map(lambda _, sample: tf.nest.map_structure(of_known_size, sample))

    def _tell(self, state, rows):
        """Tells the samples that were due and did not come: those before these rows, or up to the epoch's end.

        Args:
            state: int64 [3]: the epoch, the place that is due in it, and its number of samples; −1 as it begins.
            rows: int64 [n, 4], as of `Order.begin`, fewer than a batch at the end; none, or zeros, where nothing comes.

        Returns:
            The next state.
        """
        epoch, due, count = state
        rows = rows[rows[:, 3] > 0]
        if len(rows):
            epoch, count = rows[0, 1], rows[0, 3]
        elif epoch < 0:
            count = len(self.order.begun)
        ends = len(rows) < (self.order.batch_size or 1)
        following = count if ends else rows[-1, 2] + 1
        if following - due > len(rows):
            indices = self.order.begun if epoch < 0 else self.order.indices(epoch)[-count:]
            self.lost(indices[np.setdiff1d(np.arange(due, following), rows[:, 2])])
        return np.array([epoch, following, count], "int64")

    def _read_in_chunks(self, rows):
        spec = tf.data.Dataset.range(1).map(self.example).element_spec
        size = sum(part.shape.num_elements() * part.dtype.size for part in tf.nest.flatten(spec))
        chunks = rows.batch(max(1, min(CHUNK, CHUNK_BYTES // max(size, 1))))
        if not self.transforms:
            return chunks.map(lambda rows: self.example.of_many(rows[:, 0]), _threads()).unbatch()
        data = chunks.map(lambda rows: (rows, self.example.of_many(rows[:, 0])), _threads()).unbatch()
        return data.map(lambda row, sample: finished(self._changed(sample, row[0], row[1])), _threads())


def _differ_in_size(data):
    return not all(part.shape.is_fully_defined() for part in tf.nest.flatten(data.element_spec))


def _of_one_size(*sample):
    """The sample, of a data set that cannot be batched, which is told when it is read and not when it is augmented."""

    def refuse():
        raise ValueError(
            "the images differ in size and cannot be batched: give image_size=(height, width) to the reader, or "
            "augment them by a transform that gives all one size first, such as RandomResizedCrop((224, 224))."
        )

    with tf.control_dependencies([tf.numpy_function(refuse, [], [])]):
        sample = tf.nest.map_structure(tf.identity, sample)
    return sample if len(sample) > 1 else sample[0]


def _of_length(data, length):
    """A data set that says its length, which `tf.data` cannot know of one whose order is drawn as it begins.

    An iterator that began in the middle of an epoch has fewer elements: who began there knows it.
    """
    nothing = data.take(0).filter(lambda *_: True).repeat()  # empty, of a cardinality that `tf.data` takes as infinite
    return data.concatenate(nothing).take(length)
