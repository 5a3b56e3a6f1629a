import math

import numpy as np
import pytest

from kvision import ops
from tests.support import assert_close

TORCHVISION = {"strides": "torchvision", "offset": 0.0}
P2_TO_P6 = [(200, 336), (100, 168), (50, 84), (25, 42), (13, 21)]
P3_TO_P7 = [(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)]


@pytest.mark.parametrize(
    "feature_sizes, sizes, count", [(P2_TO_P6, ops.FPN_SIZES, 268_569), (P3_TO_P7, ops.RETINANET_SIZES, 201_600)]
)
def test_published_counts(feature_sizes, sizes, count):
    levels = ops.anchors_xyxy((800, 1344), feature_sizes, sizes)
    assert sum(len(level) for level in levels) == count
    assert all(level.dtype == "float32" and level.shape[1] == 4 for level in levels)


def test_retinanet_sizes_are_thirds_of_octaves():
    assert ops.RETINANET_SIZES[0] == (32, 40, 50)
    for sizes in ops.RETINANET_SIZES:
        for third, size in enumerate(sizes):
            assert 0 <= sizes[0] * 2 ** (third / 3) - size < 1


def test_cell_anchors_worked_by_hand():
    # 128 * sqrt(2) = 181.02 and 128 / sqrt(2) = 90.51; half of each, rounded, on both sides
    widths_heights = ops.cell_anchors_xyxy((128,)) @ [[-1, 0], [0, -1], [1, 0], [0, 1]]
    assert_close(widths_heights, [[182, 90], [128, 128], [90, 182]])


def anchors_twin(image_size, feature_sizes, sizes, ratios, rule):
    anchors = []
    for (height, width), level_sizes in zip(feature_sizes, sizes, strict=True):
        for row in range(height):
            for column in range(width):
                for ratio in ratios:
                    for size in level_sizes:
                        if rule == "torchvision":
                            x, y = column * (image_size[1] // width), row * (image_size[0] // height)
                        else:
                            stride = 2 ** math.floor(math.log2(image_size[1] / width) + 0.5)
                            x, y = (column + 0.5) * stride, (row + 0.5) * stride
                        w, h = np.float32(size) / np.sqrt(np.float32(ratio)), np.float32(size) * np.sqrt(ratio)
                        anchors.append([x - round(w / 2), y - round(h / 2), x + round(w / 2), y + round(h / 2)])
    return anchors


@pytest.mark.parametrize(
    "image_size, feature_sizes, sizes, ratios",
    [
        ((64, 96), [(8, 12), (4, 6)], ((32,), (64,)), (0.5, 1.0, 2.0)),
        ((61, 95), [(8, 12), (4, 6)], ((20, 24, 31), (40, 50, 63)), (0.5, 1.0, 2.0)),
        ((33, 31), [(1, 1)], ((7, 9),), (1.0, 3.0)),
    ],
)
@pytest.mark.parametrize("rule", ["torchvision", "level"])
def test_equals_twin(image_size, feature_sizes, sizes, ratios, rule):
    options = TORCHVISION if rule == "torchvision" else {}
    levels = ops.anchors_xyxy(image_size, feature_sizes, sizes, ratios, **options)
    assert [len(level) for level in levels] == [
        h * w * len(level_sizes) * len(ratios) for (h, w), level_sizes in zip(feature_sizes, sizes, strict=True)
    ]
    assert_close(np.concatenate(levels), anchors_twin(image_size, feature_sizes, sizes, ratios, rule))


def test_neighbours_are_a_stride_apart():
    (level,) = ops.anchors_xyxy((64, 128), [(8, 16)], ((32, 40),))
    level = level.reshape(8, 16, 6, 4)
    assert_close(level[:, 1:] - level[:, :-1], np.broadcast_to([8, 0, 8, 0], (8, 15, 6, 4)))
    assert_close(level[1:] - level[:-1], np.broadcast_to([0, 8, 0, 8], (7, 16, 6, 4)))
    assert_close(level[0, 0].reshape(-1, 2, 2).mean(1), np.full((6, 2), 4.0))


def test_strides_may_be_given():
    (level,) = ops.anchors_xyxy((50, 50), [(4, 4)], ((8,),), (1.0,), strides=(10,), offset=0.0)
    assert level.reshape(4, 4, 4)[2, 1].tolist() == [6, 16, 14, 24]
    with pytest.raises(ValueError, match="a stride for every level: got 2 for 1 levels"):
        ops.anchors_xyxy((50, 50), [(4, 4)], ((8,),), strides=(10, 20))
    with pytest.raises(ValueError, match="numbers, None or 'torchvision': got 'detectron'"):
        ops.anchors_xyxy((50, 50), [(4, 4)], ((8,),), strides="detectron")


@pytest.mark.parametrize(
    "image_size, feature_sizes, message",
    [
        ((64, 64), [(8, 8)], "got 1 feature sizes, but sizes for 5 levels"),
        ((None, 64), [(8, 8)] * 5, "static shapes"),
        ((64, 64), [(8, None)] * 5, "static shapes"),
        ((64, 64), [(65, 8)] * 5, "no larger"),
    ],
)
def test_errors(image_size, feature_sizes, message):
    with pytest.raises(ValueError, match=message):
        ops.anchors_xyxy(image_size, feature_sizes)


@pytest.mark.parity
@pytest.mark.parametrize(
    "image_size, feature_sizes, sizes, ratios",
    [
        ((800, 1344), P2_TO_P6, ops.FPN_SIZES, (0.5, 1.0, 2.0)),
        ((800, 1344), P3_TO_P7, ops.RETINANET_SIZES, (0.5, 1.0, 2.0)),
        ((333, 517), [(84, 130), (42, 65), (21, 33)], ((13, 27), (45,), (99, 101, 103)), (0.3, 1.7)),
    ],
)
def test_equals_torchvision(image_size, feature_sizes, sizes, ratios):
    import torch
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.image_list import ImageList
    from torchvision.models.detection.retinanet import _default_anchorgen

    generator = AnchorGenerator(sizes, (ratios,) * len(sizes))
    images = ImageList(torch.zeros(1, 3, *image_size), [image_size])
    (want,) = generator(images, [torch.zeros(1, 1, *size) for size in feature_sizes])
    got = np.concatenate(ops.anchors_xyxy(image_size, feature_sizes, sizes, ratios, **TORCHVISION))
    np.testing.assert_array_equal(got, want.numpy())
    assert _default_anchorgen().sizes == ops.RETINANET_SIZES
