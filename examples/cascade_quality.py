"""The quality of a detector's boxes by the IoU threshold it is trained with (Cai & Vasconcelos 2018, "Cascade R-CNN").

    python examples/cascade_quality.py

Four detectors are trained on the same scenes of digits from the same initial weights: Faster R-CNN, whose box head
matches regions to objects from an IoU of 0.5, 0.6 or 0.7, and Cascade R-CNN, whose three stages use these thresholds in
turn. The paper: a head refines those boxes best whose IoU is near its training threshold (figure 1c), but a higher
threshold alone makes a worse detector, since few regions reach it; a cascade improves the regions first (COCO, AP 36.5
to 40.3).

Here, 1000 steps each, on images of held-out digits (one seed: differences of 0.01 mean nothing):

    IoU threshold      AP     AP50   AP75   AP90
    0.5                0.364  0.633  0.392  0.020
    0.6                0.361  0.627  0.371  0.029
    0.7                0.291  0.549  0.283  0.012
    0.5, 0.6, 0.7      0.432  0.676  0.497  0.061

The curves cross as in the paper: boxes of an IoU of 0.53 are refined to 0.71, 0.67 and 0.59 on average by the heads of
0.5, 0.6 and 0.7; boxes of 0.93 become worse, 0.84, 0.88 and 0.92. Measured on 2026-11-25 in 33 minutes of training on
two CPU cores busy with other work. Finished detectors are kept in --run: a call that was interrupted continues with the
missing ones. `--quick` only checks that everything runs. Needs `pip install "kvision[examples]"`.
"""

import argparse
import json
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import digits
import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

import kvision
from kvision import applications, callbacks
from kvision.ops import clip_xyxy, decode_deltas, iou_xyxy

SIZE, BATCH = 96, 4
COLOURS = {"0.5": "#2b7bba", "0.6": "#3f9b57", "0.7": "#8a5fb0", "cascade": "#d1453b"}
NAMES = {arm: f"Faster R-CNN, {arm}" for arm in COLOURS} | {"cascade": "Cascade R-CNN, 0.5 0.6 0.7"}
IOU_BINS = np.arange(0.5, 0.951, 0.05)  # edges of the bins of jittered boxes
BOXES_PER_BIN, DRAWS = 6, 1500  # jittered boxes per image: kept per bin, and drawn


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=NAMES, help="which detectors; all unless --quick")
    parser.add_argument("--steps", type=int, default=1000, help="of training, for each detector")
    parser.add_argument("--run", default="runs/cascade_quality", help="folder of the results and the plots")
    parser.add_argument(
        "--quick", action="store_true", help="two detectors, a few steps, to check that everything runs"
    )
    options = parser.parse_args()
    num_train, num_validation, steps = (8, 4, 2) if options.quick else (2000, 400, options.steps)
    arms = options.arms or (("0.5", "cascade") if options.quick else tuple(NAMES))
    run = pathlib.Path(options.run)
    run.mkdir(parents=True, exist_ok=True)

    results, scenes = {}, None
    for arm in arms:
        path = run / f"{arm}.json"
        result = json.loads(path.read_text()) if path.is_file() else {}
        if result.get("steps") != steps:  # not finished yet
            scenes = scenes or [
                digits.scenes(count, SIZE, held) for count, held in ((num_train, False), (num_validation, True))
            ]
            result = train_and_measure(arm, steps, *scenes, eagerly=options.quick)
            path.write_text(json.dumps(result, indent=1))
        results[arm] = result
    print(f"\n{'':28}AP     AP50   AP75   AP90   seconds of training")
    for arm, result in results.items():
        numbers = [result["AP"], *(result["by_threshold"][threshold] for threshold in ("0.5", "0.75", "0.9"))]
        print(f"{NAMES[arm]:28}{'  '.join(f'{number:.3f}' for number in numbers)}  {result['seconds']:.0f}")
    draw_precision(results).savefig(run / "precision.png", dpi=150)
    draw_boxes(results).savefig(run / "boxes.png", dpi=150)
    print(f"\nplots  {run / 'precision.png'}  {run / 'boxes.png'}")


def train_and_measure(arm, steps, train, validation, eagerly):
    """All numbers of one detector; a few steps are faster `eagerly`, without compiling."""
    keras.utils.set_random_seed(0)
    model = detector(arm)
    model.compile(keras.optimizers.Adam(global_clipnorm=1.0), run_eagerly=eagerly)
    print(f"{NAMES[arm]}: {model.count_params():,} parameters, {steps} steps of {BATCH} images", flush=True)
    pairs = tf.data.Dataset.from_tensor_slices(train).shuffle(len(train[0]), seed=0).repeat()
    rate = callbacks.LearningRate(kvision.optimizers.OneCycle(1e-3, total_steps=steps))
    start = time.perf_counter()
    epochs = 1 if steps < 500 else 10
    model.fit(
        pairs.batch(BATCH).prefetch(2),
        epochs=epochs,
        steps_per_epoch=steps // epochs,
        shuffle=False,  # the data set shuffles itself
        callbacks=[rate, callbacks.Progress()],
    )
    seconds = time.perf_counter() - start
    precision = callbacks.DetectionMetrics(validation)
    average = precision.measure(model)["AP"]
    thresholds = {f"{threshold:g}": number for threshold, number in precision.metric.by_threshold().items()}
    result = {"steps": steps, "seconds": seconds, "AP": average, "by_threshold": thresholds}
    return result | {"boxes": regressed(model, *validation, eagerly)}


def detector(arm):
    """On a narrow ResNet-18 with group normalisation; all arms have one box for all classes."""
    shape = (SIZE, SIZE, 3)
    backbone = applications.ResNet(
        "18", width=16, include_top=False, input_shape=shape, features=("C2", "C3", "C4", "C5"), norm="group"
    )
    options = {
        "input_shape": shape,
        "classes": len(digits.CLASSES),
        "backbone": backbone,
        "norm": None,
        "channels": 48,
        "aligned": True,
        "num_candidates": (200, 200),
        "num_proposals": (100, 100),
        "num_anchor_samples": 64,
        "num_samples": 64,
    }
    if arm == "cascade":
        return applications.CascadeRCNN(**options)
    return applications.FasterRCNN(matching_iou_threshold=float(arm), shared_box=True, **options)


def regressed(model, images, targets, eagerly):
    """For each stage, by the IoU of jittered boxes with their objects: the mean before and after the stage."""
    boxes, objects = jittered(targets)
    branches = model.head.box_stages

    def overlaps(images, boxes, objects):
        features = model.trunk(images, training=False)
        deltas = [(branch.predict(features, boxes)[1][:, :, 0], branch.delta_weights) for branch in branches]
        refined = [clip_xyxy(decode_deltas(delta, boxes, weights), (SIZE, SIZE)) for delta, weights in deltas]
        return [iou_xyxy(each, objects, pairwise=False) for each in (boxes, *refined)]

    overlaps = overlaps if eagerly else tf.function(overlaps, autograph=False)
    rows = [slice(start, start + BATCH) for start in range(0, len(images), BATCH)]
    batches = [overlaps(images[row], boxes[row], objects[row]) for row in rows]
    before, *stages = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    bins = np.digitize(before, IOU_BINS)
    means = [[float(each[bins == index].mean()) for index in range(1, len(IOU_BINS))] for each in (before, *stages)]
    return [{"before": means[0], "after": after} for after in means[1:]]


def jittered(targets):
    """Boxes around objects [b, m, 4], the same number in each bin, and these objects [b, m, 4]; padding is zeros."""
    rng = np.random.default_rng(0)
    count = len(IOU_BINS) - 1
    boxes = np.zeros((len(targets["labels"]), count * BOXES_PER_BIN, 4), "float32")
    objects = np.zeros_like(boxes)
    for image, labels in enumerate(targets["labels"]):
        real = targets["boxes"][image][labels >= 0]
        if not len(real):
            continue
        whole = real[rng.integers(len(real), size=DRAWS)]
        strength = rng.uniform(0, 0.35, (DRAWS, 1))
        sides = whole[:, 2:] - whole[:, :2]
        centres = whole[:, :2] + sides / 2 + strength * sides * rng.normal(size=(DRAWS, 2))
        sides = sides * np.exp(strength * rng.normal(size=(DRAWS, 2)))
        drawn = np.clip(np.concatenate([centres - sides / 2, centres + sides / 2], axis=1), 0, SIZE).astype("float32")
        bins = np.digitize(np.asarray(iou_xyxy(drawn, whole, pairwise=False)), IOU_BINS)
        for index in range(count):
            rows = np.flatnonzero(bins == index + 1)[:BOXES_PER_BIN]
            boxes[image, index * BOXES_PER_BIN :][: len(rows)] = drawn[rows]
            objects[image, index * BOXES_PER_BIN :][: len(rows)] = whole[rows]
    return boxes, objects


def draw_precision(results):
    """Average precision by the IoU from which a detection is true, one line per detector."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = plain(figure.add_subplot(), "IoU threshold of evaluation", "average precision")
    for arm, result in results.items():
        thresholds = [float(threshold) for threshold in result["by_threshold"]]
        label = f"{NAMES[arm]}:  AP {result['AP']:.3f}"
        axes.plot(thresholds, list(result["by_threshold"].values()), "o-", color=COLOURS[arm], label=label, ms=4)
    axes.set_ylim(0)
    axes.legend(frameon=False, title="IoU threshold of training", alignment="left")
    return figure


def draw_boxes(results):
    """The IoU of boxes after a head refined them, by the IoU before: single heads, and the stages of the cascade."""
    figure = Figure(figsize=(9.6, 5.0), layout="compressed")
    single = [(NAMES[arm], COLOURS[arm], *result["boxes"]) for arm, result in results.items() if arm != "cascade"]
    stages = results["cascade"]["boxes"] if "cascade" in results else []
    staged = [
        (f"stage {n}", colour, stage)
        for n, (stage, colour) in enumerate(zip(stages, COLOURS.values(), strict=False), 1)
    ]
    for column, (title, lines) in enumerate({"three detectors": single, "one cascade": staged}.items(), 1):
        axes = plain(figure.add_subplot(1, 2, column), "IoU before", "mean IoU after")
        axes.plot([0.5, 1], [0.5, 1], "--", color="#888888", lw=1, label="unchanged")
        for label, colour, line in lines:
            axes.plot(line["before"], line["after"], "o-", color=colour, label=label, ms=4)
        ticks = np.arange(0.5, 0.91, 0.1)
        axes.set(title=title, xlim=(0.5, 0.95), ylim=(0.5, 0.95), xticks=ticks, yticks=ticks, aspect="equal")
        axes.legend(frameon=False, loc="lower right")
    return figure


def plain(axes, x, y):
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return axes


if __name__ == "__main__":
    main()
