"""Every builder as it is called without arguments trains: at its real depth in CI, on a tiny trunk always."""

import importlib

import keras
import numpy as np
import pytest

from kvision import applications as A
from kvision.layers import BatchNormalization, GroupNormalization

SIZE, STEPS = 96, 8
FEW = {"num_candidates": (100, 50), "num_proposals": (50, 20), "num_samples": 32, "num_anchor_samples": 64}
BUILDERS = {
    "RetinaNet": (A.RetinaNet, {}),
    "FastRCNN": (A.FastRCNN, {"units": 64}),
    "FastRCNN-conv5": (A.FastRCNN, {"head": "conv5"}),
    "FasterRCNN": (A.FasterRCNN, FEW),
    "FasterRCNN-c4": (A.FasterRCNN, FEW | {"neck": "c4"}),
    "MaskRCNN": (A.MaskRCNN, FEW | {"num_mask_samples": 4}),
    "CascadeRCNN": (A.CascadeRCNN, FEW),
}


def batch(name):
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 60, (2, SIZE, SIZE, 3)).astype("float32")
    boxes = np.array([[[10, 12, 60, 70], [40, 30, 90, 60]], [[20, 5, 80, 90], [0, 0, 0, 0]]], "float32")
    targets = {"boxes": boxes, "labels": np.array([[0, 2], [1, -1]], "int32")}
    for image, (rows, labels) in enumerate(zip(boxes.astype(int), targets["labels"], strict=True)):
        for (left, top, right, bottom), label in zip(rows, labels, strict=True):
            images[image, top:bottom, left:right, max(label, 0)] += 180.0 * (label >= 0)
    if name == "MaskRCNN":
        rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
        left, top, right, bottom = (boxes[..., side, None, None] for side in range(4))
        inside = (columns > left) & (columns < right) & (rows > top) & (rows < bottom)
        targets["masks"] = inside.astype("uint8")
    if name.startswith("FastRCNN"):
        shifts = np.array([[0, 0, 0, 0], [-4, 3, 5, -2], [9, -8, 20, 10], [-20, 15, 3, 40]], "float32")
        proposals = np.clip(np.concatenate([boxes + shift for shift in shifts], axis=1), 0, SIZE)
        images = {"images": images, "proposals": proposals}
    return images, targets


def losses_of(name, **options):
    builder, own = BUILDERS[name]
    model = builder(input_shape=(SIZE, SIZE, 3), classes=3, **own | options)
    rate = 0.001 if name == "FastRCNN" else 0.01  # its docstring's; two images a batch need the gradient clipped
    model.compile(keras.optimizers.SGD(rate, momentum=0.9, global_clipnorm=1.0))
    x, targets = batch(name)
    losses = model.fit(x, targets, batch_size=2, epochs=STEPS if rate > 0.001 else 3 * STEPS, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    return model, losses


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_the_bare_default_trains_at_its_real_depth(name):
    _, losses = losses_of(name)
    assert min(losses[-3:]) < 0.9 * losses[0]  # a second stage's sample is drawn anew and finds more positives
    assert max(losses) < 1.5 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["RetinaNet", "FasterRCNN"])
def test_the_bare_default_trains(name, monkeypatch):
    module = importlib.import_module(BUILDERS[name][0].__module__)
    monkeypatch.setattr(module, "ResNet50", lambda **options: A.VGG("tiny", **options))
    model, losses = losses_of(name, channels=16)
    assert min(losses[-3:]) < 0.9 * losses[0]
    layers = list(model._flatten_layers())
    assert not any(isinstance(layer, BatchNormalization) for layer in layers)
    assert any(isinstance(layer, GroupNormalization) for layer in model.trunk.get_layer("vgg_tiny").layers)


def test_weights_of_a_detector_from_scratch_need_its_norms_again(monkeypatch, tmp_path):
    monkeypatch.setattr("kvision.applications.detection.retinanet.ResNet50", lambda **options: A.VGG("tiny", **options))
    shape = {"input_shape": (SIZE, SIZE, 3), "classes": 3, "channels": 8}
    trained = A.RetinaNet(**shape)
    trained.save_weights(tmp_path / "own.weights.h5")
    with pytest.raises(
        ValueError, match=r'nothing was changed(.|\n)*pass backbone_norm="group" and norm="group" again'
    ):
        A.RetinaNet(**shape, weights=tmp_path / "own.weights.h5")
    again = A.RetinaNet(**shape, weights=tmp_path / "own.weights.h5", backbone_norm="group", norm="group")
    for ours, theirs in zip(again.weights, trained.weights, strict=True):
        assert np.array_equal(keras.ops.convert_to_numpy(ours), keras.ops.convert_to_numpy(theirs))


@pytest.mark.parametrize("builder", [A.RetinaNet, A.FasterRCNN])
def test_a_frozen_form_is_built_fresh_and_refused_in_fit_until_something_is_loaded(builder, monkeypatch):
    module = importlib.import_module(builder.__module__)
    monkeypatch.setattr(module, "ResNet50", lambda **options: A.ResNet("tiny", **options))
    model = builder(input_shape=(SIZE, SIZE, 3), classes=3, backbone_norm="frozen_batch", channels=16)
    model.compile("sgd")
    with pytest.raises(ValueError, match=rf"{model.name}: the frozen batch normalisation .*Load weights"):
        model.fit(*batch("RetinaNet"), verbose=0)
