"""Detections of mirrored and resized images, mapped back and merged: against a slow twin, and the law of flips."""

import functools

import keras
import numpy as np
import pytest
from keras import layers, ops
from PIL import Image

from kvision import test_time
from kvision.applications import VGG, RetinaNet
from kvision.detection.detector import Detector
from kvision.detection.proposals import GivenProposals
from kvision.ops import area_xyxy, clip_xyxy
from kvision.part import Part
from tests.applications.detection.rows import ROWS
from tests.ops.test_fusion import fuse_twin
from tests.ops.test_nms import nms_twin
from tests.support import assert_close

CANVAS, STRIDE, OUTPUTS = (32, 40), 4, 12


@keras.saving.register_keras_serializable("kvision_tests")
class CellHead(Part):
    """A box, a score, a label and a mask of each cell, at no symmetric place."""

    loss_names = ()
    classes = 2

    def __init__(self, masks=False, **options):
        super().__init__(**options)
        self.masks = masks
        self.complete()

    def check(self, x, y):
        """Nothing."""

    def losses(self, features, targets, training=None):
        return {}

    def decode(self, features):
        cells = features["cells"]
        rows, columns = cells.shape[1:3]
        y, x = np.mgrid[:rows, :columns] * STRIDE + STRIDE / 2
        centres = np.stack([x, y, x, y], axis=-1).astype("float32")
        sides = ops.exp(ops.tanh(cells[..., :4])) * np.array([-5, -5, 5, 5], "float32")
        boxes = ops.reshape(centres + sides, (-1, rows * columns, 4))
        boxes = clip_xyxy(boxes, features.get("image_size", CANVAS))
        scores = ops.reshape(ops.sigmoid(4 * cells[..., 4]), (-1, rows * columns))
        scores, best = ops.top_k(ops.where(area_xyxy(boxes) > 1, scores, 0.0), k=OUTPUTS)
        labels = ops.cast(ops.reshape(cells[..., 5], (-1, rows * columns)) > 0, "int32")
        found = {
            "boxes": ops.take_along_axis(boxes, best[..., None], axis=1),
            "scores": scores,
            "labels": ops.where(scores > 0, ops.take_along_axis(labels, best, axis=1), -1),
        }
        if self.masks:
            ramp = ops.linspace(0.0, 1.0, 28)
            found["box_masks"] = found["scores"][..., None, None] * (ramp[:, None] + 2 * ramp)
        return found


@functools.cache
def detector(masks=False):
    """One for all tests: its compiled functions are dear."""
    images = keras.Input((*CANVAS, 3))
    kernel = keras.initializers.RandomNormal(stddev=0.05, seed=3)
    cells = layers.Conv2D(6, 7, STRIDE, "same", kernel_initializer=kernel)(layers.Rescaling(1 / 64, -2.0)(images))
    return Detector(keras.Model(images, {"cells": cells}), CellHead(masks))


def batch(size, rows=2, valid=None):
    coarse = np.random.default_rng(0).integers(0, 256, (rows, 6, 7, 3))
    coarse = coarse[:, np.arange(size[0]) * 6 // size[0]][:, :, np.arange(size[1]) * 7 // size[1]].astype("float32")
    for image, (height, width) in zip(coarse, valid or (), strict=valid is not None):
        image[height:] = image[:, width:] = 0
    return coarse


def mirrored(images, valid):
    """Left and right change places; padding stays."""
    images = images.copy()
    for image, (_, width) in zip(images, valid, strict=True):
        image[:, :width] = image[:, :width][:, ::-1]
    return images


def slow(model, images, valid, sizes, flips, merge):
    """The definition: each view by NumPy and pillow, mapped back, and merged box by box. Rows of each image."""
    found = [[] for _ in images]
    for size in sizes:
        factors = np.array(size) / images.shape[1:3]
        for flipped in (False, True)[: 1 + flips]:
            views = np.zeros((len(images), *CANVAS, 3), "float32")
            for view, image in zip(views, mirrored(images, valid) if flipped else images, strict=True):
                for channel in range(3):
                    pixels = Image.fromarray(np.ascontiguousarray(image[..., channel]))
                    pixels = pixels.resize(size[::-1], Image.Resampling.BILINEAR)
                    view[: size[0], : size[1], channel] = pixels
            inputs = {"images": views, "image_size": (np.array(valid) * factors).astype("float32")}
            rows = model.predict(inputs, verbose=0)
            for index, (_, width) in enumerate(valid):
                for box, score, label in zip(
                    *(rows[name][index] for name in ("boxes", "scores", "labels")), strict=True
                ):
                    box = box / np.tile(factors[::-1], 2)
                    box = [width - box[2], box[1], width - box[0], box[3]] if flipped else box
                    found[index] += [(box, score, label)] if label >= 0 else []
    merged = []
    for image in found:
        boxes, scores, labels = (np.array([row[part] for row in image]) for part in range(3))
        if merge == "nms":
            kept = nms_twin(boxes, scores, 0.55, OUTPUTS, labels)
            merged.append((boxes[kept], scores[kept], labels[kept]))
        else:
            rows = fuse_twin(boxes, scores, labels, 0.55, len(sizes) * (1 + flips))[:OUTPUTS]
            merged.append([np.array([row[part] for row in rows]) for part in range(3)])
    return merged


def by_score(found):
    """Rows of each image by falling score, and of equal scores from left to right."""
    for index, scores in enumerate(found["scores"]):
        order = np.lexsort((found["boxes"][index, :, 0], -scores.round(4)))
        yield {name: rows[index, order] for name, rows in found.items()}


PADDED = [(20, 29), (24, 32)]  # of images of 24 x 32
ROWS_OF_VIEWS = [
    # merge, image_size, scales, their sizes, flips, image_size of each
    pytest.param("nms", CANVAS, (1.0,), [CANVAS], True, None, id="flips"),
    pytest.param("fusion", (24, 32), (1.0, 1.25), [(24, 32), (30, 40)], False, None, id="scales"),
    pytest.param("fusion", (24, 32), (1.25, 0.8), [(30, 40), (19, 26)], True, PADDED, id="padded"),
    pytest.param(
        "nms", (24, 32), (1.25, 0.8), [(30, 40), (19, 26)], True, PADDED, id="padded-nms", marks=pytest.mark.slow
    ),
]


@pytest.mark.parametrize("merge, image_size, scales, sizes, flips, valid", ROWS_OF_VIEWS)
def test_it_is_each_view_mapped_back_and_merged(merge, image_size, scales, sizes, flips, valid):
    model, images = detector(), batch(image_size, valid=valid)
    average = test_time.TestTimeDetection(model, flips, scales, merge, image_size=image_size)
    inputs = images if valid is None else {"images": images, "image_size": np.array(valid, "int32")}
    got = average.predict(inputs, verbose=0)
    assert average.num_views == len(sizes) * (1 + flips)
    assert {name: rows.shape for name, rows in got.items()} == {
        "boxes": (2, OUTPUTS, 4),
        "scores": (2, OUTPUTS),
        "labels": (2, OUTPUTS),
    }
    for index, want in enumerate(slow(model, images, valid or [image_size] * 2, sizes, flips, merge)):
        count = len(want[1])
        assert count > 5
        for name, rows in zip(("boxes", "scores", "labels"), want, strict=True):
            assert_close(got[name][index, :count], rows, tolerance=(1e-4, 1e-3))  # pillow's pixels, through exp
        assert (got["labels"][index, count:] == -1).all()


@pytest.mark.parametrize("merge", ["nms", "fusion"])
def test_a_flipped_image_gives_flipped_boxes_and_masks(merge):
    """The detector alone does not."""
    model, images = detector(masks=True), batch((24, 32), valid=PADDED)
    average = test_time.TestTimeDetection(model, True, (1.0, 1.25), merge, image_size=(24, 32))
    sizes = np.array(PADDED, "int32")
    straight = average.predict({"images": images, "image_size": sizes}, verbose=0)
    turned = average.predict({"images": mirrored(images, PADDED), "image_size": sizes}, verbose=0)
    left, top, right, bottom = np.moveaxis(straight["boxes"], -1, 0)
    width = np.where(straight["labels"] >= 0, sizes[:, 1:], 0)
    flipped = {"boxes": np.stack([width - right, top, width - left, bottom], -1)}
    flipped |= {"box_masks": straight["box_masks"][..., ::-1]}
    for got, want in zip(by_score(turned), by_score(straight | flipped), strict=True):
        for name in got:
            assert_close(got[name], want[name], tolerance=(1e-4, 1e-3))  # pixels of 40
    assert straight["box_masks"].shape == (2, OUTPUTS, 28, 28) and straight["box_masks"].any()
    alone = [model.predict(view, verbose=0)["scores"] for view in (batch(CANVAS), batch(CANVAS)[:, :, ::-1])]
    assert np.abs(alone[0] - alone[1]).max() > 1e-2


@pytest.mark.parametrize("merge", ["nms", "fusion"])
def test_padding_is_no_detection(merge):
    average = test_time.TestTimeDetection(detector(), merge=merge)
    sizes = np.array([[3, 5], [32, 40]], "int32")  # few boxes have an area there
    found = average({"images": batch(CANVAS), "image_size": sizes})
    found = {name: ops.convert_to_numpy(rows) for name, rows in found.items()}
    padding = found["labels"] < 0
    assert 0 < (~padding[0]).sum() < OUTPUTS
    assert not found["scores"][padding].any() and not found["boxes"][padding].any()
    assert (found["scores"][~padding] > 0).all()


def test_it_is_saved_with_its_options(tmp_path):
    average = test_time.TestTimeDetection(detector(), scales=(1.0, 0.75), merge="nms", merge_iou_threshold=0.4)
    average.compile()
    average.save(tmp_path / "average.keras")
    loaded = keras.saving.load_model(tmp_path / "average.keras")
    assert (loaded.scales, loaded.merge, loaded.merge_iou_threshold) == ((1.0, 0.75), "nms", 0.4)
    assert loaded.get_config().keys() == average.get_config().keys()
    want = average(batch(CANVAS))
    for name, rows in loaded(batch(CANVAS)).items():
        assert_close(rows, want[name], tolerance=(0, 0))


@pytest.mark.slow
@pytest.mark.parametrize("merge", ["nms", "fusion"])
def test_it_compiles_with_xla(merge):
    average = test_time.TestTimeDetection(detector(masks=True), scales=(1.0, 0.75), merge=merge)
    images = {"images": batch(CANVAS), "image_size": np.array([[32, 40], [32, 31]], "int32")}
    want = average.predict(images, verbose=0)
    average.compile(jit_compile=True)
    for name, rows in average.predict(images, verbose=0).items():
        assert_close(rows, want[name], tolerance=(1e-4, 1e-3))  # XLA's sums, in pixels of 40


@pytest.mark.slow
@pytest.mark.tensorflow_only
def test_the_exported_model_gives_the_same(tmp_path):
    average = test_time.TestTimeDetection(detector())
    average.export(tmp_path / "exported", verbose=False)
    served = layers.TFSMLayer(tmp_path / "exported", call_endpoint="serve")(batch(CANVAS))
    for name, rows in average.predict(batch(CANVAS), verbose=0).items():
        assert_close(served[name], rows, tolerance=(1e-4, 1e-3))  # pixels of 40


@pytest.mark.slow
def test_masks_of_a_real_detector():
    (row,) = [row for row in ROWS if row.name == "mask_rcnn"]
    model = row.tiny()
    model.head.score_threshold = 0.0
    images = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype("float32")
    average = test_time.TestTimeDetection(model, merge="nms")
    straight, turned = (average(view) for view in (images, images[:, :, ::-1]))  # traced, it would be dear
    assert straight.keys() == {"boxes", "scores", "labels", "box_masks"}
    assert_close(np.sort(turned["scores"]), np.sort(straight["scores"]))
    assert np.any(straight["labels"] >= 0)


def retinanet(side):
    backbone = VGG("tiny", include_top=False, input_shape=(side, side, 3), features=("C3", "C4", "C5"))
    options = {"classes": 2, "channels": 8, "norm": None, "num_detections": 10, "score_threshold": 0.0}
    return RetinaNet(input_shape=(side, side, 3), backbone=backbone, preprocess=None, **options)


@pytest.mark.slow
def test_weights_fit_a_detector_of_larger_images():
    images = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype("float32")
    smaller, larger = retinanet(64), retinanet(96)
    larger.set_weights(smaller.get_weights())
    average = test_time.TestTimeDetection(larger, flips=False, scales=(1.0, 1.5), image_size=(64, 64))
    boxes = average(images)["boxes"]
    assert boxes.shape == (1, 10, 4)
    assert np.min(boxes) > -1e-3 and np.max(boxes) < 64 + 1e-3


def of(*arguments, make=detector, **options):
    return lambda: test_time.TestTimeDetection(make(), *arguments, **options)


def features_only():
    return Detector(None, CellHead())


def given_proposals():
    model = Detector(detector().trunk, CellHead())
    model.head.proposals = GivenProposals(CANVAS)
    return model


@pytest.mark.parametrize(
    "make, message",
    [
        (of(scales=(1.25,)), r"scales \(1.25,\) become \[\(40, 50\)\].*fit into the detector's input \(32, 40\)"),
        (of(scales=(0.0,)), "fit into"),
        (of(scales=()), "fit into"),
        (of(image_size=(33, 32)), "fit into"),
        (of(image_size=(24.0, 32.0)), "whole pixels"),
        (of(scales=(1.0, 1.001)), "each its own"),
        (of(flips=False), "two views or more"),
        (of(merge="mean"), "Unknown merge: got 'mean'"),
        (of(merge_iou_threshold=2), "got 2"),
        (of(make=features_only), "is given features or proposals"),
        (of(make=given_proposals), "is given features or proposals"),
        (of(make=lambda: keras.Sequential([keras.Input((8, 8, 3))])), "Classifiers are for TestTimeAverage"),
    ],
)
def test_what_cannot_be_merged_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda model: model.fit(batch(CANVAS)), "is not trained"),
        (lambda model: model.evaluate(batch(CANVAS)), "COCOAveragePrecision"),
        (lambda model: model.compile(loss="mse"), "no loss and no metrics"),
        (lambda model: model.compile(optimizer="sgd"), "without an optimizer"),
        (lambda model: model({"images": batch(CANVAS), "proposals": np.zeros((2, 3, 4))}), "got .*'proposals'"),
        (lambda model: model(batch((24, 32))), r"takes images \[b, 32, 40, 3\]"),
    ],
)
def test_what_it_does_not_do_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(test_time.TestTimeDetection(detector()))
