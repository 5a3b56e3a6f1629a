"""Scaling rows and then columns gives what TensorFlow's kernel and pillow give."""

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from kvision.data.resampling import scale_and_translate

pytestmark = pytest.mark.tensorflow_only

PIXELS = np.random.default_rng(0).integers(0, 256, (37, 53, 4), "uint8")


@pytest.mark.parametrize("kernel", ["triangle", "keyscubic", "box"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "size, scale, offset",
    [
        ((20, 31), (20 / 37, 31 / 53), (0, 0)),  # down
        ((90, 101), (90 / 37, 101 / 53), (0, 0)),  # up
        ((24, 30), (0.05, 0.04), (0, 0)),  # far down, the most of it black
        ((40, 60), (1.0, 1.0), (5, -7)),
        ((33, 29), (1.3, 0.4), (-4.5, 2.25)),
        ((1, 1), (1 / 37, 1 / 53), (0, 0)),
        ((8, 8), (3.0, 3.0), (50, 50)),  # nothing of it is seen
    ],
)
def test_it_is_tensorflows_kernel(size, scale, offset, channels, kernel):
    for pixels in (PIXELS[..., :channels], PIXELS[:1, :2, :channels].astype("float32")):
        seen = scale_and_translate(pixels, size, tf.constant(scale), tf.constant(offset, tf.float32), kernel)
        want = tf.raw_ops.ScaleAndTranslate(
            images=pixels[None], size=size, scale=scale, translation=np.float32(offset), kernel_type=kernel
        )
        np.testing.assert_allclose(seen, want[0], atol=1e-3)


def test_it_is_pillows_antialiased_scaling():
    for size in ((19, 23), (80, 100)):
        scale = tf.constant(size, tf.float32) / PIXELS.shape[:2]
        seen = scale_and_translate(PIXELS[..., :3], size, scale, tf.zeros(2))
        want = PIL.Image.fromarray(PIXELS[..., :3]).resize(size[::-1], PIL.Image.Resampling.BILINEAR)
        np.testing.assert_allclose(seen, want, atol=1.01)  # pillow rounds, after each axis


def test_a_size_need_not_be_known():
    half = tf.function(lambda side: scale_and_translate(PIXELS, (side, side), tf.constant([0.5, 0.5]), tf.zeros(2)))
    np.testing.assert_allclose(
        half(tf.constant(26)), scale_and_translate(PIXELS, (26, 26), tf.constant([0.5, 0.5]), tf.zeros(2)), atol=1e-3
    )
