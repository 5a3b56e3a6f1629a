"""The Laplacian pyramid (Burt & Adelson 1983, "The Laplacian Pyramid as a Compact Image Code")."""

import keras
import numpy as np

from kvision.ops.resize import weigh_rows_and_columns

KERNEL = np.array([1.0, 4.0, 6.0, 4.0, 1.0]) / 16  # section "The Gaussian pyramid", with a = 0.375


@keras.saving.register_keras_serializable("kvision")
class LaplacianPyramid(keras.layers.Layer):
    """Split images into octaves: what each halving of the resolution loses, and what is left in the end.

    Pixel i of a level lies at pixel 2i of the level before. Enlarged by `expand` and added up, from the last level to
    the first, the levels are the image again. Everything is float32.

    Args:
        levels: Number of levels, ≥ 1; one is the image itself.

    Shapes: [b, h, w, c] of a static size → a list of [b, ceil(h / 2^k), ceil(w / 2^k), c] for k = 0, 1, …

    Raises:
        ValueError: on fewer than one level.

    >>> [tuple(level.shape) for level in LaplacianPyramid(3)(keras.ops.ones((1, 43, 37, 3)))]
    [(1, 43, 37, 3), (1, 22, 19, 3), (1, 11, 10, 3)]
    """

    def __init__(self, levels=3, **options):
        super().__init__(**{"dtype": "float32"} | options)
        if levels < 1:
            raise ValueError(f"LaplacianPyramid has at least 1 level, got levels={levels}.")
        self.levels = int(levels)

    def call(self, inputs):
        pyramid, image = [], inputs
        for _ in range(self.levels - 1):
            smaller = reduce(image)
            pyramid.append(image - expand(smaller, image.shape[1:3]))
            image = smaller
        return [*pyramid, image]

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        shapes = []
        for _ in range(self.levels):
            shapes.append((batch, height, width, channels))
            height, width = -(-height // 2), -(-width // 2)
        return shapes

    def get_config(self):
        return super().get_config() | {"levels": self.levels}


def reduce(images):
    """Images at half the resolution, blurred before; at the edge they are mirrored about the outer pixel."""
    rows, columns = (_reducing(length) for length in images.shape[1:3])
    return weigh_rows_and_columns(images, rows, columns)


def expand(images, size):
    """Images at twice the resolution, `size` = 2n or 2n − 1: the same kernel over pixels that lie two apart."""
    rows, columns = (_expanding(length, longer) for length, longer in zip(images.shape[1:3], size, strict=True))
    return weigh_rows_and_columns(images, rows, columns)


def _reducing(length):
    weights = np.zeros((-(-length // 2), length), "float32")
    for row in range(len(weights)):
        for offset, weight in enumerate(KERNEL, start=-2):
            weights[row, _mirrored(2 * row + offset, length)] += weight
    return weights


def _expanding(length, longer):
    weights = np.zeros((longer, length), "float32")
    for row in range(longer):
        for cell in range((row - 1) // 2, (row + 2) // 2 + 1):  # those at most two pixels away
            weights[row, _mirrored(2 * cell, longer) // 2] += 2 * KERNEL[row - 2 * cell + 2]
    return weights


def _mirrored(index, length):
    """The index within 0 … length − 1 that a mirror at each end shows."""
    if length == 1:
        return 0
    index = abs(index) % (2 * (length - 1))
    return min(index, 2 * (length - 1) - index)
