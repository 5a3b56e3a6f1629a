"""Whatever the boxes, those that come out of an augmentation are finite, inside, and at least a pixel wide and high."""

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies

from kvision import data
from tests.data.augmentation.samples import GEOMETRIC, NUM_ROWS, SIZE, image, masks_of, name_of

pytestmark = [pytest.mark.tensorflow_only, pytest.mark.slow]

IMAGE = image()
MIXING = [data.MixUp(), data.CutMix(), data.Mosaic(), data.CopyPaste()]
OTHERS = [data.RandomErasing(rate=1.0), data.PhotometricDistortion()]


@strategies.composite
def targets(draw):
    """Targets of an image with padding or without, and up to as many boxes as there are rows."""
    height, width = draw(strategies.integers(8, SIZE[0])), draw(strategies.integers(8, SIZE[1]))
    boxes, labels = np.zeros((NUM_ROWS, 4), "float32"), np.full(NUM_ROWS, -1, "int32")
    for row in range(draw(strategies.integers(0, NUM_ROWS))):
        for axis, side in enumerate((width, height)):
            first = np.float32(draw(strategies.floats(0, side - 1, width=32)))
            last = draw(strategies.floats(float(min(first + np.float32(1.01), side)), side, width=32))
            boxes[row, axis::2] = first, max(last, first + 1)
        labels[row] = row
    return {"boxes": boxes, "labels": labels, "image_size": np.array([height, width], "int32")}


@pytest.fixture(scope="module")
def graphs():
    """Each transform in a graph, traced once."""
    return {}


def run(graphs, transform, own, other, seed):
    if transform not in graphs:

        def change(own, other, seed):
            partners = [(IMAGE, other)] * getattr(transform, "num_partners", 0)
            return transform((IMAGE, own), seed, *([lambda: partners] if partners else []))

        graphs[transform] = tf.function(change, autograph=False)
    if isinstance(transform, data.CopyPaste):
        own, other = (made | {"masks": masks_of(made["boxes"])} for made in (own, other))
    own, other = (tf.nest.map_structure(tf.constant, value) for value in (own, other))
    return tf.nest.map_structure(lambda tensor: tensor.numpy(), graphs[transform](own, other, tf.constant(seed)))


@pytest.mark.parametrize("transform", [*GEOMETRIC, *MIXING, *OTHERS], ids=name_of)
@hypothesis.settings(max_examples=40, deadline=None, derandomize=True, database=None)
@hypothesis.given(
    own=targets(), other=targets(), seed=strategies.tuples(strategies.integers(0, 2**31), strategies.integers(0, 2**31))
)
def test_boxes_are_finite_inside_and_a_pixel_large(graphs, transform, own, other, seed):
    pixels, made = run(graphs, transform, own, other, seed)
    assert np.isfinite(pixels).all()
    real = made["labels"] >= 0
    boxes, (height, width) = made["boxes"][real], made["image_size"]
    assert np.isfinite(made["boxes"]).all()
    assert not made["boxes"][~real].any()
    assert (boxes >= 0).all() and (boxes <= [width, height, width, height]).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= 0.99).all()
    assert 0 < height <= pixels.shape[0] and 0 < width <= pixels.shape[1]
