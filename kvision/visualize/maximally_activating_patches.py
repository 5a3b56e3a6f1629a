"""The patches of a data set that excite the units of a layer most (Girshick 2014, R-CNN, section 3.1).

Girshick: "the idea is to single out a particular unit (feature) in the network and use it as if it were an object
detector in its own right": the images are ranked by its activation and the top-scoring regions are shown. There units
of pool5 are ranked after non-maximum suppression; here each image counts with its best position, unless
`distinct_images=False`.
"""

import dataclasses
import math

import numpy as np
from keras import ops

from kvision.visualize.batches import ImageStream
from kvision.visualize.logits import logit_changes
from kvision.visualize.places import find_place
from kvision.visualize.probe import Probe
from kvision.visualize.progress import progress
from kvision.visualize.receptive_field import receptive_field
from kvision.visualize.targets import check_unit

MOST_BYTES = 2 * 2**30  # of patches


@dataclasses.dataclass(frozen=True)
class ActivatingPatches:
    """What excites units most; the first of each is the highest.

    Args:
        units: [u] channels of the layer.
        values: [u, k] activations.
        image_indices: [u, k] indices of the images in the data set, in the order in which it was read.
        positions: [u, k, 2] row and column in the map, 0 where the layer has none.
        boxes_xyxy: [u, k, 4] what the position sees, in pixels, cut at the border.
        patches: [u, k, h, w, c] those pixels, in the units and the dtype of the images; beyond the border they are
            filled with the mean of the image.
    """

    units: np.ndarray
    values: np.ndarray
    image_indices: np.ndarray
    positions: np.ndarray
    boxes_xyxy: np.ndarray
    patches: np.ndarray


def maximally_activating_patches(
    model,
    data,
    layer,
    units=None,
    k=9,
    *,
    distinct_images=True,
    preprocess=None,
    batch_size=32,
    verbose=0,
):
    """The patches of a data set that excite units of a layer most: what they look for.

    Girshick 2014, section 3.1. One pass over the data; the memory is that of the patches, whatever the size of the data
    set. A unit of a map is a channel at its best position, its patch the receptive field of that position (the whole
    image where it sees all). A unit behind a ReLU whose highest value is 0 was never active, and its patches say
    nothing.

    Args:
        model: A built `keras.Model`.
        data: Images [n, h, w, c], `(images, labels)`, or a data set of batches, with labels or without.
        layer: The name of a layer at any depth, the end of its path, or the layer; `(name, call)` where it is called
            several times. At the end of a classifier logits are ranked.
        units: Channels of the layer; None: all of them.
        k: Patches of each unit, fewer where there are not so many images.
        distinct_images: Whether each image gives one patch of a unit at most. Else positions beside each other, which
            see nearly the same, fill the list.
        preprocess: A function from the images to what the model takes; None: they are that.
        batch_size: Of arrays; a data set has batches of its own.
        verbose: 1 shows a bar. Ctrl-C ends the pass and gives the best so far.

    Returns:
        An `ActivatingPatches`.

    Raises:
        ValueError: on a layer that does not exist, a unit out of range, images the model does not take, no image, and
            more than 2 GiB of patches.

    >>> network = kvision.applications.LeNet5("modern", input_shape=(32, 32, 1))
    >>> images = np.random.default_rng(0).random((8, 32, 32, 1), "float32")
    >>> found = maximally_activating_patches(network, images, "C3", units=[0, 5], k=4)
    >>> found.patches.shape, found.values.shape
    ((2, 4, 14, 14, 1), (2, 4))
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}.")
    _, place = find_place(model, layer[0] if isinstance(layer, tuple) else layer)
    is_last = any(place is owner for owner, _, _ in logit_changes(model))
    probe = Probe(model, [layer], preprocess=preprocess, logits=is_last)
    stream = ImageStream(model, data, preprocess, batch_size)
    shape = []

    def highest(look, count):
        (outputs,) = look.activations.values()
        shape[:] = outputs.shape
        chosen = _checked_units(layer, shape, units)  # at the trace, before anything is run
        outputs = outputs if units is None else ops.take(outputs, chosen, axis=-1)
        return _highest(outputs, count, k, distinct_images)

    run = probe.compute(highest)
    best, seen = None, 0
    for images, values, count, _ in progress(stream, stream.num_batches, verbose):
        if best is None:
            field = receptive_field(model, layer, images.shape[1:3])
        scores, rows, places = map(ops.convert_to_numpy, run(values, np.asarray(count, "int32")))
        best = best or _Best(_checked_units(layer, shape, units), k, tuple(shape), field, images)
        best.update(images, seen, scores, rows, places)
        seen += count
    return best.result()


def _checked_units(layer, shape, units):
    units = range(shape[-1]) if units is None else [units] if np.ndim(units) == 0 else units
    checked = [check_unit(layer, shape, unit) for unit in units]
    if not checked or any(len(unit) > 1 for unit in checked) or len(set(checked)) < len(checked):
        raise ValueError(f"units are different channels of the layer {layer!r}: got {list(units)}.")
    return np.array([unit for (unit,) in checked], "int32")


def _highest(outputs, count, k, distinct_images):
    """The highest activations of each unit in a batch: values, rows of the batch and positions, [u, up to k] each.

    Args:
        outputs: [b, …, u] of the layer.
        count: Rows that count.
    """
    rows, channels = outputs.shape[0], outputs.shape[-1]
    outputs = ops.transpose(ops.reshape(ops.cast(outputs, "float32"), (rows, -1, channels)), (2, 0, 1))
    counts = ops.arange(rows, dtype="int32")[None, :, None] < count
    outputs = ops.where(counts & ~ops.isnan(outputs), outputs, -np.inf)
    positions = outputs.shape[2]
    if distinct_images:
        values, where = ops.top_k(ops.max(outputs, axis=2), min(k, rows))
        places = ops.argmax(ops.take_along_axis(outputs, where[:, :, None], axis=1), axis=2)
        return values, where, ops.cast(places, "int32")
    flat = ops.reshape(outputs, (outputs.shape[0], rows * positions))
    values, where = ops.top_k(flat, min(k, rows * positions))
    return values, where // positions, where % positions


class _Best:
    """The best patches so far.

    Args:
        units: [u].
        k: Of each.
        shape: Of the layer's output.
        field: Its `ReceptiveField`, or None.
        images: A batch, for size and dtype.
    """

    def __init__(self, units, k, shape, field, images):
        self._units, self._map = units, shape[1:-1]
        height, width, channels = images.shape[1:]
        is_known = field is not None and len(shape) == 4 and field.rows is not None and field.columns is not None
        positions = shape[1:3] if len(shape) == 4 else (math.prod(shape[1:-1]), 1)
        self._rows, self._columns = (
            (field.rows, field.columns)
            if is_known
            else (np.tile([0, side], (n, 1)) for side, n in zip((height, width), positions, strict=True))
        )
        self._size = tuple(int((spans[:, 1] - spans[:, 0]).max()) for spans in (self._rows, self._columns))
        size = len(units) * k * math.prod(self._size) * channels * images.dtype.itemsize
        if size > MOST_BYTES:
            raise ValueError(
                f"{len(units)} units with {k} patches of {self._size[0]} x {self._size[1]} pixels take "
                f"{size / 2**30:.1f} GiB: expected at most {MOST_BYTES >> 30}. Give units=, a smaller k, or images of "
                "uint8."
            )
        self._values = np.full((len(units), k), -np.inf, "float32")
        self._indices = np.zeros((len(units), k), "int64")
        self._positions = np.zeros((len(units), k, 2), "int32")
        self._patches = np.zeros((len(units), k, *self._size, channels), images.dtype)
        self._slots = np.tile(np.arange(k), (len(units), 1))  # where the patches lie: those that stay are not moved

    def update(self, images, first, values, rows, places):
        """Take in the best of a batch, whose first image has the index `first`."""
        k = self._values.shape[1]
        width = self._map[1] if len(self._map) == 2 else 1
        positions = np.stack([places // width, places % width], axis=-1)
        order = np.argsort(-np.concatenate([self._values, values], axis=1), axis=1, kind="stable")[:, :k]
        for unit in np.flatnonzero((order >= k).any(axis=1)):
            new = order[unit] >= k
            slots = np.full(k, -1)
            slots[~new] = self._slots[unit, np.minimum(order[unit][~new], k - 1)]
            free = iter(np.setdiff1d(np.arange(k), slots[~new]))
            for rank in np.flatnonzero(new):
                slots[rank] = next(free)
                candidate = order[unit, rank] - k
                image = images[rows[unit, candidate]]
                self._patches[unit, slots[rank]] = self._patch(image, *positions[unit, candidate])
            joined = (
                np.concatenate(pair)[order[unit]]
                for pair in (
                    (self._values[unit], values[unit]),
                    (self._indices[unit], first + rows[unit]),
                    (self._positions[unit], positions[unit]),
                )
            )
            self._slots[unit] = slots
            self._values[unit], self._indices[unit], self._positions[unit] = joined

    def _patch(self, image, row, column):
        """What a position sees, with the mean of the image beyond the border."""
        patch = np.full((*self._size, image.shape[-1]), image.mean(), image.dtype)
        (top, bottom), (left, right) = self._rows[row], self._columns[column]
        y, x = (
            size - (end - start) if start == spans[:, 0].min() else 0
            for size, start, end, spans in zip(
                self._size, (top, left), (bottom, right), (self._rows, self._columns), strict=True
            )
        )
        patch[y : y + bottom - top, x : x + right - left] = image[top:bottom, left:right]
        return patch

    def result(self):
        found = int((self._values > -np.inf).sum(axis=1).min())
        rows, columns = self._positions[..., 0], self._positions[..., 1]
        boxes = np.stack(
            [self._columns[columns, 0], self._rows[rows, 0], self._columns[columns, 1], self._rows[rows, 1]], axis=-1
        )
        for patches, slots in zip(self._patches, self._slots, strict=True):
            patches[:] = patches[slots]
        kept = (slice(None), slice(found))
        return ActivatingPatches(
            self._units,
            self._values[kept],
            self._indices[kept],
            self._positions[kept],
            boxes[kept],
            self._patches[kept],
        )
