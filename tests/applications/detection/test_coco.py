"""Detectors that torchvision trained on COCO: their files, with their older names, and the names of their labels."""

import importlib
import json
import re

import keras
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from kvision import applications as A
from kvision import callbacks, data, weights
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
every_detector = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "retinanet")) for name in DETECTORS]
)


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
def test_without_classes_the_labels_are_those_of_cocos_80(
    name, classes, small_trunks, downloads, tmp_path, monkeypatch, capsys
):
    """The files have a row for each id up to 90, and one for the background or for nothing."""
    state, _ = published_by(build(name, classes), name, tmp_path, monkeypatch)
    model = build(name, None, weights="coco")
    assert model.head.classes == 80
    assert model.class_names == coco.class_names()
    assert "fresh" not in capsys.readouterr().out
    assert getattr(model.head, "proposals", model.head).anchors.strides == "torchvision"
    if name == "faster_rcnn":
        assert model.head.box_stages[0].pooling.aligned is False
    fresh = build(name, None)
    assert (fresh.head.classes, fresh.class_names) == (80, None)

    def pair(layer):
        (path,) = (path for path in values(model) if path.endswith(f"{layer}/kernel"))
        return values(model)[path], state[f"{path.split('/')[-2]}.weight"]

    if name == "retinanet":
        ours, theirs = pair("head.classification_head.cls_logits")
        for anchor, label in ((0, 0), (4, 11), (8, 79)):
            row = theirs[anchor * 91 + coco.CATEGORY_IDS[label]]
            np.testing.assert_array_equal(ours[..., anchor * 80 + label], row.transpose(1, 2, 0))
        return
    (ours, theirs), (our_boxes, their_boxes) = map(pair, BOX_HEAD)
    for label, row in ((-1, 0), *((label, coco.CATEGORY_IDS[label]) for label in (0, 11, 79))):  # -1: the background
        np.testing.assert_array_equal(ours[:, label + 1], theirs[row])
        np.testing.assert_array_equal(our_boxes[:, 4 * label + 4 : 4 * label + 8], their_boxes[4 * row : 4 * row + 4].T)


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
    assert f" {start} fresh: the file has another number of classes (" in out
    assert re.search(r"\d outputs, here \d", out)
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


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mask_rcnn", {"norm": "sync_batch"}),
        pytest.param("faster_rcnn", {"norm": "group"}, marks=pytest.mark.slow),
        pytest.param("faster_rcnn", {"backbone_norm": "batch"}, marks=pytest.mark.slow),
        pytest.param("faster_rcnn", {"anchor_ratios": (1.0,)}, marks=pytest.mark.slow),
        pytest.param("faster_rcnn", {"neck": "c4"}, marks=pytest.mark.slow),
        pytest.param("faster_rcnn", {"channels": 128}, marks=pytest.mark.slow),
        pytest.param("faster_rcnn", {"shared_box": True}, marks=pytest.mark.slow),
        pytest.param("faster_rcnn", {"backbone": ("C2", "C3", "C4", "C5")}, marks=pytest.mark.slow),
        pytest.param("mask_rcnn", {"backbone": ("C2", "C3", "C4", "C5")}, marks=pytest.mark.slow),
        pytest.param("retinanet", {"backbone": ("C3", "C4", "C5")}, marks=pytest.mark.slow),
        pytest.param("retinanet", {"norm": "group"}, marks=pytest.mark.slow),
        pytest.param("retinanet", {"anchor_sizes": ((32,), (64,), (128,), (256,), (512,))}, marks=pytest.mark.slow),
        pytest.param("retinanet", {"channels": 64}, marks=pytest.mark.slow),
    ],
)
def test_other_forms_have_no_published_weights(name, options, small_trunks):
    if "backbone" in options:
        options = {"backbone": detector_rows.tiny_backbone(*options["backbone"], norm="frozen_batch")}
    named = next(iter(options))
    with pytest.raises(
        ValueError, match=rf"weights=.coco. are published for the network as it is by default, but {named} make"
    ):
        build(name, 90, weights="coco", **options)


@every_detector
def test_a_detector_is_saved_with_what_its_files_call_its_weights(name, small_trunks, tmp_path):
    model = build(name, 4)
    model.class_names = ("cat", "dog", "cow", "hen")
    model.save(tmp_path / "detector.keras")
    copy = keras.saving.load_model(tmp_path / "detector.keras")
    assert copy.class_names == model.class_names
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
    assert len(coco.CATEGORY_IDS) == len(coco.class_names()) == len(set(coco.class_names())) == 80
    assert "N/A" not in coco.class_names()
    assert (coco.class_names()[0], coco.CATEGORY_IDS[0]) == ("person", 1)
    assert (coco.class_names()[11], coco.CATEGORY_IDS[11]) == ("stop sign", 13)
    assert (coco.class_names()[79], coco.CATEGORY_IDS[79]) == ("toothbrush", 90)


def test_the_reader_numbers_cocos_own_files_alike(tmp_path):
    """`instances_val2017.json` lists the 80 categories by their ids, in any order; another file may list a part."""
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    categories = [{"id": number, "name": coco.CATEGORIES[number - 1]} for number in coco.CATEGORY_IDS]
    content = {"images": [{"id": 1, "file_name": "a.png"}], "categories": categories[::-1]}
    content["annotations"] = [{"id": 1, "image_id": 1, "category_id": 18, "bbox": [4, 4, 20, 20]}]
    for listed in (categories[::-1], categories[10:20]):
        (tmp_path / "a.json").write_text(json.dumps(content | {"categories": listed}))
        read = data.coco(tmp_path / "a.json", tmp_path, image_size=(64, 64), classes=coco.class_names())
        assert read.class_names == coco.class_names()
        _, targets = next(iter(read))
        assert coco.class_names()[int(targets["labels"][0, 0])] == "dog"
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert data.coco(tmp_path / "a.json", tmp_path, image_size=(64, 64)).class_names == coco.class_names()


GAPS = {18: (4, 4, 40, 30), 1: (10, 20, 50, 60), 90: (0, 0, 64, 32), 13: (30, 30, 60, 50)}  # id: the box of its image


def json_with_gaps(folder):
    """A file of four of COCO's categories, an image each, whose pixels are the category's id."""
    content = {"images": [], "annotations": [], "categories": []}
    for image, (number, (left, top, right, bottom)) in enumerate(GAPS.items(), 7):
        Image.new("RGB", (64, 64), (number,) * 3).save(folder / f"{image}.png")
        content["images"].append({"id": image, "file_name": f"{image}.png"})
        box = [left, top, right - left, bottom - top]
        content["annotations"].append({"id": image, "image_id": image, "category_id": number, "bbox": box})
        content["categories"].append({"id": number, "name": coco.CATEGORIES[number - 1]})
    (folder / "gaps.json").write_text(json.dumps(content))
    return folder / "gaps.json"


class Published:
    """Answers as a detector of COCO's 80 classes does: it knows the id of what it sees, and gives its label."""

    name, class_names = "published", coco.class_names()

    def predict_on_batch(self, images):
        images = images["images"] if hasattr(images, "keys") else images
        numbers = np.asarray(images)[:, 0, 0, 0].round().astype(int)
        labels = np.array([[coco.CATEGORY_IDS.index(number)] for number in numbers], "int32")
        boxes = np.array([[GAPS[number]] for number in numbers], "float32")
        return {"boxes": boxes, "scores": np.ones(labels.shape, "float32"), "labels": labels}


def test_a_json_with_gaps_is_scored_by_the_labels_of_published_weights(tmp_path):
    model = Published()
    options = {"image_size": (64, 64), "batch_size": 2}
    read = data.coco(json_with_gaps(tmp_path), tmp_path, classes=model.class_names, **options)
    metrics = callbacks.DetectionMetrics(read)
    metrics.set_model(model)
    metrics.on_train_begin()
    assert metrics.measure(model)["AP50"] == 1.0
    results = metrics.metric.coco_results(category_ids=coco.CATEGORY_IDS)
    assert {row["image_id"]: row["category_id"] for row in results} == dict(enumerate(GAPS, 7))

    own_labels = data.coco(tmp_path / "gaps.json", tmp_path, **options)
    metrics = callbacks.DetectionMetrics(own_labels)
    assert metrics.measure(model)["AP50"] < 0.5  # of another order: nothing would tell
    metrics.set_model(model)
    with pytest.raises(ValueError, match="published: label 1 is 'stop sign' in the data .4 classes. and 'bicycle'"):
        metrics.on_train_begin()


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
    assert list(coco.class_names()) == [meta["categories"][number] for number in coco.CATEGORY_IDS]


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
