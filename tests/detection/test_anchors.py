"""Anchors stand where the cells of their level are, at any image size; torchvision's rule on request."""

import keras
import numpy as np
import pytest

from kvision import applications as A
from kvision.detection.anchors import Anchors, level_strides
from kvision.ops import FPN_SIZES, RETINANET_SIZES
from tests.applications.detection.rows import with_preprocessing
from tests.support import assert_close

LEVELS = ("P3", "P4", "P5", "P6", "P7")


def cells(size, level):
    return -(-size // 2**level)


@pytest.mark.parametrize("size", [32, 100, 128, 500, 513])
def test_centres_stand_at_the_stride_of_the_level(size):
    shapes = [(cells(size, level), cells(size + 9, level)) for level in range(3, 8)]
    levels = Anchors(level_strides(LEVELS), RETINANET_SIZES).boxes_xyxy((size, size + 9), shapes)
    for level, (shape, boxes) in enumerate(zip(shapes, levels, strict=True), start=3):
        centres = (boxes[:, :2] + boxes[:, 2:]).reshape(*shape, 9, 2) / 2
        stride = 2**level
        assert_close(centres[..., 0], np.broadcast_to((np.arange(shape[1]) + 0.5)[None, :, None] * stride, (*shape, 9)))
        assert_close(centres[..., 1], np.broadcast_to((np.arange(shape[0]) + 0.5)[:, None, None] * stride, (*shape, 9)))


def test_torchvisions_rule_divides_the_image_by_the_cells():
    (level,) = Anchors("torchvision", ((32,),), (1.0,)).boxes_xyxy((500, 512), [(63, 64)])
    centres = ((level[:, :2] + level[:, 2:]) / 2).reshape(63, 64, 2)
    assert centres[0, 0].tolist() == [0, 0]
    assert centres[-1, -1].tolist() == [63 * 8, 62 * 7]


def test_ratios_may_be_pairs_and_sides_unrounded():
    (level,) = Anchors((8,), ((10,),), ((1.0, 1.0), (0.7, 1.4)), rounded=False).boxes_xyxy((8, 8), [(1, 1)])
    assert_close(level[:, 2:] - level[:, :2], [[10, 10], [14, 7]])


def test_it_is_saved():
    anchors = Anchors("torchvision", FPN_SIZES, (0.5, 1.0), rounded=False)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(anchors))
    assert copy.get_config() == anchors.get_config()
    assert (copy.strides, copy.sizes, copy.num_per_cell) == ("torchvision", FPN_SIZES, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": ((8,), (16, 20))}, "each needs as many anchor sizes"),
        ({"sizes": ((), ())}, "each needs as many anchor sizes"),
        ({"ratios": ()}, "at least one ratio"),
        ({"sizes": ((8,), (0,))}, "above 0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        Anchors(**{"strides": (8, 16), "sizes": ((8,), (16,))} | options)


@pytest.mark.parametrize("size", [32, 100])
@pytest.mark.parametrize("builder", [A.FasterRCNN, A.RetinaNet])
def test_detectors_of_any_size_see_their_anchors_there(builder, size):
    shape = (size, size + 5, 3)
    backbone = A.ResNet("tiny", include_top=False, input_shape=shape, features=("C2", "C3", "C4", "C5"), norm="group")
    model = builder(input_shape=shape, classes=2, backbone=with_preprocessing(backbone), channels=8)
    levels = getattr(model.head, "proposals", model.head)._anchors
    finest = 2 if builder is A.FasterRCNN else 3
    for level, boxes in enumerate(levels, start=finest):
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        want = (cells(size + 5, level) - 0.5) * 2**level, (cells(size, level) - 0.5) * 2**level
        assert tuple(centres.max(axis=0)) == want


def test_torchvisions_weights_bring_its_rule_and_an_argument_does():
    backbone = tiny(A, "C3", "C4", "C5")
    common = {"input_shape": (64, 64, 3), "classes": 2, "backbone": backbone, "channels": 8}
    model = A.RetinaNet(anchor_strides="torchvision", **common)
    assert model.head.anchors.strides == "torchvision"
    assert A.RetinaNet(**common).head.anchors.strides == (8, 16, 32, 64, 128)
    with pytest.raises(ValueError, match="Unknown anchor_strides: got 'torch'.*'torchvision'"):
        A.RetinaNet(anchor_strides="torch", **common)


def tiny(applications, *levels):
    network = applications.ResNet("tiny", include_top=False, input_shape=(64, 64, 3), features=levels, norm="group")
    return with_preprocessing(network)
