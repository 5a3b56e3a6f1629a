"""Batches of detection data, in whatever form they are held."""

import keras


def detection_batches(data, batch_size=8):
    """Pairs `(images, targets)`, read as they are asked for.

    Args:
        data: A `tf.data.Dataset`, a list or a `keras.utils.PyDataset` of batches, or one tuple `(images, targets)` of
            arrays.
        batch_size: Images a batch where `data` is a tuple of arrays.

    Raises:
        ValueError: when a batch is reached that is no pair.
    """
    if isinstance(data, tuple) and len(data) == 2 and hasattr(data[1], "keys"):
        for start in range(0, len(keras.tree.flatten(data[0])[0]), batch_size):
            yield keras.tree.map_structure(lambda rows, start=start: rows[start : start + batch_size], data)
        return
    indexed = isinstance(data, keras.utils.PyDataset)
    for batch in map(data.__getitem__, range(data.num_batches)) if indexed else data:
        if not isinstance(batch, tuple | list) or len(batch) < 2:
            raise ValueError(
                f"Batches of detection data are pairs (images, targets): got {type(batch).__name__}. "
                "The readers of `kvision.data` deliver them."
            )
        yield tuple(batch[:2])
