"""Semantic segmentation of scenes of real digits, by the networks of five papers: mean IoU against training time.

    python examples/segment_scenes.py                       # all, one after the other
    python examples/segment_scenes.py --network multiscale

Eleven classes: the background and ten digits, pasted in at random sizes and colours among pieces of other digits. The
digits of the validation scenes are in no training scene. FCN-32s, -16s and -8s (Long 2015) on a narrow VGG, and
torchvision's form on a small dilated ResNet; a classifier of windows (Cireşan 2012), trained on all pixels at once; the
multiscale net (Farabet 2013) on three octaves, also with one label for each superpixel, and for each segment of the
optimal cover of a tree over them; the recurrent network (Pinheiro 2014) with three passes, each of them trained. All
start from scratch.

On two CPU cores (light work beside), three minutes of training each, mean IoU on 192 scenes (2026-11-30):

    fcn32s                        0.094    1,124,171 parameters
    fcn16s                        0.332      755,110
    fcn8s                         0.412      664,833
    fcn_resnet                    0.289      276,691
    patches                       0.193       30,419
    multiscale                    0.287      154,027    0.289 by superpixels, 0.083 by the optimal cover
    recurrent                     0.104       12,235    in a run of its own, 237 s

0.083 is the background alone. FCN-32s sees a scene as 2x2 cells: its skips are what finds the digits. The recurrent
network computes three passes at every pixel and came to 400 steps, where the others begin to rise after 100 to 1,000.
The cover takes the purest segments, and where a network is not sure of a digit, that is the whole scene.

`--quick` only checks that everything runs. Needs `pip install "kvision[examples,classic]"`.
"""

import argparse
import importlib.util
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import digits
import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from kvision.applications import (
    FCN,
    FCNResNet,
    MultiscaleNet,
    PatchClassifier,
    RecurrentCNN,
    multiscale_net,
    patch_classifier,
)
from kvision.metrics import MeanIoU

CLASSES, BATCH = ("background", *digits.CLASSES), 32
COLOURS = {
    "fcn32s": "#9ecae1",
    "fcn16s": "#5aa2cf",
    "fcn8s": "#1f5f99",
    "fcn_resnet": "#8a5fb0",
    "patches": "#c98a2b",
    "multiscale": "#3f9b57",
    "recurrent": "#d1453b",
}


def networks(size):
    """`{name: builder}` for images of this side, narrow enough for two cores."""
    shared = {"input_shape": (size, size, 3), "classes": len(CLASSES)}
    vgg = {"depths": (1, 1, 2, 2, 2), "widths": (16, 32, 64, 64, 64), "units": 128, "norm": "group"}
    return {
        "fcn32s": lambda: FCN("32s", **vgg, **shared),
        "fcn16s": lambda: FCN("16s", **vgg, **shared),
        "fcn8s": lambda: FCN("8s", **vgg, **shared),
        "fcn_resnet": lambda: FCNResNet("tiny", norm="group", **shared),
        "patches": lambda: patch_classifier.dense(patches(), size),
        "multiscale": lambda: MultiscaleNet(filters=(16, 32, 64), hidden_units=128, **shared),
        "recurrent": lambda: RecurrentCNN("tiny", filters=(16, 32), norm="group", all_passes=True, **shared),
    }


def patches():
    """A classifier of windows of 39 pixels."""
    return PatchClassifier(
        input_shape=(39, 39, 3),
        classes=len(CLASSES),
        classifier_activation=None,
        widths=(16, 24, 32),
        kernel_sizes=(4, 3, 3),
        units=64,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=COLOURS, action="append", help="may be given again; none: all")
    parser.add_argument("--minutes", type=float, default=3, help="of training, for each network")
    parser.add_argument("--scenes", type=int, default=12_000, help="to train on")
    parser.add_argument("--size", type=int, default=48, help="side of a scene, in pixels")
    parser.add_argument("--run", default="runs/segment_scenes", help="folder of the plot")
    parser.add_argument("--quick", action="store_true", help="a few small scenes, to check that everything runs")
    options = parser.parse_args()
    chosen = options.network or list(COLOURS)[2 * options.quick :]  # one FCN on VGG is enough to see that it runs
    if "multiscale" in chosen and importlib.util.find_spec("skimage") is None:
        raise SystemExit("The superpixels come with scikit-image: pip install 'kvision[classic]'")
    size, count, held_out = (32, 32, 8) if options.quick else (options.size, options.scenes, 192)
    seconds = 1 if options.quick else 60 * options.minutes
    train, validation = scenes(count, size), scenes(held_out, size, held_out=True)

    print(f"{count:,} scenes of {size}x{size}, {held_out} to validate; mean IoU of {len(CLASSES)} classes\n")
    print(f"{'':32}{'mean IoU':>10}{'parameters':>12}{'training':>10}{'an image':>11}", flush=True)
    curves = {}
    for name in chosen:
        keras.utils.set_random_seed(0)
        model = networks(size)[name]()
        curve = fit(model, train, validation, seconds)
        curves[name] = curve.points
        scores, an_image = predict(model, validation[0])
        numbers = f"{model.count_params():12,}{curve.points[-1][0]:8.0f} s{1000 * an_image:8.2f} ms"
        print(f"{name:32}{mean_iou(validation[1], scores.argmax(-1)):10.3f}{numbers}", flush=True)
        if name == "patches":
            by_window = 1000 * window_by_window(validation[0][:1])
            print(f"{f'{name}, window by window':64}{by_window:8.2f} ms", flush=True)
        if name == "multiscale":
            for form, labels in smoothed(validation[0], scores).items():
                print(f"{f'{name}, {form}':32}{mean_iou(validation[1], labels):10.3f}", flush=True)
    path = pathlib.Path(options.run) / "mean_iou.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(curves).savefig(path, dpi=150)
    print(f"\nplot  {path}")


def scenes(count, size, held_out=False):
    """Images in 0…255 and labels [count, size, size]: 0 for the background, one more than the digit elsewhere."""
    images, targets = digits.scenes(count, size, held_out, clutter=2, max_objects=2, sides=(0.5, 0.9), masks=True)
    labels = (targets["masks"] * (targets["labels"] + 1)[..., None, None]).max(axis=1)
    return images, labels.astype("uint8")


def fit(model, train, validation, seconds):
    """Train for that long, in epochs of 100 steps; every output is trained, the last one counts."""
    outputs = list(model.output) if isinstance(model.output, dict) else None
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)
    curve = Curve(validation, seconds)
    model.compile(keras.optimizers.Adam(3e-3, global_clipnorm=1.0), dict.fromkeys(outputs, loss) if outputs else loss)
    labels = dict.fromkeys(outputs, train[1]) if outputs else train[1]
    pairs = tf.data.Dataset.from_tensor_slices((model.preprocessing(train[0]), labels)).shuffle(2000, seed=0).repeat()
    steps = min(100, len(train[0]) // BATCH)
    model.fit(
        pairs.batch(BATCH).prefetch(2),
        epochs=1000,
        steps_per_epoch=steps,
        shuffle=False,  # the data set shuffles itself
        verbose=0,
        callbacks=[curve],
    )
    return curve


class Curve(keras.callbacks.Callback):
    """Mean IoU after each epoch, against the seconds of training alone; ends it when they are over."""

    def __init__(self, validation, seconds):
        super().__init__()
        self.validation, self.seconds = validation, seconds
        self.spent, self.points = 0.0, []

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.spent += time.perf_counter() - self.start
        images, labels = self.validation
        self.points.append((self.spent, mean_iou(labels, predict(self.model, images)[0].argmax(-1))))
        self.model.stop_training = self.spent >= self.seconds


def predict(model, images):
    """Probabilities [n, h, w, classes] of the last output, and seconds an image."""
    images = model.preprocessing(images)
    model.predict(images[:BATCH], batch_size=BATCH, verbose=0)  # compiles
    start = time.perf_counter()
    logits = model.predict(images, batch_size=BATCH, verbose=0)
    spent = (time.perf_counter() - start) / len(images)
    logits = list(logits.values())[-1] if isinstance(logits, dict) else logits
    scores = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return scores / scores.sum(axis=-1, keepdims=True), spent


def window_by_window(image):
    """Seconds for an image whose pixels are classified each by its own window, which gives the same scores."""
    classifier, pixels = patches(), [(0, *pixel) for pixel in np.ndindex(image.shape[1:3])]
    size = classifier.input_shape[1:3]
    classifier.predict(np.zeros((256, *size, 3)), batch_size=256, verbose=0)  # compiles
    start = time.perf_counter()
    for first in range(0, len(pixels), 256):
        classifier.predict_on_batch(patch_classifier.windows(image, pixels[first : first + 256], size))
    return time.perf_counter() - start


def mean_iou(labels, predicted):
    metric = MeanIoU(len(CLASSES))
    metric.update_state(labels, predicted)
    return float(metric.result())


def smoothed(images, scores):
    """Labels by superpixels, and by the optimal cover of a tree over them (Farabet 2013, section 4)."""
    found = {"superpixels": [], "optimal cover": []}
    for image, one in zip(images, scores, strict=True):
        regions = multiscale_net.superpixels(image)
        tree = multiscale_net.segmentation_tree(image, regions)
        found["superpixels"].append(multiscale_net.region_labels(one, regions))
        found["optimal cover"].append(multiscale_net.region_labels(one, regions, tree))
    return {form: np.stack(labels) for form, labels in found.items()}


def draw(curves):
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        label = f"{name}: {points[-1][1]:.2f}"
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, color=COLOURS[name], label=label)
    axes.set(xlabel="seconds of training", ylabel="mean IoU on held-out digits", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main()
