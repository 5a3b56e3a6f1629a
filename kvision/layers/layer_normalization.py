"""Layer normalisation with the class name and weights of Keras's own layer."""

import keras
from keras import ops

from kvision.ops.layer_norm import layer_normalize


@keras.saving.register_keras_serializable("kvision")
class LayerNormalization(keras.layers.LayerNormalization):
    """Keras's `LayerNormalization` with a hand-written gradient.

    Ba, Kiros and Hinton 2016. Outputs are those of Keras's layer, and so are class name and weights: weight files are
    exchanged freely. The default `epsilon` is the transformers' 1e-6, not Keras's 1e-3. An `axis` other than the last,
    and a layer without scale or centre, take Keras's own path.

    Args:
        axis: The axis of the channels.
        epsilon: Added to the variance, > 0.
        **options: The other arguments of `keras.layers.LayerNormalization`.

    Shapes: [..., c] → [..., c].

    >>> LayerNormalization()(keras.ops.ones((2, 5, 8))).shape
    TensorShape([2, 5, 8])
    """

    def __init__(self, axis=-1, epsilon=1e-6, **options):
        super().__init__(axis=axis, epsilon=epsilon, **options)

    def call(self, inputs):
        if not (self.scale and self.center) or self.axis not in ([-1], [len(inputs.shape) - 1]):
            return super().call(inputs)
        return ops.cast(layer_normalize(inputs, self.gamma, self.beta, self.epsilon), self.compute_dtype)
