"""The same by torchvision: single operations, forward and backward, and whole training steps."""

import detection_inputs as inputs
import detection_weights
import harness

torch = harness.torch()

import torchvision
from torchvision.models import detection
from torchvision.models.detection._utils import Matcher
from torchvision.ops.misc import FrozenBatchNorm2d


def channels_first(array):
    return torch.from_numpy(array.transpose(0, 3, 1, 2).copy())


def roi_align(level):
    def factory():
        features, boxes, gradient, scale = inputs.regions(**inputs.REGIONS[level])
        maps, gradient = channels_first(features).requires_grad_(), channels_first(gradient)
        regions = torch.cat([torch.zeros(len(boxes), 1), torch.from_numpy(boxes)], dim=1)

        def step():
            return torch.autograd.grad(torchvision.ops.roi_align(maps, regions, 7, scale, 2, True), maps, gradient)

        return step

    return factory


def deform_conv():
    features, offsets, factors, kernel, gradient = inputs.deformable_inputs()
    x, moves, mask = (channels_first(array).requires_grad_() for array in (features, offsets, factors))
    taps = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()).requires_grad_()
    gradient = channels_first(gradient)

    def step():
        outputs = torchvision.ops.deform_conv2d(x, moves, taps, padding=1, mask=mask)
        return torch.autograd.grad(outputs, [x, moves, mask, taps], gradient)

    return step


def matching():
    anchors, boxes = (torch.from_numpy(array) for array in inputs.anchors_and_truth())
    matcher = Matcher(0.7, 0.3, True)
    return lambda: matcher(torchvision.ops.box_iou(boxes, anchors))


def suppression():
    boxes, scores = (torch.from_numpy(array) for array in inputs.overlapping_boxes())
    return lambda: torchvision.ops.nms(boxes, scores, 0.7)


def detector(name, inference=False, channels_last=True):
    """A training step with frozen batch norm, or the detections of one image."""

    def factory():
        torch.manual_seed(0)
        classes, model = frozen(name)
        if channels_last:
            model.to(memory_format=torch.channels_last)
        images, boxes, labels, masks = (torch.from_numpy(array) for array in inputs.batch())
        images = [image.permute(2, 0, 1).contiguous() for image in images]
        rows = zip(boxes, labels.long() + classes - inputs.CLASSES, masks, strict=True)
        targets = [dict(zip(("boxes", "labels", "masks"), row, strict=True)) for row in rows]
        if inference:
            model.eval()
            return torch.no_grad()(lambda: model(images[:1]))
        model.train()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-4, momentum=0.9)

        def step():
            optimizer.zero_grad(set_to_none=True)
            loss = sum(model(images, targets).values())
            loss.backward()
            optimizer.step()
            return float(loss)

        return step, {"images": inputs.BATCH}

    return factory


def frozen(name):
    """The number of classes and a detector with frozen batch norm."""
    size = {"min_size": inputs.SIZE, "max_size": inputs.SIZE}
    classes = inputs.CLASSES + (name != "retinanet_resnet50_fpn")  # the two-stage ones count the background
    model = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=classes, **size)
    freeze_norms(model)
    return classes, model


def as_if_trained(name):
    """The detections of one generated photo, by the weights of `detection_weights.py`."""

    def factory():
        from safetensors.torch import load_file

        _, model = frozen(name)
        model.load_state_dict(load_file(detection_weights.path_of(name)))
        model.to(memory_format=torch.channels_last).eval()
        (photo,) = inputs.photographs(1)
        image = torch.from_numpy(photo).permute(2, 0, 1).contiguous() / 255

        @torch.no_grad()
        def told():
            found = {"detections": len(model([image])[0]["scores"])}
            if hasattr(model, "rpn"):
                images, _ = model.transform([image])
                found = {"proposals": len(model.rpn(images, model.backbone(images.tensors))[0][0])} | found
            return found

        return torch.no_grad()(lambda: model([image])), {"told": told}

    return factory


def detr(inference=False):
    """DETR of the transformers library, its backbone timm's ResNet-50 with frozen batch norm; AdamW in two groups."""

    def factory():
        from transformers import DetrConfig, DetrForObjectDetection

        torch.manual_seed(0)
        model = DetrForObjectDetection(DetrConfig(num_labels=inputs.CLASSES, auxiliary_loss=not inference))
        model.to(memory_format=torch.channels_last)
        images, boxes, labels, _ = (torch.from_numpy(array) for array in inputs.batch())
        images = images.permute(0, 3, 1, 2)  # as it is in memory
        mask = torch.ones((len(images), inputs.SIZE, inputs.SIZE), dtype=torch.long)
        if inference:
            model.eval()
            return torch.no_grad()(lambda: model(images[:1], mask[:1]))
        model.train()
        left, top, right, bottom = (boxes / inputs.SIZE).unbind(-1)
        wanted = torch.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], -1)
        targets = [{"class_labels": rows.long(), "boxes": box} for rows, box in zip(labels, wanted, strict=True)]
        groups = {True: [], False: []}
        for name, parameter in model.named_parameters():
            groups["backbone" in name].append(parameter.requires_grad_())  # all of it, as ours
        rates = [{"params": groups[False]}, {"params": groups[True], "lr": 1e-5}]
        optimizer = torch.optim.AdamW(rates, 1e-4, weight_decay=1e-4)

        def step():
            optimizer.zero_grad(set_to_none=True)
            loss = model(images, mask, labels=targets).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            return float(loss)

        return step, {"images": inputs.BATCH}

    return factory


def hungarian():
    from scipy.optimize import linear_sum_assignment

    costs = inputs.assignment_costs()
    return lambda: [linear_sum_assignment(cost) for cost in costs]


def efficientdet(inference=False):
    """Effdet's EfficientDet-D0 at 512 pixels, its batch norms live in training."""

    def factory():
        import effdet

        torch.manual_seed(0)
        config = effdet.get_efficientdet_config("tf_efficientdet_d0")
        config.num_classes = inputs.CLASSES
        model = effdet.EfficientDet(config, pretrained_backbone=False).to(memory_format=torch.channels_last)
        images, boxes, labels, _ = inputs.batch(512)
        images = channels_first(images).contiguous(memory_format=torch.channels_last)
        if inference:
            bench = effdet.DetBenchPredict(model).eval()
            return torch.no_grad()(lambda: bench(images[:1]))
        bench = effdet.DetBenchTrain(model).train()
        targets = {
            "bbox": torch.from_numpy(boxes[..., [1, 0, 3, 2]].copy()),
            "cls": torch.from_numpy(labels).long() + 1,
        }
        optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)

        def step():
            optimizer.zero_grad(set_to_none=True)
            loss = bench(images, targets)["loss"]
            loss.backward()
            optimizer.step()
            return float(loss)

        return step, {"images": inputs.BATCH}

    return factory


def freeze_norms(module):
    """Every batch norm replaced by its frozen form, as in torchvision's published detectors."""
    for name, child in module.named_children():
        if isinstance(child, torch.nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features))
        else:
            freeze_norms(child)


CASES = {f"roi-align:{level}": roi_align(level) for level in inputs.REGIONS}
CASES |= {"deform-conv": deform_conv, "matching": matching, "nms": suppression}
CASES |= {
    "retinanet": detector("retinanet_resnet50_fpn"),
    "efficientdet": efficientdet(),
    "efficientdet-inference": efficientdet(inference=True),
    "faster-rcnn": detector("fasterrcnn_resnet50_fpn"),
    "faster-rcnn-inference": detector("fasterrcnn_resnet50_fpn", inference=True),
    "detr": detr(),
    "detr-inference": detr(inference=True),
    "hungarian": hungarian,
    "mask-rcnn": detector("maskrcnn_resnet50_fpn"),
    "mask-rcnn-128": detector("maskrcnn_resnet50_fpn"),
    "mask-rcnn-inference": detector("maskrcnn_resnet50_fpn", inference=True),
    "retinanet-inference": detector("retinanet_resnet50_fpn", inference=True),
    "retinanet-as-if-trained": as_if_trained("retinanet_resnet50_fpn"),
    "faster-rcnn-as-if-trained": as_if_trained("fasterrcnn_resnet50_fpn"),
    "mask-rcnn-as-if-trained": as_if_trained("maskrcnn_resnet50_fpn"),
}

if __name__ == "__main__":
    harness.serve(CASES)
