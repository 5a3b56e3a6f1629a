"""The two-stage detectors against torchvision's: the same random weights, the same images, the same sample.

Features, proposals, heads, detections, masks and all losses are compared. Sampling is made deterministic on both sides:
of each kind the last rows are drawn, which are the ground truth's own boxes first.
"""

import keras
import numpy as np
import pytest

from kvision import applications as A
from kvision import weights
from kvision.contract import paste_mask_scores
from kvision.ops import sample_balanced
from tests.applications.detection.test_detectors import targets_of
from tests.applications.detection.torch_reference import randomise
from tests.support import PARITY, assert_close

pytestmark = pytest.mark.parity

SIZE, CLASSES = (128, 96), 4
BOXES = [(8, 12, 70, 90, 0), (40, 30, 90, 101, 3), (60, 100, 84, 120, 2)], [(10, 6, 60, 50, 1)]
CANDIDATES, PROPOSALS = (60, 40), (50, 30)
LOSSES = {
    "loss_objectness": "rpn_objectness_loss",
    "loss_rpn_box_reg": "rpn_box_loss",
    "loss_classifier": "classification_loss",
    "loss_box_reg": "box_loss",
    "loss_mask": "mask_loss",
}


def images(count=2):
    return np.random.default_rng(0).uniform(0, 255, size=(count, *SIZE, 3)).astype("float32")


def masks_of(targets):
    """An ellipse in every box."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    left, top, right, bottom = (targets["boxes"][..., side, None, None] for side in range(4))
    width, height = np.maximum(right - left, 1), np.maximum(bottom - top, 1)
    across, down = (2 * columns - left - right) / width, (2 * rows - top - bottom) / height
    return (across**2 + down**2 < 1).astype("uint8")


@pytest.fixture
def last_rows_are_drawn(monkeypatch):
    import torch
    from torchvision.models.detection import _utils

    def ours(matches, num_samples, positive_fraction, seed=None):
        keys = keras.ops.broadcast_to(keras.ops.linspace(0.0, 0.999, matches.shape[1]), keras.ops.shape(matches))
        return sample_balanced(matches, num_samples, positive_fraction, keys=keys)

    def theirs(self, labels_of_each):
        drawn = []
        for labels in labels_of_each:
            most = int(self.batch_size_per_image * self.positive_fraction)
            positives = torch.where(labels >= 1)[0][-most:]
            background = torch.where(labels == 0)[0][-(self.batch_size_per_image - len(positives)) :]
            drawn.append([torch.zeros_like(labels, dtype=torch.uint8) for _ in range(2)])
            drawn[-1][0][positives] = 1
            drawn[-1][1][background] = 1
        return tuple(zip(*drawn, strict=True))

    monkeypatch.setattr("kvision.detection.assigner.sample_balanced", ours)
    monkeypatch.setattr(_utils.BalancedPositiveNegativeSampler, "__call__", theirs)


def outputs(deviation=0.3):
    return {
        "rpn.head.cls_logits": 0.02,
        "rpn.head.bbox_pred": 0.02,
        "cls_score": deviation,
        "box_predictor.bbox_pred": 0.1,
    }


NUMBERS = {
    "rpn_pre_nms_top_n_train": CANDIDATES[0],
    "rpn_pre_nms_top_n_test": CANDIDATES[1],
    "rpn_post_nms_top_n_train": PROPOSALS[0],
    "rpn_post_nms_top_n_test": PROPOSALS[1],
    "rpn_batch_size_per_image": 64,
    "box_batch_size_per_image": 24,
    "box_detections_per_img": 20,
    "min_size": min(SIZE),
    "max_size": max(SIZE),
}
OURS = {
    "input_shape": (*SIZE, 3),
    "classes": CLASSES,
    "num_candidates": CANDIDATES,
    "num_proposals": PROPOSALS,
    "num_anchor_samples": 64,
    "num_samples": 24,
    "num_detections": 20,
}
FROM_FILES = {"backbone_norm": "frozen_batch", "anchor_strides": "torchvision", "aligned": False}


def theirs_on_a_pyramid(builder):
    import torch
    from torchvision.models import detection
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops.misc import FrozenBatchNorm2d

    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=5
    )
    return randomise(getattr(detection, builder)(backbone, num_classes=CLASSES + 1, **NUMBERS), outputs())


def theirs_on_c4():
    """Faster R-CNN on C4, with conv5 as the head (He 2015, appendix A)."""
    import torch
    import torchvision
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
    from torchvision.models.detection.rpn import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign
    from torchvision.ops.misc import FrozenBatchNorm2d

    torch.manual_seed(0)
    resnet = torchvision.models.resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
    names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3")
    body = torch.nn.Sequential()
    for name in names:
        body.add_module(name, getattr(resnet, name))
    body.out_channels = 1024
    head = torch.nn.Sequential()
    head.add_module("layer4", resnet.layer4)
    head.add_module("avgpool", resnet.avgpool)
    head.add_module("flatten", torch.nn.Flatten())
    model = FasterRCNN(
        body,
        rpn_anchor_generator=AnchorGenerator(((32, 64, 128, 256, 512),), ((0.5, 1.0, 2.0),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 14, 2),
        box_head=head,
        box_predictor=FastRCNNPredictor(2048, CLASSES + 1),
        **NUMBERS,
    )
    return randomise(model, outputs(0.05))


def ours_on_c4(**options):
    model = A.FasterRCNN(neck="c4", **options)
    body = (r"^(conv1|bn1|layer[123])\b", r"backbone.\1")
    weights.remember(model, {"torchvision": [body, (r"^layer4\b", "roi_heads.box_head.layer4")]})
    return model


PAIRS = {
    "faster": (lambda: A.FasterRCNN(**OURS, **FROM_FILES), lambda: theirs_on_a_pyramid("FasterRCNN")),
    "mask": (lambda: A.MaskRCNN(**OURS, **FROM_FILES), lambda: theirs_on_a_pyramid("MaskRCNN")),
    "c4": (lambda: ours_on_c4(**OURS, **FROM_FILES), theirs_on_c4),
}


def close(got, want, tolerance=PARITY):
    """Equal, as shares of the largest."""
    want = np.asarray(want)
    scale = np.abs(want).max()
    assert_close(keras.ops.convert_to_numpy(got) / scale, want / scale, tolerance=tolerance)


def torch_targets(targets):
    """Without padding, labels after the background."""
    import torch

    truth = []
    for boxes, labels, masks in zip(targets["boxes"], targets["labels"], targets["masks"], strict=True):
        real = labels >= 0
        arrays = {"boxes": boxes[real], "labels": labels[real].astype("int64") + 1, "masks": masks[real]}
        truth.append({name: torch.from_numpy(array) for name, array in arrays.items()})
    return truth


def assert_same_detections(detections, found):
    """Ours, padded, against torchvision's of each image."""
    for image, want in enumerate(found):
        count = len(want["scores"])
        assert count > 5
        assert (detections["labels"][image, count:] == -1).all()
        assert_close(detections["scores"][image, :count], want["scores"], tolerance=PARITY)
        assert_close(detections["boxes"][image, :count] / max(SIZE), want["boxes"] / max(SIZE), tolerance=PARITY)
        assert (detections["labels"][image, :count] == want["labels"].numpy() - 1).all()


@pytest.mark.parametrize("kind", PAIRS)
def test_equals_torchvision(kind, last_rows_are_drawn):
    import torch
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    build, reference = PAIRS[kind]
    theirs = reference()
    model = weights.load_torch(build(), theirs.state_dict())
    masked = kind == "mask"
    targets = targets_of(*BOXES)
    targets["masks"] = masks_of(targets)
    batch = [torch.from_numpy(image.transpose(2, 0, 1).copy() / 255) for image in images()]
    truth = torch_targets(targets)

    seen = {}
    watched = {"rpn": theirs.rpn, "head": theirs.rpn.head, "box": theirs.roi_heads.box_predictor}
    if masked:
        watched["mask"] = theirs.roi_heads.mask_predictor
    for name, module in watched.items():
        module.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output}))
    theirs.transform.postprocess = lambda result, *_: result  # masks at 28x28
    with torch.no_grad():
        normal, _ = theirs.transform(batch)
        assert normal.image_sizes == [SIZE] * 2
        maps = theirs.backbone(normal.tensors)
        losses = theirs.train()(batch, truth)
        proposals_in_training = [boxes.numpy() for boxes in seen["rpn"][0]]
        found = theirs.eval()(batch)

    features = model(images(), training=False)
    maps = {"C4": maps} if kind == "c4" else {f"P{int(level) + 2}": maps[level] for level in "0123"}
    for level, want in maps.items():
        close(features[level], want.numpy().transpose(0, 2, 3, 1))
    rows = [torch.flatten(level.permute(0, 2, 3, 1), 1) for level in seen["head"][0]]
    close(features["objectness_logits"], torch.cat(rows, dim=1))
    rows = [level.permute(0, 2, 3, 1).reshape(2, -1, 4) for level in seen["head"][1]]
    close(features["anchor_deltas"], torch.cat(rows, dim=1))

    for training, wanted in ((True, proposals_in_training), (False, [boxes.numpy() for boxes in seen["rpn"][0]])):
        proposals = keras.ops.convert_to_numpy(model.head.proposals.propose(features, training))
        for ours, want in zip(proposals, wanted, strict=True):
            assert len(want) > 20
            assert_close(ours[: len(want)] / max(SIZE), want / max(SIZE), tolerance=PARITY)
            assert (ours[len(want) :] == 0).all()
    logits, deltas = model.head.box_stages[0].predict(features, proposals)
    kept = [slice(None, len(boxes)) for boxes in wanted]
    for ours, want in ((logits, seen["box"][0]), (deltas, seen["box"][1])):
        ours = keras.ops.convert_to_numpy(ours)
        ours = np.concatenate([image[rows].reshape(rows.stop, -1) for image, rows in zip(ours, kept, strict=True)])
        close(ours, want)

    model.compile("sgd")
    assert set(model.head.loss_names) == {LOSSES[name] for name in losses}
    ours = model.head.losses(model(images(), training=True), targets, training=True)
    for name, want in losses.items():
        assert want > 0.01
        assert_close(ours[LOSSES[name]], want.item(), tolerance=PARITY)

    detections = model.predict(images(), verbose=0)
    assert_same_detections(detections, found)
    for image, want in enumerate(found if masked else ()):
        count = len(want["scores"])
        assert_close(detections["box_masks"][image, :count], want["masks"][:, 0], tolerance=PARITY)
        rows = detections["box_masks"][image, :count], detections["boxes"][image, :count]
        ours = paste_mask_scores(*rows, SIZE)
        pasted = paste_masks_in_image(want["masks"], want["boxes"], SIZE)[:, 0].numpy()
        certain = np.abs(pasted - 0.5) > 1e-4
        assert certain.mean() > 0.99
        assert 0.005 < (pasted >= 0.5).mean() < 0.5
        assert ((ours == (pasted >= 0.5)) | ~certain).all()


def test_fast_rcnn_equals_torchvisions_heads_on_given_proposals(last_rows_are_drawn):
    import torch
    import torchvision
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.roi_heads import RoIHeads

    class Pool(torch.nn.Module):
        def forward(self, features, proposals, image_sizes):
            return torchvision.ops.roi_pool(features["0"], proposals, 7, 1 / 16)

    torch.manual_seed(0)
    trunk = torchvision.models.vgg11(weights=None).features[:20]
    head, predictor = TwoMLPHead(512 * 49, 32), FastRCNNPredictor(32, CLASSES + 1)
    heads = RoIHeads(Pool(), head, predictor, 0.5, 0.5, 24, 0.25, None, 0.05, 0.3, 20)
    whole = torch.nn.ModuleDict({"features": trunk, "roi_heads": heads})
    randomise(whole, outputs())
    for layer in trunk:  # maps that tell places apart
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
    backbone = A.VGG11(include_top=False, input_shape=(*SIZE, 3), features=("C4",))
    model = A.FastRCNN(
        input_shape=(*SIZE, 3),
        classes=CLASSES,
        backbone=backbone,
        preprocess=A.imagenet.preprocess_input,
        units=32,
        dropout_rate=0.0,
        num_samples=24,
        min_background_iou=0.0,
        num_detections=20,
    )
    model.head.box_stages[0].beta = 1 / 9  # the paper's is 1
    weights.load_torch(model, whole.state_dict())

    targets = targets_of(*BOXES)
    targets["masks"] = masks_of(targets)
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 80, (2, 30, 2))
    proposals = np.concatenate([corners, corners + rng.uniform(10, 60, (2, 30, 2))], axis=-1)
    proposals = np.minimum(proposals, [SIZE[1], SIZE[0]] * 2).astype("float32")
    proposals[:, :8] = np.repeat(targets["boxes"][:, :1], 8, axis=1) + rng.uniform(-4, 4, (2, 8, 4))
    boxes = [torch.from_numpy(rows) for rows in proposals]
    with torch.no_grad():
        batch = torch.from_numpy(A.imagenet.preprocess_input(images()).transpose(0, 3, 1, 2).copy())
        maps = {"0": trunk(batch)}
        _, losses = heads.train()(maps, list(boxes), [SIZE] * 2, torch_targets(targets))
        found, _ = heads.eval()(maps, list(boxes), [SIZE] * 2)

    padded = np.concatenate([proposals, np.zeros((2, 5, 4), "float32")], axis=1)
    x = {"images": images(), "proposals": padded}
    ours = model.head.losses(model(x, training=True), targets, training=True)
    for name, want in losses.items():
        assert want > 0.01
        assert_close(ours[LOSSES[name]], want.item(), tolerance=PARITY)
    model.compile("sgd")
    assert_same_detections(model.predict(x, verbose=0), found)
