"""What all who read data themselves share: arrays of any structure cut into batches, and data sets read once."""

import keras


def for_arrays(function, structure):
    """`function` of each array of a structure; what is None stays so."""
    return keras.tree.map_structure(lambda array: None if array is None else function(array), structure)


def num_rows(structure):
    """Rows of arrays of any structure, by the first of them."""
    return len(keras.tree.flatten(structure)[0])


def cut(arrays, batch_size):
    """Batches of so many rows of every array of a structure, in their order; the last may have fewer.

    >>> [list(batch[0]) for batch in cut((range(5), None), 2)]
    [[0, 1], [2, 3], [4]]
    """
    for start in range(0, num_rows(arrays), batch_size):
        yield for_arrays(lambda array, start=start: array[start : start + batch_size], arrays)


def one_pass(data):
    """The batches of a data set, once, as it gives them: a `keras.utils.PyDataset` by its indices, others in turn.

    Raises:
        ValueError: On a `PyDataset` that does not know its number of batches.
    """
    if not isinstance(data, keras.utils.PyDataset):
        return iter(data)
    if data.num_batches is None:
        raise ValueError("A PyDataset needs num_batches here: got None. Pass arrays or a tf.data.Dataset.")
    return map(data.__getitem__, range(data.num_batches))
