"""Samples as keras-cv, KerasHub and Keras's layers make them, in the data contract."""

import tensorflow as tf

from kvision.errors import choose

# How each format of boxes becomes left, top, right, bottom; relative ones are fractions of width and height.
_CORNERS = {
    "xyxy": lambda a, b, c, d: (a, b, c, d),
    "yxyx": lambda a, b, c, d: (b, a, d, c),
    "xywh": lambda a, b, c, d: (a, b, a + c, b + d),
    "center_xywh": lambda a, b, c, d: (a - c / 2, b - d / 2, a + c / 2, b + d / 2),
    "center_yxhw": lambda a, b, c, d: (b - d / 2, a - c / 2, b + d / 2, a + c / 2),
}
FORMATS = {name: (corners, False) for name, corners in _CORNERS.items()}
FORMATS |= {f"rel_{name}": (corners, True) for name, corners in _CORNERS.items()}


def from_keras_cv(dataset, bounding_box_format, *, max_boxes=100):
    """A data set of dicts as keras-cv, KerasHub and Keras's layers take them, as batches of kvision's data contract.

    Args:
        dataset: A `tf.data.Dataset` of dicts with `"images"` and `"bounding_boxes"`, a dict of `"boxes"` and
            `"classes"` or `"labels"`, dense or ragged; optional `"segmentation_masks"` of the objects, [b, n, h, w].
            Samples or batches. Rows of class −1 are padding.
        bounding_box_format: `"xyxy"`, `"yxyx"`, `"xywh"`, `"center_xywh"`, `"center_yxhw"`, or one of these relative to
            the image, such as `"rel_xyxy"`.
        max_boxes: Rows of the targets; what is more is left out.

    Returns:
        A `tf.data.Dataset` of `(images, targets)`, which a detector's `fit` and `kvision.data.augment` take.

    Raises:
        ValueError: On an unknown format, or elements of another form.

    >>> boxes = {"boxes": [[[8.0, 4.0, 16.0, 8.0]]], "classes": [[2.0]]}
    >>> data = tf.data.Dataset.from_tensor_slices({"images": [[[[0.0] * 3] * 32] * 32], "bounding_boxes": boxes})
    >>> image, targets = next(iter(from_keras_cv(data, "xywh", max_boxes=2)))
    >>> targets["boxes"].numpy().tolist(), targets["labels"].numpy().tolist()
    ([[8.0, 4.0, 24.0, 12.0], [0.0, 0.0, 0.0, 0.0]], [2, -1])
    """
    corners, relative = choose("bounding_box_format", FORMATS, bounding_box_format)
    spec = dataset.element_spec
    if not isinstance(spec, dict) or not {"images", "bounding_boxes"} <= set(spec):
        got = sorted(spec) if isinstance(spec, dict) else type(spec).__name__
        raise ValueError(f'from_keras_cv: expected dicts with "images" and "bounding_boxes", got {got}.')
    entries = set(spec["bounding_boxes"])
    names = entries & {"classes", "labels"}
    if "boxes" not in entries or len(names) != 1:
        raise ValueError(
            f'from_keras_cv: "bounding_boxes" needs "boxes" and either "classes" or "labels", got {sorted(entries)}.'
        )
    (name,) = names
    known = {"images", "bounding_boxes", "segmentation_masks"}
    if set(spec) - known:
        raise ValueError(
            f"from_keras_cv: there is no place in the targets of a detector for {sorted(set(spec) - known)}; leave it "
            "out with `dataset.map` first."
        )

    def convert(element):
        images = _dense(element["images"], 0)
        boxes = tf.cast(_dense(element["bounding_boxes"]["boxes"], 0), tf.float32)
        labels = tf.cast(_dense(element["bounding_boxes"][name], -1), tf.int32)
        batched = images.shape.rank == 4
        boxes = tf.stack(corners(*tf.unstack(boxes, num=4, axis=-1)), axis=-1)
        if relative:
            height, width = tf.unstack(tf.cast(tf.shape(images)[-3:-1], tf.float32))
            boxes *= tf.stack([width, height, width, height])
        targets = {"boxes": tf.where(labels[..., None] >= 0, boxes, 0.0), "labels": tf.where(labels >= 0, labels, -1)}
        if "segmentation_masks" in element:
            targets["masks"] = tf.cast(_dense(element["segmentation_masks"], 0) > 0, tf.uint8)
        rows = {
            key: _rows(value, max_boxes, -1 if key == "labels" else 0, int(batched)) for key, value in targets.items()
        }
        return images, rows

    return dataset.map(convert, tf.data.AUTOTUNE)


def _dense(values, fill):
    return values.to_tensor(fill) if isinstance(values, tf.RaggedTensor) else values


def _rows(values, count, fill, axis):
    """Values cut or padded to a number of rows."""
    values = values[:, :count] if axis else values[:count]
    padding = [[0, 0]] * values.shape.rank
    padding[axis] = [0, count - tf.shape(values)[axis]]
    shape = values.shape.as_list()
    shape[axis] = count
    return tf.ensure_shape(tf.pad(values, padding, constant_values=fill), shape)
