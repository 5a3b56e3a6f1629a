"""The Laplacian pyramid and local contrast normalization, against scipy."""

import keras
import numpy as np
import pytest
import scipy.ndimage

from kvision.layers import BilinearSampling, LaplacianPyramid, LocalContrastNormalization
from kvision.layers.laplacian_pyramid import expand
from tests.support import assert_close

SIZES = [(8, 12), (9, 13), (7, 3)]


def images_of(size):
    return np.random.default_rng(0).normal(size=(2, *size, 3)).astype("float32")


def blurred(images, gain=1.0):
    """The kernel of Burt & Adelson over rows and columns, mirrored about the outer pixels."""
    for axis in (1, 2):
        images = scipy.ndimage.correlate1d(images, gain * np.array([1, 4, 6, 4, 1]) / 16, axis, mode="mirror")
    return images


def pyramid_twin(images, levels):
    """Blur and leave every other pixel out; what is lost against zeros put in and blurred."""
    pyramid = []
    for _ in range(levels - 1):
        smaller = blurred(images)[:, ::2, ::2]
        enlarged = np.zeros_like(images)
        enlarged[:, ::2, ::2] = smaller
        pyramid.append(images - blurred(enlarged, gain=2.0))
        images = smaller
    return [*pyramid, images]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_scipy_has_the_same_levels(size):
    images = images_of(size)
    layer = LaplacianPyramid(3)
    levels = layer(images)
    for level, want in zip(levels, pyramid_twin(images, 3), strict=True):
        assert_close(level, want)
    assert [tuple(level.shape) for level in levels] == layer.compute_output_shape(images.shape)


@pytest.mark.parametrize("size", [*SIZES, (2, 1)], ids=str)
def test_the_levels_add_up_to_the_image(size):
    *details, image = LaplacianPyramid(3)(images_of(size))
    for detail in reversed(details):
        image = expand(image, detail.shape[1:3]) + detail
    assert_close(image, images_of(size))


@pytest.mark.parametrize("size", [(8, 12), (5, 3)], ids=str)
def test_every_window_has_mean_zero_and_deviation_one(size):
    images = images_of(size)
    want = np.zeros_like(images)
    for row, column in np.ndindex(size):
        window = images[:, max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3]
        want[:, row, column] = (images[:, row, column] - window.mean((1, 2))) / window.std((1, 2))
    assert_close(LocalContrastNormalization(5)(images), want, tolerance=(1e-4, 1e-4))  # squares minus squares


def test_flat_areas_stay_flat():
    images = images_of((8, 12))
    faint = LocalContrastNormalization(25, epsilon=0.5)(1e-3 * images)
    assert_close(faint, 2e-3 * (images - images.mean((1, 2), keepdims=True)))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_16_bits_do_not_reach_them(policy):
    keras.mixed_precision.set_dtype_policy(policy)
    for level in LaplacianPyramid(2)(LocalContrastNormalization(3)(images_of((8, 12)))):
        assert keras.backend.standardize_dtype(level.dtype) == "float32"
    sampled = BilinearSampling((4, 4), 2.0)(images_of((8, 12)))
    assert keras.backend.standardize_dtype(sampled.dtype) == policy.removeprefix("mixed_")


def test_save_and_load(tmp_path):
    images = keras.Input((8, 12, 3))
    first, last = LaplacianPyramid(2)(LocalContrastNormalization(5, epsilon=0.1)(images))
    model = keras.Model(images, [first, BilinearSampling((8, 12), 0.5, first=0, width=2)(last)])
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    for got, want in zip(copy(images_of((8, 12))), model(images_of((8, 12))), strict=True):
        assert_close(got, want)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LaplacianPyramid(0), "at least 1 level"),
        (
            lambda: BilinearSampling((4, 4), width=2),
            "without a step the points fill the map: got first=None and width=2",
        ),
        (lambda: LocalContrastNormalization(4), "odd number of rows"),
        (lambda: LocalContrastNormalization(5, epsilon=0), "epsilon is above 0"),
    ],
)
def test_errors_say_what_is_expected(make, message):
    with pytest.raises(ValueError, match=message):
        make()
