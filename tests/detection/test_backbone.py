"""A detector's backbone: levels, strides, preprocessing, what `"auto"` means, and how the pyramid starts."""

import keras
import numpy as np
import pytest

from kvision import applications as A
from kvision.applications.classification import imagenet
from kvision.detection.backbone import backbone_maps, backbone_preprocessing, choose_norms, split_at_c4
from kvision.layers import BatchNormalization, GroupNormalization
from tests.applications.detection.rows import SHAPE, tiny_backbone
from tests.support import assert_close


def norms(**options):
    given = {"backbone": None, "weights": None, "backbone_norm": "auto", "norm": "auto", "initializer": "auto"}
    return choose_norms("Net", **given | options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ("group", "group", "he")),
        ({"weights": "coco"}, ("frozen_batch", None, "lecun_uniform")),
        ({"backbone": object()}, ("frozen_batch", None, "lecun_uniform")),
        ({"backbone_norm": "frozen_batch"}, ("frozen_batch", None, "lecun_uniform")),
        ({"norm": None}, ("group", None, "he")),
        ({"norm": "sync_batch", "weights": "coco"}, ("frozen_batch", "sync_batch", "lecun_uniform")),
        ({"backbone": object(), "norm": "group", "initializer": "he"}, ("frozen_batch", "group", "he")),
        ({"backbone_norm": None}, (None, "group", "he")),
        ({"batch_norms": True}, ("group", "group", "he")),
        ({"batch_norms": True, "weights": "coco"}, ("frozen_batch", "frozen_batch", "lecun_uniform")),
        ({"batch_norms": True, "backbone": object()}, ("frozen_batch", "group", "lecun_uniform")),
        ({"batch_norms": True, "backbone_norm": "frozen_batch"}, ("frozen_batch", "frozen_batch", "lecun_uniform")),
        ({"batch_norms": True, "norm": "batch"}, ("group", "batch", "he")),
    ],
)
def test_auto_is_frozen_where_weights_are_loaded_and_trains_otherwise(options, expected):
    chosen = norms(**options)
    assert (chosen.backbone, chosen.inner, chosen.initializer) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "grup"}, "Unknown norm of Net: got 'grup'.*'group'"),
        ({"norm": "frozen_batch"}, "would freeze neck and heads at their initial statistics"),
        ({"backbone_norm": "batsh"}, "Unknown backbone_norm of Net: got 'batsh'"),
        ({"backbone_norm": "group", "backbone": object()}, "Leave one of the two out"),
    ],
)
def test_norms_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        norms(**options)


def test_a_backbone_says_how_its_images_are_prepared():
    backbone = tiny_backbone("C4")
    assert backbone_preprocessing("Net", backbone, "auto", abs) is imagenet.preprocess_input
    assert backbone_preprocessing("Net", backbone, None, abs) is None
    assert backbone_preprocessing("Net", backbone, max, abs) is max
    assert backbone_preprocessing("Net", None, "auto", abs) is abs
    with pytest.raises(ValueError, match=r"Net: 'silent' does not say how its images are prepared. Pass preprocess="):
        backbone_preprocessing("Net", keras.Sequential(name="silent"), "auto", abs)
    with pytest.raises(ValueError, match="is a function of images in 0…255, None or 'auto': got 'imagenet'"):
        backbone_preprocessing("Net", None, "imagenet", abs)


def maps_of(sizes, image_size=(100, 72)):
    images = keras.Input((*image_size, 3))
    maps = {
        level: keras.layers.Resizing(*size, name=level)(keras.layers.Conv2D(2, 1)(images))
        for level, size in sizes.items()
    }
    return backbone_maps("Net", keras.Model(images, maps), tuple(sizes), keras.Input((*image_size, 3)))


@pytest.mark.parametrize("sizes", [{"C3": (13, 9), "C4": (7, 5)}, {"C3": (12, 9), "C4": (6, 4)}, {"C3": (14, 10)}])
def test_a_level_may_be_rounded_either_way(sizes):
    assert {level: tuple(x.shape[1:3]) for level, x in maps_of(sizes).items()} == sizes


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"C3": (7, 5)}, r"level C3 has stride 8.*about \(13, 9\) cells: the backbone's C3 has \(7, 5\)"),
        ({"C3": (13, 9), "C4": (7, 9)}, r"level C4 has stride 16"),
    ],
)
def test_a_level_of_another_stride_is_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        maps_of(sizes)


@pytest.mark.parametrize("builder", [A.FasterRCNN, A.MaskRCNN, A.CascadeRCNN, A.RetinaNet])
@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (lambda: tiny_backbone("C3", "C4"), r"needs a backbone that returns .*: got \['C3', 'C4'\]"),
        (lambda: A.ResNet("tiny", input_shape=SHAPE), r"got Functional.*features|got Network.*features"),
        (lambda: keras.Sequential(), "got Sequential"),
        (lambda: tiny_backbone("C2", "C3", "C4", "C5"), r"input_shape=\(128, 128, 3\), its backbone \(64, 64, 3\)"),
    ],
)
def test_a_backbone_that_does_not_fit_is_refused_by_the_builder_that_was_called(builder, backbone, message):
    with pytest.raises(ValueError, match=f"^{builder.__name__}.*{message}"):
        builder(input_shape=(128, 128, 3), classes=3, backbone=backbone(), preprocess=None)


@pytest.mark.parametrize("builder", [A.FasterRCNN, A.RetinaNet])
@pytest.mark.parametrize(("initializer", "gain"), [("he", 2), ("auto", 1)])
def test_the_pyramid_starts_as_asked(builder, initializer, gain):
    backbone = tiny_backbone("C2", "C3", "C4", "C5")
    model = builder(input_shape=SHAPE, classes=3, backbone=backbone, initializer=initializer, channels=64)
    kernels = [
        keras.ops.convert_to_numpy(weight)
        for weight in model.trunk.get_layer("backbone.fpn").weights
        if weight.name == "kernel"
    ]
    assert len(kernels) == 8
    for kernel in kernels:
        assert_close(np.var(kernel) * np.prod(kernel.shape[:-1]), gain, tolerance=(0.1, 0))


def kinds(part):
    layers = list(part._flatten_layers())
    batch = sum(isinstance(layer, BatchNormalization) for layer in layers)
    return batch, sum(isinstance(layer, GroupNormalization) for layer in layers)


@pytest.mark.parametrize(
    ("norm", "in_neck", "in_head"), [("group", (0, 8), (0, 4)), ("sync_batch", (8, 0), (4, 0)), (None, (0, 0), (0, 0))]
)
def test_a_norm_reaches_neck_and_head(norm, in_neck, in_head):
    backbone = tiny_backbone("C2", "C3", "C4", "C5", norm=None)
    model = A.FasterRCNN(input_shape=SHAPE, classes=3, backbone=backbone, norm=norm, channels=8)
    assert kinds(model.trunk.get_layer("backbone.fpn")) == in_neck
    assert kinds(model.head.box_stages[0].box_head) == in_head
    if norm == "sync_batch":
        assert all(layer.synchronized for layer in model._flatten_layers() if isinstance(layer, BatchNormalization))
    if norm is None:
        assert kinds(model) == (0, 0)


def test_the_last_stage_is_copied_with_its_weights():
    backbone = tiny_backbone("C4", "C5", norm="batch")
    lower, stage = split_at_c4("Net", backbone, 14)
    copied = {weight.path: weight for weight in stage.weights}
    original = [weight for weight in backbone.weights if weight.path.startswith("layer4")]
    assert len(original) > 10
    for weight in original:
        assert_close(copied[weight.path], weight)
    assert not any(weight.path.startswith("layer4") for weight in lower.weights)
    with pytest.raises(ValueError, match=r"returns C4 and C5.*got \['C4'\]"):
        split_at_c4("Net", tiny_backbone("C4"), 14)
