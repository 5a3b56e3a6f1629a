"""Weights under which torchvision's detectors find about as much as trained ones do, one file for both sides.

No trained weights come without a network, and what of them decides the time of an image is how much is found: with
random ones the norms let the deltas explode, all boxes become the whole image, and 2 of 1,000 proposals are left. So
random weights are given the statistics of trained ones on generated photos, as a data-dependent initialization does
(Mishkin 2016, "All you need is a good init"): each batch norm those of its own input; objectness logits of deviation 2
and deltas of 0.2 of an anchor; class logits of deviation 2 (RetinaNet 1.5), whose background is as much higher as
leaves some pairs of box and class of an image above the threshold of 0.05. The rows tell what is found.
"""

import os
import pathlib
import subprocess
import sys

import detection_inputs as inputs

ROOT = pathlib.Path(__file__).resolve().parent.parent
PHOTOS = 4
PAIRS, DENSE_PAIRS = 40, 200  # of an image before suppression: two-stage detectors, RetinaNet
THRESHOLD = 0.05


def path_of(builder):
    """The file of a builder of torchvision, made by the torch environment where it is missing."""
    path = ROOT / ".cache" / "as-if-trained" / f"{builder}-{inputs.SIZE}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        python = ROOT / ".venv-parity" / "bin" / "python"
        own = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        subprocess.run([str(python), __file__, builder, str(path)], check=True, env=own, stdout=sys.stderr)
    return str(path)


def calibrated(builder):
    """The detector with live batch norms replaced by their statistics, as a state dict."""
    import torch
    from torchvision.models import detection

    torch.manual_seed(0)
    size = {"min_size": inputs.SIZE, "max_size": inputs.SIZE}
    classes = inputs.CLASSES + (builder != "retinanet_resnet50_fpn")
    model = getattr(detection, builder)(weights=None, weights_backbone=None, num_classes=classes, **size).eval()
    shown = [torch.from_numpy(photo).permute(2, 0, 1) / 255 for photo in inputs.photographs(PHOTOS)]
    with torch.no_grad():
        images, _ = model.transform(shown)
        norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        for norm in norms:
            norm.train().momentum = 1.0  # the statistics of this batch, none of those before
        model.backbone(images.tensors)
        for norm in norms:
            norm.eval()
        features = model.backbone(images.tensors)
        (_calibrate_dense if hasattr(model, "head") else _calibrate_stages)(model, images, features)
    return {name: tensor for name, tensor in model.state_dict().items() if "num_batches_tracked" not in name}


def _calibrate_dense(model, images, features):
    maps = list(features.values())
    classes, boxes = model.head.classification_head, model.head.regression_head
    read = [boxes.conv(level) for level in maps]
    standardise(boxes.bbox_reg, _joined([boxes.bbox_reg(level) for level in read]), 0.2)
    read = [classes.conv(level) for level in maps]
    standardise(classes.cls_logits, _joined([classes.cls_logits(level) for level in read]), 1.5)
    logits, wanted = _joined([classes.cls_logits(level) for level in read]), len(images.image_sizes) * DENSE_PAIRS
    classes.cls_logits.bias += bisect(lambda shift: int(((logits + shift).sigmoid() > THRESHOLD).sum()) - wanted)


def _calibrate_stages(model, images, features):
    head = model.rpn.head
    read = [head.conv(level) for level in features.values()]
    for layer, deviation in ((head.cls_logits, 2.0), (head.bbox_pred, 0.2)):
        standardise(layer, _joined([layer(level) for level in read]), deviation)
    proposals, _ = model.rpn(images, features)
    heads = model.roi_heads
    bins = heads.box_head(heads.box_roi_pool(features, proposals, images.image_sizes))
    predictor = heads.box_predictor
    standardise(predictor.cls_score, predictor.cls_score(bins), 2.0)
    standardise(predictor.bbox_pred, predictor.bbox_pred(bins), 0.5)  # in tenths of a side
    predictor.cls_score.weight[0] = 0
    logits, wanted = predictor.cls_score(bins), len(images.image_sizes) * PAIRS

    def too_many(background):
        logits[:, 0] = -background
        return int((logits.softmax(-1)[:, 1:] > THRESHOLD).sum()) - wanted

    predictor.cls_score.bias[0] = -bisect(too_many)


def standardise(layer, outputs, deviation):
    """Give each output channel ([n, channels, …]) the mean 0 and this deviation."""
    channels = outputs.transpose(0, 1).flatten(1)
    factor = deviation / channels.std(1)
    layer.bias.copy_((layer.bias - channels.mean(1)) * factor)
    layer.weight.mul_(factor.reshape(-1, *[1] * (layer.weight.ndim - 1)))


def bisect(function, low=-50.0, high=50.0):
    """Where a function that does not fall changes its sign."""
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if function(middle) > 0 else (middle, high)
    return low


def _joined(levels):
    """[n, channels, h, w] of each level → [n, channels, cells of all]."""
    import torch

    return torch.cat([level.flatten(2) for level in levels], dim=2)


if __name__ == "__main__":
    from safetensors.torch import save_file

    builder, path = sys.argv[1:]
    partial = pathlib.Path(f"{path}.{os.getpid()}")
    save_file({name: tensor.contiguous() for name, tensor in calibrated(builder).items()}, partial)
    partial.rename(path)
