"""The same steps by torchvision: channels last, bfloat16 by autocast, weights and update in float32."""

import harness

torch = harness.torch()

import torchvision
from card_inputs import CLASSES, SIZES, detection_batch
from steps_detection_torch import freeze_norms

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.backends.cudnn.benchmark = True
torch.set_float32_matmul_precision("high")


def trained(model, rate, loss_of):
    """A step of SGD with momentum, which gives its loss as a number."""
    model = model.to(DEVICE).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], rate, momentum=0.9)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = loss_of(model)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def classifier(name, build):
    def factory():
        batch, size = SIZES[name]
        torch.manual_seed(0)
        images = torch.rand(batch, 3, size, size, device=DEVICE).contiguous(memory_format=torch.channels_last)
        labels = torch.randint(0, 1000, (batch,), device=DEVICE)
        of_logits = torch.nn.CrossEntropyLoss()
        return trained(build(size), 0.01, lambda model: of_logits(model(images), labels)), {"images": batch}

    return factory


def detector(name, build):
    def factory():
        batch, size = SIZES[name]
        torch.manual_seed(0)
        classes = CLASSES + (name == "mask-rcnn")  # which counts the background
        model = build(weights=None, weights_backbone=None, num_classes=classes, min_size=size, max_size=size)
        freeze_norms(model)
        images, targets = detection_batch(name)
        images = [torch.from_numpy(image).permute(2, 0, 1).to(DEVICE) for image in images]
        boxes, labels, masks = (torch.from_numpy(targets[key]).to(DEVICE) for key in ("boxes", "labels", "masks"))
        rows = zip(boxes, labels.long() + classes - CLASSES, masks, strict=True)
        wanted = [dict(zip(("boxes", "labels", "masks"), row, strict=True)) for row in rows]
        return trained(model, 1e-4, lambda model: sum(model(images, wanted).values())), {"images": batch}

    return factory


CASES = {
    "resnet50": classifier("resnet50", lambda size: torchvision.models.resnet50(weights=None)),
    "vit-b16": classifier("vit-b16", lambda size: torchvision.models.vit_b_16(weights=None, image_size=size)),
    "retinanet": detector("retinanet", torchvision.models.detection.retinanet_resnet50_fpn),
    "mask-rcnn": detector("mask-rcnn", torchvision.models.detection.maskrcnn_resnet50_fpn),
}

if __name__ == "__main__":
    harness.serve(CASES)
