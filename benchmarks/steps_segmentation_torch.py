"""Torchvision's semantic segmentation: the training step of `steps_segmentation.py`."""

import harness

torch = harness.torch()

import torchvision

SIDE, BATCH, CLASSES = 256, 2, 21


def fcn_resnet50():
    torch.manual_seed(0)
    model = torchvision.models.segmentation.fcn_resnet50(
        weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=True
    )
    model = model.train().to(memory_format=torch.channels_last)
    images = torch.randn(BATCH, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (BATCH, SIDE, SIDE))
    labels[:, :8] = 255
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    loss_of = torch.nn.CrossEntropyLoss(ignore_index=255)

    def step():
        optimizer.zero_grad(set_to_none=True)
        outputs = model(images)
        loss = loss_of(outputs["out"], labels) + 0.5 * loss_of(outputs["aux"], labels)
        loss.backward()
        optimizer.step()
        return float(loss)

    return step, {"images": BATCH}


CASES = {"fcn-resnet50": fcn_resnet50}

if __name__ == "__main__":
    harness.serve(CASES)
