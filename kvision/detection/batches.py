"""Batches of detection data, in whatever form they are held, and what a detector is given of them."""

import keras
import numpy as np

from kvision.batches import cut, one_pass
from kvision.detection.detector import Detector


def detection_batches(data, batch_size=8, kind="detection data"):
    """Pairs `(images, targets)`, read as they are asked for.

    Args:
        data: A `tf.data.Dataset`, a list or a `keras.utils.PyDataset` of batches, or one tuple `(images, targets)` of
            arrays.
        batch_size: Images a batch where `data` is a tuple of arrays.
        kind: What the data are, for the message; targets may be arrays instead of a dict.

    Raises:
        ValueError: when a batch is reached that is no pair.
    """
    if isinstance(data, tuple) and len(data) == 2 and (hasattr(data[1], "keys") or hasattr(data[1], "shape")):
        yield from cut(data, batch_size)
        return
    for batch in one_pass(data):
        if not isinstance(batch, tuple | list) or len(batch) < 2:
            raise ValueError(
                f"Batches of {kind} are pairs (images, targets): got {type(batch).__name__}. "
                "The readers of `kvision.data` deliver them."
            )
        yield tuple(batch[:2])


def predict_batch(model, inputs, targets):
    """The detections of a batch, as arrays; a `Detector` cuts its boxes to the targets' `image_size`, if it is there.

    Raises:
        ValueError: for a model that predicts no detections.
    """
    inputs = keras.tree.map_structure(np.asarray, inputs)
    if isinstance(model, Detector) and "image_size" in targets:
        images = inputs if hasattr(inputs, "keys") else {"images": inputs}
        inputs = {"image_size": np.asarray(targets["image_size"])} | images
    found = model.predict_on_batch(inputs)
    if not hasattr(found, "keys") or not {"boxes", "scores", "labels"} <= set(found.keys()):
        got = sorted(found) if hasattr(found, "keys") else type(found).__name__
        raise ValueError(
            f"{model.name} must predict a dict with boxes, scores and labels, as a detector does: got {got}."
        )
    count = len(targets["labels"])  # under a distribution strategy each replica predicts the whole batch
    return {name: np.asarray(values)[:count] for name, values in found.items()}
