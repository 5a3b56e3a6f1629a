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


def first_given(x, y=None):
    """`(x, y, …)` that a model is given first: arrays as they are, of a data set its first batch, `()` of an empty one.

    None of an iterator: what is read from it is lost to the training.

    >>> first_given(iter([1])), first_given([1], [2])
    (None, ([1], [2]))
    """
    if y is not None:
        return x, y
    if hasattr(x, "element_spec"):  # tf.data
        batch = next(iter(x), ())
    elif isinstance(x, keras.utils.PyDataset):
        batch = x[0] if x.num_batches is None or x.num_batches > 0 else ()
    elif x is not None and not hasattr(x, "shape") and not hasattr(x, "keys"):
        return None
    else:
        batch = (x, None)
    return tuple(batch) if isinstance(batch, tuple | list) else (batch,)
