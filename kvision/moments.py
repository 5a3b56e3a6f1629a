"""Means and covariances of a data set in one pass, by the pairwise update of Chan, Golub and LeVeque 1983.

The memory is that of the covariance and of one chunk of samples; sums of squares are never subtracted from each other,
so an offset of the data costs no digits. All in float64.
"""

import math

import keras
import numpy as np

_CHUNK = 2**22  # numbers that are read before they are summed up, 32 MiB: one product of matrices for many samples


class Mean:
    """The mean of rows, and their number.

    Args:
        size: Numbers a row.

    >>> mean = Mean(2)
    >>> mean.update(np.array([[1.0, 2.0], [3.0, 6.0]]))
    >>> mean.count, mean.mean.tolist()
    (2, [2.0, 4.0])
    """

    def __init__(self, size):
        self.count = 0
        self.mean = np.zeros(size)

    def update(self, rows):
        """Take in rows, [n, size]."""
        self._take(rows.mean(axis=0), len(rows))

    def _take(self, mean, count):
        self.count += count
        self.mean += (mean - self.mean) * (count / self.count)


class Variance(Mean):
    """The mean of rows, and the variance of each number in them.

    >>> variance = Variance(1)
    >>> variance.update(np.array([[1e8], [1e8 + 2]]))
    >>> variance.variance(ddof=1).tolist()
    [2.0]
    """

    def __init__(self, size):
        super().__init__(size)
        self._scatter = self._nothing(size)

    def _nothing(self, size):
        return np.zeros(size)

    def _product(self, rows):
        return np.square(rows).sum(axis=0)

    def update(self, rows):
        """Take in rows, [n, size]."""
        mean = rows.mean(axis=0)
        # The step between the means enters as one more row, so that no second matrix of the covariance's size is made.
        step = (mean - self.mean) * np.sqrt(self.count * len(rows) / (self.count + len(rows)))
        self._scatter += self._product(np.concatenate([rows - mean, step[None]]))
        self._take(mean, len(rows))

    def variance(self, ddof=0):
        """The sum of squares about the mean, divided by `count - ddof`."""
        return self._scatter / (self.count - ddof)


class Covariance(Variance):
    """The mean of rows, and the covariance of the numbers in them, [size, size].

    >>> covariance = Covariance(2)
    >>> covariance.update(np.array([[1.0, 1.0], [3.0, 5.0]]))
    >>> covariance.variance(ddof=1).tolist()
    [[2.0, 4.0], [4.0, 8.0]]
    """

    def _nothing(self, size):
        return np.zeros((size, size))

    def _product(self, rows):
        return rows.T @ rows


def samples_of(data, owner):
    """The images of a data set and what their targets say, a sample or a batch at a time.

    Args:
        data: An array of samples, a `tf.data.Dataset`, a `keras.utils.PyDataset` or any iterable of arrays, of tuples
            that begin with the images, or of dicts with `"images"`. Images are [b, h, w, c] or [h, w, c], vectors
            [b, d] or [d].
        owner: Who asks, for the messages.

    Yields:
        `(samples, targets)`: a NumPy array of rank 2 or 4 with the batch first, and the element it came in.

    Raises:
        ValueError: If the data set has no end or holds anything else.
    """
    elements = data
    if hasattr(data, "shape"):
        step = max(1, _CHUNK // max(1, math.prod(data.shape[1:])))
        elements = (data[start : start + step] for start in range(0, len(data), step))
    elif isinstance(data, keras.utils.PyDataset):
        elements = (data[index] for index in range(len(data)))
    elif hasattr(data, "cardinality") and int(data.cardinality()) == -1:
        raise ValueError(f"{owner}: the data set repeats without end. Give it without `repeat`.")
    order = getattr(getattr(data, "source", None), "order", None)
    position = order and order.position
    try:
        for element in elements:
            images = _images_of(element, owner)
            yield images if images.ndim in (2, 4) else images[None], element
    finally:
        if order is not None:  # of a reader of `kvision.data`, whose first epoch is still that of the training
            order.start(*position)


def _images_of(element, owner):
    """The images in an element of a data set, as a NumPy array."""
    images = element
    while isinstance(images, tuple | list | dict):
        if (isinstance(images, dict) and "images" not in images) or not len(images):
            got = sorted(images) if isinstance(images, dict) else "nothing"
            raise ValueError(f'{owner}: expected images first or "images" in a dict, got {got}.')
        images = images["images"] if isinstance(images, dict) else images[0]
    images = keras.ops.convert_to_numpy(images) if keras.ops.is_tensor(images) else np.asarray(images)
    if images.ndim not in (1, 2, 3, 4) or (images.dtype.kind not in "buif" and images.dtype.name != "bfloat16"):
        raise ValueError(
            f"{owner}: expected images [h, w, c] or vectors [d], alone or in batches, of numbers, got shape "
            f"{images.shape} of {images.dtype}."
        )
    return images


def chunks_of(data, owner, shape=None):
    """The samples of a data set in float64, [n, h, w, c] or [n, d], many at a time, in bounded memory.

    Args:
        data: As of `samples_of`.
        owner: Who asks, for the messages.
        shape: Of a sample, where it is known.

    Raises:
        ValueError: If samples differ in shape or hold what is not finite, or if there are none.
    """
    held, count, total = [], 0, 0
    for samples, _ in samples_of(data, owner):
        shape = samples.shape[1:] if shape is None else shape
        if samples.shape[1:] != shape:
            raise ValueError(
                f"{owner}: samples must be of one shape, {shape}, got {samples.shape[1:]}. Resize or cut the images."
            )
        held.append(finite(samples, owner))
        count, total = count + len(samples), total + len(samples)
        if count * math.prod(shape) >= _CHUNK:
            yield np.concatenate(held)
            held, count = [], 0
    if count:
        yield np.concatenate(held)
    if not total:
        raise ValueError(f"{owner}: the data set is empty. Give it at least one sample.")


def finite(samples, owner):
    """Samples as float64; a ValueError if any is not finite."""
    samples = np.asarray(samples, "float64")
    if not np.isfinite(samples).all():
        raise ValueError(
            f"{owner}: the data set holds NaN or infinity. `kvision.data.check` finds the samples; leave them out."
        )
    return samples


def pixels_of(data, owner):
    """The pixels of each image of a data set in float64, [n, c], without the padding that its targets tell of.

    Args:
        data: As of `samples_of`, of images; `"image_size"` (valid height and width) is looked for in every dict.
        owner: Who asks, for the messages.

    Raises:
        ValueError: If samples are no images [h, w, c] or hold what is not finite.
    """
    for images, element in samples_of(data, owner):
        if images.ndim != 4:
            raise ValueError(f"{owner}: expected images [h, w, c], alone or in batches, got shape {images.shape}.")
        parts = element if isinstance(element, tuple | list) else (element,)
        sizes = [part["image_size"] for part in parts if isinstance(part, dict) and "image_size" in part]
        sizes = np.reshape(sizes[0], (-1, 2)).astype(int) if sizes else [images.shape[1:3]] * len(images)
        for image, (height, width) in zip(images, sizes, strict=True):
            yield finite(image[:height, :width], owner).reshape(-1, image.shape[-1])
