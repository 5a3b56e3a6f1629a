"""The points of `growth.py`, each a case of its own process: AXIS:NUMBER."""

import harness

tf = harness.tensorflow()

import keras
import numpy as np

from kvision import applications
from kvision.optimizers import SGD

CLASSES, SIDE, BOXES = 20, 320, 5


def classifier(build, batch):
    def factory():
        keras.utils.set_random_seed(0)
        model = build()
        model.compile(SGD(0.01, momentum=0.9), "sparse_categorical_crossentropy", jit_compile=False)
        rng = np.random.default_rng(0)
        images = rng.random((batch, *model.input_shape[1:]), dtype="float32")
        labels = rng.integers(0, model.output_shape[-1], batch).astype("int32")
        return lambda: model.train_on_batch(images, labels)

    return factory


def backbone(side, *levels):
    return applications.ResNet18(include_top=False, input_shape=(side, side, 3), features=levels, norm="frozen_batch")


def detector(side=SIDE, boxes=BOXES):
    """A training step of RetinaNet on ResNet-18, 64 channels, one image."""

    def factory():
        keras.utils.set_random_seed(0)
        model = applications.RetinaNet(
            input_shape=(side, side, 3), classes=CLASSES, backbone=backbone(side, "C3", "C4", "C5"), channels=64
        )
        model.compile(SGD(1e-4, momentum=0.9), jit_compile=False)
        rng = np.random.default_rng(0)
        corners, sides = rng.uniform(0, 0.6, (1, boxes, 2)), rng.uniform(0.05, 0.4, (1, boxes, 2))
        targets = {
            "boxes": (side * np.concatenate([corners, corners + sides], axis=-1)).astype("float32"),
            "labels": rng.integers(0, CLASSES, (1, boxes)).astype("int32"),
        }
        images = 255 * rng.random((1, side, side, 3), dtype="float32")
        return lambda: model.train_on_batch(images, targets)

    return factory


def proposals(number):
    """The detections of one image by Faster R-CNN on ResNet-18."""

    def factory():
        keras.utils.set_random_seed(0)
        model = applications.FasterRCNN(
            input_shape=(SIDE, SIDE, 3),
            classes=CLASSES,
            backbone=backbone(SIDE, "C2", "C3", "C4", "C5"),
            num_proposals=(2000, number),
        )
        image = 255 * np.random.default_rng(0).random((1, SIDE, SIDE, 3), dtype="float32")
        return lambda: model.predict_on_batch(image)

    return factory


def case(name):
    axis, number = name.split(":")
    number = int(number)
    if axis == "batch":
        return classifier(lambda: applications.ResNet18(input_shape=(128, 128, 3), classes=CLASSES), number)
    if axis == "depth":
        depths = (number,) * 3
        shape = (32, 32, 3)
        return classifier(lambda: applications.ResNet("cifar20", depths=depths, input_shape=shape, classes=CLASSES), 32)
    return {"size": detector, "boxes": lambda boxes: detector(boxes=boxes), "proposals": proposals}[axis](number)


class Cases:
    """Builds a case out of its name: which numbers there are, `growth.py` says."""

    def __getitem__(self, name):
        return case(name)


if __name__ == "__main__":
    harness.serve(Cases())
