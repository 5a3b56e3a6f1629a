"""Seconds of training until AP50 of held-out images of shapes reaches 0.9, from scratch: DETECTOR.

The same images, 128x128, the same batches of 8, Adam at 1e-3 with a warm-up and the gradient clipped for all. Timed is
`fit` alone, epoch by epoch; what is measured in between is not. A case trains once, when it is built.
"""

import pathlib
import sys
import time

import harness

tf = harness.tensorflow()
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))  # for the images and the metric, beside kyolo

import keras
import numpy as np

from kvision import data
from kvision.metrics import COCOAveragePrecision

SIZE, CLASSES, IMAGES, HELD_OUT, BATCH, RATE, WARM_UP = 128, 3, 600, 100, 8, 1e-3, 150
GOAL, MOST_SECONDS = 0.9, 900


def retinanet():
    """The detector of `examples/detect_shapes.py`."""
    from kvision import applications

    shape = (SIZE, SIZE, 3)
    levels = ("C3", "C4", "C5")
    backbone = applications.ResNet("18", width=16, include_top=False, input_shape=shape, features=levels, norm="group")
    model = applications.RetinaNet(input_shape=shape, classes=CLASSES, backbone=backbone, norm="group", channels=64)
    return model, lambda images, targets: (images, targets), model.predict_on_batch


def efficientdet():
    """That of `examples/detect_shapes.py`: D0 at half the width and two cells."""
    from kvision import applications

    shape, levels = (SIZE, SIZE, 3), ("C3", "C4", "C5")
    narrow = {"width": 0.5, "norm": "group", "padding": "same"}
    backbone = applications.EfficientNet("b0", include_top=False, input_shape=shape, features=levels, **narrow)
    small = {"channels": 48, "cells": 2, "depth": 2}
    model = applications.EfficientDet("d0", input_shape=shape, classes=CLASSES, backbone=backbone, **small)
    return model, lambda images, targets: (images, targets), model.predict_on_batch


def kyolo(name):
    """A YOLO of kyolo, by its own `fit`; it takes images of 0…1 and a mask of the rows that are boxes."""

    def build():
        import kyolo as package

        model = package.YOLODetector(getattr(package, name)(nc=CLASSES, input_shape=(SIZE, SIZE, 3)))

        def batch_of(images, targets):
            present = targets["labels"] >= 0
            labels = tf.maximum(targets["labels"], 0)
            return images / 255, {"boxes": targets["boxes"], "labels": labels, "mask": tf.cast(present, tf.float32)}

        def find(images):
            found = keras.ops.convert_to_numpy(
                model.detect(images / 255, conf_threshold=0.01, iou_threshold=0.5, max_detections=100)
            )
            scores = found[..., 4]
            labels = np.where(scores > 0, found[..., 5].astype("int32"), -1)
            return {"boxes": found[..., :4], "scores": scores, "labels": labels}

        return model, batch_of, find

    return build


def until_it_detects(build):
    """The case of a detector: `build` gives the model, its form of a batch, and its detections of images."""

    def factory():
        keras.utils.set_random_seed(0)
        model, batch_of, find = build()
        warm_up = keras.optimizers.schedules.CosineDecay(0.0, 10**9, warmup_target=RATE, warmup_steps=WARM_UP)
        model.compile(optimizer=keras.optimizers.Adam(warm_up, global_clipnorm=10.0), jit_compile=False)
        train, (images, targets) = (
            data.shapes(count, image_size=(SIZE, SIZE), classes=CLASSES, seed=seed)
            for count, seed in ((IMAGES, 0), (HELD_OUT, 1))
        )
        pairs = tf.data.Dataset.from_tensor_slices(train).shuffle(IMAGES, seed=0).batch(BATCH, drop_remainder=True)
        pairs = pairs.map(batch_of).prefetch(2)
        seconds, reached = 0.0, []
        while not reached or reached[-1] < GOAL:
            if seconds > MOST_SECONDS:
                raise RuntimeError(f"AP50 is not {GOAL} after {seconds:.0f} s: {reached}")
            start = time.perf_counter()
            model.fit(pairs, epochs=1, shuffle=False, verbose=0)
            seconds += time.perf_counter() - start
            metric = COCOAveragePrecision(classes=CLASSES)
            for first in range(0, HELD_OUT, 20):
                rows = slice(first, first + 20)
                metric.update_state({name: values[rows] for name, values in targets.items()}, find(images[rows]))
            reached.append(round(metric.result()["AP50"], 3))
        return lambda: harness.Milliseconds(1e3 * seconds)

    return factory


CASES = {"retinanet": until_it_detects(retinanet), "efficientdet": until_it_detects(efficientdet)}
CASES["yolov9t"] = until_it_detects(kyolo("yolov9t"))  # its smallest

if __name__ == "__main__":
    harness.serve(CASES)
