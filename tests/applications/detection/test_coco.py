"""Detectors that torchvision trained on COCO: their files, with their older names, and the names of their labels."""

import importlib

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

from kvision import applications as A
from kvision import drawing, weights
from kvision.applications.detection import coco
from kvision.weights.comparison import weights_of
from tests.applications.detection import rows as detector_rows
from tests.applications.detection import test_detector_parity, test_retinanet
from tests.applications.detection.torch_reference import published, with_older_names
from tests.weights.states import torch_state, unchanged

BOX_HEAD = ("roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred")

# Builder, and its layers that depend on the number of classes.
DETECTORS = {
    "faster_rcnn": (A.FasterRCNN, BOX_HEAD),
    "mask_rcnn": (A.MaskRCNN, (*BOX_HEAD, "roi_heads.mask_predictor.mask_fcn_logits")),
    "retinanet": (A.RetinaNet, ("head.classification_head.cls_logits",)),
}
every_detector = pytest.mark.parametrize("name", DETECTORS)


def module_of(name):
    return importlib.import_module(f"kvision.applications.detection.{name}")


@pytest.fixture
def small_trunks(monkeypatch):
    """Detectors as they are by default, but for the depth and width of their trunk."""
    for name in ("faster_rcnn", "retinanet"):
        monkeypatch.setattr(module_of(name), "ResNet50", lambda **options: A.ResNet("tiny", **options))


def build(name, classes, **options):
    if not options:
        options = {"backbone_norm": "frozen_batch"}  # the form of the files
    return DETECTORS[name][0](input_shape=(64, 64, 3), classes=classes, **options)


def published_by(model, name, folder, monkeypatch):
    """The state dict of a detector like `model`, published under its older names."""
    state = {}
    for key, value in torch_state(model).items():
        state[f"backbone.body.{key}" if key.startswith(("conv1.", "bn1.", "layer")) else key] = value
    older = with_older_names(state)
    assert len(set(older) - set(state)) >= 12
    save_file(older, folder / "net.safetensors")
    rows = module_of(name).WEIGHTS
    monkeypatch.setitem(rows, "coco", published(folder, rows["coco"], folder / "net.safetensors"))
    return state, folder / rows["coco"].file


def values(model):
    return {weight.path: keras.ops.convert_to_numpy(weight) for layer, weight in weights_of(model)}


def epsilons(model):
    layers = [layer for layer in model._flatten_layers() if hasattr(layer, "moving_variance")]
    assert len(layers) == 17
    return {layer.epsilon for layer in layers}


@pytest.mark.parametrize(("name", "classes"), [("faster_rcnn", 90), ("retinanet", 91)])
def test_without_classes_the_number_is_that_of_the_weights(
    name, classes, small_trunks, downloads, tmp_path, monkeypatch, capsys
):
    published_by(build(name, classes), name, tmp_path, monkeypatch)
    model = build(name, None, weights="coco")
    assert model.head.classes == classes
    assert "fresh" not in capsys.readouterr().out
    anchors = getattr(model.head, "proposals", model.head).anchors
    assert anchors.strides == "torchvision"
    if name == "faster_rcnn":
        assert model.head.box_stages[0].pooling.aligned is False
    assert build(name, None).head.classes == 80


@pytest.mark.slow
@every_detector
def test_published_weights_load_by_name_and_by_path(name, small_trunks, downloads, tmp_path, monkeypatch, capsys):
    built = build(name, 4)
    state, path = published_by(built, name, tmp_path, monkeypatch)
    trained = values(weights.load_torch(built, state))  # by today's names
    assert not downloads.exists()

    same, by_path = build(name, 4, weights="coco"), build(name, 4, weights=path)
    for model in (same, by_path):
        assert all(np.array_equal(trained[path], value) for path, value in values(model).items())
    assert "fresh" not in capsys.readouterr().out

    heads = DETECTORS[name][1]
    other = build(name, 3, weights="coco")
    start = "starts" if len(heads) == 1 else "start"
    out = capsys.readouterr().out
    assert f" {start} fresh: the file has another number of classes." in out
    assert all(head in out for head in heads)
    for weight, value in values(other).items():
        if weight.split("/")[0] in heads:
            assert value.shape != trained[weight].shape
        else:
            assert np.array_equal(trained[weight], value), weight

    other.save(tmp_path / "other.keras")
    for model in (same, other, keras.saving.load_model(tmp_path / "other.keras")):
        assert epsilons(model) == {0.0}
    assert epsilons(by_path) == {1e-5}  # a file does not tell
    assert epsilons(weights.set_epsilon(by_path, 0.0)) == {0.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("faster_rcnn", {"norm": "group"}),
        ("faster_rcnn", {"backbone_norm": "batch"}),
        ("faster_rcnn", {"anchor_ratios": (1.0,)}),
        ("faster_rcnn", {"neck": "c4"}),
        ("faster_rcnn", {"channels": 128}),
        ("faster_rcnn", {"shared_box": True}),
        ("faster_rcnn", {"backbone": ("C2", "C3", "C4", "C5")}),
        ("mask_rcnn", {"backbone": ("C2", "C3", "C4", "C5")}),
        ("mask_rcnn", {"norm": "sync_batch"}),
        ("retinanet", {"backbone": ("C3", "C4", "C5")}),
        ("retinanet", {"norm": "group"}),
        ("retinanet", {"anchor_sizes": ((32,), (64,), (128,), (256,), (512,))}),
        ("retinanet", {"channels": 64}),
    ],
)
def test_other_forms_have_no_published_weights(name, options, small_trunks):
    if "backbone" in options:
        options = {"backbone": detector_rows.tiny_backbone(*options["backbone"], norm="frozen_batch")}
    with pytest.raises(ValueError, match="weights='coco' is neither a file .*none for this variant"):
        build(name, 90, weights="coco", **options)


@every_detector
def test_a_detector_is_saved_with_what_its_files_call_its_weights(name, small_trunks, tmp_path):
    model = build(name, 4)
    model.save(tmp_path / "detector.keras")
    copy = keras.saving.load_model(tmp_path / "detector.keras")
    assert copy.weight_sources == model.weight_sources
    assert {"torchvision"} == set(copy.weight_sources.renames) == set(copy.weight_sources.older_names)
    assert weights.published_names(copy) == ("coco",)


@every_detector
def test_a_file_of_another_detector_changes_nothing(name, small_trunks, tmp_path, monkeypatch):
    other = {"faster_rcnn": "mask_rcnn", "mask_rcnn": "retinanet", "retinanet": "faster_rcnn"}[name]
    _, path = published_by(build(other, 4), other, tmp_path, monkeypatch)
    model = build(name, 4)
    with unchanged(model), pytest.raises(ValueError, match="nothing was changed"):
        weights.load(model, path)


def test_the_list_of_networks_names_them():
    rows = {row.name: row.weights for pattern in ("F*R-CNN", "*RCNN", "Retina*") for row in A.list_models(pattern)}
    assert rows == {
        "FastRCNN": (),
        "FasterRCNN": ("coco",),
        "MaskRCNN": ("coco",),
        "CascadeRCNN": (),
        "RetinaNet": ("coco",),
    }


def test_labels_are_named():
    assert len(coco.CATEGORIES) == 90
    assert len(set(coco.CATEGORIES) - {"N/A"}) == 80
    assert (coco.class_names()[0], coco.class_names()[89]) == ("person", "toothbrush")
    assert coco.class_names(91)[1:] == coco.class_names(90)
    with pytest.raises(ValueError, match=r"must be 90 .* or 91 .*got 80\. A detector of your own"):
        coco.class_names(80)
    blank = np.zeros((64, 96, 3))
    images = [
        drawing.detections(blank, [[8, 24, 90, 60]], [label], classes=names)
        for label, names in ((17, coco.class_names(90)), (17, ["dog"] * 18), (18, coco.class_names(91)))
    ]
    assert np.array_equal(images[0], images[1])
    assert coco.class_names(91)[18] == "dog"


@pytest.mark.parity
@every_detector
def test_the_rows_say_what_torchvision_says(name):
    from torchvision.models import detection

    theirs = {
        "faster_rcnn": detection.FasterRCNN_ResNet50_FPN_Weights,
        "mask_rcnn": detection.MaskRCNN_ResNet50_FPN_Weights,
        "retinanet": detection.RetinaNet_ResNet50_FPN_Weights,
    }[name].COCO_V1
    row, meta = module_of(name).WEIGHTS["coco"], theirs.meta
    assert f"{row.repository}/{row.file}" == theirs.url
    metrics = {"box_map": row.accuracy} | ({"mask_map": row.mask_ap} if row.mask_ap else {})
    assert metrics == meta["_metrics"]["COCO-val2017"]
    builder = DETECTORS[name][0].__name__
    counts = next(entry.counts for entry in detector_rows.ROWS if entry.name == name)
    assert counts[builder][1] == meta["num_params"]
    assert ["__background__", *coco.CATEGORIES] == meta["categories"]
    assert [*coco.class_names(91)][1:] == meta["categories"][1:]


@pytest.mark.parity
@every_detector
def test_detections_equal_torchvisions_of_the_same_file(name, downloads, tmp_path, monkeypatch):
    import torch
    from torchvision.models.detection._utils import overwrite_eps
    from torchvision.ops.misc import FrozenBatchNorm2d

    if name == "retinanet":
        home, theirs = test_retinanet, test_retinanet.theirs()
        options = {"input_shape": (home.SIZE, home.SIZE, 3), "classes": home.CLASSES}
    else:
        home = test_detector_parity
        theirs, options = home.theirs_on_a_pyramid(DETECTORS[name][0].__name__), home.OURS
    for module in theirs.modules():
        if isinstance(module, FrozenBatchNorm2d):  # variances so small that the epsilon tells
            module.running_var.mul_(1e-3)
            module.weight.mul_(1e-3**0.5)
    older = with_older_names(theirs.state_dict())
    theirs.load_state_dict(dict(older))  # torchvision itself reads these names
    torch.save(older, tmp_path / "net.pth")
    rows = module_of(name).WEIGHTS
    monkeypatch.setitem(rows, "coco", published(tmp_path, rows["coco"], tmp_path / "net.pth"))
    ours = DETECTORS[name][0](**options, weights="coco")

    overwrite_eps(theirs, 0.0)
    batch = [torch.from_numpy(image.transpose(2, 0, 1).copy() / 255) for image in home.images()]
    with torch.no_grad():
        found = theirs.eval()(batch)
    detections = ours.predict(home.images(), verbose=0)
    if name != "retinanet":
        test_detector_parity.assert_same_detections(detections, found)
        return
    for image, want in enumerate(found):
        assert len(want["scores"]) > 20
        test_retinanet.same_detections({key: value[image] for key, value in detections.items()}, want, home.SIZE)
