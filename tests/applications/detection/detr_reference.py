"""The authors' DETR, run in a process of its own: its modules are called `models` and `util`.

    python detr_reference.py <folder of the unpacked wheel> <folder of results>

Reads `inputs.npz` from the folder of results; writes `weights.npz`, the state dict, and `outputs.npz`.
"""

import argparse
import pathlib
import sys

import numpy as np
import torch
import torchvision

OPTIONS = {
    "dataset_file": "coco",
    "device": "cpu",
    "lr_backbone": 1e-5,
    "masks": False,
    "backbone": "resnet50",
    "dilation": False,
    "position_embedding": "sine",
    "hidden_dim": 256,
    "dropout": 0.1,
    "nheads": 8,
    "dim_feedforward": 2048,
    "enc_layers": 6,
    "dec_layers": 6,
    "pre_norm": False,
    "num_queries": 100,
    "aux_loss": True,
    "set_cost_class": 1,
    "set_cost_bbox": 5,
    "set_cost_giou": 2,
    "bbox_loss_coef": 5,
    "giou_loss_coef": 2,
    "eos_coef": 0.1,
    "frozen_weights": None,
    "mask_loss_coef": 1,
    "dice_loss_coef": 1,
}


def build(dilation):
    import util.misc

    util.misc.is_main_process = lambda: False  # which would download a backbone
    import models.backbone

    models.backbone.is_main_process = util.misc.is_main_process
    import models

    torch.manual_seed(0)
    model, criterion, post = models.build_model(argparse.Namespace(**(OPTIONS | {"dilation": dilation})))
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():  # as if trained: frozen statistics, outputs that differ
        if name.endswith(("running_var", "weight")) and tensor.ndim == 1:
            tensor.uniform_(0.5, 1.0, generator=generator)
        elif tensor.ndim == 1:
            tensor.normal_(0.0, 0.1, generator=generator)
        elif name.startswith(("class_embed", "bbox_embed.layers.2")):
            tensor.normal_(0.0, 0.2, generator=generator)
        elif name.endswith("in_proj_weight"):
            tensor *= 2.5  # attention that prefers some cells
    return model.eval(), criterion, post["bbox"]


def main(package, folder):
    torchvision.__version__ = "0.9"  # it compares three characters
    sys.path.insert(0, package)
    from util.misc import NestedTensor

    folder = pathlib.Path(folder)
    inputs = np.load(folder / "inputs.npz")
    model, criterion, post = build(bool(inputs["dilation"]))

    sizes = inputs["image_size"]
    mask = torch.ones(inputs["images"].shape[:3], dtype=torch.bool)
    for image, (height, width) in enumerate(sizes):
        mask[image, :height, :width] = False
    targets = [
        {"labels": torch.from_numpy(labels[labels >= 0]), "boxes": torch.from_numpy(boxes[labels >= 0])}
        for labels, boxes in zip(inputs["labels"].astype("int64"), inputs["boxes_cxcywh"], strict=True)
    ]
    batch = NestedTensor(torch.from_numpy(inputs["images"].transpose(0, 3, 1, 2).copy()), mask)
    with torch.no_grad():
        model.input_proj.bias.zero_()  # cells that differ, as if trained: else all queries see the same
        cells = model.input_proj(model.backbone(batch)[0][-1].tensors)
        mean, deviation = cells.mean((0, 2, 3)), cells.std((0, 2, 3))
        model.input_proj.weight /= deviation[:, None, None, None]
        model.input_proj.bias -= mean / deviation
        np.savez(folder / "weights.npz", **{name: value.numpy() for name, value in model.state_dict().items()})
        found = model(batch)
        losses = criterion(found, targets)
        detections = post(found, torch.from_numpy(sizes.astype("int64")))
    layers = [*found["aux_outputs"], found]
    names = [*(f"_{layer}" for layer in range(len(layers) - 1)), ""]
    results = {key: np.stack([layer[f"pred_{key}"].numpy() for layer in layers]) for key in ("logits", "boxes")}
    results |= {kind: [float(losses[f"loss_{kind}{name}"]) for name in names] for kind in ("ce", "bbox", "giou")}
    results["total"] = float(sum(losses[name] * weight for name, weight in criterion.weight_dict.items()))
    for key in ("scores", "labels", "boxes"):
        results[f"found_{key}"] = np.stack([image[key].numpy() for image in detections])
    results["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    np.savez(folder / "outputs.npz", **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
