"""Images out of whatever `fit` and `predict` take, batch by batch."""

import keras
import numpy as np

from kvision.batches import cut, one_pass
from kvision.visualize.images import checked_images


def image_batches(data, batch_size=32):
    """`(images, labels)` of batches, as NumPy arrays; labels are None where there are none.

    Args:
        data: An array of images [n, h, w, c]; arrays `(images, labels)`; or a data set: a `tf.data.Dataset`, a
            `keras.utils.PyDataset`, or any iterable of batches, which are images, `(images, labels)` or `(images,
            labels, sample weights)`. It is read once.
        batch_size: Of arrays; a data set has batches of its own.

    Returns:
        An iterator, and the number of batches, or None where it is not known.

    Raises:
        ValueError: on what is none of these, single images in place of batches, arrays of different lengths, and a data
            set without end.
    """
    if _is_array(data) or _is_arrays(data):
        images, labels = _parts(data)
        if labels is not None and len(labels) != len(images):
            raise ValueError(f"Got {len(images)} images and {len(labels)} labels: expected a label for each image.")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        return cut((images, labels), batch_size), -(-len(images) // batch_size)
    if isinstance(data, keras.utils.PyDataset):
        return map(_parts, one_pass(data)), data.num_batches
    if hasattr(data, "cardinality") and int(data.cardinality()) == -1:
        raise ValueError("The data set has no end: got repeat() without a number. Pass it with .take(batches).")
    if not hasattr(data, "__iter__") or isinstance(data, str | bytes | dict):
        raise ValueError(
            f"Expected images [n, h, w, c], (images, labels), or a data set of batches: got {type(data).__name__}."
        )
    return map(_parts, data), _length(data)


def num_images(data):
    """How many images there are in arrays and in a list of batches; None where only reading tells."""
    batches = [data] if _is_array(data) or _is_arrays(data) else data
    return sum(len(_parts(batch)[0]) for batch in batches) if isinstance(batches, list | tuple) else None


def _parts(batch):
    images, labels = (batch[0], batch[1] if len(batch) > 1 else None) if _is_tuple(batch) else (batch, None)
    if not hasattr(images, "shape"):
        raise ValueError(
            f"Expected batches of images [b, h, w, c], with labels or without: got {type(images).__name__}."
        )
    if len(images.shape) != 4:
        raise ValueError(
            f"Expected batches of images [b, h, w, c]: got {list(images.shape)}. Of a data set of single images take "
            ".batch(32); give a list of images as np.stack(images), one image as image[None], and grey images their "
            "channel by images[..., None]."
        )
    labels = None if labels is None or isinstance(labels, dict) else _as_array(labels)
    return _as_array(images), labels


def _is_tuple(batch):
    return isinstance(batch, tuple | list) and 1 <= len(batch) <= 3


def _is_array(data):
    return hasattr(data, "shape") and hasattr(data, "dtype")


def _is_arrays(data):
    """`(images, labels)`, and no list of batches."""
    return isinstance(data, tuple) and len(data) in (1, 2, 3) and _is_array(data[0])


def _as_array(values):
    return values if isinstance(values, np.ndarray) else np.asarray(keras.ops.convert_to_numpy(values))


def _length(data):
    """Batches of a data set, or None where they are unknown or without end."""
    try:
        return len(data)
    except TypeError:
        return None


class ImageStream:
    """Images of a data set in batches of one size for one trace, checked before any is used.

    Args:
        model, preprocess: As for `checked_images`.
        data, batch_size: As for `image_batches`.

    Iterating gives `(images as they were, images as float32 and filled up to the size of the first batch, how many
    count, labels)`. `num_batches` is None where it is not known.
    """

    def __init__(self, model, data, preprocess=None, batch_size=32):
        self._batches, self.num_batches = image_batches(data, batch_size)
        self._model, self._preprocess = model, preprocess

    def __iter__(self):
        size, shape = 0, None
        for images, labels in self._batches:
            if len(images) == 0:
                continue
            if shape is None:
                values, shape = checked_images(self._model, images, self._preprocess), images.shape[1:]
            elif images.shape[1:] != shape:
                raise ValueError(f"The images are of different sizes: got {list(shape)} and {list(images.shape[1:])}.")
            else:  # the range is that of the data set: a dark batch says nothing
                values = images.astype("float32", copy=False)
                if not np.isfinite((values.min(), values.max())).all():
                    raise ValueError("A batch holds values that are not finite: expected finite pixels.")
            count, size = len(values), max(size, len(values))
            if count < size:
                values = values[np.minimum(np.arange(size), count - 1)]
            yield images, values, count, labels
        if shape is None:
            raise ValueError("The data has no image. Is the folder, the filter or take() right?")
