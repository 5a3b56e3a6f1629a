"""Weights published by name: every row says what torchvision and timm say of them."""

import importlib
import re

import keras
import numpy as np
import pytest

from kvision import applications as A
from kvision import weights
from kvision.applications import imagenet
from tests.support import PARITY, assert_close

FAMILIES = ("alexnet", "efficientnet", "googlenet", "mobilenet_v2", "resnet", "squeezenet", "swin", "vgg", "vit")
ROWS = {
    f"{family} {variant} {name}": row
    for family in FAMILIES
    for variant, rows in importlib.import_module(f"kvision.applications.classification.{family}").WEIGHTS.items()
    for name, row in rows.items()
}

# A form that has published weights, and one that has none.
FORMS = [
    (lambda **o: A.AlexNet("2014", **o), lambda **o: A.AlexNet("2012", **o)),
    (lambda **o: A.EfficientNet("b1", **o), lambda **o: A.EfficientNet("tiny", **o)),
    (lambda **o: A.GoogLeNet(norm="frozen_batch", **o), lambda **o: A.GoogLeNet(**o)),
    (lambda **o: A.MobileNetV2(**o), lambda **o: A.MobileNetV2("0.5", **o)),
    (lambda **o: A.ResNet152(**o), lambda **o: A.ResNet20(**o)),
    (lambda **o: A.SqueezeNet("1.1", **o), lambda **o: A.SqueezeNet("1.1", norm="batch", **o)),
    (lambda **o: A.SwinT(**o), lambda **o: A.Swin("L", **o)),
    (lambda **o: A.VGG13(norm="batch", **o), lambda **o: A.VGG13(norm="group", **o)),
    (lambda **o: A.ViTB16(**o), lambda **o: A.ViT("tiny", **o)),
]


@pytest.mark.parametrize(("form", "other"), FORMS, ids=FAMILIES)
def test_the_forms_that_have_weights(form, other):
    with keras.StatelessScope(initialize_variables=False):
        assert "imagenet" in weights.published_names(form())
        with pytest.raises(ValueError, match="weights='imagenet' is neither a file nor .*none for this variant"):
            other(weights="imagenet")


def test_forms_of_one_family_have_files_of_their_own():
    files = [(row.repository, row.file) for row in ROWS.values()]
    assert len(set(files)) == len(files) == 42
    for row in ROWS.values():
        assert "://" not in row.repository or re.search(r"-[0-9a-f]{8}\.pth$", row.file)


def seen(row):
    """(short side, side of the centre, interpolation) in a row's words."""
    found = re.fullmatch(r"short side to (\d+) \((\w+)\), centre (\d+)x\3", row.resizing)
    return int(found[1]), int(found[3]), found[2]


def their_weights(row):
    """Torchvision's entry for a row of its weights, wherever they are published."""
    import torchvision

    name = row.repository.removeprefix("timm/")
    if name.endswith((".tv_in1k", ".tv2_in1k")):
        entries = torchvision.models.get_model_weights(name.split(".")[0])
        return entries["IMAGENET1K_V2" if "tv2" in name else "IMAGENET1K_V1"]
    listed = (
        entry for name in torchvision.models.list_models() for entry in torchvision.models.get_model_weights(name)
    )
    return next((entry for entry in listed if entry.url == f"{row.repository}/{row.file}"), None)


@pytest.mark.parity
@pytest.mark.parametrize("label", ROWS)
def test_the_rows_say_what_their_publishers_say(label):
    import timm

    row = ROWS[label]
    entry = their_weights(row)
    if entry is not None:
        preset = entry.transforms()
        assert row.accuracy == entry.meta["_metrics"]["ImageNet-1K"]["acc@1"]
        assert seen(row) == (preset.resize_size[0], preset.crop_size[0], preset.interpolation.value)
        assert (tuple(preset.mean), tuple(preset.std)) == (imagenet.MEAN, imagenet.STANDARD_DEVIATION)
        assert row.licence == ("BSD-3-Clause" if "license" not in entry.meta else "CC-BY-NC-4.0")
        assert (row.preprocessing is None) != label.startswith("googlenet")
    if row.source == "timm":
        config = timm.models.get_pretrained_cfg(row.repository.removeprefix("timm/"))
        side = (config.test_input_size or config.input_size)[1]
        assert seen(row) == (int(side / (config.test_crop_pct or config.crop_pct)), side, config.interpolation)
        assert row.licence.lower() == config.license
        prepared = (row.preprocessing or imagenet.preprocess_input)(np.array([[0.0] * 3, [255.0] * 3]))
        assert_close(prepared, (np.array([[0.0] * 3, [1.0] * 3]) - config.mean) / config.std)
    assert entry is not None or row.source == "timm"


@pytest.mark.parity
def test_googlenets_images_are_prepared_as_its_weights_want(tmp_path, monkeypatch):
    """Torchvision's network turns them itself; ours carries it, and leaves the auxiliary heads in the file."""
    import torch
    import torchvision

    torch.manual_seed(0)
    theirs = torchvision.models.googlenet(aux_logits=True, transform_input=True, init_weights=False).eval()
    row = ROWS["googlenet torchvision imagenet"]
    torch.save(theirs.state_dict(), tmp_path / row.file)
    monkeypatch.setattr("kvision.weights.loading.download", lambda row: tmp_path / row.file)
    ours = A.GoogLeNet(norm="batch", weights="imagenet", input_shape=(96, 96, 3), classifier_activation=None)
    images = np.random.default_rng(0).uniform(0, 255, (2, 96, 96, 3)).astype("float32")
    batch = torch.from_numpy(np.asarray(imagenet.preprocess_input(images)).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        want = theirs(batch)
    want = getattr(want, "logits", want).numpy()
    got = keras.ops.convert_to_numpy(ours(ours.preprocessing(images)))
    assert_close(got / np.abs(want).max(), want / np.abs(want).max(), tolerance=PARITY)
