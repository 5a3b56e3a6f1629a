"""DETR against the authors' code and, for plain outputs, the transformers library: the same weights, padded images."""

import pathlib
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from examples.wheels import wheel
from kvision import applications as A
from kvision import weights
from tests.support import PARITY, assert_close

pytestmark = pytest.mark.parity

REFERENCE = pathlib.Path(__file__).with_name("detr_reference.py")  # needs torch, and a process of its own

SIZE, CLASSES = (128, 96), 91
IMAGE_SIZE = np.array([(128, 96), (100, 70), (90, 96)], "int32")
BOXES = [[(8, 12, 70, 90, 0), (40, 30, 90, 101, 17), (60, 100, 84, 120, 90)], [(10, 6, 60, 50, 1)], []]


def batch():
    """Images whose padding is the mean colour, 0 to the network, as the authors pad; and targets."""
    blobs = np.random.default_rng(0).uniform(0, 255, size=(3, 8, 6, 3)).astype("float32")
    images = np.repeat(np.repeat(blobs, SIZE[0] // 8, axis=1), SIZE[1] // 6, axis=2)
    for image, (height, width) in zip(images, IMAGE_SIZE, strict=True):
        image[height:] = image[:, width:] = 255 * np.array(A.imagenet.MEAN)
    boxes, labels = np.zeros((3, 4, 4), "float32"), np.full((3, 4), -1, "int32")
    for image, rows in enumerate(BOXES):
        for index, (*box, label) in enumerate(rows):
            boxes[image, index], labels[image, index] = box, label
    return images, {"boxes": boxes, "labels": labels, "image_size": IMAGE_SIZE}


def relative(targets):
    """Boxes as the authors' code takes them."""
    width_height = np.tile(targets["image_size"][:, None, ::-1], (1, 1, 2))
    left, top, right, bottom = np.moveaxis(targets["boxes"] / width_height, -1, 0)
    return np.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], -1).astype("float32")


@pytest.fixture(scope="module", params=["resnet50", "resnet50_dc5"])
def reference(request, tmp_path_factory):
    """The variant, the state dict of the authors' network, and what it gives for the batch."""
    folder = tmp_path_factory.mktemp("detr")
    with zipfile.ZipFile(wheel("detr")) as archive:
        archive.extractall(folder / "package")
    images, targets = batch()
    np.savez(
        folder / "inputs.npz",
        images=A.imagenet.preprocess_input(images),
        image_size=IMAGE_SIZE,
        labels=targets["labels"],
        boxes_cxcywh=relative(targets),
        dilation=request.param.endswith("dc5"),
    )
    script = [sys.executable, "-W", "ignore", str(REFERENCE), str(folder / "package"), str(folder)]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return request.param, dict(np.load(folder / "weights.npz")), dict(np.load(folder / "outputs.npz"))


def loaded(variant, state):
    model = A.DETR(variant, input_shape=(*SIZE, 3), classes=CLASSES, backbone_norm="frozen_batch")
    return weights.load_torch(model, state, source="detr")


def test_equals_the_authors_code(reference):
    variant, state, want = reference
    model = loaded(variant, state)
    assert len(state) == len(model.weights) == 458
    assert sum(np.prod(weight.shape) for weight in model.trainable_weights) == want["parameters"] == 41_524_768
    images, targets = batch()
    features = model.features(images, training=False)
    found = model.head.predict(features, IMAGE_SIZE)
    assert want["logits"].shape == (6, 3, 100, 92)
    assert want["logits"].std(axis=2).mean() > 0.01  # queries differ
    assert_close(found["class_logits"], want["logits"], tolerance=PARITY)
    assert_close(found["boxes_cxcywh"], want["boxes"], tolerance=PARITY)

    ours = model.head.layer_losses(found, targets, IMAGE_SIZE)
    for name, theirs, weight in (("classification", "ce", 1), ("box", "bbox", 5), ("giou", "giou", 2)):
        assert min(want[theirs]) > 0.01
        assert_close(ours[f"{name}_loss"], weight * want[theirs], tolerance=PARITY)
    losses = model.head.losses(features, targets, training=False)
    assert_close(sum(losses.values()), want["total"], tolerance=PARITY)

    model.compile("sgd")
    detections = model.predict({"images": images, "image_size": IMAGE_SIZE}, verbose=0)
    order = np.argsort(-want["found_scores"], axis=1, kind="stable")
    assert_close(detections["scores"], np.take_along_axis(want["found_scores"], order, 1), tolerance=PARITY)
    for image, rows in enumerate(order):
        matches = np.abs(detections["scores"][image] - want["found_scores"][image, rows]) < 1e-4
        assert matches.all()
        distinct = np.abs(np.diff(want["found_scores"][image, rows], prepend=2, append=-1))
        clear = np.minimum(distinct[:-1], distinct[1:]) > 1e-5  # not swapped with a neighbour
        assert clear.mean() > 0.5
        boxes = np.clip(want["found_boxes"][image, rows], 0, np.tile(IMAGE_SIZE[image, ::-1], 2))
        assert (detections["labels"][image] == want["found_labels"][image, rows])[clear].all()
        assert_close(detections["boxes"][image][clear] / 128, boxes[clear] / 128, tolerance=PARITY)


# From the names of transformers to the authors'; `q_proj`, `k_proj` and `v_proj` are one matrix there.
FROM_TRANSFORMERS = [
    (r"^model\.backbone\.model\.", "backbone.0.body."),
    (r"^model\.query_position_embeddings\.", "query_embed."),
    (r"^model\.input_projection\.", "input_proj."),
    (r"^class_labels_classifier\.", "class_embed."),
    (r"^bbox_predictor\.", "bbox_embed."),
    (r"^model\.(encoder|decoder)\.", r"transformer.\1."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.encoder_attn_layer_norm\.", ".norm2."),
    (r"^(transformer\.encoder\..*)\.final_layer_norm\.", r"\1.norm2."),
    (r"^(transformer\.decoder\..*)\.final_layer_norm\.", r"\1.norm3."),
    (r"\.layernorm\.", ".norm."),
    (r"\.encoder_attn\.", ".multihead_attn."),
    (r"\.o_proj\.", ".out_proj."),
    (r"\.mlp\.fc(\d)\.", r".linear\1."),
]


def as_transformers_names(state, keys):
    """The authors' weights by the keys of the transformers library."""
    renamed = {}
    for key in keys:
        name = key
        for pattern, replacement in FROM_TRANSFORMERS:
            name = re.sub(pattern, replacement, name)
        part = re.search(r"\.([qkv])_proj\.(weight|bias)$", name)
        if part:
            whole = state[f"{name[: part.start()]}.in_proj_{part[2]}"]
            renamed[key] = np.split(whole, 3)["qkv".index(part[1])]
        elif not name.endswith("num_batches_tracked"):
            renamed[key] = state[name]
    return renamed


@pytest.mark.parametrize("reference", ["resnet50"], indirect=True)  # it knows the undilated backbone
def test_equals_the_transformers_library(reference):
    import torch
    from transformers import DetrConfig, DetrForObjectDetection

    variant, state, _ = reference
    theirs = DetrForObjectDetection(DetrConfig(num_labels=CLASSES)).eval()
    renamed = as_transformers_names(state, theirs.state_dict())
    left = theirs.load_state_dict({key: torch.from_numpy(value) for key, value in renamed.items()}, strict=False)
    assert all(key.endswith("num_batches_tracked") for key in left.missing_keys)
    images, _ = batch()
    mask = np.zeros((3, *SIZE), "int64")
    for image, (height, width) in enumerate(IMAGE_SIZE):
        mask[image, :height, :width] = 1
    pixels = torch.from_numpy(A.imagenet.preprocess_input(images).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        want = theirs(pixels, torch.from_numpy(mask))
    model = loaded(variant, state)
    found = model.head.predict(model.features(images, training=False), IMAGE_SIZE)
    assert_close(found["class_logits"][-1], want.logits.numpy(), tolerance=PARITY)
    assert_close(found["boxes_cxcywh"][-1], want.pred_boxes.numpy(), tolerance=PARITY)


def test_a_published_file_is_read_by_name(reference, tmp_path, monkeypatch, downloads, capsys):
    """The file as published: the state dict below "model", 91 ids and no object; the labels are COCO's 80."""
    import torch

    from tests.applications.detection.torch_reference import published

    variant, state, want = reference
    path = tmp_path / "file.pth"
    torch.save({"model": {name: torch.from_numpy(value) for name, value in state.items()}}, path)
    row = published(tmp_path, A.detr.WEIGHTS[variant]["coco"], path)
    monkeypatch.setitem(A.detr.WEIGHTS, variant, {"coco": row})
    model = A.DETR(variant, input_shape=(*SIZE, 3), weights="coco")
    assert model.class_names == A.coco.class_names()
    images, _ = batch()
    found = model.head.predict(model.features(images, training=False), IMAGE_SIZE)
    rows = [*A.coco.CATEGORY_IDS, 91]
    assert_close(found["class_logits"], want["logits"][..., rows], tolerance=PARITY)
    fewer = A.DETR(variant, input_shape=(*SIZE, 3), classes=5, weights="coco")
    assert "class_embed starts fresh" in capsys.readouterr().out
    kernel = next(weight for weight in fewer.weights if weight.path == "bbox_embed.layers.0/kernel")
    assert_close(kernel, state["bbox_embed.layers.0.weight"].T)
