"""Local response normalisation (Krizhevsky, Sutskever, Hinton 2012, section 3.3)."""

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable("kvision")
class LocalResponseNormalization(keras.layers.Layer):
    """Divide each value by the activity of adjacent channels: b = a / (k + alpha · Σ a²)^beta.

    The sum runs over `size` adjacent channels around the value's own, fewer at the ends. `alpha` multiplies the sum, as
    in the paper; Caffe and `torch.nn.LocalResponseNorm` divide it by the window: their alpha is `size` times this one.
    Sums and powers are float32 under any policy.

    Args:
        size: Channels in the window, the n of the paper, >= 1; if even, its longer half comes first.
        alpha, beta, k: The paper's constants.

    Shapes: [..., c] → the same.

    >>> tuple(LocalResponseNormalization()(keras.ops.ones((1, 2, 2, 8))).shape)
    (1, 2, 2, 8)
    """

    def __init__(self, size=5, alpha=1e-4, beta=0.75, k=2.0, **options):
        super().__init__(**options)
        if size < 1:
            raise ValueError(f"LocalResponseNormalization sums over at least 1 channel, got size={size}.")
        self.size = size
        self.alpha = alpha
        self.beta = beta
        self.k = k

    def call(self, inputs):
        rows = ops.reshape(ops.cast(inputs, "float32"), (-1, inputs.shape[-1]))
        outputs = _normalize(rows, self._band(inputs.shape[-1]), self.beta, self.k)
        return ops.cast(ops.reshape(outputs, ops.shape(inputs)), self.compute_dtype)

    def _band(self, channels):
        """The matrix [channels, channels] with alpha where the column's window holds the row's channel."""
        offset = np.arange(channels)[:, None] - np.arange(channels)
        inside = (offset >= -(self.size // 2)) & (offset <= (self.size - 1) // 2)
        return np.where(inside, self.alpha, 0.0).astype("float32")

    def get_config(self):
        return super().get_config() | {"size": self.size, "alpha": self.alpha, "beta": self.beta, "k": self.k}


def _normalize(rows, band, beta, k):
    """Rows [n, c] over (k + rows² · band)^beta: the windows are a matrix product, the gradient is a second one."""

    @ops.custom_gradient
    def normalize(rows):
        activity = k + ops.matmul(ops.square(rows), band)
        scale = _inverse_power(activity, beta)

        def gradient(*upstream_args, upstream=None):
            upstream = upstream_args[0] if upstream is None else upstream
            through_scale = upstream * rows * scale / activity
            return upstream * scale - (2.0 * beta) * rows * ops.matmul(through_scale, band.T)

        return rows * scale, gradient

    return normalize(rows)


def _inverse_power(x, beta):
    """x^-beta; the paper's 0.75 by square roots, which cost a twentieth of a power on a CPU."""
    if beta != 0.75:
        return ops.power(x, -beta)
    root = ops.rsqrt(x)
    return root * ops.sqrt(root)
