"""Tree detection in aerial photos: a detector from scratch, with group normalisation, on two photos with 340 boxes.

    python examples/detect_trees.py
    python examples/detect_trees.py --detector efficientdet

The photos (National Ecological Observatory Network) and their VOC files lie in the wheel of deepforest, which is
fetched once and only unpacked. A strip of the larger photo is held out for validation: four tiles of 256 pixels.

On two CPU cores busy with other work, RetinaNet's AP50 there rose from 0.000 to 0.495 in 369 s of training
(2026-11-22); on two quiet ones that of EfficientDet-D0 at half its width rose from 0.002 to 0.374 in 282 s
(2026-11-30, as many steps). `--quick` only checks that everything runs. Needs `pip install "kvision[examples]"`.
"""

import argparse
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import PIL.Image
import tensorflow as tf
import wheels

import kvision
from kvision import applications, callbacks, data, drawing

PHOTOS = {"OSBS_029": (400, 400), "2019_YELL_2_541000_4977000_image_crop": (1035, 1249)}
TILE, MAX_BOXES, BATCH = 256, 60, 4
STRIP = 1249 - TILE  # where validation begins in the larger photo
MIN_VISIBLE = 0.5  # of a box; less of it in a tile is ignored in training and evaluation


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", choices=DETECTORS, default="retinanet")
    parser.add_argument("--steps", type=int, default=960)
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate of the one-cycle schedule")
    parser.add_argument("--run", default="runs/trees", help="folder of the report and the images")
    parser.add_argument("--online", action="store_true", help="send the run to Weights & Biases as it goes")
    parser.add_argument("--quick", action="store_true", help="a few steps only, to check that everything runs")
    options = parser.parse_args()
    epochs = 1 if options.quick else 8
    steps = 4 if options.quick else options.steps // epochs
    keras.utils.set_random_seed(0)
    run = pathlib.Path(options.run)

    small, (photo, boxes) = (read(name, run / "photos") for name in PHOTOS)
    in_training = boxes[:, 0] < STRIP
    train = crops([small, (photo[:, :STRIP], boxes[in_training])])
    validation = stacked([tile(photo, boxes, top, STRIP) for top in range(0, 4 * TILE, TILE)])

    build, averaging = DETECTORS[options.detector]
    model = build()
    model.compile(keras.optimizers.Adam(global_clipnorm=1.0, **averaging))
    average_precision = callbacks.DetectionMetrics(validation, every=epochs)
    before = average_precision.measure(model)["AP50"]
    print(f"{model.name}: {model.count_params():,} parameters, {epochs * steps} steps on random crops of two photos")
    start = time.perf_counter()
    history = model.fit(
        train,
        epochs=epochs,
        steps_per_epoch=steps,
        shuffle=False,  # every crop is drawn at random
        callbacks=[
            callbacks.LearningRate(kvision.optimizers.OneCycle(options.rate, total_steps=epochs * steps)),
            average_precision,
            callbacks.DetectionImages(validation, every=epochs, classes=("tree",), score_threshold=0.3),
            callbacks.Progress(),
            callbacks.Report(run),
            callbacks.WandbLogger("trees", mode=None if options.online else "offline", directory=run),
        ],
    )
    seconds = time.perf_counter() - start
    after = average_precision.measure(model)["AP50"]  # with `use_ema`, fit ends with the average of the weights
    draw(model, *validation, run / "trees.png")
    last = f" (before averaging {history.history['val_AP50'][-1]:.3f})" if averaging else ""
    print(f"\nAP50      {before:.3f} before, {after:.3f} after {seconds:.0f} s of training{last}")
    print(f"images  {run / 'trees.png'}  (coloured: detections; white: missed objects)")


def read(name, folder):
    """A photo [h, w, 3] and its boxes [n, 4], both as they are in the file."""
    home = folder / name
    home.mkdir(parents=True, exist_ok=True)
    for member, content in wheels.members("deepforest", (f"{name}.png", f"{name}.xml")).items():
        (home / pathlib.PurePath(member).name).write_bytes(content)
    found = data.voc(home, image_size=PHOTOS[name], batch_size=1, max_boxes=300)
    images, targets = next(iter(found))
    return images[0].numpy(), targets["boxes"][0].numpy()[targets["labels"][0].numpy() >= 0]


def tile(photo, boxes, top, left):
    """The image and the targets of one tile; boxes that are hardly visible count as crowds."""
    shifted = boxes - np.array([left, top, left, top], "float32")
    clipped = np.clip(shifted, 0, TILE)
    visible = np.prod(clipped[:, 2:] - clipped[:, :2], axis=1) / np.prod(shifted[:, 2:] - shifted[:, :2], axis=1)
    rows = np.flatnonzero(visible > 0)[:MAX_BOXES]
    targets = {
        "boxes": np.zeros((MAX_BOXES, 4), "float32"),
        "labels": np.full(MAX_BOXES, -1, "int32"),
        "crowd": np.zeros(MAX_BOXES, "int32"),
    }
    targets["boxes"][: len(rows)] = clipped[rows]
    targets["labels"][: len(rows)] = 0
    targets["crowd"][: len(rows)] = visible[rows] < MIN_VISIBLE
    return photo[top : top + TILE, left : left + TILE], targets


def stacked(tiles):
    images, targets = zip(*tiles, strict=True)
    return np.stack(images), {name: np.stack([each[name] for each in targets]) for name in targets[0]}


def crops(photos):
    """Endless batches of random crops, rotated and flipped, a little brighter or darker."""
    rng = np.random.default_rng(0)
    areas = np.array([photo.shape[0] * photo.shape[1] for photo, _ in photos], "float64")

    def one():
        photo, boxes = photos[rng.choice(len(photos), p=areas / areas.sum())]
        top, left = (int(rng.integers(0, size - TILE + 1)) for size in photo.shape[:2])
        image, targets = tile(photo, boxes, top, left)
        corners = targets["boxes"]
        for _ in range(rng.integers(4)):  # a rotation by 90 degrees to the left: (x, y) → (y, TILE − x)
            image = np.rot90(image)
            corners = np.stack([corners[:, 1], TILE - corners[:, 2], corners[:, 3], TILE - corners[:, 0]], axis=1)
        if rng.random() < 0.5:
            image = image[:, ::-1]
            corners = np.stack([TILE - corners[:, 2], corners[:, 1], TILE - corners[:, 0], corners[:, 3]], axis=1)
        targets["boxes"] = np.where(targets["labels"][:, None] < 0, 0, corners).astype("float32")
        return np.clip(image * rng.uniform(0.8, 1.2), 0, 255).astype("float32"), targets

    def batches():
        while True:
            yield stacked([one() for _ in range(BATCH)])

    images, targets = next(batches())
    signature = tf.nest.map_structure(lambda array: tf.TensorSpec(array.shape, array.dtype), (images, targets))
    return tf.data.Dataset.from_generator(batches, output_signature=signature).prefetch(4)


def retinanet():
    """RetinaNet on a narrow ResNet-18; every norm is a group norm."""
    shape = (TILE, TILE, 3)
    backbone = applications.ResNet(
        "18", width=32, include_top=False, input_shape=shape, features=("C3", "C4", "C5"), norm="group"
    )
    return applications.RetinaNet(input_shape=shape, classes=1, backbone=backbone, norm="group", channels=64)


def efficientdet():
    """EfficientDet-D0 at half the width and two cells; every norm is a group norm."""
    shape = (TILE, TILE, 3)
    backbone = applications.EfficientNet(
        "b0", width=0.5, include_top=False, input_shape=shape, features=("C3", "C4", "C5"), norm="group", padding="same"
    )
    return applications.EfficientDet("d0", input_shape=shape, classes=1, backbone=backbone, cells=2, depth=2)


# Each with its optimizer's options: the authors of EfficientDet train with an exponential average of the weights. Their
# momentum of 0.9998 looks back over thousands of steps; here all there are is a thousand.
DETECTORS = {"retinanet": (retinanet, {}), "efficientdet": (efficientdet, {"use_ema": True, "ema_momentum": 0.99})}


def draw(model, images, targets, path, score=0.3):
    """The detections, over the ground truth."""
    found = model.predict(images, verbose=0)
    drawn = []
    for row, image in enumerate(images):
        confident, real = found["scores"][row] >= score, targets["labels"][row] >= 0
        shown = [found[name][row][confident] for name in ("boxes", "labels", "scores")]
        truth = {name: targets[name][row][real] for name in ("boxes", "labels")}
        drawn.append(drawing.detections(image.astype("uint8"), *shown, classes=("tree",), truth=truth, side=512))
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(drawing.grid(drawn, columns=2)).save(path)


if __name__ == "__main__":
    main()
