"""What the elements of a `tf.data.Dataset` are: single images, or batches of them."""

import tensorflow as tf

CHANNELS = (1, 3, 4)  # that images have in most cases


def is_batched(who, dataset):
    """Whether a data set gives batches; the ValueError that says what was got where it gives no images.

    Args:
        who: Name of the function, for the message.
        dataset: What it was given.
    """
    if not isinstance(dataset, tf.data.Dataset):
        raise _refusal(who, type(dataset).__name__, "`kvision.data.arrays(x, y)` makes a data set of arrays.")
    images = tf.nest.flatten(dataset.element_spec)[0]
    rank = getattr(images.shape, "rank", None)
    if rank == 3 and _is_grey_batch(images, dataset.element_spec):
        remedy = "These look like batches of grey images: give them a last axis of one channel, by `images[..., None]`."
        raise _refusal(who, f"elements that begin with the shape {images.shape}", remedy)
    if rank not in (3, 4):
        remedy = "Pass what fit is given; grey images need a last axis of one channel, by `images[..., None]`."
        raise _refusal(who, f"elements that begin with the shape {images.shape}", remedy)
    return rank == 4


def _refusal(who, got, remedy):
    return ValueError(
        f"{who}: expected a tf.data.Dataset whose elements begin with an image [h, w, c] or images [b, h, w, c]: got "
        f"{got}. {remedy}"
    )


def _is_grey_batch(images, spec):
    """Whether images of three axes are [b, h, w]: the first is of no known length, or is that of the labels too."""
    first, second, last = images.shape
    if last in CHANNELS:
        return False
    labels = spec[1] if isinstance(spec, tuple) and len(spec) > 1 else None
    if isinstance(labels, tf.TensorSpec) and labels.shape.rank == 1 and labels.shape[0] == first:
        return True
    return first is None and second is not None
