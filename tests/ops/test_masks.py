"""Masks cut out, against a slow twin, RoIAlign, and torchvision; pasted back: test_contract.py."""

import math

import keras
import numpy as np
import pytest

from kvision.contract import paste_mask_scores
from kvision.ops import roi_align
from kvision.ops.masks import crop_masks
from tests.support import PARITY, assert_close


def random_masks(batch=2, count=3, size=(40, 52)):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 2, (batch, count, 8, 8)).astype("uint8")
    rows, columns = (np.arange(length) * 8 // length for length in size)
    return coarse[:, :, rows][:, :, :, columns]


def random_boxes(count, size=(40, 52), batch=2):
    rng = np.random.default_rng(1)
    ends = np.sort(rng.uniform(0, 1, (batch, count, 2, 2)), axis=2) * [size[1], size[0]]
    return ends.reshape(batch, count, 4).astype("float32")


def read(mask, y, x):
    """One bilinear sample; the edge is repeated for one cell, then comes nothing."""
    height, width = mask.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    down, across = y - top, x - left
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    return (mask[top, left] * (1 - across) + mask[top, right] * across) * (1 - down) + (
        mask[bottom, left] * (1 - across) + mask[bottom, right] * across
    ) * down


def cropped(mask, box, size, shift):
    """One crop, sample by sample."""
    x1, y1, x2, y2 = (float(side) - shift for side in box)
    width, height = (x2 - x1) / size, (y2 - y1) / size
    across, down = max(1, math.ceil(width)), max(1, math.ceil(height))
    crop = np.zeros((size, size))
    for row, column in np.ndindex(size, size):
        samples = [
            read(mask, y1 + (row + (i + 0.5) / down) * height, x1 + (column + (j + 0.5) / across) * width)
            for i in range(down)
            for j in range(across)
        ]
        crop[row, column] = np.mean(samples)
    return crop


@pytest.fixture(params=[1, 3], ids=["all boxes at once", "two at once"])
def in_chunks(request, monkeypatch):
    if request.param > 1:  # the last chunk is padded
        monkeypatch.setattr("kvision.ops.masks.CHUNK_CELLS", 2 * 40 * 52)


@pytest.mark.parametrize("aligned", [False, True])
def test_crops_equal_a_slow_twin(aligned, in_chunks):
    masks, boxes = random_masks(), random_boxes(5)
    matches = np.array([[0, 2, 1, 1, 0], [2, 2, 0, 1, 2]], "int32")
    got = crop_masks(masks, matches, boxes, 6, aligned=aligned)
    want = [
        [cropped(masks[i, match], box, 6, 0.5 if aligned else 0.0) for match, box in zip(*rows, strict=True)]
        for i, rows in enumerate(zip(matches, boxes, strict=True))
    ]
    assert_close(got, want, tolerance=(1e-4, 1e-4))  # positions near 50 in float32


def test_crops_of_small_boxes_equal_roi_align():
    """One sample a bin."""
    masks, boxes = random_masks(count=1), random_boxes(4)
    boxes[..., 2:] = boxes[..., :2] + np.minimum(boxes[..., 2:] - boxes[..., :2], 5.9)
    features = masks.transpose(0, 2, 3, 1).astype("float32")
    want = roi_align(features, boxes, 6, 1.0, sampling_ratio=1)[..., 0]
    got = crop_masks(masks, np.zeros((2, 4), "int32"), boxes, 6, aligned=True)
    assert_close(got, want, tolerance=(1e-4, 1e-4))


def test_a_full_mask_crops_to_ones_and_boxes_without_area_are_finite():
    boxes = np.array([[[2, 3, 30, 20], [5, 5, 5, 5], [0, 0, 0, 0]]], "float32")
    got = keras.ops.convert_to_numpy(crop_masks(np.ones((1, 1, 40, 52), "uint8"), np.zeros((1, 3), "int32"), boxes, 4))
    assert_close(got, np.ones_like(got))


def test_longer_boxes_than_the_mask_need_furthest():
    box = np.array([[[-8, -8, 24, 24]]], "float32")
    mask = random_masks(1, 1, (16, 16))
    got = crop_masks(mask, [[0]], box, 4, furthest=2.0)
    assert_close(got[0, 0], cropped(mask[0, 0], box[0, 0], 4, 0.0), tolerance=(1e-4, 1e-4))


@pytest.mark.tensorflow_only
@pytest.mark.parametrize("jit", [False, True])
def test_in_a_graph_of_unknown_batch(jit, in_chunks):
    import tensorflow as tf

    masks, boxes, matches = random_masks(), random_boxes(5), np.zeros((2, 5), "int32")

    @tf.function(
        jit_compile=jit,
        input_signature=[tf.TensorSpec((None, *array.shape[1:]), array.dtype) for array in (masks, matches, boxes)],
    )
    def crop(masks, matches, boxes):
        return crop_masks(masks, matches, boxes, 6)

    assert_close(crop(masks, matches, boxes), crop_masks(masks, matches, boxes, 6))


@pytest.mark.parity
def test_equal_torchvisions():
    import torch
    from torchvision.models.detection.roi_heads import paste_masks_in_image, project_masks_on_boxes

    masks, boxes = random_masks(1, 3, (300, 200)), random_boxes(20, (300, 200), 1)
    matches = np.random.default_rng(0).integers(0, 3, (1, 20)).astype("int32")
    tensors = [torch.from_numpy(array[0]) for array in (masks, boxes, matches)]
    want = project_masks_on_boxes(*tensors, 28)
    crops = crop_masks(masks, matches, boxes, 28)
    assert_close(crops[0], want, tolerance=PARITY)
    boxes[0, 0] = [-3.5, -2.5, 50.5, 60.5]
    boxes[0, 1] = [180, 280, 200, 300]
    want = paste_masks_in_image(want[:, None], torch.from_numpy(boxes[0]), (300, 200))[:, 0].numpy()
    got = paste_mask_scores(keras.ops.convert_to_numpy(crops)[0], boxes[0], (300, 200))
    certain = np.abs(want - 0.5) > 1e-3
    assert certain.mean() > 0.98
    assert ((got == (want >= 0.5)) | ~certain).all()


@pytest.mark.tensorflow_only
def test_no_tensor_holds_a_mask_for_every_box():
    """Masks of 512 x 512, 128 boxes: 134 MB in float32 for one image."""
    import tensorflow as tf

    specs = [
        tf.TensorSpec(shape, dtype)
        for shape, dtype in (((1, 3, 512, 512), "uint8"), ((1, 128), "int32"), ((1, 128, 4), "float32"))
    ]
    graph = tf.function(lambda *arrays: crop_masks(*arrays, 28)).get_concrete_function(*specs).graph
    operations = [*graph.get_operations()]
    for name in graph.as_graph_def().library.function:
        operations += graph._get_function(name.signature.name).graph.get_operations()
    shapes = [
        output.shape for operation in operations for output in operation.outputs if output.shape.is_fully_defined()
    ]
    assert len(shapes) > 10
    weights_of_rows = 128 * 28 * 512
    assert max(shape.num_elements() for shape in shapes) <= weights_of_rows < 128 * 512 * 512 / 10
