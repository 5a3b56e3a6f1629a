"""What the steps on a card are given, made by NumPy, the same for both peers."""

import detection_inputs
from harness import QUICK

CLASSES = detection_inputs.CLASSES
SIZES = {  # images, and their side in pixels
    "resnet50": (2, 64) if QUICK else (128, 224),
    "vit-b16": (2, 32) if QUICK else (128, 224),
    "retinanet": (2, 128) if QUICK else (8, 640),
    "mask-rcnn": (2, 128) if QUICK else (8, 640),
}


def detection_batch(name):
    """Images [b, size, size, 3] in 0…1, and targets with masks."""
    count, size = SIZES[name]
    images, boxes, labels, masks = detection_inputs.batch(size, count)
    return images, {"boxes": boxes, "labels": labels, "masks": masks}
