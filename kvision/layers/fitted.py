"""Preprocessing that is fitted on a data set: mean image, principal components, whitening.

Mean and deviation of channels are `kvision.network.Preprocessing.fit`; mean and deviation of each pixel are Keras's own
`keras.layers.Normalization(axis=(1, 2, 3))`.
"""

import math

import keras
import numpy as np
from keras import ops

from kvision import _keras
from kvision.moments import Covariance, Mean, chunks_of
from kvision.ops._backend import kernels

MAX_FEATURES = 64 * 64 * 3  # numbers a sample for a covariance: 1.2 GB in float64, its eigenvectors three times as much


class _Fitted(_keras.DataLayer):
    """What layers fitted on a data set share: float32 under any policy, and `adapt` in one pass.

    In a model, weights are weights. Called alone in a graph, such as by `tf.data.Dataset.map`, the layer gives its
    present values to the graph as constants, since a pipeline on the CPU cannot read variables of a GPU: adapt first.
    """

    def __init__(self, **options):
        super().__init__(**{"dtype": "float32"} | options)
        if self.compute_dtype != "float32":
            raise ValueError(f"{self.name} computes in float32 under any policy: got dtype {self.dtype_policy.name!r}.")

    def build(self, input_shape):
        self.sample_shape = tuple(input_shape[1:])
        if None in self.sample_shape or len(self.sample_shape) not in (1, 3):
            raise ValueError(
                f"{self.name}: expected batches of images [b, h, w, c] or vectors [b, d] of static size, got "
                f"{tuple(input_shape)}."
            )
        self.input_spec = keras.layers.InputSpec(shape=(None, *self.sample_shape))
        self.mean = self._weight("mean", self.sample_shape, "zeros")
        self.count = self._weight("count", (), "zeros")

    def _weight(self, name, shape, initializer):
        return self.add_weight(name=name, shape=shape, initializer=initializer, trainable=False, autocast=False)

    def adapt(self, data):
        """Fit the layer on a data set, in one pass; what it was fitted on before is forgotten.

        Args:
            data: An array of samples, a `tf.data.Dataset`, a `keras.utils.PyDataset` or an iterable; batches or single
                samples, alone or first in a tuple with labels or targets. It must end.

        Raises:
            ValueError: On samples of different shapes, values that are not finite, or too few samples.
        """
        moments = None
        for chunk in chunks_of(data, self.name, getattr(self, "sample_shape", None)):
            if not self.built:
                self.build((None, *chunk.shape[1:]))
            rows = chunk.reshape(len(chunk), -1)
            moments = moments or self._moments(rows.shape[1])
            moments.update(rows)
        self._fit(moments)
        self.mean.assign(moments.mean.reshape(self.sample_shape))
        self.count.assign(moments.count)

    def _values(self, *variables):
        """Variables as the tensors that fit the place where the layer runs."""
        if not _keras.is_called_alone(self):
            return [variable.value for variable in variables]
        if not kernels.value_outside(self.count):
            raise ValueError(f"{self.name} is not fitted: call `adapt(data)` with the training images first.")
        if _keras.in_tensorflow_graph():
            return [self.backend.convert_to_tensor(kernels.value_outside(variable)) for variable in variables]
        return [variable.value for variable in variables]


@keras.saving.register_keras_serializable("kvision")
class MeanImage(_Fitted):
    """Subtract the mean image of a data set: each pixel of each channel has mean 0 over the images `adapt` saw.

    Krizhevsky, Sutskever and Hinton 2012, section 2; CS231n, "Data preprocessing".

    Shapes: [b, h, w, c] or [b, d] → the same, float32.

    Raises:
        ValueError: On other shapes, or where it is called alone before `adapt`.

    >>> layer = MeanImage()
    >>> layer.adapt(np.array([[[[0.0]]], [[[4.0]]]]))
    >>> np.asarray(layer(np.array([[[[5.0]]]]))).tolist()
    [[[[3.0]]]]
    """

    def _moments(self, size):
        return Mean(size)

    def _fit(self, moments):
        pass

    def call(self, inputs):
        (mean,) = self._values(self.mean)
        return self.backend.cast(inputs, "float32") - mean

    def inverse(self, outputs):
        """The images that this layer made `outputs` of."""
        return ops.cast(outputs, "float32") + self.mean

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)


class _Components(_Fitted):
    """Principal components of a data set, and what is made of their coefficients."""

    def __init__(self, epsilon, **options):
        super().__init__(**options)
        if not (isinstance(epsilon, int | float) and 0 <= epsilon < math.inf):
            raise ValueError(f"{self.name}: epsilon is added to variances, at least 0; got {epsilon!r}.")
        self.epsilon = epsilon

    def _num_components(self, size):
        return size

    def build(self, input_shape):
        super().build(input_shape)
        size = math.prod(self.sample_shape)
        if size > MAX_FEATURES:
            raise ValueError(
                f"{self.name}: samples of shape {self.sample_shape} have {size:,} numbers, whose covariance takes "
                f"{8e-9 * size**2:,.1f} GB; at most {MAX_FEATURES:,} are taken. Use smaller images or patches, or the "
                "colours alone, as vectors of 3."
            )
        count = self._num_components(size)
        identity = lambda shape, dtype: ops.eye(*shape, dtype=dtype)  # noqa: E731
        self.components = self._weight("components", (count, size), identity)
        self.explained_variance = self._weight("explained_variance", (count,), "ones")
        self.total_variance = self._weight("total_variance", (), keras.initializers.Constant(size))

    @property
    def explained_variance_ratio(self):
        """The fraction of the variance of the data set that each component has, descending: float32 NumPy [k]."""
        variance, total = (ops.convert_to_numpy(each) for each in (self.explained_variance, self.total_variance))
        return variance / max(total, np.finfo("float32").tiny)

    def _moments(self, size):
        return Covariance(size)

    def _fit(self, moments):
        if moments.count < 2:
            raise ValueError(f"{self.name}: a covariance needs at least 2 samples, got {moments.count}.")
        values, vectors = np.linalg.eigh(moments.variance(ddof=1))
        values, vectors = values[::-1], vectors[:, ::-1].T
        # Beyond the rank there is nothing but rounding; a variance of exactly 0 keeps it from being divided by.
        values = np.where(values > values[0] * len(values) * np.finfo("float64").eps, values, 0.0)
        largest = np.argmax(np.abs(vectors), axis=1)[:, None]
        is_negative = np.take_along_axis(vectors, largest, axis=1) < 0
        vectors = np.where(is_negative, -vectors, vectors)  # one sign for all fits
        kept = self.components.shape[0]
        self.components.assign(vectors[:kept])
        self.explained_variance.assign(values[:kept])
        self.total_variance.assign(values.sum())

    def _coefficients(self, inputs, mean, components):
        centred = self.backend.cast(inputs, "float32") - mean
        rows = self.backend.numpy.reshape(centred, (-1, math.prod(self.sample_shape)))
        return self.backend.numpy.matmul(rows, self.backend.numpy.transpose(components))

    def _scale(self, variance):
        """What makes the variance of each component 1; 0 where there is none."""
        deviation = self.backend.numpy.sqrt(self.backend.numpy.where(variance > 0, variance + self.epsilon, 1.0))
        return self.backend.numpy.where(variance > 0, 1.0 / deviation, 0.0)

    def _deviation(self):
        return ops.where(self.explained_variance > 0, ops.sqrt(self.explained_variance + self.epsilon), 0.0)

    def _image(self, coefficients):
        """The image that has these coefficients [b, k]."""
        rows = ops.matmul(coefficients, self.components)
        return ops.reshape(rows, (-1, *self.sample_shape)) + self.mean

    def get_config(self):
        return super().get_config() | {"epsilon": self.epsilon}


@keras.saving.register_keras_serializable("kvision")
class PCA(_Components):
    """Coefficients of the principal components of a data set, the largest variance first, whitened or not.

    CS231n, "Data preprocessing": subtract the mean, rotate into the eigenbasis of the covariance; `whiten` divides by
    the standard deviations. Equal to scikit-learn's `PCA` up to the signs, which here make the largest number of each
    component positive.

    Args:
        num_components: How many are kept; None for as many as a sample has numbers. Those beyond the rank of the data
            (fewer samples than numbers, constant pixels) have variance 0, and are 0 where they are whitened.
        whiten: Whether each coefficient gets variance 1 over the data set.
        epsilon: Added to the variances before their root is divided by, at least 0, in squared units of the inputs.
            CS231n adds 1e-5 for images of 0…1; it matters with `whiten` alone.

    Shapes: [b, h, w, c] or [b, d] → [b, num_components], float32. Weights: `mean`, `components` [k, h·w·c],
    `explained_variance` [k], `total_variance`; `explained_variance_ratio` tells how many to keep.

    Raises:
        ValueError: On other shapes, more components than numbers, or more numbers than a covariance is taken of.

    >>> images = np.random.default_rng(0).random((50, 4, 4, 3))
    >>> layer = PCA(num_components=10, whiten=True)
    >>> layer.adapt(images)
    >>> outputs = layer(images)
    >>> tuple(outputs.shape), tuple(layer.inverse(outputs).shape)
    ((50, 10), (50, 4, 4, 3))
    """

    def __init__(self, num_components=None, whiten=False, epsilon=0.0, **options):
        super().__init__(epsilon, **options)
        if epsilon and not whiten:
            raise ValueError(f"{self.name}: epsilon={epsilon} has no effect without whiten=True; leave it out.")
        if num_components is not None and (not isinstance(num_components, int) or num_components < 1):
            raise ValueError(f"{self.name}: num_components is a whole number from 1, or None; got {num_components!r}.")
        self.num_components = num_components
        self.whiten = whiten

    def _num_components(self, size):
        if (self.num_components or 0) > size:
            raise ValueError(
                f"{self.name}: num_components={self.num_components}, but samples of shape {self.sample_shape} have "
                f"{size} numbers. Take at most as many."
            )
        return self.num_components or size

    def call(self, inputs):
        mean, components, variance = self._values(self.mean, self.components, self.explained_variance)
        outputs = self._coefficients(inputs, mean, components)
        return outputs * self._scale(variance) if self.whiten else outputs

    def inverse(self, outputs):
        """The images of coefficients: [b, k] → [b, h, w, c], without what the components left out do not hold."""
        outputs = ops.cast(outputs, "float32")
        return self._image(outputs * self._deviation() if self.whiten else outputs)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self._num_components(math.prod(input_shape[1:])))

    def get_config(self):
        return super().get_config() | {"num_components": self.num_components, "whiten": self.whiten}


@keras.saving.register_keras_serializable("kvision")
class ZCAWhitening(_Components):
    """Whiten images and turn them back, so that they still look like images: the covariance becomes the identity.

    Bell and Sejnowski 1997, "The 'independent components' of natural scenes are edge filters", section 2; Krizhevsky
    2009 prepared tiny images so. Of all whitenings it changes the images least.

    Args:
        epsilon: Added to the variances before their root is divided by, at least 0, in squared units of the inputs; the
            larger, the less the small variances, mostly noise, are amplified. 1e-5 is CS231n's, for images of 0…1.

    Shapes: [b, h, w, c] or [b, d] → the same, float32. Weights: as of `PCA`.

    Raises:
        ValueError: On other shapes, or more numbers a sample than a covariance is taken of.

    >>> images = np.random.default_rng(0).random((50, 2, 2, 3))
    >>> layer = ZCAWhitening(epsilon=0)
    >>> layer.adapt(images)
    >>> covariance = np.cov(np.asarray(layer(images)).reshape(50, 12), rowvar=False)
    >>> bool(np.abs(covariance - np.eye(12)).max() < 1e-5)
    True
    """

    def __init__(self, epsilon=1e-5, **options):
        super().__init__(epsilon, **options)

    def call(self, inputs):
        mean, components, variance = self._values(self.mean, self.components, self.explained_variance)
        rows = self.backend.numpy.matmul(
            self._coefficients(inputs, mean, components) * self._scale(variance), components
        )
        return self.backend.numpy.reshape(rows, (-1, *self.sample_shape))

    def inverse(self, outputs):
        """The images that this layer made `outputs` of, as far as the data set varied."""
        rows = ops.reshape(ops.cast(outputs, "float32"), (-1, math.prod(self.sample_shape)))
        return self._image(ops.matmul(rows, ops.transpose(self.components)) * self._deviation())

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)
