"""The inputs of the detection rows, made by NumPy, the same for every peer. Maps are channels last."""

import harness
import numpy as np

BATCH, SIZE, BOXES, CLASSES = 2, 128 if harness.QUICK else 320, 5, 20


def regions(cells, stride, smallest, largest, count=512, channels=256):
    """A square map, boxes in pixels whose sides are spread over octaves, and a gradient for 7x7 bins of each."""
    rng = np.random.default_rng(0)
    extent = cells * stride
    sides = np.exp(rng.uniform(np.log(smallest), np.log(largest), (count, 2)))
    corners = rng.uniform(0, 1, (count, 2)) * np.maximum(extent - sides / 2, 1)
    boxes = np.concatenate([corners, np.minimum(corners + sides, extent)], axis=1)
    features, gradient = rng.normal(size=(1, cells, cells, channels)), rng.normal(size=(count, 7, 7, channels))
    return *(array.astype("float32") for array in (features, boxes, gradient)), 1 / stride


REGIONS = {
    "50x50": {"cells": 50, "stride": 16, "smallest": 32, "largest": 400},
    "200x200": {"cells": 200, "stride": 4, "smallest": 8, "largest": 224},
}


def deformable_inputs(batch=2, cells=50, channels=256):
    """Map, offsets (y, x of each of nine taps), factors of the taps, kernel, and a gradient."""
    rng = np.random.default_rng(0)
    cells_shape = (batch, cells, cells)
    arrays = (
        rng.normal(size=(*cells_shape, channels)),
        2 * rng.normal(size=(*cells_shape, 18)),
        1 / (1 + np.exp(-rng.normal(size=(*cells_shape, 9)))),
        rng.normal(size=(3, 3, channels, channels)) / 48,
        rng.normal(size=(*cells_shape, channels)),
    )
    return tuple(array.astype("float32") for array in arrays)


def overlapping_boxes(count=2000, size=800, objects=60):
    """Boxes scattered around some objects, with scores."""
    rng = np.random.default_rng(0)
    centres, sides = rng.uniform(0, size, (objects, 2)), rng.uniform(20, 250, (objects, 2))
    which = rng.integers(0, objects, count)
    centres = centres[which] + 12 * rng.normal(size=(count, 2))
    sides = sides[which] * np.exp(0.2 * rng.normal(size=(count, 2)))
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1).clip(0, size)
    return boxes.astype("float32"), rng.uniform(size=count).astype("float32")


def anchors_and_truth(num_anchors=100_000, num_boxes=50, size=800):
    """Random boxes as anchors, and as ground truth."""
    rng = np.random.default_rng(0)

    def boxes(count):
        centres = rng.uniform(0, size, (count, 2))
        sides = np.exp(rng.uniform(np.log(16), np.log(400), (count, 2)))
        return np.concatenate([centres - sides / 2, centres + sides / 2], axis=1).astype("float32")

    return boxes(num_anchors), boxes(num_boxes)


def assignment_costs(layers=6, queries=100, targets=20):
    """[layers · images, queries, targets]."""
    return np.random.default_rng(0).normal(size=(layers * BATCH, queries, targets)).astype("float32")


def batch(size=SIZE, count=BATCH):
    """Images in 0…1, boxes, labels and rectangular masks [b, n, h, w]."""
    rng = np.random.default_rng(0)
    corners, sides = rng.uniform(0, 180, (count, BOXES, 2)), rng.uniform(30, 130, (count, BOXES, 2))
    boxes = (np.concatenate([corners, corners + sides], axis=-1) * size / 320).astype("float32")
    rows, columns = np.mgrid[:size, :size]
    left, top, right, bottom = (boxes.astype("int32")[..., side, None, None] for side in range(4))
    masks = (columns >= left) & (columns < right) & (rows >= top) & (rows < bottom)
    images = rng.random((count, size, size, 3), dtype="float32")
    return images, boxes, rng.integers(0, CLASSES, (count, BOXES)).astype("int32"), masks.astype("uint8")


def photographs(count):
    """Generated photos [SIZE, SIZE, 3] uint8; the first is the image of the rows "as if trained"."""
    import photos

    rng = np.random.default_rng(0)
    return [photos.photo(rng, SIZE, SIZE) for _ in range(count)]
