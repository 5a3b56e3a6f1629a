"""Samples of each task, and the transforms that every law is tried on."""

import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf

from kvision import data

SIZE = (64, 80)
VALID = (56, 72)
BOXES = [[10.0, 12, 30, 40], [34, 6, 66, 26], [40, 30, 52, 50]]
LABELS = [2, 0, 1]
NUM_ROWS = 6


def image(size=SIZE, valid=None, seed=0):
    """Smooth noise, black outside of the valid region."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (1, 6, 6, 3))
    pixels = tf.image.resize(coarse, size, "bilinear")[0].numpy().astype("float32")
    valid = valid or size
    pixels[valid[0] :] = 0
    pixels[:, valid[1] :] = 0
    return tf.constant(pixels)


def masks_of(boxes, size=SIZE):
    masks = np.zeros((len(boxes), *size), "uint8")
    for mask, (x1, y1, x2, y2) in zip(masks, np.asarray(boxes).astype(int), strict=True):
        mask[y1:y2, x1:x2] = 1
    return masks


def detection(boxes=BOXES, labels=LABELS, padded=False, seed=0, num_rows=NUM_ROWS):
    """A sample of the data contract; its masks are its boxes."""
    n, valid = len(boxes), VALID if padded else SIZE
    boxes = np.reshape(np.asarray(boxes, "float32"), (-1, 4))

    def rows(values, fill=0):
        values = np.asarray(values)
        made = np.full((num_rows, *values.shape[1:]), fill, values.dtype)
        made[:n] = values
        return tf.constant(made)

    corners = np.stack([boxes[:, :2] + 1, boxes[:, 2:] - 1], axis=1)
    targets = {
        "boxes": rows(boxes),
        "labels": rows(np.asarray(labels, "int32"), -1),
        "masks": rows(masks_of(boxes)),
        "box_masks": rows(np.ones((n, 28, 28), "uint8")),
        "keypoints": rows(np.concatenate([corners, np.full((n, 2, 1), 2.0)], axis=-1).astype("float32")),
        "crowd": rows(np.arange(n, dtype="int32") % 2),
        "area": rows((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])),
        "image_size": tf.constant(valid, tf.int32),
        "scale": tf.constant(1.0),
        "image_id": tf.constant(7, tf.int64),
    }
    return image(valid=valid, seed=seed), targets


GEOMETRIC = [
    data.HorizontalFlip(rate=1.0),
    pytest.param(data.VerticalFlip(rate=1.0), marks=pytest.mark.slow),
    pytest.param(data.Crop((48, 40)), marks=pytest.mark.slow),
    data.Crop((64, 80), padding=8),
    pytest.param(data.Rotation(40), marks=pytest.mark.slow),
    pytest.param(data.Translation(0.3), marks=pytest.mark.slow),
    data.Scale((0.5, 2.0)),
    pytest.param(data.Stretching(1.8), marks=pytest.mark.slow),
    pytest.param(data.Shear(15), marks=pytest.mark.slow),
    data.Affine(rotation=20, translation=0.1, scale=(0.7, 1.3), stretching=1.3, shear=8),
    data.Perspective(distortion=0.5),
    pytest.param(data.LensDistortion(strength=0.25), marks=pytest.mark.slow),
    data.Elastic(strength=0.1),
    pytest.param(data.RandomResizedCrop((48, 56), area=(0.3, 1.0)), marks=pytest.mark.slow),
    data.RandomResizedCrop((48, 56), area=(0.3, 1.0), interpolation="random"),
    data.IoUCrop(),
    pytest.param(data.ZoomOut(ratio=(1.0, 2.0)), marks=pytest.mark.slow),
    data.ScaleJitter((48, 56), scale=(0.5, 2.0)),
    pytest.param(data.RandAugment(num_operations=1), marks=pytest.mark.slow),
]
STILL = [
    data.HorizontalFlip(rate=0.0),
    pytest.param(data.VerticalFlip(rate=0.0), marks=pytest.mark.slow),
    data.Crop(SIZE),
    pytest.param(data.Affine(), marks=pytest.mark.slow),
    data.Perspective(distortion=0.0),
    pytest.param(data.LensDistortion(strength=0.0), marks=pytest.mark.slow),
    data.Elastic(strength=0.0),
    data.RandomResizedCrop(SIZE, area=(1.0, 1.0), aspect=(SIZE[1] / SIZE[0], SIZE[1] / SIZE[0])),
    pytest.param(data.ZoomOut(ratio=(1.0, 1.0)), marks=pytest.mark.slow),
    pytest.param(data.ScaleJitter(SIZE, scale=(1.0, 1.0)), marks=pytest.mark.slow),
    pytest.param(data.RandAugment(rate=0.0), marks=pytest.mark.slow),
]


def name_of(transform):
    """For the ids of tests."""
    options = ", ".join(
        f"{field.name}={getattr(transform, field.name)}"
        for field in dataclasses.fields(transform)
        if getattr(transform, field.name) != field.default
    )
    return f"{type(transform).__name__}({options})"


@functools.cache
def compiled(transform):
    """A transform in a graph, as `tf.data` runs it: (sample, seed) -> sample, in NumPy."""
    function = tf.function(transform, autograph=False)

    def run(sample, seed):
        return tf.nest.map_structure(lambda tensor: tensor.numpy(), function(sample, tf.constant(seed, tf.int64)))

    return run
