"""Semantic segmentation of cells: a narrow FCN-8s from scratch, on one image of 125 nuclei.

    python examples/segment_cells.py

Every pixel is the interior of a nucleus, its border (a rim of two pixels) or background; without a border between them
two nuclei that touch would be one. The image of 512x512 pixels and its masks lie in the wheel of stardist, which is
fetched once and only unpacked. The top left quarter is held out; training uses random crops that never touch it.

On two CPU cores, other work beside it, 267 s of training (175 s of processor time) raised the mean IoU of that quarter
from 0.253 to 0.743: background 0.956, interior 0.812, border 0.463; that of boundaries from 0.076 to 0.704
(2026-11-30). Nuclei that touch are still one where the border between them is a pixel wide.
`--quick` only checks that everything runs. Needs `pip install "kvision[examples]"`.
"""

import argparse
import io
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import PIL.Image
import PIL.ImageFilter
import tensorflow as tf
import wheels

import kvision
from kvision import applications, callbacks, drawing

QUARTER = 256  # pixels; the top left one is for validation
CROP, BATCH = 128, 8
CLASSES = ("background", "interior", "border")
IGNORED = 255


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--rate", type=float, default=0.05, help="highest learning rate of the one-cycle schedule")
    parser.add_argument("--variant", default="8s", choices=["32s", "16s", "8s"], help="which skips join")
    parser.add_argument("--run", default="runs/cells", help="folder of the report and the image")
    parser.add_argument("--online", action="store_true", help="send the run to Weights & Biases as it goes")
    parser.add_argument("--quick", action="store_true", help="a few steps only, to check that everything runs")
    options = parser.parse_args()
    epochs = 1 if options.quick else 10
    steps = 4 if options.quick else options.steps // epochs
    keras.utils.set_random_seed(0)
    run = pathlib.Path(options.run)

    image, labels = read()
    model = network(options.variant, CROP)
    whole = network(options.variant, QUARTER)  # the sizes of a network are static
    prepare = kvision.network.Preprocessing.fit([image[QUARTER:]])
    pixels, image = image[:QUARTER, :QUARTER], np.asarray(prepare(image[None]))[0]
    held_out = image[None, :QUARTER, :QUARTER], labels[None, :QUARTER, :QUARTER]

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=IGNORED)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9, global_clipnorm=1.0), loss)
    before = intersection_over_union(whole, *held_out)
    print(f"{model.name}: {model.count_params():,} parameters, {epochs * steps} steps on random crops of one image")
    start = time.perf_counter()
    model.fit(
        crops(image, labels),
        epochs=epochs,
        steps_per_epoch=steps,
        shuffle=False,  # every crop is drawn at random
        callbacks=[
            callbacks.LearningRate(kvision.optimizers.OneCycle(options.rate, total_steps=epochs * steps)),
            callbacks.Progress(),
            callbacks.Report(run),
            callbacks.WandbLogger("cells", mode=None if options.online else "offline", directory=run),
        ],
    )
    whole.set_weights(model.get_weights())
    after = intersection_over_union(whole, *held_out)
    print(f"\n{time.perf_counter() - start:.0f} s of training; intersection over union on the held-out quarter:")
    for name in after:
        print(f"{name:10} {before[name]:.3f} before, {after[name]:.3f} after")
    draw(whole, pixels, *held_out, run / "cells.png")
    print(f"image      {run / 'cells.png'}  (labels, predictions, and in vermilion what differs)")
    print(f"report     {run / 'report.html'}  (open it in a browser)")


def read():
    """The image [512, 512, 3] in 0…255, and the class of every pixel."""
    files = wheels.members("stardist", ("images/img2d.tif", "images/mask2d.tif")).values()
    image, nuclei = (np.asarray(PIL.Image.open(io.BytesIO(content))) for content in files)
    image = 255 * np.sqrt(image / image.max(), dtype="float32")  # makes the dim nuclei visible
    around = np.pad(nuclei, 1, mode="edge")
    shifts = [(rows, columns) for rows in range(3) for columns in range(3)]
    neighbours = np.stack([around[row : row + 512, column : column + 512] for row, column in shifts])
    is_rim = (neighbours != nuclei).any(axis=0)
    labels = np.where(is_rim & (neighbours > 0).any(axis=0), 2, (nuclei > 0).astype("int32"))
    return np.repeat(image[..., None], 3, axis=-1), labels


def network(variant, side):
    """FCN on a VGG of ten convolutions, an eighth to a quarter as wide, with batch norm."""
    return applications.FCN(
        variant,
        input_shape=(side, side, 3),
        classes=len(CLASSES),
        norm="batch",
        upsampling="fixed",
        depths=(2, 2, 2, 2, 2),
        widths=(16, 32, 64, 64, 64),
        units=128,
    )


def crops(image, labels):
    """Endless batches of random crops outside of the held-out quarter, rotated and flipped."""
    rng = np.random.default_rng(0)

    def one():
        top = left = 0
        while top < QUARTER and left < QUARTER:
            top, left = rng.integers(0, len(image) - CROP + 1, 2)
        turns, flip = rng.integers(4), rng.choice((-1, 1))
        light, shift = rng.uniform(0.8, 1.2), rng.uniform(-0.2, 0.2)
        square = [np.rot90(a[top : top + CROP, left : left + CROP], turns)[:, ::flip] for a in (image, labels)]
        return (light * square[0] + shift).astype("float32"), square[1].astype("int32")

    def batches():
        while True:
            yield tuple(np.stack(part) for part in zip(*(one() for _ in range(BATCH)), strict=True))

    signature = (tf.TensorSpec((BATCH, CROP, CROP, 3), "float32"), tf.TensorSpec((BATCH, CROP, CROP), "int32"))
    return tf.data.Dataset.from_generator(batches, output_signature=signature).prefetch(2)


def intersection_over_union(model, images, labels):
    """Of each class, their mean over all pixels, and that of the pixels near the contours."""
    metric = kvision.metrics.MeanIoU(len(CLASSES), ignore_class=IGNORED, class_names=CLASSES)
    boundary = kvision.metrics.BoundaryIoU(len(CLASSES), ignore_class=IGNORED)
    logits = model.predict(images, verbose=0)
    for each in (metric, boundary):
        each.update_state(labels, logits)
    return {"mean": float(metric.result()), "boundaries": float(boundary.result())} | metric.result_by_class()


def draw(model, pixels, images, labels, path):
    """Labels, predictions and errors side by side, each with its legend."""
    found = model.predict(images, verbose=0)[0].argmax(axis=-1)
    parts = [drawing.segmentation(pixels, each, CLASSES, background=0, side=512) for each in (labels[0], found)]
    parts.append(drawing.segmentation_errors(pixels, found, labels[0], side=512))
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(drawing.grid(parts, columns=3)).save(path)


if __name__ == "__main__":
    main()
