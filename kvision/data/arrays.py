"""Arrays in memory as a data set whose epochs have an order that is known, so that a run can go on within one."""

import keras
import numpy as np
import tensorflow as tf

from kvision.data.source import Order, Source


def arrays(x, y=None, sample_weight=None, batch_size=32, shuffle=True, seed=0):
    """A `tf.data.Dataset` of arrays, for `fit` and for `Resume(directory, data=...)`.

    `fit(x, y)` shuffles by a state that cannot be restored. Here the order of an epoch is a function of the seed and
    the epoch, so an interrupted epoch goes on at its next batch.

    Args:
        x: Inputs: an array whose first axis is the samples, or a dict, tuple or list of such arrays.
        y: Targets, likewise; None where the model takes none.
        sample_weight: A weight for each sample, or None.
        batch_size: Samples in a batch; the last batch of an epoch may be smaller.
        shuffle: Whether each epoch has an order of its own.
        seed: Of the orders.

    Returns:
        Batches of `x`, of `(x, y)` or of `(x, y, sample_weight)`. Float arrays become Keras's float type, usually
        float32; integers stay. `data.source` tells the order.

    Raises:
        ValueError: If the arrays differ in their number of samples, there are none, or weights come without targets.

    >>> import numpy as np
    >>> data = kvision.data.arrays(np.zeros((10, 8, 8, 3)), np.arange(10), batch_size=4)
    >>> [(tuple(images.shape), labels.numpy().tolist()) for images, labels in data]
    [((4, 8, 8, 3), [4, 6, 2, 7]), ((4, 8, 8, 3), [3, 5, 9, 0]), ((2, 8, 8, 3), [8, 1])]
    """
    if y is None and sample_weight is not None:
        raise ValueError("arrays: got sample_weight without y, expected targets to weigh. Give y, or no weights.")
    sample = tuple(part for part in (x, y, sample_weight) if part is not None)
    with tf.device("CPU:0"):  # a data set reads there, and the accelerator's memory is for the model
        sample = keras.tree.map_structure(_tensor, sample)
    lengths = {None if not part.shape.rank else part.shape[0] for part in keras.tree.flatten(sample)}
    length = lengths.pop()
    if lengths or not length:
        found = sorted(str(tuple(part.shape)) for part in keras.tree.flatten(sample))
        raise ValueError(
            f"arrays: expected arrays with the same number of samples, at least 1, along their first axis: got shapes "
            f"{', '.join(found)}. Cut them to the same samples."
        )

    def taken(at):
        """The sample at an index, or the samples at several."""
        found = keras.tree.map_structure(lambda part: tf.gather(part, at), sample)
        return found if len(found) > 1 else found[0]

    taken.of_many = taken
    return Source(taken, Order(length, batch_size=batch_size, shuffle=shuffle, seed=seed)).dataset()


def _tensor(part):
    array = np.asarray(part)
    return tf.convert_to_tensor(array.astype(keras.config.floatx()) if array.dtype.kind == "f" else array)
