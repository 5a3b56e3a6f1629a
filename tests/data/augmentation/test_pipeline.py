"""Transforms over data sets: with a source, and over any batches or samples."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from kvision import data
from kvision.data.source import Order, Source
from tests.data.augmentation.samples import detection, image

CROP = data.Crop((8, 8))


def source_data(**options):
    order = Order(6, **{"batch_size": 4, "shuffle": True, "seed": 1, **options})
    pixels = tf.random.stateless_uniform([6, 12, 12, 3], (0, 0), 0, 255)
    return Source(lambda index: (pixels[index], index), order, facts={"class_names": ("a",)}).dataset()


def read(dataset):
    """`{label: image}` of an epoch."""
    return {int(k): pixels for images, labels in dataset for pixels, k in zip(images.numpy(), labels, strict=True)}


@pytest.mark.parametrize("batch_size", [None, 4])
def test_of_a_source_a_sample_depends_on_seed_and_epoch_alone(batch_size):
    def epochs(seed=0, **options):
        made = data.augment(source_data(batch_size=batch_size, **options), [CROP], seed=seed)
        assert len(made) == (2 if batch_size else 6)
        assert made.class_names == ("a",)
        made = made if batch_size else made.batch(1)
        return [read(made) for _ in range(2)]

    first, again, other = epochs(), epochs(), epochs(seed=1)
    for one, two in zip(first, again, strict=True):
        assert all((one[k] == two[k]).all() for k in range(6))
    assert any((first[0][k] != first[1][k]).any() for k in range(6))
    assert any((first[0][k] != other[0][k]).any() for k in range(6))


def test_a_run_that_goes_on_reads_what_it_would_have_read():
    made = data.augment(source_data(), [CROP])
    epochs = [read(made) for _ in range(2)]
    again = data.augment(source_data(), [CROP])
    again.source.order.start(1)
    assert all((epochs[1][k] == pixels).all() for k, pixels in read(again).items())


@pytest.mark.parametrize("batch_size", [None, 4])
def test_over_any_data_set_each_epoch_differs_and_seeds_agree(batch_size):
    pixels = tf.random.stateless_uniform([6, 12, 12, 3], (0, 0), 0, 255)
    plain = tf.data.Dataset.from_tensor_slices((pixels, tf.range(6)))
    plain = plain.batch(batch_size) if batch_size else plain

    def epochs(seed):
        made = data.augment(plain, [CROP, data.HorizontalFlip()], seed=seed)
        assert len(made) == (2 if batch_size else 6)
        assert made.element_spec[0].shape[-3:] == (8, 8, 3)
        made = made if batch_size else made.batch(1)
        return [read(made) for _ in range(2)]

    first, again, other = epochs(0), epochs(0), epochs(1)
    assert all((one[k] == two[k]).all() for one, two in zip(first, again, strict=True) for k in range(6))
    assert any((first[0][k] != first[1][k]).any() for k in range(6))
    assert any((first[0][k] != other[0][k]).any() for k in range(6))
    positions = {float(crop.sum()) for crop in first[0].values()}
    assert len(positions) == 6


def test_batches_of_detection_keep_their_static_shapes():
    pixels, targets = detection()
    plain = tf.data.Dataset.from_tensors((pixels, targets)).repeat(3).batch(3, drop_remainder=True)
    made = data.augment(plain, [data.RandomResizedCrop((32, 32))])
    images, spec = made.element_spec
    assert images.shape == (3, 32, 32, 3)
    assert {name: tuple(value.shape[1:]) for name, value in spec.items()} == {
        "boxes": (6, 4),
        "labels": (6,),
        "masks": (6, 32, 32),
        "box_masks": (6, 28, 28),
        "keypoints": (6, 2, 3),
        "crowd": (6,),
        "area": (6,),
        "image_size": (2,),
        "scale": (),
        "image_id": (),
    }
    (images, targets) = next(iter(made))
    assert not np.array_equal(images[0], images[1])


def test_what_is_no_transform_or_no_data_is_refused():
    with pytest.raises(ValueError, match="expected transforms such as HorizontalFlip"):
        data.augment(source_data(), [data.HorizontalFlip])
    with pytest.raises(ValueError, match="expected transforms such as HorizontalFlip"):
        data.augment(source_data(), [lambda image: image])
    with pytest.raises(ValueError, match=r"the layer 'flip' \(RandomFlip\) takes images"):
        data.augment(source_data(), [keras.layers.RandomFlip(name="flip")])
    with pytest.raises(ValueError, match="expected a tf.data.Dataset"):
        data.augment([image()], [CROP])


GREY = tf.zeros([10, 12, 12])


@pytest.mark.parametrize(
    "grey",
    [
        tf.data.Dataset.from_tensor_slices((GREY, tf.range(10))).batch(5),
        tf.data.Dataset.from_tensor_slices((GREY, tf.range(10))).batch(5, drop_remainder=True),
        tf.data.Dataset.from_tensor_slices((GREY, tf.one_hot(tf.range(10), 10))).batch(5),
        tf.data.Dataset.from_tensor_slices(GREY).batch(5),
        tf.data.Dataset.from_tensor_slices((GREY, tf.range(10))),
        data.arrays(GREY, tf.range(10)),
    ],
)
def test_grey_images_without_channels_are_refused(grey):
    with pytest.raises(ValueError, match="augment: .*last axis of one channel"):
        data.augment(grey, [data.HorizontalFlip()])


def test_an_image_as_long_as_its_soft_label_is_no_batch():
    sized = tf.data.Dataset.from_tensors((tf.zeros([10, 12, 3]), tf.one_hot(1, 10)))
    assert data.augment(sized, [data.HorizontalFlip()]).element_spec[0].shape == (10, 12, 3)


def plain_data(pixels, batch_size):
    made = tf.data.Dataset.from_tensor_slices((pixels, tf.range(6)))
    return made.batch(batch_size) if batch_size else made


WAYS = {
    "samples": lambda pixels: plain_data(pixels, None),
    "batches": lambda pixels: plain_data(pixels, 4),
    "source": lambda pixels: data.arrays(pixels, np.arange(6), batch_size=4),
    "shard": lambda pixels: Source(
        lambda index: (tf.constant(pixels)[index], index), Order(6, batch_size=2, shard=(1, 2))
    ).dataset(),
}


@pytest.mark.parametrize(
    "way, transforms",
    [(way, [data.HorizontalFlip(), data.RandomErasing()]) for way in WAYS]
    + [("samples", [data.RandAugment(num_operations=1)]), ("samples", [data.Scale(fill=114)])],
)
def test_images_in_unit_range_are_told_once(way, transforms, recwarn):
    pixels = np.random.default_rng(0).uniform(0, 1, (6, 8, 8, 3)).astype("float32")
    warnings.simplefilter("default")
    for _ in range(2):
        list(data.augment(WAYS[way](pixels), transforms))
    told = [str(warning.message) for warning in recwarn]
    assert 1 <= len(told) <= 2
    assert "the images lie within 0" in told[0]
    assert "multiply them by 255 before augment" in told[0]


@pytest.mark.parametrize("way", ["samples", "source"])
def test_images_of_bytes_or_unchanged_colours_are_no_matter(way):
    pixels = np.random.default_rng(0).uniform(0, 1, (6, 8, 8, 3)).astype("float32")
    list(data.augment(WAYS[way](pixels), [data.HorizontalFlip()]))
    list(data.augment(WAYS[way](pixels * 255), [data.RandomErasing()]))
    list(data.augment(WAYS[way](np.ones((6, 8, 8, 3), "uint8")), [data.RandomErasing()]))
    list(data.augment(WAYS[way](pixels), [lambda sample, seed: (sample[0] * 255, sample[1]), data.RandomErasing()]))


def colours(**options):
    """Six images of one colour each, 10, 20, …, whose label is their number; MixUp draws among all of them."""
    order = Order(6, **{"batch_size": 2, "shuffle": True, "seed": 1, **options})
    pixels = 10.0 * tf.range(1, 7, dtype=tf.float32)[:, None, None, None] * tf.ones([1, 4, 4, 3])
    return Source(lambda index: (pixels[index], index), order).dataset()


def test_partners_come_from_the_whole_data_set_and_labels_follow():
    made = data.augment(colours(), [data.HorizontalFlip(), data.CutMix(classes=6)])
    partners, epochs = set(), []
    for _ in range(3):
        batches = list(made)
        epochs.append(batches)
        for images, labels in batches:
            for pixels, label in zip(images.numpy(), labels.numpy(), strict=True):
                fractions = [(pixels[..., 0] == 10.0 * (k + 1)).mean() for k in range(6)]
                np.testing.assert_allclose(label, fractions, atol=1e-6)
                partners.add(tuple(np.flatnonzero(fractions)))
    assert len({pair for pair in partners if len(pair) == 2}) >= 5
    assert any(not np.array_equal(one[0], two[0]) for one, two in zip(epochs[0], epochs[1], strict=True))
    again = data.augment(colours(), [data.HorizontalFlip(), data.CutMix(classes=6)])
    for (images, labels), (images_again, labels_again) in zip(epochs[0], again, strict=True):
        np.testing.assert_array_equal(images, images_again)
        np.testing.assert_array_equal(labels, labels_again)


def test_in_a_batch_partners_are_other_samples():
    pixels = 10.0 * tf.range(1, 7, dtype=tf.float32)[:, None, None, None] * tf.ones([1, 4, 4, 3])
    plain = tf.data.Dataset.from_tensor_slices((pixels, tf.range(6))).batch(6)
    made = data.augment(plain, [data.MixUp(alpha=5.0, classes=6)])
    for _ in range(3):
        images, labels = next(iter(made))
        assert (np.count_nonzero(labels, axis=1) == 2).all()
        np.testing.assert_allclose(images[:, 0, 0, 0], labels.numpy() @ (10.0 * np.arange(1, 7)), rtol=1e-5)


def test_mixed_targets_get_room_for_the_objects_of_all():
    plain = tf.data.Dataset.from_tensors(detection(num_rows=3)).repeat(4).batch(4)
    made = data.augment(plain, [data.MixUp(rate=0.5, max_boxes=6)])
    labels = next(iter(made))[1]["labels"].numpy()
    assert labels.shape == (4, 6)
    assert set((labels >= 0).sum(axis=1).tolist()) <= {3, 6}
    assert (labels >= 0).sum() > 12
