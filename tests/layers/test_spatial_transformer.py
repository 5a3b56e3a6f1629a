"""The spatial transformer: identity, closed forms, gradients by differences, torch's grid and sampler, training."""

import keras
import numpy as np
import pytest

from kvision.layers import SpatialTransformer
from kvision.layers.spatial_transformer import affine_grid, sample_bilinear
from tests.support import assert_close

RNG = np.random.default_rng(0)
MAPS = RNG.normal(size=(2, 6, 5, 3)).astype("float32")
THETA = np.array([[[0.8, 0.3, 0.1], [-0.2, 1.1, -0.3]], [[1.3, 0.0, 0.4], [0.5, 0.6, 0.0]]], "float32")


def localization(size=(6, 5, 3)):
    parts = [keras.Input(size), keras.layers.Conv2D(4, 3, activation="relu"), keras.layers.Flatten()]
    return keras.Sequential(parts)


def twin(images, grid):
    """Bilinear interpolation, pixel by pixel, of images that are zero outside."""
    h, w, c = images.shape[1:]
    out = np.zeros((*grid.shape[:3], c))
    for index in np.ndindex(*grid.shape[:3]):
        x, y = ((grid[index][0] + 1) * w - 1) / 2, ((grid[index][1] + 1) * h - 1) / 2
        for row in range(h):
            for column in range(w):
                weight = max(0, 1 - abs(x - column)) * max(0, 1 - abs(y - row))
                out[index] += weight * images[index[0], row, column]
    return out


def test_untrained_it_gives_back_its_input():
    assert_close(SpatialTransformer(localization())(MAPS), MAPS)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_positions_are_exact_in_16_bit(policy):
    """Columns of 300, whose neighbours 16 bits cannot distinguish."""
    maps = np.tile(np.arange(300) % 7, (1, 4, 1))[..., None].astype("float32")
    got = SpatialTransformer(keras.layers.Flatten(), dtype=policy)(maps)
    dtype = policy.removeprefix("mixed_")
    assert keras.backend.standardize_dtype(got.dtype) == dtype
    assert_close(keras.ops.cast(got, "float32"), maps, dtype=dtype)


def test_sampling_equals_the_twin():
    grid = RNG.uniform(-1.5, 1.5, size=(2, 4, 7, 2)).astype("float32")
    assert_close(sample_bilinear(MAPS, grid), twin(MAPS.astype("float64"), grid.astype("float64")))


@pytest.mark.parametrize(
    ("theta", "want"),
    [
        ([[-1, 0, 0], [0, 1, 0]], MAPS[:, :, ::-1]),  # mirrored
        ([[1, 0, 0], [0, -1, 0]], MAPS[:, ::-1]),  # upside down
        ([[1, 0, 2 / 5], [0, 1, 0]], np.pad(MAPS[:, :, 1:], ((0, 0), (0, 0), (0, 1), (0, 0)))),  # one pixel to the left
    ],
    ids=["mirror", "flip", "shift"],
)
def test_closed_forms(theta, want):
    grid = affine_grid(np.array([theta, theta], "float32"), (6, 5))
    assert_close(sample_bilinear(MAPS, grid), want)


def test_far_positions_are_zero_and_finite():
    grid = np.array([-1e30, 1e30], "float32").reshape(1, 1, 1, 2)
    assert_close(sample_bilinear(MAPS[:1], grid), np.zeros((1, 1, 1, 3)))


def gradients(function, *arguments):
    if keras.backend.backend() == "jax":
        import jax

        return jax.grad(function, argnums=tuple(range(len(arguments))))(*arguments)
    import tensorflow as tf

    arguments = [tf.constant(argument) for argument in arguments]
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        value = function(*arguments)
    return tape.gradient(value, arguments)


def test_gradients_to_image_and_theta_equal_differences():
    upstream = RNG.normal(size=(2, 4, 4, 3)).astype("float32")

    def slow(images, theta):
        y, x = ((2 * np.arange(4) + 1) / 4 - 1 for _ in range(2))
        ones = np.stack([*np.meshgrid(x, y), np.ones((4, 4))])
        return (twin(images, np.einsum("bij,jhw->bhwi", theta, ones)) * upstream).sum()

    got = gradients(
        lambda images, theta: keras.ops.sum(sample_bilinear(images, affine_grid(theta, (4, 4))) * upstream), MAPS, THETA
    )
    point = [MAPS.astype("float64"), THETA.astype("float64")]
    for which, gradient in enumerate(got):
        chosen = list(np.ndindex(*point[which].shape))
        for index in chosen if which else chosen[::7]:
            values = []
            for sign in (1, -1):
                changed = [array.copy() for array in point]
                changed[which][index] += sign * 1e-6
                values.append(slow(*changed))
            got_here = keras.ops.convert_to_numpy(gradient)[index]
            assert_close(got_here, (values[0] - values[1]) / 2e-6, tolerance=(1e-3, 1e-3))


def test_gradient_is_whole_where_samples_hit_pixels():
    """At the identity every position is a pixel: the slope there is the one to the right, not half of it."""
    ramp = np.tile(np.arange(8, dtype="float32"), (8, 1))[None, :, :, None]
    identity = np.array([[[1, 0, 0], [0, 1, 0]]], "float32")

    def mean(theta):
        return keras.ops.mean(sample_bilinear(keras.ops.convert_to_tensor(ramp), affine_grid(theta, (8, 8)))[:, :, :-1])

    (gradient,) = gradients(mean, identity)
    assert_close(keras.ops.convert_to_numpy(gradient)[0, 0, 2], 4.0)  # one pixel is a quarter


def test_output_size():
    layer = SpatialTransformer(localization(), output_size=(3, 4))
    assert layer.compute_output_shape(MAPS.shape) == tuple(layer(MAPS).shape) == (2, 3, 4, 3)


@pytest.mark.parametrize(
    ("policy", "jit"),
    [
        ("float32", False),
        pytest.param("float32", True, marks=pytest.mark.slow),
        pytest.param("mixed_float16", True, marks=pytest.mark.slow),
    ],
)
def test_it_learns_to_look_at_the_bright_spot(policy, jit):
    keras.mixed_precision.set_dtype_policy(policy)
    images = np.zeros((64, 12, 12, 1), "float32")
    index = RNG.integers(2, 10, size=(64, 2))
    images[np.arange(64), index[:, 0], index[:, 1]] = 1.0
    image = keras.Input((12, 12, 1))
    net = keras.Sequential(
        [keras.Input((12, 12, 1)), keras.layers.Flatten(), keras.layers.Dense(16, activation="relu")]
    )
    seen = SpatialTransformer(net, output_size=(3, 3))(image)
    model = keras.Model(image, keras.layers.Flatten(dtype="float32")(seen))
    target = np.zeros((64, 9), "float32")
    target[:, 4] = 1.0
    model.compile(keras.optimizers.Adam(0.01), "mse", jit_compile=jit)
    before = [keras.ops.convert_to_numpy(w) for w in model.trainable_weights]
    losses = model.fit(images, target, epochs=15, batch_size=16, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert all(np.isfinite(w).all() for w in model.get_weights())
    assert not np.array_equal(before[-1], model.trainable_weights[-1])


def test_save_and_load(tmp_path):
    image = keras.Input((6, 5, 3))
    model = keras.Model(image, SpatialTransformer(localization(), output_size=(4, 4))(image))
    model.set_weights([RNG.normal(0, 0.3, w.shape) for w in model.get_weights()])
    model.save(tmp_path / "model.keras")
    assert_close(keras.saving.load_model(tmp_path / "model.keras")(MAPS), model(MAPS))


def test_a_localization_that_gives_maps_is_refused():
    with pytest.raises(ValueError, match="End it with a Flatten"):
        SpatialTransformer(keras.layers.Conv2D(4, 3)).build((None, 6, 5, 3))


@pytest.mark.parity
def test_equals_torch():
    import torch
    from torch.nn import functional

    grid = functional.affine_grid(torch.from_numpy(THETA), (2, 3, 7, 4), align_corners=False)
    assert_close(affine_grid(THETA, (7, 4)), grid.numpy())
    images = torch.from_numpy(MAPS.transpose(0, 3, 1, 2).copy())
    want = functional.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
    assert_close(sample_bilinear(MAPS, grid.numpy()), want.numpy().transpose(0, 2, 3, 1))
