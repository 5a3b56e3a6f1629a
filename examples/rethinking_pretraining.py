"""Is pre-training needed? "Rethinking ImageNet Pre-training" (He, Girshick, Dollár, arXiv 1811.08883) at desk scale.

    python examples/rethinking_pretraining.py                     finished arms are kept in --run and not run again
    python examples/rethinking_pretraining.py --arms scratch3x    one arm, for example in parallel with another call

The paper: trained from scratch with a suitable norm and a longer schedule, a detector reaches the accuracy of a
pre-trained one, with 10 % of COCO too; pre-training makes it converge faster, not better. Here a narrow Faster R-CNN
detects digits in scenes, and pre-training is the classification of single digits. AP on 300 scenes of held-out digits
(1x: 600 steps, 3x: 1,800; one seed: differences of 0.02 mean nothing):

    group norm       pre-trained 1x 0.140, 3x 0.260    from scratch 1x 0.073, 3x 0.242
    10 % (200)       pre-trained 1x 0.099, 3x 0.123    from scratch 1x 0.060, 3x 0.105
    from scratch 3x  batch norm 0.260, in batches of 2 0.272; with 10 % 0.112 and 0.119; VGG without any norm 0.211

As in the paper: pre-training doubles AP in the short schedule and has almost no advantage after the long one, although
it saw 36,000 images instead of 7,200; VGG trains without a norm. With 10 % all overfit, and the same holds. Unlike in
the paper, batch norm (in the backbone only) is no worse, in batches of 4 (as all the others) or of 2.

1x and 3x are the paper's 2x and 6x, shortened; SGD, momentum and weight decay are the paper's, clipping is a
precaution. All arms took 65 minutes (2026-11-25), two or three in parallel on two CPU cores busy with other work: 2,900
s of processor time. `--quick` only checks that everything runs, eagerly. Needs `pip install "kvision[examples]"`.
"""

import argparse
import functools
import json
import os
import pathlib
import time
import typing

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault(
    "TF_NUM_INTRAOP_THREADS", "1"
)  # operations too small for several threads: a third less processor time

import digits
import keras
import tensorflow as tf
from matplotlib.figure import Figure

from kvision import applications, callbacks, optimizers

SIZE, BATCH, RATE, WARM_UP = 96, 4, 0.04, 50
CROP, CROP_BATCH = 48, 32  # the images of pre-training, of one digit each
FEW = {"num_candidates": (64, 64), "num_proposals": (48, 48), "num_anchor_samples": 64, "num_samples": 32}
UNITS = {"images": ("thousand images", 1e3), "instances": ("thousand instances", 1e3), "pixels": ("Mpixels", 1e6)}


class Arm(typing.NamedTuple):
    label: str
    network: str  # the norm of a ResNet, or "vgg" without any
    times: int  # length, in short schedules
    colour: str
    fraction: float = 1.0  # of the images
    batch: int = BATCH  # the rate is proportional to it, and the number of images seen is the same


ARMS = {
    "pretrained": Arm("pre-trained, 1x", "group", 1, "#e69f00"),
    "scratch": Arm("from scratch, 1x", "group", 1, "#56b4e9"),
    "pretrained3x": Arm("pre-trained, 3x", "group", 3, "#d55e00"),
    "scratch3x": Arm("from scratch, 3x", "group", 3, "#0072b2"),
    "batch3x": Arm("batch norm, from scratch, 3x", "batch", 3, "#cc79a7"),
    "batch3x-two": Arm("batch norm in batches of 2, from scratch, 3x", "batch", 3, "#7f4fa0", batch=2),
}
ARMS |= {f"{name}-tenth": arm._replace(fraction=0.1) for name, arm in ARMS.items()}
ARMS["vgg3x"] = Arm("VGG without norm, from scratch, 3x", "vgg", 3, "#009e73")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--steps", type=int, default=600, help="length of the short schedule")
    parser.add_argument("--run", default="runs/rethinking", help="folder of the results and the plot")
    parser.add_argument("--quick", action="store_true", help="two arms and a few steps, to check that everything runs")
    options = parser.parse_args()
    num_images = 2000
    if options.quick:
        options.arms, options.steps, num_images = ["pretrained", "scratch"], 4, 40
        tf.config.run_functions_eagerly(True)  # a few steps are faster run than compiled
    run = pathlib.Path(options.run)
    run.mkdir(parents=True, exist_ok=True)
    files = {name: run / f"{name}.json" for name in ARMS}
    for name in options.arms:
        if files[name].exists():
            print(f"{name}: finished in an earlier call, not run again ({files[name]})")
            continue
        print(f"{name}: {ARMS[name].label}, {ARMS[name].fraction:.0%} of {num_images:,} images")
        result = train(ARMS[name], options.steps, num_images, pretrained=name.startswith("pretrained"))
        files[name].write_text(json.dumps({"steps": options.steps} | result))
    results = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    if any(result["steps"] != options.steps for result in results.values()):
        raise SystemExit(f"{run} holds arms of other --steps: give another --run, or delete its .json files.")
    table(results)
    draw(results, run / "rethinking.png")
    print(f"\nplot  {run / 'rethinking.png'}")


def train(arm, steps, num_images, pretrained):
    """Train one arm; returns its curve."""
    start = time.perf_counter()
    model, backbone, weights = detector(arm.network)
    model.set_weights(weights)
    for variable in model.optimizer.variables:
        variable.assign(keras.ops.zeros_like(variable))
    exposure = callbacks.Exposure()
    if pretrained:
        pretrain(backbone, arm.network, steps, num_images, exposure)
    before = exposure.get_state()
    steps = steps * BATCH // arm.batch
    points = min(4, steps // 4)  # measurements in a short schedule
    history = model.fit(
        batches(*scenes(round(num_images * arm.fraction)), arm.batch),
        epochs=points * arm.times,
        steps_per_epoch=steps // points,
        shuffle=False,  # the data set shuffles itself
        callbacks=[
            callbacks.LearningRate(schedule(arm.times, steps, RATE * arm.batch / BATCH)),
            callbacks.DetectionMetrics(scenes(num_images * 3 // 20, held_out=True), batch_size=20),
            exposure,
            callbacks.Progress(),
        ],
    ).history
    seen = {unit: [before[f"{unit}_seen"], *history[f"{unit}_seen"]] for unit in UNITS}
    curve = {"AP": history["val_AP"], "AP50": history["val_AP50"]} | seen
    return {"seconds": time.perf_counter() - start, **curve}


def pretrain(backbone, norm, steps, num_images, exposure):
    """Train the backbone to classify single digits."""
    images, targets = digits.scenes(3 * num_images, CROP, max_objects=1, sides=(0.6, 1.0), clutter=2)
    present = targets["labels"][:, 0] >= 0
    images = applications.resnet.preprocess_input(images[present])
    classifier = applications.ResNet("18", width=16, input_shape=(CROP, CROP, 3), classes=10, norm=norm)
    classifier.compile(optimizer(), "sparse_categorical_crossentropy", metrics=["accuracy"])
    classifier.optimizer.build(classifier.trainable_variables)  # otherwise TensorFlow traces the step twice
    classifier.fit(
        batches(images, targets["labels"][present, 0], CROP_BATCH),
        epochs=3,
        steps_per_epoch=steps // 2,
        shuffle=False,
        callbacks=[callbacks.LearningRate(schedule(1, steps * 3 // 2)), exposure, callbacks.Progress()],
    )
    for layer in backbone.layers:
        layer.set_weights(classifier.get_layer(layer.name).get_weights())


@functools.cache
def scenes(count, held_out=False):
    return digits.scenes(count, SIZE, held_out=held_out, max_objects=6, sides=(0.3, 0.6))


def batches(images, targets, batch):
    pairs = tf.data.Dataset.from_tensor_slices((images, targets))
    return pairs.shuffle(len(images), seed=0).repeat().batch(batch).prefetch(2)


def schedule(times, steps, rate=RATE):
    """The paper's 2x, or 6x if `times` is 3, shortened: the drops come at the same distance from the end."""
    rates = optimizers.MultiStep.times(2 * times, rate, stretch=steps / 180_000)
    rates.warmup_steps = min(WARM_UP, steps // 10)
    return rates


def optimizer():
    return keras.optimizers.SGD(RATE, momentum=0.9, weight_decay=1e-4, global_clipnorm=10.0)


@functools.cache
def detector(network):
    """A compiled Faster R-CNN, its backbone, and the weights with which each of its arms begins."""
    keras.utils.set_random_seed(0)
    options = {"input_shape": (SIZE, SIZE, 3), "include_top": False, "features": ("C2", "C3", "C4", "C5")}
    if network == "vgg":
        backbone = applications.VGG("11", depths=(1, 1, 2, 2, 2), widths=(16, 16, 32, 64, 128), **options)
    else:
        backbone = applications.ResNet("18", width=16, norm=network, **options)
    model = applications.FasterRCNN(
        input_shape=options["input_shape"],
        classes=10,
        backbone=backbone,
        norm=None if network == "vgg" else "group",  # of the pyramid and the box head
        channels=24,
        aligned=True,
        **FEW,
    )
    model.compile(optimizer())
    return model, backbone, model.get_weights()


def label(arm):
    return f"{arm.label}, {arm.fraction:.0%} of the images"


def table(results):
    print(f"\n{'':66} {'AP':>5} {'AP50':>5} {'images':>7} {'instances':>9} {'Mpixels':>7} {'seconds':>7}")
    for name, result in results.items():
        images, instances, pixels = (result[unit][-1] for unit in UNITS)
        print(
            f"{label(ARMS[name]):66} {result['AP'][-1]:.3f} {result['AP50'][-1]:.3f} {images:7,} {instances:9,} "
            f"{pixels / 1e6:7.1f} {result['seconds']:7.0f}"
        )


def draw(results, path):
    """AP against what was seen, one panel for each way to count it; pre-training is the bar on the axis."""
    figure = Figure(figsize=(13, 6.2), layout="constrained")
    panels = figure.subplots(1, len(UNITS), sharey=True)
    for panel, (unit, (word, size)) in zip(panels, UNITS.items(), strict=True):
        for name, result in sorted(results.items(), key=lambda item: -ARMS[item[0]].fraction):
            arm, seen = ARMS[name], [value / size for value in result[unit]]
            line, fill = ("-", arm.colour) if arm.fraction == 1 else ((0, (4, 2)), "white")
            precision = [0.0, *result["AP"]]  # an untrained head detects nothing
            text = f"{precision[-1]:.3f}  {label(arm)}"
            panel.plot(seen, precision, color=arm.colour, linestyle=line, linewidth=2, label=text)
            panel.plot(seen[-1], precision[-1], "o", color=arm.colour, markersize=8, markerfacecolor=fill)
        before = max(result[unit][0] for result in results.values()) / size
        if before:
            panel.plot([0, before], [0, 0], color="grey", linewidth=8, alpha=0.5, solid_capstyle="butt")
            panel.annotate("pre-training", (before / 2, 0), (0, 7), textcoords="offset points", ha="center")
        panel.set(xlabel=f"{word} seen", xlim=(0, None), ylim=(0, None))
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("AP on held-out images")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
