"""Transforms over data sets: with a source, and over any batches or samples."""

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
    made = data.augment(plain, [data.Rotation(10), data.HorizontalFlip(), data.RandomResizedCrop((32, 32))])
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
    with pytest.raises(ValueError, match="expected a tf.data.Dataset"):
        data.augment([image()], [CROP])
