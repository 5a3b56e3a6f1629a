"""Batch and group normalisation on fast kernels, with the class names and weights of Keras's own layers."""

import math

import keras
from keras import ops

from kvision.ops.normalization import (
    batch_normalize,
    batch_normalize_train,
    check_groups,
    group_normalize,
    moving_average,
)


@keras.saving.register_keras_serializable("kvision")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras's `BatchNormalization` on a fused kernel, which can also be frozen or synchronised.

    Ioffe and Szegedy 2015. Outputs, gradients, moving statistics and `trainable=False` are those of Keras's layer, and
    so are class name and weights: one weight file loads into each of `frozen`, `synchronized`, plain, and Keras's own.
    An `axis` other than the last, a mask and `renorm` take Keras's own path.

    Args:
        axis: The axis of the channels.
        momentum: Weight of the old value in the moving statistics, in [0, 1].
        epsilon: Added to the variance, >= 0.
        frozen: Normalise by the stored statistics in training too, with no trainable weight and no update, whatever
            `trainable` says: how detectors use a pretrained backbone (torchvision's `FrozenBatchNorm2d`).
        synchronized: Compute the statistics over all replicas. On TensorFlow this is Keras's own path; on JAX a jitted
            step sees the whole batch, so every batch normalisation is synchronised already.
        **options: The other arguments of `keras.layers.BatchNormalization`.

    Shapes: [b, ..., c] → the same.

    Raises:
        ValueError: When both `frozen` and `synchronized` are set.

    >>> tuple(BatchNormalization(frozen=True)(keras.ops.ones((2, 4, 4, 8))).shape)
    (2, 4, 4, 8)
    """

    def __init__(self, axis=-1, momentum=0.99, epsilon=1e-3, *, frozen=False, synchronized=False, **options):
        if frozen and synchronized:
            raise ValueError(
                "A frozen layer computes no statistics, so there is nothing to synchronise: "
                "got frozen=True and synchronized=True, expected at most one of them."
            )
        by_keras = synchronized and keras.backend.backend() == "tensorflow"
        super().__init__(axis, momentum, epsilon, synchronized=by_keras, **options)
        self.frozen = frozen
        self.synchronized = synchronized
        self._by_keras = by_keras or self.renorm

    def add_weight(self, shape=None, *, trainable=True, **options):
        return super().add_weight(shape, trainable=trainable and not self.frozen, **options)

    def call(self, inputs, training=None, mask=None):
        training = bool(training and self.trainable and not self.frozen)
        if self._by_keras or mask is not None or self.axis not in (-1, len(inputs.shape) - 1):
            return super().call(inputs, training=training, mask=mask)
        channels = inputs.shape[-1]
        gamma = self.gamma if self.scale else ops.ones((channels,))
        beta = self.beta if self.center else ops.zeros((channels,))
        if training:
            outputs, mean, variance = batch_normalize_train(inputs, gamma, beta, self.epsilon)
            self._update_average(self.moving_mean, mean)
            self._update_average(self.moving_variance, variance)
        else:
            outputs = batch_normalize(inputs, gamma, beta, self.moving_mean, self.moving_variance, self.epsilon)
        return ops.cast(outputs, self.compute_dtype)

    def _update_average(self, average, value):
        value = ops.cast(value, average.dtype)
        average.assign(moving_average(average, value, momentum=self.momentum))

    def get_config(self):
        return {**super().get_config(), "frozen": self.frozen}


@keras.saving.register_keras_serializable("kvision")
class GroupNormalization(keras.layers.GroupNormalization):
    """Keras's `GroupNormalization` with a hand-written gradient and a number of groups that fits the channels.

    Wu and He 2018. Class name and weights are those of Keras's layer, so weight files are exchanged freely; the default
    `epsilon` is the paper's, not Keras's 1e-3. An `axis` other than the last takes Keras's own path.

    Args:
        groups: Number of groups; must divide the channels. None: 32 if it divides the channels, else gcd(channels, 8).
            -1: one group per channel (instance normalisation).
        epsilon: Added to the variance, > 0.
        **options: The other arguments of `keras.layers.GroupNormalization`.

    Shapes: [b, ..., c] → the same.

    Raises:
        ValueError: On build, when `groups` does not divide the channels.

    >>> tuple(GroupNormalization(groups=4)(keras.ops.ones((2, 4, 4, 8))).shape)
    (2, 4, 4, 8)
    """

    def __init__(self, groups=None, epsilon=1e-5, **options):
        super().__init__(groups=32 if groups is None else groups, epsilon=epsilon, **options)
        self._given_groups = groups

    def build(self, input_shape):
        channels = input_shape[self.axis]
        if channels is not None:
            if self._given_groups is None:
                self.groups = 32 if channels % 32 == 0 else math.gcd(channels, 8)
            elif self.groups != -1:
                check_groups(self.groups, channels)
        super().build(input_shape)

    def call(self, inputs):
        if self.axis not in (-1, len(inputs.shape) - 1):
            return super().call(inputs)
        channels = inputs.shape[-1]
        gamma = self.gamma if self.scale else ops.ones((channels,))
        beta = self.beta if self.center else ops.zeros((channels,))
        return ops.cast(group_normalize(inputs, gamma, beta, self.groups, self.epsilon), self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "groups": self._given_groups}
