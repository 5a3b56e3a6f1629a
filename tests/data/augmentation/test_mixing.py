"""Samples made of several: their labels tell of the pixels that are seen, and their objects of the objects."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from kvision import data
from kvision.contract import paste_masks
from kvision.data.augmentation.mixing import beta
from kvision.data.geometry import boxes_of_masks
from tests.data.augmentation.samples import SIZE, detection, image, name_of

OTHER = ([[4.0, 20, 24, 60], [50, 40, 78, 60], [30, 4, 60, 30]], [5, 4, 3])
MOSAIC = pytest.param(data.Mosaic(), marks=pytest.mark.slow)
MIXING = [data.MixUp(alpha=1.5), data.CutMix(), MOSAIC, data.CopyPaste(fraction=1.0)]
CLASSIFY = [data.MixUp(alpha=1.0, classes=3), data.CutMix(classes=3), data.Mosaic(classes=3)]
each = pytest.mark.parametrize("transform", MIXING, ids=name_of)


@functools.cache
def compiled(transform):
    """A graph of (sample, partner, seed); Mosaic gets the partner three times."""
    return tf.function(
        lambda sample, partner, seed: transform(sample, seed, lambda: [partner] * transform.num_partners),
        autograph=False,
    )


@functools.cache
def mixed(transform):
    made = []
    for seed in range(6):
        one, other = detection(num_rows=8), detection(*OTHER, seed=1, num_rows=8)
        sample = compiled(transform)(one, other, tf.constant([1, seed], tf.int64))
        made.append(tf.nest.map_structure(lambda tensor: tensor.numpy(), sample))
    return made


@each
def test_objects_keep_the_contract_and_their_masks(transform):
    for pixels, targets in mixed(transform):
        count = (targets["labels"] >= 0).sum()
        rows = {name: targets[name][:count] for name in ("labels", "boxes", "masks", "box_masks", "keypoints")}
        assert (targets["labels"][count:] == -1).all()
        assert not targets["masks"][count:].any()
        assert (rows["boxes"] >= 0).all()
        assert (rows["boxes"] <= [80, 64, 80, 64]).all()
        assert np.isfinite(pixels).all()
        np.testing.assert_allclose(boxes_of_masks(rows["masks"]), rows["boxes"], atol=1.01)
        pasted = paste_masks(rows["box_masks"], rows["boxes"], SIZE)
        differing = (pasted != rows["masks"]).sum(axis=(1, 2)) / rows["masks"].sum(axis=(1, 2))
        assert (differing < 0.15).all()
        for box, keypoints in zip(rows["boxes"], rows["keypoints"], strict=True):
            seen = keypoints[keypoints[:, 2] > 0, :2]
            assert (seen >= box[:2] - 1.01).all()
            assert (seen <= box[2:] + 1.01).all()


@each
def test_objects_of_both_are_there(transform):
    labels = {label for _, targets in mixed(transform) for label in targets["labels"].tolist()}
    crowds = {4} if isinstance(transform, data.CopyPaste) else set()  # a crowd is not pasted
    assert labels - {-1} == {0, 1, 2, 3, 4, 5} - crowds
    per_sample = [set(targets["labels"].tolist()) for _, targets in mixed(transform)]
    assert any(present & {0, 1, 2} and present & {3, 4, 5} for present in per_sample)


STILL = [data.MixUp(rate=0.0), data.CutMix(rate=0.0), data.Mosaic(rate=0.0), data.CopyPaste(fraction=0.0)]


@pytest.mark.parametrize("transform", STILL, ids=name_of)
def test_without_strength_nothing_changes(transform):
    own, other = detection(padded=True, num_rows=8), detection(*OTHER, padded=True, seed=1, num_rows=8)
    made = compiled(transform)(own, other, tf.constant([1, 2], tf.int64))
    tf.nest.map_structure(np.testing.assert_array_equal, made, own)


@pytest.mark.parametrize("transform", [data.CutMix(), data.CopyPaste(fraction=1.0)], ids=name_of)
def test_pixels_are_of_the_object_that_says_so(transform):
    """A pixel in a mask of the second image shows the second image, and the others' masks are off there."""
    mine, others = image().numpy(), image(seed=1).numpy()
    for pixels, targets in mixed(transform):
        second = (targets["labels"] >= 3)[:, None, None] & (targets["masks"] > 0)
        first = ((targets["labels"] >= 0) & (targets["labels"] < 3))[:, None, None] & (targets["masks"] > 0)
        np.testing.assert_allclose(pixels[second.any(0)], others[second.any(0)], atol=1e-3)
        np.testing.assert_allclose(pixels[first.any(0)], mine[first.any(0)], atol=1e-3)


@pytest.mark.parametrize("transform", CLASSIFY, ids=name_of)
def test_soft_labels_are_the_fractions_of_the_pixels(transform):
    black, white = (tf.zeros([24, 32, 3]), tf.constant(0)), (tf.ones([24, 32, 3]), tf.constant(2))
    for seed in range(5):
        pixels, label = compiled(transform)(black, white, tf.constant([1, seed], tf.int64))
        assert label.shape == (3,)
        np.testing.assert_allclose(label, [1 - np.mean(pixels), 0, np.mean(pixels)], atol=1e-5)


def test_the_weight_is_drawn_of_the_beta_distribution():
    """Its mean is a half, its variance 1 / (4 (2 alpha + 1))."""
    for alpha in (0.2, 1.5):
        seeds = tf.stack([tf.zeros(2000, tf.int32), tf.range(2000)], axis=1)
        draw = functools.partial(beta, alpha=alpha)
        drawn = tf.function(functools.partial(tf.map_fn, draw, seeds, tf.float32), autograph=False)().numpy()
        assert drawn.mean() == pytest.approx(0.5, abs=0.04)
        assert drawn.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


@pytest.mark.parametrize("transform", [data.CutMix(), data.Mosaic()], ids=name_of)
def test_label_maps_are_those_of_the_pixels(transform):
    parts = [(tf.fill([24, 32, 3], value), tf.fill([24, 32], label)) for value, label in ((10.0, 1), (20.0, 2))]
    pixels, labels = transform(parts[0], (1, 2), lambda: [parts[1]] * transform.num_partners)
    np.testing.assert_array_equal(labels, np.round(pixels[..., 0] / 10))
    assert set(np.unique(labels)) == {1, 2}


@pytest.mark.parametrize(
    "transform, sample, message",
    [
        (data.MixUp(), (tf.zeros([4, 4, 3]), tf.constant(1)), "pass classes="),
        (data.MixUp(), (tf.zeros([4, 4, 3]), tf.zeros([4, 4], tf.int32)), "MixUp cannot mix label maps"),
        (data.CopyPaste(), (tf.zeros([4, 4, 3]), tf.zeros([4, 4], tf.int32)), "CopyPaste needs masks"),
    ],
)
def test_what_cannot_be_mixed_is_refused(transform, sample, message):
    with pytest.raises(ValueError, match=message):
        transform(sample, (0, 0), lambda: [sample])


def test_partners_have_to_come_from_somewhere():
    plain = tf.data.Dataset.from_tensors((tf.zeros([4, 4, 3]), tf.constant(1)))
    with pytest.raises(ValueError, match="mix samples need batches here"):
        data.augment(plain, [data.MixUp(classes=2)])
    with pytest.raises(ValueError, match="pass `partners`"):
        data.MixUp(classes=2)((tf.zeros([4, 4, 3]), tf.constant(1)), (0, 0))


@pytest.mark.parametrize("label", [2, -1])
@pytest.mark.parametrize("kind", [data.MixUp, data.CutMix, data.Mosaic])
def test_labels_beyond_the_classes_are_errors(kind, label):
    transform, right = kind(classes=2), (tf.zeros([4, 4, 3]), tf.constant(1))
    wrong = (tf.zeros([4, 4, 3]), tf.constant(label))
    for own, other in ((wrong, right), (right, wrong)):
        with pytest.raises(tf.errors.InvalidArgumentError, match="labels must lie in 0 to 1, got"):
            transform(own, (0, 0), lambda other=other: [other] * transform.num_partners)


@pytest.mark.parametrize("source", [True, False])
def test_labels_beyond_the_classes_end_an_epoch(source):
    pixels, labels = np.zeros((4, 4, 4, 3), "float32"), np.array([0, 1, 2, 1])
    made = data.arrays(pixels, labels) if source else tf.data.Dataset.from_tensor_slices((pixels, labels)).batch(4)
    with pytest.raises(tf.errors.InvalidArgumentError, match="MixUp.classes=2.: labels must lie in 0 to 1, got"):
        list(data.augment(made, [data.MixUp(classes=2)]))
    made.class_names = ("a", "b", "c")
    with pytest.raises(ValueError, match="pass classes=3"):
        data.augment(made, [data.MixUp(classes=2)])
