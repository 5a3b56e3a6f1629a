"""Is pre-training needed? "Rethinking ImageNet Pre-training" (He, Girshick, Dollár, arXiv 1811.08883) at desk scale.

    python examples/rethinking_pretraining.py                     finished arms are kept in --run and not run again
    python examples/rethinking_pretraining.py --arms scratch3x    one arm, such as beside another call

The paper: from scratch, with a norm that suits and a longer schedule, a detector ends where a pre-trained one does,
with 10 % of COCO too; pre-training makes it faster, not better. Here a narrow Faster R-CNN finds digits in scenes, and
pre-training is naming single digits. AP on 300 scenes of digits held back (1x: 600 steps, 3x: 1,800; one seed: 0.02
says nothing):

    group norm       pre-trained 1x 0.140, 3x 0.260    from scratch 1x 0.073, 3x 0.242
    10 % (200)       pre-trained 1x 0.099, 3x 0.123    from scratch 1x 0.060, 3x 0.105
    from scratch 3x  batch norm 0.260, in batches of 2 0.272; with 10 % 0.112 and 0.119; VGG without any norm 0.211

As in the paper: pre-training doubles AP in the short schedule, and has nearly no lead after the long one, for which it
was shown 36,000 pictures instead of 7,200; VGG trains without a norm. With 10 % all overfit, and the same holds. Unlike
in the paper batch norm, here in the backbone only, is no worse, in batches of 4 (as all the others) or of 2.

1x and 3x are the paper's 2x and 6x shrunk; SGD, momentum and weight decay are its own, clipping is a precaution. All
took 65 minutes (2026-11-25), two or three arms at once beside a dozen busy jobs on two CPU cores: 2,900 s of processor
time. `--quick` is a look at the plumbing, step by step without compiling. Needs `pip install "kvision[examples]"`.
"""

import argparse
import functools
import json
import os
import pathlib
import time
import typing

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")  # operations too small to share: a third less work

import digits
import keras
import tensorflow as tf
from matplotlib.figure import Figure

from kvision import applications, callbacks, optimizers

SIZE, BATCH, RATE, WARM_UP = 96, 4, 0.04, 50
CROP, CROP_BATCH = 48, 32  # what pre-training sees: pictures of one digit
FEW = {"num_candidates": (64, 64), "num_proposals": (48, 48), "num_anchor_samples": 64, "num_samples": 32}
UNITS = {"images": ("thousand images", 1e3), "instances": ("thousand instances", 1e3), "pixels": ("Mpixels", 1e6)}


class Arm(typing.NamedTuple):
    label: str
    network: str  # the norm of a ResNet, or "vgg" without any
    times: int  # length, in short schedules
    colour: str
    share: float = 1.0  # of the pictures
    batch: int = BATCH  # at another one the rate changes as much, and the pictures seen are as many


ARMS = {
    "pretrained": Arm("pre-trained, 1x", "group", 1, "#e69f00"),
    "scratch": Arm("from scratch, 1x", "group", 1, "#56b4e9"),
    "pretrained3x": Arm("pre-trained, 3x", "group", 3, "#d55e00"),
    "scratch3x": Arm("from scratch, 3x", "group", 3, "#0072b2"),
    "batch3x": Arm("batch norm, from scratch, 3x", "batch", 3, "#cc79a7"),
    "batch3x-two": Arm("batch norm in batches of 2, from scratch, 3x", "batch", 3, "#7f4fa0", batch=2),
}
ARMS |= {f"{name}-tenth": arm._replace(share=0.1) for name, arm in ARMS.items()}
ARMS["vgg3x"] = Arm("VGG without norm, from scratch, 3x", "vgg", 3, "#009e73")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--steps", type=int, default=600, help="length of the short schedule")
    parser.add_argument("--run", default="runs/rethinking", help="folder of the results and the plot")
    parser.add_argument("--quick", action="store_true", help="two arms and a few steps, to see that all is in place")
    options = parser.parse_args()
    pictures = 2000
    if options.quick:
        options.arms, options.steps, pictures = ["pretrained", "scratch"], 4, 40
        tf.config.run_functions_eagerly(True)  # a few steps are sooner done than compiled
    run = pathlib.Path(options.run)
    run.mkdir(parents=True, exist_ok=True)
    files = {name: run / f"{name}.json" for name in ARMS}
    for name in options.arms:
        if files[name].exists():
            print(f"{name}: finished in an earlier call, not run again ({files[name]})")
            continue
        print(f"{name}: {ARMS[name].label}, {ARMS[name].share:.0%} of {pictures:,} pictures")
        result = train(ARMS[name], options.steps, pictures, pretrained=name.startswith("pretrained"))
        files[name].write_text(json.dumps({"steps": options.steps} | result))
    results = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    if any(result["steps"] != options.steps for result in results.values()):
        raise SystemExit(f"{run} holds arms of other --steps: give another --run, or delete its .json files.")
    table(results)
    draw(results, run / "rethinking.png")
    print(f"\nplot  {run / 'rethinking.png'}")


def train(arm, steps, pictures, pretrained):
    """Train one arm; gives its curve."""
    start = time.perf_counter()
    model, backbone, weights = detector(arm.network)
    model.set_weights(weights)
    for variable in model.optimizer.variables:
        variable.assign(keras.ops.zeros_like(variable))
    exposure = callbacks.Exposure()
    if pretrained:
        pretrain(backbone, arm.network, steps, pictures, exposure)
    before = exposure.get_state()
    steps = steps * BATCH // arm.batch
    points = min(4, steps // 4)  # measurements in a short schedule
    history = model.fit(
        batches(*scenes(round(pictures * arm.share)), arm.batch),
        epochs=points * arm.times,
        steps_per_epoch=steps // points,
        shuffle=False,  # the data set shuffles itself
        callbacks=[
            callbacks.LearningRate(schedule(arm.times, steps, RATE * arm.batch / BATCH)),
            callbacks.DetectionMetrics(scenes(pictures * 3 // 20, held=True), batch_size=20),
            exposure,
            callbacks.Progress(),
        ],
    ).history
    seen = {unit: [before[f"{unit}_seen"], *history[f"{unit}_seen"]] for unit in UNITS}
    curve = {"AP": history["val_AP"], "AP50": history["val_AP50"]} | seen
    return {"seconds": time.perf_counter() - start, **curve}


def pretrain(backbone, norm, steps, pictures, exposure):
    """Teach the backbone to name single digits."""
    images, targets = digits.scenes(3 * pictures, CROP, max_objects=1, sides=(0.6, 1.0), clutter=2)
    shown = targets["labels"][:, 0] >= 0
    images = applications.resnet.preprocess_input(images[shown])
    classifier = applications.ResNet("18", width=16, input_shape=(CROP, CROP, 3), classes=10, norm=norm)
    classifier.compile(optimizer(), "sparse_categorical_crossentropy", metrics=["accuracy"])
    classifier.optimizer.build(classifier.trainable_variables)  # or TensorFlow traces the step twice
    classifier.fit(
        batches(images, targets["labels"][shown, 0], CROP_BATCH),
        epochs=3,
        steps_per_epoch=steps // 2,
        shuffle=False,
        callbacks=[callbacks.LearningRate(schedule(1, steps * 3 // 2)), exposure, callbacks.Progress()],
    )
    for layer in backbone.layers:
        layer.set_weights(classifier.get_layer(layer.name).get_weights())


@functools.cache
def scenes(count, held=False):
    return digits.scenes(count, SIZE, held=held, max_objects=6, sides=(0.3, 0.6))


def batches(images, targets, batch):
    pairs = tf.data.Dataset.from_tensor_slices((images, targets))
    return pairs.shuffle(len(images), seed=0).repeat().batch(batch).prefetch(2)


def schedule(times, steps, rate=RATE):
    """The paper's 2x, or 6x if `times` is 3, shrunk: the drops come at the same distance from the end."""
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
    return f"{arm.label}, {arm.share:.0%} of the pictures"


def table(results):
    print(f"\n{'':66} {'AP':>5} {'AP50':>5} {'images':>7} {'instances':>9} {'Mpixels':>7} {'seconds':>7}")
    for name, result in results.items():
        images, instances, pixels = (result[unit][-1] for unit in UNITS)
        print(
            f"{label(ARMS[name]):66} {result['AP'][-1]:.3f} {result['AP50'][-1]:.3f} {images:7,} {instances:9,} "
            f"{pixels / 1e6:7.1f} {result['seconds']:7.0f}"
        )


def draw(results, path):
    """AP against what was seen, one panel for each way to count it; pre-training is the bar along the ground."""
    figure = Figure(figsize=(13, 6.2), layout="constrained")
    panels = figure.subplots(1, len(UNITS), sharey=True)
    for panel, (unit, (word, size)) in zip(panels, UNITS.items(), strict=True):
        for name, result in sorted(results.items(), key=lambda item: -ARMS[item[0]].share):
            arm, seen = ARMS[name], [value / size for value in result[unit]]
            line, fill = ("-", arm.colour) if arm.share == 1 else ((0, (4, 2)), "white")
            precision = [0.0, *result["AP"]]  # a fresh head finds nothing
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
    panels[0].set_ylabel("AP on pictures held back")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
