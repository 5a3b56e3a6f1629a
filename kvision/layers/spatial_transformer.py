"""Spatial transformer (Jaderberg, Simonyan, Zisserman, Kavukcuoglu 2015, "Spatial Transformer Networks", section 3)."""

import keras
import numpy as np
from keras import ops

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@keras.saving.register_keras_serializable("kvision")
class SpatialTransformer(keras.layers.Layer):
    """Resample a map through an affine transform that a small network predicts for each image.

    Jaderberg et al. 2015, section 3. `localization` maps the input to features; a dense layer maps these to the six
    parameters θ of the affine map from output to input positions (equation 1). That layer starts with zero kernel and
    the identity as bias, so an untrained transformer returns its input. Positions and samples are float32 under any
    policy.

    Args:
        localization: A layer or model, maps [b, h, w, c] → features [b, n].
        output_size: (height, width) of the output; None keeps the input's.

    Shapes: [b, h, w, c] → [b, *output_size, c].

    Raises:
        ValueError: on build, if `localization` does not give one row of features per image.

    ```python
    localization = keras.Sequential([layers.Conv2D(8, 7), layers.MaxPooling2D(4), layers.Flatten(), layers.Dense(32)])
    x = kvision.layers.SpatialTransformer(localization)(images)
    ```
    """

    def __init__(self, localization, output_size=None, **options):
        super().__init__(**options)
        self.localization = localization
        self.output_size = output_size and tuple(output_size)
        self.theta = keras.layers.Dense(
            6,
            kernel_initializer="zeros",
            bias_initializer=lambda shape, dtype: ops.convert_to_tensor(IDENTITY, dtype),
            dtype="float32",
            name="theta",
        )

    def build(self, input_shape):
        if not self.localization.built:
            self.localization.build(input_shape)
        features = self.localization.compute_output_shape(input_shape)
        if len(features) != 2:
            raise ValueError(
                f"SpatialTransformer: localization must give features of shape [b, n], got {tuple(features)}. "
                "End it with a Flatten or a global pooling."
            )
        self.theta.build(features)

    def call(self, inputs, training=False):
        theta = ops.reshape(self.theta(self.localization(inputs, training=training)), (-1, 2, 3))
        grid = affine_grid(theta, self.output_size or inputs.shape[1:3])
        return ops.cast(sample_bilinear(ops.cast(inputs, "float32"), grid), self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], *(self.output_size or input_shape[1:3]), input_shape[3])

    def get_config(self):
        return super().get_config() | {
            "localization": keras.saving.serialize_keras_object(self.localization),
            "output_size": self.output_size,
        }

    @classmethod
    def from_config(cls, config):
        localization = keras.saving.deserialize_keras_object(config.pop("localization"))
        return cls(localization, **config)


def affine_grid(theta, size):
    """The input position of each output pixel: θ · (x, y, 1) (equation 1).

    Args:
        theta: float32 [b, 2, 3].
        size: (height, width) of the output.

    Returns:
        float32 [b, height, width, 2] of (x, y), where -1 and 1 are the outer edges of the image, as in torch's
        `affine_grid(align_corners=False)`.

    >>> identity = np.array([[[1, 0, 0], [0, 1, 0]]], "float32")
    >>> ops.convert_to_numpy(affine_grid(identity, (1, 2))).tolist()
    [[[[-0.5, 0.0], [0.5, 0.0]]]]
    """
    y, x = ((2 * np.arange(n, dtype="float32") + 1) / n - 1 for n in size)
    positions = np.stack([*np.meshgrid(x, y), np.ones((len(y), len(x)), "float32")]).reshape(3, -1)
    return ops.reshape(ops.transpose(ops.matmul(theta, positions), (0, 2, 1)), (-1, *size, 2))


def sample_bilinear(images, grid):
    """Images sampled at the positions of a grid, bilinearly between pixels, zero outside (equation 5).

    Args:
        images: float32 [b, h, w, c]; h, w, c static.
        grid: float32 [b, height, width, 2] of (x, y), see `affine_grid`.

    Returns:
        float32 [b, height, width, c], differentiable in both; equals torch's `grid_sample(align_corners=False)`.
    """
    height, width, channels = images.shape[1:]
    # More than one pixel outside, samples are zero: clipping changes no value and keeps the indices small.
    x = ops.clip(((grid[..., 0] + 1) * width - 1) / 2, -1, width)
    y = ops.clip(((grid[..., 1] + 1) * height - 1) / 2, -1, height)
    left, top = ops.floor(ops.stop_gradient(x)), ops.floor(ops.stop_gradient(y))
    pixels = ops.reshape(images, (-1, channels))
    first = ops.arange(ops.shape(images)[0], dtype="int32")[:, None, None] * (height * width)

    def corner(column, row, weight):
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        column, row = (ops.cast(ops.clip(i, 0, n - 1), "int32") for i, n in ((column, width), (row, height)))
        return ops.take(pixels, first + row * width + column, axis=0) * ops.where(inside, weight, 0.0)[..., None]

    right, bottom = x - left, y - top
    return (
        corner(left, top, (1 - right) * (1 - bottom))
        + corner(left + 1, top, right * (1 - bottom))
        + corner(left, top + 1, (1 - right) * bottom)
        + corner(left + 1, top + 1, right * bottom)
    )
