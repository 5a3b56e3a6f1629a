"""A detector in five minutes, from scratch on generated images of shapes; nothing is downloaded.

    python examples/detect_shapes.py --detector yolo

AP50 on held-out images and seconds of training, on two CPU cores:

    retinanet       0.957    124 s    128 px, 600 images, 12 epochs, narrow ResNet-18 (2026-11-30)
    yolo            0.803    158 s    128 px, 3,000 images, 20 epochs, a grid of 8x8 cells (2026-11-30)
    efficientdet    0.936    231 s    128 px, 600 images, 12 epochs, D0 at half its width (2026-11-30)

YOLO has no anchors, a dense last layer and one object a cell: it needs five times the images and stays behind.
`detr`, on scenes of digits, is that of `attend_to_objects.py`, whose head has its numbers, in half as many steps.
`--quick` only checks that everything runs; most of its 45 s are compilation. Needs `pip install "kvision[examples]"`.
"""

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import attend_to_objects
import keras
import tensorflow as tf

from kvision import applications, callbacks, data, optimizers

CLASSES = 3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", choices=DETECTORS, default="retinanet")
    parser.add_argument("--images", type=int, help="to train on; another number than the detector's own")
    parser.add_argument("--epochs", type=int, help="likewise")
    parser.add_argument("--run", default="runs/shapes", help="folder of the report")
    parser.add_argument("--quick", action="store_true", help="a few steps only, to check that everything runs")
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    start = time.perf_counter()
    model, train, validation, epochs = DETECTORS[options.detector](options)
    steps = epochs * int(train.cardinality())
    print(f"{model.name}: {model.count_params():,} parameters, {steps:,} steps")
    history = model.fit(
        train,
        epochs=epochs,
        shuffle=False,  # the data set shuffles itself
        callbacks=[
            callbacks.LearningRate(),
            callbacks.DetectionMetrics(validation, every=max(1, epochs // 4)),
            callbacks.DetectionImages(validation, every=epochs),
            callbacks.Progress(),
            callbacks.Report(options.run),
        ],
    )
    print(f"\nAP50    {history.history['val_AP50'][-1]:.3f} after {time.perf_counter() - start:.0f} s")


def batches(options, images, epochs, size, batch_size=8):
    """Training and validation data, and the number of epochs."""
    if options.quick:
        images, epochs = 32, 1
    images, epochs = options.images or images, options.epochs or epochs
    sets = []
    for count, seed in ((images, 0), (max(16, min(images // 6, 200)), 1)):
        arrays = data.shapes(count, image_size=(size, size), classes=CLASSES, seed=seed)
        pairs = tf.data.Dataset.from_tensor_slices(arrays)
        sets.append((pairs if seed else pairs.shuffle(count, seed=0)).batch(batch_size).prefetch(2))
    return *sets, epochs


def named(model):
    model.class_names = data.shape_names(CLASSES)
    return model


def adam(rate, train, epochs, **options):
    """Adam whose rate rises and falls once."""
    schedule = optimizers.OneCycle(rate, total_steps=max(2, epochs * int(train.cardinality())))
    return keras.optimizers.Adam(schedule, **options)


def retinanet(options):
    """On a narrow ResNet-18 with group normalisation."""
    train, validation, epochs = batches(options, images=600, epochs=12, size=128)
    shape = (128, 128, 3)
    backbone = applications.ResNet(
        "18", width=16, include_top=False, input_shape=shape, features=("C3", "C4", "C5"), norm="group"
    )
    model = applications.RetinaNet(input_shape=shape, classes=CLASSES, backbone=backbone, norm="group", channels=64)
    model.compile(adam(2e-3, train, epochs, global_clipnorm=1.0))
    return named(model), train, validation, epochs


def yolo(options):
    """A grid of 8x8 cells; without anchors it needs more images to learn from."""
    train, validation, epochs = batches(options, images=3000, epochs=20, size=128, batch_size=16)
    model = applications.YOLO("tiny", input_shape=(128, 128, 3), classes=CLASSES, grid_size=8)
    model.compile(adam(2e-3, train, epochs, global_clipnorm=10.0))
    return named(model), train, validation, epochs


def efficientdet(options):
    """D0 at half the width and two cells; group normalisation, as it is by default."""
    train, validation, epochs = batches(options, images=600, epochs=12, size=128)
    shape = (128, 128, 3)
    backbone = applications.EfficientNet(
        "b0", width=0.5, include_top=False, input_shape=shape, features=("C3", "C4", "C5"), norm="group", padding="same"
    )
    model = applications.EfficientDet(
        "d0", input_shape=shape, classes=CLASSES, backbone=backbone, channels=48, cells=2, depth=2
    )
    model.compile(adam(2e-3, train, epochs, global_clipnorm=1.0))
    return named(model), train, validation, epochs


def detr(options):
    """Six queries, on scenes of digits, and a trunk that learned which digits there are; its time counts as well."""
    images, epochs, each = (64, 1, 4) if options.quick else (options.images or 12_000, options.epochs or 6, 250)
    train = attend_to_objects.scenes(images)
    held_out = attend_to_objects.scenes(16 if options.quick else 200, held_out=True)
    model = attend_to_objects.detector(attend_to_objects.pretrained_trunk(train, epochs * each // 4))
    model.class_names = tuple(map(str, range(10)))
    model.compile(attend_to_objects.optimizer(epochs * each))
    validation = tf.data.Dataset.from_tensor_slices((held_out[0].astype("float32"), held_out[1])).batch(32)
    return model, attend_to_objects.batches(train).take(each), validation, epochs


DETECTORS = {"retinanet": retinanet, "yolo": yolo, "efficientdet": efficientdet, "detr": detr}


if __name__ == "__main__":
    main()
