"""Where the time of five generations of detectors goes: one image, from R-CNN's 2,000 runs of a network to YOLO's one.

    python examples/inside_the_box.py

R-CNN (Girshick 2014) runs the whole network on every proposal. Fast R-CNN (2015) pools all of them from one feature map
of the image and runs only the last stage on each. Faster R-CNN (Ren 2015) computes its proposals from that map as well
and needs fewer. These share one ResNet-50 and its weights. RetinaNet (Lin 2017) has a ResNet-50 too, and classifies and
refines every anchor by convolutions, without a second stage. YOLO (Redmon 2016) has a network of 24 convolutions and
sees the image at 448x448. Proposals and weights are random here, which does not change the time. Selective search,
which took 2 s per image for the first two (Ren 2015, section 1), is not counted. All of R-CNN's proposals are computed.

Seconds for an image of 480x640 on two quiet CPU cores (2026-11-30), medians but for R-CNN's one; four minutes in all:

    R-CNN, 2,000 external             84.4    trunk 68.7, head 15.2, warping 0.5
    Fast R-CNN, 2,000 external        17.2    trunk 0.2, pooling 1.1, head 15.8
    Faster R-CNN, 2,000 of its own    17.7    trunk 0.4, pooling 1.0, head 16.3, proposals 0.005
    Faster R-CNN, 300 of its own       2.9    trunk 0.4, pooling 0.2, head 2.3, proposals 0.004
    RetinaNet, every anchor            0.8    trunk, pyramid and heads
    YOLO, a grid of cells              0.3    trunk with its dense layers, at 448x448

Sharing the trunk makes it 4.9 times faster, where Girshick saw 146 (VGG-16): the last stage of a ResNet-50, a fifth of
its multiplications, still runs on every proposal, and then takes nine tenths of the time. The second gain comes from
few, good proposals. `--quick` only checks that everything runs.
"""

import argparse
import os
import pathlib
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from kvision.applications import YOLO, FasterRCNN, FastRCNN, ResNet50, RetinaNet, resnet

BATCH, CLASSES = 50, 20  # proposals per run of the head; classes
MAX_SECONDS = 20  # after which a measurement is not repeated
WARPED = 224  # side of a proposal's crop in R-CNN, in pixels
STEPS = "warping", "trunk", "proposals", "pooling", "head", "detections"
COLOURS = "#c9a227", "#2b7bba", "#3f9b57", "#e58b4a", "#d1453b", "#777777"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proposals", type=int, default=2000, help="of the image, a multiple of 50")
    parser.add_argument("--run", default="runs/inside_the_box", help="folder of the chart")
    parser.add_argument(
        "--quick", action="store_true", help="a small image and few proposals, to check that everything runs"
    )
    options = parser.parse_args()
    size = (96, 128) if options.quick else (480, 640)
    many, few, repeats = (8, 4, 1) if options.quick else (options.proposals, min(300, options.proposals), 3)
    keras.utils.set_random_seed(0)
    image = np.random.default_rng(0).uniform(0, 255, (1, *size, 3)).astype("float32")
    boxes = random_boxes(many, size)
    fast, faster, of_crops = networks(size, many)

    methods = {
        f"R-CNN, {many:,} external": method(fast, image, many, boxes, of_crops),
        f"Fast R-CNN, {many:,} external": method(fast, image, many, boxes),
        f"Faster R-CNN, {many:,} of its own": method(faster, image, many),
        f"Faster R-CNN, {few:,} of its own": method(faster, image, few),
        "RetinaNet, every anchor": one_stage(RetinaNet(input_shape=(*size, 3), classes=CLASSES), image),
        "YOLO, a grid of cells": one_stage(yolo(options.quick), image),
    }
    print(f"Seconds for an image of {size[0]}x{size[1]}: median of {repeats}, of fewer after {MAX_SECONDS} s\n")
    print(f"{'':31}{'all':>8}{''.join(f'{step:>12}' for step in STEPS)}")
    measured = {}
    for name, find in methods.items():
        find({}, warm_up=True)
        runs = []
        while len(runs) < repeats and sum(sum(seconds.values()) for seconds in runs) < MAX_SECONDS:
            runs.append({})
            find(runs[-1])
        measured[name] = {step: statistics.median(run.get(step, 0) for run in runs) for step in STEPS}
        steps = "".join(f"{seconds:12.3f}" if seconds else f"{'':12}" for seconds in measured[name].values())
        print(f"{name:31}{sum(measured[name].values()):8.2f}{steps}", flush=True)
    slowest, *others = (sum(steps.values()) for steps in measured.values())
    print(f"\nR-CNN takes {', '.join(f'{slowest / other:.1f}' for other in others)} times as long as the others.")
    print("Class logits that must agree differ, relative to the largest, by at most")
    for case, difference in agreement(fast, faster, of_crops, image, boxes[:, :8]).items():
        print(f"{difference:9.0e}  {case}")
    path = pathlib.Path(options.run) / "seconds.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(measured).savefig(path, dpi=150)
    print(f"\nchart  {path}")


def networks(size, num_proposals):
    """Fast and Faster R-CNN around one backbone, with one box head; and the backbone for R-CNN's crops."""
    options = {"include_top": False, "norm": "frozen_batch", "features": ("C4", "C5")}
    backbone, copy = (ResNet50(input_shape=(*sides, 3), **options) for sides in (size, (WARPED, WARPED)))
    copy.set_weights(backbone.get_weights())
    images = keras.Input((WARPED, WARPED, 3))
    of_crops = keras.Model(images, copy(resnet.preprocess_input(images))["C4"])
    shared = {"input_shape": (*size, 3), "classes": CLASSES, "backbone": backbone}
    fast = FastRCNN(head="conv5", **shared)
    numbers = {"num_candidates": (6000, 6000), "num_proposals": (num_proposals, num_proposals)}
    faster = FasterRCNN(neck="c4", **numbers, **shared)
    faster.head.box_stages[0].box_head.set_weights(fast.head.box_stages[0].box_head.get_weights())
    return fast, faster, of_crops


def yolo(quick):
    """The paper's network; its weights alone take a gigabyte."""
    return YOLO("tiny", input_shape=(112, 112, 3), classes=CLASSES) if quick else YOLO(classes=CLASSES)


def random_boxes(number, size):
    """[1, number, 4]: random boxes with sides of at least 16 pixels."""
    rng = np.random.default_rng(1)
    whole = np.array(size[::-1])
    sides = rng.uniform(16, whole, (number, 2))
    corners = rng.uniform(0, whole - sides)
    return np.concatenate([corners, corners + sides], axis=1)[None].astype("float32")


def timed(seconds, step, function, *arguments):
    """The result of the function; its time is added to that of the step."""
    start = time.perf_counter()
    result = function(*arguments)
    seconds[step] = seconds.get(step, 0) + time.perf_counter() - start
    return result


def method(detector, image, number, proposals=None, of_crops=None):
    """A function that detects objects and records the seconds of each step.

    With `of_crops` it is R-CNN: every proposal is cropped, warped and run through the whole network. Without, regions
    are pooled from one map of the image: Fast R-CNN of the given `proposals`, Faster R-CNN of its own.
    """
    branch, (height, width) = detector.head.box_stages[0], image.shape[1:3]
    trunk, pool, of_crops = (part and tf.function(part) for part in (detector.trunk, branch.pooling, of_crops))
    propose = tf.function(lambda features: detector.head.proposals.propose(features)[:, :number])

    @tf.function
    def warp(boxes):
        corners = tf.gather(boxes[0], [1, 0, 3, 2], axis=1) / (height, width, height, width)
        return tf.image.crop_and_resize(image, corners, tf.zeros(boxes.shape[1], "int32"), [WARPED, WARPED])

    @tf.function
    def head(regions):
        outputs = branch.box_head(regions)
        return outputs["class_logits"][None], tf.reshape(outputs["box_deltas"], (1, len(regions), CLASSES + 1, 4))

    @tf.function
    def select(outputs, boxes):
        logits, deltas = (tf.concat(parts, axis=1) for parts in zip(*outputs, strict=True))
        return branch.decode(tf.nn.softmax(logits), deltas, boxes)

    def run(seconds, warm_up=False):
        features = timed(seconds, "trunk", trunk, image) if of_crops is None else None
        boxes = timed(seconds, "proposals", propose, features) if proposals is None else proposals
        parts, outputs = [boxes[:, start : start + BATCH] for start in range(0, number, BATCH)], []
        for part in parts[:1] if warm_up else parts:
            if of_crops is None:
                regions = timed(seconds, "pooling", pool, features["C4"], part)[0]
            else:
                regions = timed(seconds, "trunk", of_crops, timed(seconds, "warping", warp, part))
            outputs.append(timed(seconds, "head", head, regions))
        timed(seconds, "detections", select, outputs * (len(parts) // len(outputs)), boxes)

    return run


def one_stage(detector, image):
    """As `method`, of a detector that computes all its predictions at once."""
    trunk, decode = tf.function(detector.trunk), tf.function(detector.head.decode)
    image = tf.image.resize(image, detector.trunk.inputs[0].shape[1:3])

    def run(seconds, warm_up=False):
        timed(seconds, "detections", decode, timed(seconds, "trunk", trunk, image))

    return run


def agreement(fast, faster, of_crops, image, boxes):
    """Largest differences of class logits, relative to the largest, where two methods compute the same."""
    branch, other = fast.head.box_stages[0], faster.head.box_stages[0]
    c4 = of_crops(np.random.default_rng(2).uniform(0, 255, (1, WARPED, WARPED, 3)))
    whole = np.array([[[0, 0, WARPED - 16, WARPED - 16]]], "float32")  # the last cell of a region is inclusive
    aligned = [other.pooling(detector.trunk(image)["C4"], boxes)[0] for detector in (fast, faster)]
    regions = {
        "Fast and Faster R-CNN: the same regions, both aligned": aligned,
        "R-CNN and Fast R-CNN: one region, the whole image": [c4, branch.pooling(c4, whole)[0]],
    }
    differences = {}
    for case, (first, second) in regions.items():
        ours, theirs = branch.box_head(first)["class_logits"], other.box_head(second)["class_logits"]
        differences[case] = float(tf.reduce_max(tf.abs(ours - theirs)) / tf.reduce_max(tf.abs(theirs)))
    return differences


def draw(measured):
    """Seconds on a logarithmic axis, and beside them the fraction of each step."""
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = list(measured)
    seconds = np.array([sum(steps.values()) for steps in measured.values()])
    left.barh(names, seconds, color="#6b7280", height=0.6)
    for row, value in enumerate(seconds):
        left.annotate(f"{value:.3g} s", (value, row), (4, 0), textcoords="offset points", va="center")
    left.set(xscale="log", xlabel="seconds per image", xlim=(min(seconds) / 3, max(seconds) * 3))
    left.xaxis.set_major_formatter("{x:g}")
    left.invert_yaxis()
    before = np.zeros(len(names))
    for step, colour in zip(STEPS, COLOURS, strict=True):
        percentages = 100 * np.array([steps[step] for steps in measured.values()]) / seconds
        right.barh(names, percentages, left=before, color=colour, height=0.6, label=step)
        before += percentages
    right.set(xlabel="fraction of the time, %", xlim=(0, 100))
    figure.legend(*right.get_legend_handles_labels(), loc="outside upper right", ncols=len(STEPS), frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    return figure


if __name__ == "__main__":
    main()
