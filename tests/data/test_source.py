"""The order of samples is a function of seed and epoch, and an iterator may begin anywhere."""

import dataclasses
import time

import numpy as np
import pytest
import tensorflow as tf

from kvision.data.source import Order, Source


def source(length=10, **options):
    noisy = lambda sample, seed: (sample[0] + tf.random.stateless_uniform([1], seed), sample[1])  # noqa: E731
    order = Order(length, **{"batch_size": 3, "shuffle": True, "seed": 1, **options})
    return Source(lambda index: (tf.cast(index, tf.float32)[None], index), order).transformed(noisy)


def read(data):
    return [(images.numpy(), labels.numpy().tolist()) for images, labels in data]


def test_each_epoch_has_its_own_order_with_every_sample_once():
    data = source().dataset()
    first, second = ([label for _, labels in read(data) for label in labels] for _ in range(2))
    assert first != second
    assert sorted(first) == sorted(second) == list(range(10))
    assert first == source().order.indices(0).tolist()


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_an_iterator_begins_at_a_batch_of_an_epoch_as_if_it_had_read_what_came_before(batch):
    whole = source().dataset()
    epochs = [read(whole) for _ in range(3)]
    again = source().dataset()
    again.source.order.start(1, batch)
    rest, following = read(again), read(again)
    for (images, labels), (images_then, labels_then) in zip(
        rest + following, epochs[1][batch:] + epochs[2], strict=True
    ):
        np.testing.assert_array_equal(images, images_then)
        assert labels == labels_then


@pytest.mark.parametrize("most", [1, 30, 2**20], ids=["one by one", "two at once", "all at once"])
def test_samples_read_in_chunks_are_those_read_one_by_one(monkeypatch, most):
    monkeypatch.setattr("kvision.data.source.CHUNK_BYTES", most)
    single = source(101)
    calls = []

    def of_many(indices):
        calls.append(1)
        return tf.cast(indices, tf.float32)[:, None], indices

    def example(index):
        return single.example(index)

    example.of_many = of_many
    chunks = dataclasses.replace(single, example=example, order=source(101).order)
    for _ in range(2):  # epochs
        for (ours, labels), (want, expected) in zip(read(chunks.dataset()), read(single.dataset()), strict=True):
            assert labels == expected
            np.testing.assert_array_equal(ours, want)
    assert calls
    chunks.order.start(5, 7)
    assert read(chunks.dataset())[0][1] == source(101).order.indices(5)[21:24].tolist()


def test_nothing_tunes_a_data_set_so_that_an_epoch_ends_with_its_last_batch():
    options = source().dataset().options()
    assert options.autotune.enabled is False
    assert options.threading.private_threadpool_size >= 4


@pytest.mark.parametrize("drop, batch_size, expected", [(False, 3, 4), (True, 3, 3), (False, None, 10)])
def test_the_length_is_known(drop, batch_size, expected):
    made = source(batch_size=batch_size)
    data = Source(made.example, made.order, drop).dataset()
    assert len(data) == expected == len(list(data))


def test_shards_are_disjoint_and_cover_an_epoch():
    shards = [source(shard=(index, 3)).order.indices(4) for index in range(3)]
    assert sorted(np.concatenate(shards)) == list(range(10))


def test_transforms_differ_by_sample_and_epoch_and_agree_by_seed():
    noise = [{float(image) % 1 for images, _ in read(source().dataset()) for image in images[:, 0]} for _ in range(2)]
    assert noise[0] == noise[1]
    assert len(noise[0]) == 10
    data = source().dataset()
    one, two = ({round(float(image) % 1, 4) for images, _ in read(data) for image in images[:, 0]} for _ in range(2))
    assert not one & two


def test_what_is_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"shard is \(index, count\)"):
        source(shard=(3, 3))
    with pytest.raises(ValueError, match="expected an epoch from 0 and a batch from 0 to 3, got epoch 1 and batch 4"):
        source().order.start(1, 4)
    for size in (0, 2.5, "8"):
        with pytest.raises(ValueError, match="batch_size must be a whole number, at least 1, or None"):
            source(batch_size=size)


def fragile(bad, batch_size=3, drop_remainder=False, **options):
    """Samples 0…9 of which some cannot be made, and a list of those that are told."""
    told = []

    def make(index):
        if index in bad:
            raise ValueError("no such sample")
        return np.float32(index)

    def example(index):
        return tf.ensure_shape(tf.numpy_function(make, [index], tf.float32), ()), {"index": index}

    order = Order(10, batch_size=batch_size, **options)
    return Source(example, order, drop_remainder, lost=lambda indices: told.extend(indices)), told


@pytest.mark.parametrize("batch_size", [3, 1, 5, None])
@pytest.mark.parametrize(
    "bad, shuffle",
    [((), False), ((0,), True), ((9,), False), ((8, 9), False), ((0, 4, 5, 6, 9), False), (range(10), True)],
)
def test_samples_that_cannot_be_made_are_told_and_the_others_come_in_order(bad, shuffle, batch_size):
    made, told = fragile(bad, batch_size, shuffle=shuffle)
    batches = [targets["index"].numpy().reshape(-1).tolist() for _, targets in made.dataset()]
    order = made.order.indices(0).tolist()
    assert [index for batch in batches for index in batch] == [index for index in order if index not in bad]
    assert {len(batch) for batch in batches[:-1]} <= {batch_size or 1}
    assert told == [index for index in order if index in bad]


@pytest.mark.parametrize(("bad", "batches"), [((), 3), ((0, 4), 2), ((1, 2, 3, 4, 5, 6, 7, 8), 0)])
def test_what_cannot_be_made_leaves_whole_batches_where_the_remainder_is_dropped(bad, batches):
    made, told = fragile(bad, drop_remainder=True)
    data = made.dataset()
    assert data.element_spec[0].shape == (3,)
    assert [len(images) for images, _ in data] == [3] * batches
    assert told == list(bad)


def test_a_sample_that_is_late_is_not_lost_where_the_order_is_free():
    def slow_first(index):
        time.sleep(0.2 * (index == 0))
        return np.float32(index)

    late = lambda index: tf.ensure_shape(tf.numpy_function(slow_first, [index], tf.float32), ())  # noqa: E731
    told = []
    free = tf.data.Options()
    free.deterministic = False
    data = Source(late, Order(10), lost=told.extend).dataset().with_options(free)
    assert [int(sample) for sample in data] == list(range(10))
    assert told == []


def test_whoever_is_told_may_end_the_epoch():
    def end(indices):
        raise ValueError(f"lost {indices.tolist()}")

    made, _ = fragile((9,))
    data = Source(made.example, made.order, lost=end).dataset()
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"ValueError: lost \[9\]"):
        list(data)
