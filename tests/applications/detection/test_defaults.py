"""Every builder as it is called without arguments trains: at its real depth in CI, on a tiny trunk always."""

import functools
import importlib

import keras
import numpy as np
import pytest

from kvision import applications as A
from kvision.layers import BatchNormalization, GroupNormalization
from tests.applications.detection.rows import ROWS
from tests.weights.states import values

SIZE, STEPS = 96, 8
FEW = {"num_candidates": (100, 50), "num_proposals": (50, 20), "num_samples": 32, "num_anchor_samples": 64}
BUILDERS = {
    "RetinaNet": (A.RetinaNet, {}),
    "EfficientDet": (A.EfficientDetD0, {}),
    "FastRCNN": (A.FastRCNN, {"units": 64}),
    "FasterRCNN": (A.FasterRCNN, FEW),
    "MaskRCNN": (A.MaskRCNN, FEW | {"num_mask_samples": 4}),
    "CascadeRCNN": (A.CascadeRCNN, FEW),
    "MNC": (A.MNC, FEW | {"units": 64}),
    "YOLO": (A.YOLO, {"grid_size": 6}),  # 7 does not divide the small images
}


def batch(name):
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 60, (2, SIZE, SIZE, 3)).astype("float32")
    boxes = np.array([[[10, 12, 60, 70], [40, 30, 90, 60]], [[20, 5, 80, 90], [0, 0, 0, 0]]], "float32")
    targets = {"boxes": boxes, "labels": np.array([[0, 2], [1, -1]], "int32")}
    for image, (rows, labels) in enumerate(zip(boxes.astype(int), targets["labels"], strict=True)):
        for (left, top, right, bottom), label in zip(rows, labels, strict=True):
            images[image, top:bottom, left:right, max(label, 0)] += 180.0 * (label >= 0)
    if name in ("MaskRCNN", "MNC"):
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


def small(name, monkeypatch, **options):
    """A builder at its defaults, but for the depth of its backbone and the width of its neck."""
    module = importlib.import_module(getattr(A, name).__module__)
    if name == "MaskRCNN":
        module = importlib.import_module("kvision.applications.detection.faster_rcnn")
    monkeypatch.setattr(module, "ResNet50", lambda **options: A.ResNet("tiny", **options))
    return functools.partial(getattr(A, name), **{"input_shape": (SIZE, SIZE, 3), "channels": 8} | options)


ROUND_TRIPS = [
    ("RetinaNet", {}, "own.weights.h5"),
    ("RetinaNet", {"backbone_norm": "batch", "norm": "batch"}, "own.keras"),
    ("RetinaNet", {"backbone_norm": None, "norm": None}, "own.weights.h5"),
    pytest.param("RetinaNet", {"backbone_norm": "frozen_batch"}, "own.keras", marks=pytest.mark.slow),
    pytest.param("FasterRCNN", {}, "own.keras", marks=pytest.mark.slow),
    pytest.param("MaskRCNN", {}, "own.weights.h5", marks=pytest.mark.slow),
    pytest.param("FasterRCNN", {"neck": "c4", "channels": None}, "own.weights.h5", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "options", "file"), ROUND_TRIPS)
def test_a_file_of_ones_own_says_which_norms_it_has(name, options, file, monkeypatch, tmp_path, capsys):
    again = small(name, monkeypatch, **{key: value for key, value in options.items() if "norm" not in key})
    trained = small(name, monkeypatch, **options)(classes=3)
    trained.save(tmp_path / file) if file.endswith(".keras") else trained.save_weights(tmp_path / file)
    capsys.readouterr()
    same, other = again(classes=3, weights=tmp_path / file), again(classes=5, weights=tmp_path / file)
    theirs = values(trained)
    assert all(np.array_equal(theirs[path], got) for path, got in values(same).items())
    assert len(theirs) == len(values(same))
    fresh = {path for path, got in values(other).items() if theirs[path].shape != got.shape}
    assert 2 <= len(fresh) <= 6
    assert all(np.array_equal(theirs[path], got) for path, got in values(other).items() if path not in fresh)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert all(path.split("/")[0] in out for path in fresh)


REGION_PROPOSALS = {  # Ren 2015, sections 3.1.2 and 3.1.3, suppression 3.3; beta: Detectron's and torchvision's
    "proposals.assigner": {
        "matching_iou_threshold": 0.7,
        "background_iou_threshold": 0.3,
        "low_quality_matches": True,
        "positive_fraction": 0.5,
    },
    "proposals": {"nms_threshold": 0.7, "beta": 1 / 9},
}
SECOND_STAGE = {  # Lin 2017, "Feature Pyramid Networks", section 5; one regressor's scale as in the author's code
    "box_stages.0": {"beta": 1 / 9, "delta_weights": (10, 10, 5, 5), "score_threshold": 0.05, "nms_threshold": 0.5},
    "box_stages.0.assigner": {"matching_iou_threshold": 0.5, "min_background_iou": 0.0, "positive_fraction": 0.25},
}
NUMBERS = {
    "detr": {  # Carion 2020, section 3.1 and appendix A.4; no threshold: the authors' code
        "": {"no_object_weight": 0.1, "class_cost": 1, "box_cost": 5, "giou_cost": 2, "box_weight": 5}
        | {"giou_weight": 2, "auxiliary_losses": True, "score_threshold": 0},
    },
    "retinanet": {  # Lin 2017, sections 4 and 5
        "assigner": {"matching_iou_threshold": 0.5, "background_iou_threshold": 0.4, "num_samples": None},
        "decoder": {"score_threshold": 0.05, "num_candidates": 1000, "nms_threshold": 0.5, "activation": "sigmoid"},
        "": {"focal_alpha": 0.25, "focal_gamma": 2.0},
    },
    "efficientdet": {  # Tan 2020, section 5.1; the rest: the authors' code, settings of `hparams_config.py`
        "assigner": {"matching_iou_threshold": 0.5, "background_iou_threshold": None, "low_quality_matches": "single"},
        "decoder": {"num_candidates": 5000, "nms_threshold": 0.5, "candidates_of": "image", "score_threshold": 0.0},
        "": {"focal_alpha": 0.25, "focal_gamma": 1.5, "box_beta": 0.1, "box_weight": 1.25, "positives_of": "batch"},
    },
    "fast_rcnn": {  # Girshick 2015, section 2.3 and equation 3; suppression: the author's code
        "box_stages.0": {"beta": 1.0, "delta_weights": (10, 10, 5, 5), "nms_threshold": 0.3},
        "box_stages.0.assigner": {"matching_iou_threshold": 0.5, "min_background_iou": 0.1, "positive_fraction": 0.25},
    },
    "faster_rcnn": REGION_PROPOSALS | SECOND_STAGE,
    "mask_rcnn": REGION_PROPOSALS | SECOND_STAGE,
    "cascade_rcnn": REGION_PROPOSALS  # Cai 2018, section 4.1; the weights: the authors' code
    | SECOND_STAGE
    | {
        "box_stages.1": {"beta": 1 / 9, "delta_weights": (20, 20, 10, 10)},
        "box_stages.1.assigner": {"matching_iou_threshold": 0.6},
        "box_stages.2": {"beta": 1 / 9, "delta_weights": (30, 30, 15, 15)},
        "box_stages.2.assigner": {"matching_iou_threshold": 0.7},
        "": {"stage_weights": (1.0, 0.5, 0.25)},
    },
    "mnc": REGION_PROPOSALS  # Dai 2016, sections 3 to 6; the fraction of positives: the authors' code
    | {
        "": {"matching_mask_iou": 0.5, "beta": 1.0, "delta_weights": (10, 10, 5, 5), "nms_threshold": 0.3}
        | {"voting_iou_threshold": 0.5},
        "proposals": REGION_PROPOSALS["proposals"] | {"box_gradient": 1 / 512},
        "assigner": {"matching_iou_threshold": 0.5, "min_background_iou": 0.0, "positive_fraction": 0.3},
    },
    "yolo": {"": {"coordinate_weight": 5.0, "no_object_weight": 0.5, "nms_threshold": 0.5}},  # equation 3; darknet
}


@pytest.mark.parametrize("name", NUMBERS)
def test_the_numbers_are_those_of_the_papers(name):
    """Training goes on with others too, only worse: no test of losses would tell."""
    with keras.StatelessScope(initialize_variables=False):
        head = next(row for row in ROWS if row.name == name).tiny().head
    for place, numbers in NUMBERS[name].items():
        part = head
        for step in filter(None, place.split(".")):
            part = part[int(step)] if step.isdigit() else getattr(part, step)
        assert {number: getattr(part, number) for number in numbers} == numbers, place


@pytest.mark.parametrize("builder", [A.RetinaNet, A.FasterRCNN])
def test_a_frozen_form_is_built_fresh_and_refused_in_fit_until_something_is_loaded(builder, monkeypatch):
    module = importlib.import_module(builder.__module__)
    monkeypatch.setattr(module, "ResNet50", lambda **options: A.ResNet("tiny", **options))
    model = builder(input_shape=(SIZE, SIZE, 3), classes=3, backbone_norm="frozen_batch", channels=16)
    model.compile("sgd")
    with pytest.raises(ValueError, match=rf"{model.name}: the frozen batch normalisation .*Load weights"):
        model.fit(*batch("RetinaNet"), verbose=0)
