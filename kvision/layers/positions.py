"""Position embeddings of tokens: sinusoidal (Vaswani et al. 2017) and learned (Dosovitskiy et al. 2020)."""

import math

import keras
import numpy as np
from keras import ops

from kvision.ops.positions import sinusoidal_encoding


def resize_position_embeddings(embeddings, new_grid, *, old_grid=None, prefix_tokens=1, interpolation="bicubic"):
    """Interpolate learned position embeddings to another grid of patches, so that weights serve other image sizes.

    Dosovitskiy et al. 2020, section 3.2, "Fine-tuning and higher resolution". The embeddings of class tokens stay.

    Args:
        embeddings: [1, prefix_tokens + rows·columns, c], patches row by row.
        new_grid: (rows, columns) of the result.
        old_grid: (rows, columns) of `embeddings`; None: a square.
        prefix_tokens: Leading tokens that are not patches.
        interpolation: `"bicubic"` (as timm, antialiased) or `"bilinear"`.

    Returns:
        float32 NumPy array [1, prefix_tokens + new rows·columns, c].

    Raises:
        ValueError: if the tokens do not fill the old grid.

    >>> resize_position_embeddings(np.zeros((1, 1 + 14 * 14, 8)), (24, 24)).shape
    (1, 577, 8)
    """
    embeddings = np.asarray(embeddings, "float32")
    tokens = embeddings.shape[1] - prefix_tokens
    rows, columns = old_grid or (math.isqrt(max(tokens, 0)),) * 2
    if tokens != rows * columns or tokens < 1:
        raise ValueError(
            f"resize_position_embeddings: got {embeddings.shape[1]} tokens, {prefix_tokens} of them before the "
            f"patches: {tokens} do not fill {'a square' if old_grid is None else f'{rows}x{columns}'}. Pass old_grid="
            "(rows, columns) and prefix_tokens= as the weights were trained."
        )
    prefix, patches = embeddings[:, :prefix_tokens], embeddings[:, prefix_tokens:]
    patches = patches.reshape(1, rows, columns, -1)
    if (rows, columns) != tuple(new_grid):
        resized = ops.image.resize(patches, tuple(new_grid), interpolation, antialias=True, data_format="channels_last")
        patches = ops.convert_to_numpy(resized)
    return np.concatenate([prefix, patches.reshape(1, new_grid[0] * new_grid[1], -1)], axis=1)


@keras.saving.register_keras_serializable("kvision")
class LearnedPositions(keras.layers.Layer):
    """Add a learned embedding to every token of a grid of patches.

    Dosovitskiy et al. 2020, equation 1. Weights trained on another grid are interpolated when they are loaded.

    Args:
        grid: (rows, columns) of the patches.
        prefix_tokens: Tokens before the patches, such as the class token; they have embeddings of their own.
        initializer: Of the embeddings.

    Shapes: [b, prefix_tokens + rows·columns, c] → the same.

    Raises:
        ValueError: On build, when the tokens are not as many as the grid says.

    >>> LearnedPositions((2, 3), prefix_tokens=1)(keras.ops.ones((1, 7, 8))).shape
    TensorShape([1, 7, 8])
    """

    def __init__(self, grid, prefix_tokens=0, initializer="truncated_normal", **options):
        super().__init__(**options)
        self.grid = tuple(grid)
        self.prefix_tokens = prefix_tokens
        self.initializer = keras.initializers.get(initializer)

    def build(self, input_shape):
        tokens = self.prefix_tokens + self.grid[0] * self.grid[1]
        if input_shape[1] != tokens:
            raise ValueError(
                f"{self.name}: a grid of {self.grid} patches and {self.prefix_tokens} tokens before them make {tokens} "
                f"tokens, got {input_shape[1]}."
            )
        self.embeddings = self.add_weight(
            shape=(1, tokens, input_shape[-1]), initializer=self.initializer, name="embeddings"
        )

    def call(self, inputs):
        return inputs + self.embeddings

    def fit_weight(self, array):
        """An array that was trained on another grid, interpolated to this one; `kvision.weights` asks for it."""
        if array.ndim != 3 or array.shape == tuple(self.embeddings.shape):
            return array
        return resize_position_embeddings(array, self.grid, prefix_tokens=self.prefix_tokens)

    def load_own_variables(self, store):
        self.embeddings.assign(self.fit_weight(np.asarray(store["0"])))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return super().get_config() | {
            "grid": self.grid,
            "prefix_tokens": self.prefix_tokens,
            "initializer": keras.initializers.serialize(self.initializer),
        }


@keras.saving.register_keras_serializable("kvision")
class SinusoidalPositions(keras.layers.Layer):
    """Add fixed sines and cosines of the token's index; no weights.

    Vaswani et al. 2017, section 3.5.

    Args:
        temperature: Of the longest wavelength.

    Shapes: [b, t, c] → [b, t, c], c even.

    >>> SinusoidalPositions()(keras.ops.zeros((1, 7, 8))).shape
    TensorShape([1, 7, 8])
    """

    def __init__(self, temperature=10_000.0, **options):
        super().__init__(**options)
        self.temperature = temperature

    def call(self, inputs):
        encoding = sinusoidal_encoding(ops.arange(ops.shape(inputs)[1]), inputs.shape[-1], self.temperature)
        return inputs + ops.cast(encoding, inputs.dtype)

    def get_config(self):
        return super().get_config() | {"temperature": self.temperature}
