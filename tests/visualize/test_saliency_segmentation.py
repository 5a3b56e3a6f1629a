"""Segmentation by saliency on images of which the object is known, and against OpenCV itself."""

import functools

import keras
import numpy as np
import pytest

from kvision.visualize import saliency_segmentation, segment_by_saliency

layers = keras.layers
SIZE = 48


@functools.cache
def red_detector():
    """A class for how red the image is: its gradient is on red pixels, uneven, and weak elsewhere."""
    image = keras.Input((SIZE, SIZE, 3))
    redness = layers.Conv2D(1, 1, activation=keras.layers.LeakyReLU(0.02), name="red")(image)
    score = layers.Dense(2, activation="softmax", name="score")(layers.Flatten()(redness))
    model = keras.Model(image, score, name="red_detector")
    model.get_layer("red").set_weights([np.array([1.0, -0.5, -0.5]).reshape(1, 1, 3, 1) / 255, np.array([-0.2])])
    spread = np.random.default_rng(0).uniform(0.05, 1, SIZE * SIZE)
    model.get_layer("score").set_weights([np.stack([spread, -spread], axis=1) * 0.01, np.zeros(2)])
    return model


@functools.cache
def scene(high=255.0):
    """A red ellipse on a plain bluish ground, both with noise, of 0…`high`; the image and the mask of the ellipse."""
    rng = np.random.default_rng(1)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    mask = ((rows - 22) / 14) ** 2 + ((columns - 26) / 10) ** 2 <= 1
    image = np.where(mask[..., None], (190, 60, 50), (60, 70, 120)) + rng.normal(0, 8, (SIZE, SIZE, 3))
    return (image.clip(0, 255) * (high / 255)).astype("float32"), mask


def iou(mask, other):
    return (mask & other).sum() / (mask | other).sum()


def test_an_object_on_a_plain_ground():
    import cv2

    image, truth = scene()
    masks = segment_by_saliency(red_detector(), image[None], target=0)
    assert masks.shape == (1, SIZE, SIZE)
    assert masks.dtype == bool
    assert iou(masks[0], truth) > 0.97
    labels = np.full((SIZE, SIZE), cv2.GC_BGD, "uint8")
    cv2.grabCut(
        np.round(image).astype("uint8"),
        labels,
        (12, 5, 29, 35),
        np.zeros((1, 65)),
        np.zeros((1, 65)),
        5,
        cv2.GC_INIT_WITH_RECT,
    )
    assert iou(masks[0], np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))) > 0.97  # a box by hand does no better


def test_the_units_of_the_images_do_not_matter():
    image, truth = scene(0.4)
    model = keras.Sequential([keras.Input((SIZE, SIZE, 3)), layers.Rescaling(255 / 0.4), red_detector()])
    masks = segment_by_saliency(model, image[None], target=0, bounds=(0, 0.4))
    assert iou(masks[0], truth) > 0.97
    masks = segment_by_saliency(red_detector(), image[None], preprocess=lambda x: 255 / 0.4 * x, bounds=(0, 0.4))
    assert iou(masks[0], truth) > 0.97


def test_the_largest_component_is_the_object():
    image, truth = scene()
    image, small = image.copy(), np.zeros_like(truth)
    image[2:6, 2:6] = image[20:24, 24:28]
    small[2:6, 2:6] = True
    mask = segment_by_saliency(red_detector(), image[None], target=0)[0]
    assert not (mask & small).any()
    assert iou(mask, truth) > 0.97


def test_maps_of_any_technique_on_grey_images():
    image, truth = scene()
    grey = image.mean(axis=-1, keepdims=True)
    model = keras.Sequential([keras.Input((SIZE, SIZE, 1)), layers.Flatten(), layers.Dense(2)])
    saliency = truth * np.random.default_rng(3).uniform(0.5, 1, truth.shape)
    masks = segment_by_saliency(model, np.stack([grey, grey]), saliency=np.stack([saliency, saliency]), iterations=1)
    assert iou(masks[0], truth) > 0.9
    assert (masks[0] == masks[1]).all()


def test_masks_without_an_object_and_without_a_ground_are_named(caplog, monkeypatch):
    """OpenCV's cut is replaced, as which images it cannot part is its own affair."""
    image, truth = scene()
    cuts = iter([truth, np.zeros_like(truth), np.ones_like(truth), np.zeros_like(truth)])
    monkeypatch.setattr(saliency_segmentation, "_segment", lambda *_: next(cuts))
    segment_by_saliency(red_detector(), np.stack([image] * 4), target=0)
    told = [record.getMessage() for record in caplog.records if "segment_by_saliency" in record.getMessage()]
    assert len(told) == 2
    assert "no pixel of image 1, 3 is object" in told[0] and "every pixel of image 2 is object" in told[1]
    caplog.clear()
    saliency_segmentation._tell_of_empty(truth[None])
    assert not caplog.records


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"foreground": 0.2}, "0 < background < foreground < 1"),
        ({"iterations": 0}, "iterations must be a whole number"),
        ({"bounds": (0, 1)}, "bounds of the images are 0 to 1"),
        ({"target": 2}, "the classes 0 to 1: got target 2"),
        ({"target": 0, "saliency": np.ones((1, SIZE, SIZE))}, "Give one of them"),
        ({"saliency": np.ones((1, SIZE, SIZE, 3))}, r"saliency is a map for each image, \[1, 48, 48\]"),
        ({"saliency": np.ones((1, SIZE, SIZE))}, "saliency of image 0 is 1 everywhere"),
        ({"saliency": -np.ones((1, SIZE, SIZE))}, "saliency is a magnitude"),
    ],
)
def test_errors_before_work(options, message):
    with pytest.raises(ValueError, match=message):
        segment_by_saliency(red_detector(), scene()[0][None], **options)


def test_opencv_is_asked_for(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(ImportError, match=r"pip install 'kvision\[classic\]'"):
        segment_by_saliency(red_detector(), scene()[0][None])
