"""EfficientDet: its tables; effdet's outputs, anchors, labels, losses and detections; zeromodels' outputs."""

import importlib
import re
import zipfile

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

from examples.wheels import wheel
from kvision import applications as A
from kvision import weights
from kvision.applications.detection import coco
from kvision.applications.detection.efficientdet import VARIANTS, WEIGHTS
from kvision.ops import BACKGROUND, encode_deltas
from kvision.weights.comparison import weights_of
from kvision.weights.torch_names import torch_key
from tests.applications.detection.rows import tiny_backbone
from tests.applications.detection.test_detectors import targets_of
from tests.applications.detection.torch_reference import published
from tests.support import PARITY, assert_close

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # effdet's import

SIZE, CLASSES = 128, 5
# The second box has the centre of an anchor of P3 to the pixel, so that two of its targets are exactly 0; the third is
# one whose best anchors tie; the last two share their best anchor.
BOXES = [
    [(8, 12, 70, 90, 0), (48, 40, 72, 80, 4), (101, 101, 106, 105, 2)],
    [(30, 20, 90, 84, 1), (30, 22, 90, 84, 3)],
    [],
]


def images(count=3):
    return np.random.default_rng(0).uniform(0, 255, size=(count, SIZE, SIZE, 3)).astype("float32")


def theirs(variant, **config):
    """Effdet's network as if trained: with fresh weights nothing would be found."""
    import torch
    from effdet import EfficientDet, get_efficientdet_config
    from omegaconf import open_dict

    torch.manual_seed(0)
    settings = get_efficientdet_config(f"tf_efficientdet_{variant}")
    with open_dict(settings):
        settings.update({"image_size": (SIZE, SIZE), "num_classes": CLASSES} | config)
    model = EfficientDet(settings, pretrained_backbone=False).eval()
    generator = torch.Generator().manual_seed(0)
    for key, tensor in model.state_dict().items():
        if key.endswith("running_var") or (tensor.ndim == 1 and key.endswith("weight")):
            tensor.uniform_(0.5, 1.0, generator=generator)
        elif key.endswith("edge_weights"):
            tensor.uniform_(-0.3, 2.0, generator=generator)  # some of them are cut by the ReLU
        elif tensor.ndim == 1:
            tensor.normal_(0.0, 0.1, generator=generator)
    return model


FORMS = {
    "d0": ({}, {}),
    "d6": (
        {"fpn_channels": 24, "fpn_cell_repeats": 2, "box_class_repeats": 2},
        {"channels": 24, "cells": 2, "depth": 2},
    ),
}


def ours(variant, state, **options):
    model = A.EfficientDet(
        variant,
        input_shape=(SIZE, SIZE, 3),
        classes=CLASSES,
        backbone_norm="frozen_batch",
        norm="frozen_batch",
        **options,
    )
    return weights.load_torch(model, state, source="effdet")


def rows_of(levels, size):
    """Their maps of all levels [b, c, h, w] as rows [b, anchors, size]."""
    return np.concatenate([level.permute(0, 2, 3, 1).reshape(len(level), -1, size) for level in levels], axis=1)


def scaled_close(got, want, tolerance=PARITY):
    want = np.asarray(want)
    scale = np.abs(want).max()
    assert_close(keras.ops.convert_to_numpy(got) / scale, want / scale, tolerance=tolerance)


@pytest.fixture(scope="module", params=FORMS)
def pair(request):
    config, options = FORMS[request.param]
    reference = theirs(request.param, **config)
    return reference, ours(request.param, reference.state_dict(), **options)


def torch_images():
    import torch

    return torch.from_numpy(A.imagenet.preprocess_input(images()).transpose(0, 3, 1, 2).copy())


def torch_targets():
    """Boxes as top, left, bottom, right; labels from 1, −1 for padding."""
    import torch

    targets = targets_of(*BOXES)
    labels = np.where(targets["labels"] >= 0, targets["labels"] + 1, -1)
    return {
        "bbox": torch.from_numpy(targets["boxes"][..., [1, 0, 3, 2]].copy()),
        "cls": torch.from_numpy(labels.astype("int64")),
        "img_scale": torch.ones(len(BOXES)),
        "img_size": torch.full((len(BOXES), 2), float(SIZE)),
    }


# Of effdet's `tf_efficientdet_*`, with 90 and with 80 classes.
COUNTS = {
    "d0": (3_880_067, 3_874_217),
    "d1": (6_625_898, 6_617_888),
    "d2": (8_097_039, 8_086_869),
    "d3": (12_032_296, 12_017_806),
    "d4": (20_723_675, 20_703_425),
    "d5": (33_653_315, 33_627_305),
    "d6": (51_871_782, 51_837_132),
    "d7": (51_871_782, 51_837_132),
    "d7x": (77_147_166, 77_112_516),
}


@pytest.mark.parametrize(
    "variant", [pytest.param(variant, marks=[pytest.mark.slow] * (variant != "d0")) for variant in COUNTS]
)
def test_published_parameter_counts(variant):
    builder = getattr(A, f"EfficientDetD{variant[1:]}")
    assert f"{COUNTS[variant][1]:,} parameters" in builder.__doc__
    for classes, count in zip((90, None), COUNTS[variant], strict=True):
        with keras.StatelessScope(initialize_variables=False):
            model = builder(classes=classes, backbone_norm="batch", norm="batch")
        assert sum(np.prod(weight.shape, dtype="int64") for weight in model.trainable_weights) == count
    cells = [VARIANTS[variant]["resolution"] // 2**level for level in range(3, 3 + VARIANTS[variant]["num_levels"])]
    assert model.trunk.output["box_deltas"].shape[1:] == (9 * sum(n * n for n in cells), 4)


def tiny(**options):
    return A.EfficientDet("tiny", **{"input_shape": (64, 64, 3), "classes": 3} | options)


def test_arguments_reach_the_parts():
    options = {"matching_iou_threshold": 0.6, "focal_alpha": 0.3, "focal_gamma": 1.0, "skip_zero_targets": True}
    options |= {"score_threshold": 0.2, "num_candidates": 7, "nms_threshold": 0.4, "num_detections": 9}
    with keras.StatelessScope(initialize_variables=False):
        head = tiny(**options, huber_delta=0.2, box_weight=10.0, anchor_octaves=2, anchor_ratios=((1, 2),)).head
    for name, value in options.items():
        part = next(part for part in (head, head.assigner, head.decoder) if hasattr(part, name))
        assert getattr(part, name) == value
    assert_close((head.box_beta, head.box_weight), (0.2, 10.0 * 0.2 / 4))
    first, second = head._anchors[0][:2]
    assert_close(first, [4 - 16, 4 - 32, 4 + 16, 4 + 32])  # of the size 4 strides, once as wide and twice as high
    assert_close(second[2] - second[0], 32 * 2**0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"huber_delta": 0}, "EfficientDet: huber_delta lies above 0: got 0"),
        ({"box_weight": -1}, "a weight above 0"),
        ({"focal_alpha": 2}, "focal_alpha in 0 to 1"),
        ({"fusion": "attention"}, "Unknown fusion: got 'attention'"),
        ({"cells": 0}, "at least one cell"),
        ({"num_levels": 2}, "num_levels=2"),
        ({"norm": "layer"}, "Unknown norm of EfficientDet"),
        ({"backbone": "C3 C4"}, r"EfficientDet needs a backbone that returns C3, C4, C5: got \['C3', 'C4'\]"),
        ({"input_shape": (16, 64, 3)}, "EfficientDet: got input_shape"),
        ({"weights": "coco"}, "neither a file nor published"),
        ({"classes": None, "weights": "cocoo"}, "weights='cocoo' is neither a file nor published"),
        ({"weights": True}, "weights=True is neither a file nor published"),
        ({"input_shape": 64}, "input_shape must be .*got 64"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_are_refused(options, message):
    if "backbone" in options:
        options = {"backbone": tiny_backbone(*options["backbone"].split())}
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_unknown_variants_list_the_nearest():
    with pytest.raises(ValueError, match="Unknown EfficientDet variant: got 'D7'. The nearest names are: 'd7'"):
        A.EfficientDet("D7")


def kinds(part):
    layers = [layer for layer in part._flatten_layers() if "Normalization" in type(layer).__name__]
    return {(type(layer).__name__, getattr(layer, "frozen", None)) for layer in layers}


@pytest.mark.parametrize(
    ("options", "backbone", "inner"),
    [
        ({}, ("GroupNormalization", None), ("GroupNormalization", None)),
        ({"backbone_norm": "batch", "norm": "batch"}, *[("BatchNormalization", False)] * 2),
        ({"backbone_norm": "frozen_batch"}, *[("BatchNormalization", True)] * 2),
    ],
    ids=str,
)
def test_norms(options, backbone, inner):
    with keras.StatelessScope(initialize_variables=False):
        trunk = tiny(**options).trunk
    parts = [layer for layer in trunk.layers if not layer.name.startswith("efficientnet")]
    assert kinds(trunk.get_layer("efficientnet_tiny")) == {backbone}
    assert set().union(*map(kinds, parts)) == {inner}


def outputs_of(model):
    features = model.features(images(1)[:, :64, :64], training=False)
    return {name: keras.ops.convert_to_numpy(value) for name, value in features.items()}


def test_a_file_of_ones_own_freezes_its_statistics(tmp_path):
    trained = tiny(backbone_norm="batch", norm="batch")
    rng = np.random.default_rng(0)
    for weight in trained.weights:
        if weight.path.endswith(("moving_variance", "gamma")):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    trained.save(tmp_path / "own.keras")
    same = tiny(weights=tmp_path / "own.keras")
    assert kinds(same) == {("BatchNormalization", True)}
    got = outputs_of(same)
    for name, want in outputs_of(trained).items():
        assert_close(got[name], want)


@pytest.mark.slow
def test_published_weights_load_by_name(downloads, tmp_path, monkeypatch, capsys):
    """Their classes are the 90 ids of COCO; the labels are its 80 categories."""
    shape = (64, 64, 3)
    built = A.EfficientDetD0(input_shape=shape, classes=90, backbone_norm="frozen_batch")
    state = {}
    for layer, weight in weights_of(built):
        value = keras.ops.convert_to_numpy(weight)
        if value.ndim == 4:
            axes = (2, 3, 0, 1) if isinstance(layer, keras.layers.DepthwiseConv2D) else (3, 2, 0, 1)
            value = np.ascontiguousarray(value.transpose(axes))
        state[torch_key(weight.path, built.weight_sources.renames["effdet"])] = value
    assert {"backbone.conv_stem.weight", "fpn.cell.2.fnode.7.combine.edge_weights"} < set(state)
    assert {"class_net.conv_rep.2.conv_pw.bias", "box_net.bn_rep.0.4.bn.running_mean"} < set(state)
    save_file(state, tmp_path / "net.safetensors")
    rows = WEIGHTS["d0"]
    monkeypatch.setitem(rows, "coco", published(tmp_path, rows["coco"], tmp_path / "net.safetensors"))
    model = A.EfficientDetD0(input_shape=shape, weights="coco")
    assert model.head.classes == 80
    assert model.class_names == coco.class_names()
    assert "fresh" not in capsys.readouterr().out
    ours, theirs = outputs_of(model), outputs_of(built)
    assert_close(ours["box_deltas"], theirs["box_deltas"])
    want = theirs["class_logits"][..., [number - 1 for number in coco.CATEGORY_IDS]]
    assert_close(ours["class_logits"], want)

    other = A.EfficientDetD0(input_shape=shape, classes=3, weights="coco")
    assert "class_net.predict.conv_pw starts fresh" in capsys.readouterr().out
    assert_close(outputs_of(other)["box_deltas"], theirs["box_deltas"])
    for options in ({"norm": "group"}, {"anchor_scale": 5.0}, {"cells": 2}):
        with pytest.raises(ValueError, match=f"as it is by default, but {next(iter(options))} makes"):
            A.EfficientDetD0(input_shape=shape, weights="coco", **options)


@pytest.mark.parity
def test_the_rows_say_what_effdet_says():
    from effdet import get_efficientdet_config

    for variant, row in VARIANTS.items():
        if variant == "tiny":
            continue
        config, file = get_efficientdet_config(f"tf_efficientdet_{variant}"), WEIGHTS[variant]["coco"]
        assert f"{file.repository}/{file.file}" == config.url
        assert config.backbone_name == f"tf_efficientnet_{row['backbone']}"
        assert list(config.image_size) == [row["resolution"]] * 2
        assert (config.fpn_channels, config.fpn_cell_repeats) == (row["channels"], row["cells"])
        assert (config.box_class_repeats, config.anchor_scale) == (row["depth"], row["anchor_scale"])
        assert config.num_levels == row["num_levels"]
        assert ("sum" if config.fpn_name == "bifpn_sum" else "fast") == row["fusion"]


@pytest.mark.parity
def test_backbone_pyramid_and_outputs_equal_effdets(pair):
    import torch

    reference, model = pair
    with torch.no_grad():
        maps = reference.backbone(torch_images())
        copies = list(maps)
        levels = reference.fpn(copies)
        logits, deltas = reference(torch_images())
    trunk = model.trunk
    backbone = next(layer for layer in trunk.layers if layer.name.startswith("efficientnet"))
    inner = backbone(A.imagenet.preprocess_input(images()), training=False)
    for name, want in zip(("C3", "C4", "C5"), maps, strict=True):
        scaled_close(inner[name], want.permute(0, 2, 3, 1))
    for name, want in trunk.get_layer("fpn")(inner, training=False).items():
        scaled_close(want, levels[int(name[1:]) - 3].permute(0, 2, 3, 1))
    features = model(images(), training=False)
    scaled_close(features["class_logits"], rows_of(logits, CLASSES))
    scaled_close(features["box_deltas"], rows_of(deltas, 4)[..., [1, 0, 3, 2]])


@pytest.mark.parity
def test_anchors_and_labels_equal_effdets(pair):
    from effdet.anchors import AnchorLabeler, Anchors

    reference, model = pair
    anchors = Anchors.from_config(reference.config)
    head = model.head
    got = np.concatenate(head._anchors)
    assert_close(got, anchors.boxes[:, [1, 0, 3, 2]])
    targets, given = targets_of(*BOXES), torch_targets()
    labels, boxes, positives = AnchorLabeler(anchors, CLASSES).batch_label_anchors(given["bbox"], given["cls"])
    labels = np.concatenate([level.reshape(len(BOXES), -1) for level in labels], axis=1)
    boxes = np.concatenate([level.reshape(len(BOXES), -1, 4) for level in boxes], axis=1)
    matches = keras.ops.convert_to_numpy(head.assigner.match(got, targets))
    positive = matches > BACKGROUND
    assert positive.sum(axis=1).tolist() == positives.int().tolist()
    assert positive.sum() > 20
    rows = np.arange(len(BOXES))[:, None], np.maximum(matches, 0)
    assert np.array_equal(np.where(positive, targets["labels"][rows], -1), labels)
    deltas = keras.ops.convert_to_numpy(encode_deltas(targets["boxes"][rows], got))
    assert_close(np.where(positive[..., None], deltas, 0.0), boxes[..., [1, 0, 3, 2]])
    assert (boxes[positive] == 0).any()  # or the rule of targets of 0 would never be compared


@pytest.mark.parity
def test_losses_and_detections_equal_effdets(pair):
    import torch
    from effdet import DetBenchTrain

    reference, model = pair
    with torch.no_grad():
        want = DetBenchTrain(reference).eval()(torch_images(), torch_targets())
    model.compile("sgd")
    targets = targets_of(*BOXES)
    losses = {}
    for model.head.skip_zero_targets in (True, False):
        losses[model.head.skip_zero_targets] = model.evaluate(
            images(), targets, batch_size=3, verbose=0, return_dict=True
        )
    assert_close(losses[True]["classification_loss"], want["class_loss"].item(), tolerance=PARITY)
    assert_close(losses[True]["box_loss"], 50 * want["box_loss"].item(), tolerance=PARITY)
    assert_close(losses[True]["loss"], want["loss"].item(), tolerance=PARITY)
    assert losses[False]["box_loss"] > losses[True]["box_loss"]

    found = model.predict(images(), verbose=0)
    for image, rows in enumerate(want["detections"].numpy()):
        assert len(rows) == 100
        assert_close(found["scores"][image], rows[:, 4], tolerance=PARITY)
        same = np.abs(found["boxes"][image][:, None] - rows[:, :4]).max(-1) / SIZE
        same += found["labels"][image][:, None] + 1 != rows[:, 5]
        same += np.abs(found["scores"][image][:, None] - rows[:, 4])
        assert (same.min(axis=0) < 1e-3).mean() > 0.97  # rows of equal score at the end may be others


# From our paths after the backbone to those of zeromodels, another EfficientDet on Keras 3.
TO_ZEROMODELS = [
    (r"^fpn/resample\.3/conv\.conv/", "resample_p6/conv2d/"),
    (r"^fpn/resample\.3/conv\.bn/", "resample_p6/bn/"),
    (r"^fpn/cell\.(\d)\.fnode\.(\d)/", r"fpn_cells/cell_\1_fnode\2/"),
    (r"combine\.resample\.(\d+)/conv\.conv/", r"resample_\1/conv2d/"),
    (r"combine\.resample\.(\d+)/conv\.bn/", r"resample_\1/bn/"),
    (r"after_combine\.conv\.bn/", "bn/"),
    (r"after_combine\.conv\.", "conv/"),
    (r"^(class|box)_net\.(\d)\.1\.P(\d)/", r"\1_net/\1-\2-bn-\3/"),
    (r"^(class|box)_net\.(\d)\.0\.", r"\1_net/\1-\2/"),
    (r"^(class|box)_net\.predict\.", r"\1_net/\1-predict/"),
    (r"conv_dw/kernel$", "depthwise_kernel"),
    (r"conv_pw/kernel$", "pointwise_kernel"),
    (r"conv_pw/bias$", "bias"),
]


def as_zeromodels_paths(weights):
    """`{path there: array}` of ours; the weights of a fusion are scalars there."""
    renamed = {}
    for weight in weights:
        path, value = weight.path, keras.ops.convert_to_numpy(weight)
        for pattern, replacement in TO_ZEROMODELS:
            path = re.sub(pattern, replacement, path)
        if path.endswith("combine.edge_weights"):
            names = [path.replace("combine.edge_weights", f"WSM_{k}" if k else "WSM") for k in range(len(value))]
            renamed |= dict(zip(names, value, strict=True))
        else:
            renamed[path] = value
    return renamed


@pytest.mark.parity
def test_outputs_equal_those_of_another_network_on_keras(tmp_path, monkeypatch):
    """A second oracle, which shares neither engine nor layers with effdet: zeromodels' D0."""
    with zipfile.ZipFile(wheel("zeromodels")) as archive:
        archive.extractall(tmp_path)
    for package in ("zeromodels", "zeromodels/models"):  # which would import its 136 families
        (tmp_path / package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    theirs = importlib.import_module("zeromodels.models.efficientdet.efficientdet_model").EfficientDetModel(
        image_size=SIZE, num_classes=CLASSES
    )
    model = A.EfficientDetD0(input_shape=(SIZE, SIZE, 3), classes=CLASSES, backbone_norm="batch", norm="batch")
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if weight.path.endswith(("gamma", "moving_variance")):
            weight.assign(rng.uniform(0.5, 1.0, weight.shape))
        elif weight.path.endswith("edge_weights"):
            weight.assign(rng.uniform(-0.3, 2.0, weight.shape))
        elif len(weight.shape) == 1:
            weight.assign(rng.normal(0.0, 0.1, weight.shape))

    backbone = next(layer for layer in model.trunk.layers if layer.name.startswith("efficientnet")).weights
    rest = [weight for weight in model.trunk.weights if all(weight is not other for other in backbone)]
    given = as_zeromodels_paths(rest)
    for index, weight in enumerate(theirs.weights):
        path = re.sub(r"/resample_\d_(\d+)/", r"/resample_\1/", weight.path)
        weight.assign(backbone[index] if index < len(backbone) else given.pop(path))
    assert not given

    want = theirs.predict(A.imagenet.preprocess_input(images()), verbose=0)
    features = model.features(images(), training=False)
    for name, key, size in (("class_logits", "class_outputs", CLASSES), ("box_deltas", "box_outputs", 4)):
        rows = np.concatenate([level.reshape(len(level), -1, size) for level in want[key]], axis=1)
        scaled_close(features[name], rows if size != 4 else rows[..., [1, 0, 3, 2]])
