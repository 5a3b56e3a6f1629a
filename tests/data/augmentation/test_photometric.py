"""Colours change as said, and nothing else does."""

import numpy as np
import pytest
import tensorflow as tf

from kvision import data
from kvision.data.augmentation.photometric import IMAGENET_EIGENVALUES, IMAGENET_EIGENVECTORS, jitter
from tests.data.augmentation.samples import compiled, detection, image, name_of

PHOTOMETRIC = [data.ColorJitter(hue=0.1), data.PhotometricDistortion(), data.ColorPCA()]
STILL = [
    data.ColorJitter(brightness=0, contrast=0, saturation=0),
    data.PhotometricDistortion(brightness=(1, 1), contrast=(1, 1), saturation=(1, 1), hue=(0, 0), rate=0.0),
    data.ColorPCA(sigma=0.0),
]
LUMA = np.array([0.299, 0.587, 0.114])


@pytest.mark.parametrize("transform", PHOTOMETRIC, ids=name_of)
def test_targets_and_padding_stay(transform):
    run, before = compiled(transform), detection(padded=True)
    first, second = (run(before, (0, seed)) for seed in (1, 2))
    for pixels, targets in (first, second):
        tf.nest.map_structure(np.testing.assert_array_equal, targets, before[1])
        height, width = targets["image_size"]
        assert not pixels[height:].any()
        assert not pixels[:, width:].any()
        assert pixels.min() >= 0
        assert pixels.max() <= 255
    assert np.abs(first[0] - second[0]).max() > 1
    np.testing.assert_array_equal(run(before, (0, 1))[0], first[0])


@pytest.mark.parametrize("transform", STILL, ids=name_of)
def test_without_strength_nothing_changes(transform):
    np.testing.assert_allclose(transform(image(), (0, 1)), image(), atol=1e-2)


def changed(brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0, pixels=None):
    pixels = image() if pixels is None else pixels
    return jitter(pixels, {}, *map(tf.constant, (brightness, contrast, saturation, hue))).numpy()


def test_each_factor_does_what_it_says():
    pixels = image().numpy()
    grey = (pixels @ LUMA)[..., None]
    np.testing.assert_allclose(changed(brightness=0.6), 0.6 * pixels, atol=1e-2)
    np.testing.assert_allclose(changed(saturation=0.0), np.broadcast_to(grey, pixels.shape), atol=1e-2)
    np.testing.assert_allclose(changed(saturation=1.5), grey + 1.5 * (pixels - grey), atol=1e-2)
    np.testing.assert_allclose(changed(contrast=0.3), grey.mean() + 0.3 * (pixels - grey.mean()), atol=2e-2)


def test_hue_keeps_greys_and_lightness_and_turns_in_a_circle():
    pixels = image().numpy()
    turned = changed(hue=0.2)
    np.testing.assert_allclose(turned @ LUMA, pixels @ LUMA, atol=2e-2)
    assert np.abs(turned - pixels).max() > 10
    np.testing.assert_allclose(changed(hue=-0.2, pixels=tf.constant(turned)), pixels, atol=2e-2)
    np.testing.assert_allclose(changed(hue=0.2, pixels=tf.fill([2, 2, 3], 90.0)), 90, atol=1e-2)


def test_grey_images_keep_one_channel():
    pixels = image()[..., :1]
    np.testing.assert_allclose(changed(contrast=0.5, pixels=pixels), 0.5 * (pixels + np.mean(pixels)), atol=1e-2)
    assert data.PhotometricDistortion()(pixels, (0, 1)).shape == pixels.shape
    with pytest.raises(ValueError, match="must be RGB, got 1 channels"):
        data.ColorPCA()(pixels, (0, 1))


def test_lighting_is_normal_along_the_components():
    """Of colours in 0…1, the shift along a component is its eigenvalue times a number of N(0, 0.1)."""
    run = tf.function(lambda seed: data.ColorPCA()(tf.fill([1, 1, 3], 127.5), seed) - 127.5, autograph=False)
    shifts = np.array([run(tf.constant([3, seed]))[0, 0] for seed in range(800)]) / 255
    numbers = shifts @ np.array(IMAGENET_EIGENVECTORS) / IMAGENET_EIGENVALUES
    np.testing.assert_allclose(numbers.mean(0), 0, atol=4 * 0.1 / np.sqrt(800))
    np.testing.assert_allclose(numbers.std(0), 0.1, rtol=0.1)


@pytest.mark.parametrize("batched", [False, True])
def test_components_are_fitted_to_the_images_without_their_padding(batched):
    samples = [detection(padded=padded, seed=seed) for seed, padded in enumerate((False, True))]
    plain = tf.data.Dataset.from_tensor_slices(tf.nest.map_structure(lambda *tensors: tf.stack(tensors), *samples))
    fitted = data.ColorPCA.fit(plain.batch(2) if batched else plain, sigma=0.2)
    pixels = [
        np.asarray(pixels)[: size[0], : size[1]].reshape(-1, 3)
        for pixels, size in ((sample[0], sample[1]["image_size"].numpy()) for sample in samples)
    ]
    covariance = np.cov(np.concatenate(pixels).T / 255, bias=True)
    vectors = np.array(fitted.eigenvectors)
    np.testing.assert_allclose(vectors @ np.diag(fitted.eigenvalues) @ vectors.T, covariance, rtol=1e-4, atol=1e-7)
    assert list(fitted.eigenvalues) == sorted(fitted.eigenvalues, reverse=True)
    assert fitted.sigma == 0.2
