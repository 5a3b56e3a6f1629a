"""Instances on scenes of real digits, by the systems of four papers: AP^r and seconds of training of each.

    python examples/segment_instances.py                      # all, one after the other
    python examples/segment_instances.py --system mnc

Up to four digits of ten classes lie on images of 96x96 pixels among pieces of other digits; those of the held-out
scenes are in no training scene. Mask R-CNN (He 2017) names a box, then finds its mask. Hypercolumns (Hariharan 2015)
refine the detections of that same Mask R-CNN with a network of their own. MNC (Dai 2016) finds the mask of a box, then
names what is inside. SDS (Hariharan 2014) names regions of a segmentation tree by a network on the crops of each. All
start from scratch, on narrow networks.

On two CPU cores shared with other work, so seconds are a rough guide (Mask R-CNN took 144 s an epoch when alone, 205
here), on 200 held-out scenes; MNC in a run of its own (2026-11-30):

                    AP^r   AP^r_vol   AP of boxes   training s
    mask_rcnn      0.778      0.583         0.855        882
    hypercolumns   0.739      0.550         0.855        145
    mnc            0.361      0.348         0.636        521
    sds            0.628      0.491         0.731        479

AP^r counts a detection whose mask overlaps that of a digit by half, AP^r_vol is its mean over overlaps of 0.1 … 0.9.
Hypercolumns find nothing by themselves: their boxes are Mask R-CNN's, whose training counts above. MNC was still
learning after four epochs; it has no second regression of its boxes, and reads all of them from one map: on that of
stride 16, as published for images of 600 pixels, digits are three cells wide, and its AP^r was 0.01. The regions of SDS
come from the colours of the scenes, without training; of each digit one has to fit.
`--quick` only checks that everything runs; most of it is compilation. Needs `pip install "kvision[examples,classic]"`.
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

from kvision import applications, drawing, optimizers
from kvision.applications.segmentation import sds
from kvision.contract import paste_mask_scores
from kvision.metrics import VOCAveragePrecision

SIZE, BATCH, CLASSES = 96, 8, len(digits.CLASSES)
SCENES = 4  # that are drawn
SHAPE = (SIZE, SIZE, 3)
CROP, PADDING = 32, 3  # pixels of the crops of SDS, and of what lies around the region in them
FEW = {"num_candidates": (200, 100), "num_proposals": (64, 40), "num_samples": 32, "num_detections": 20}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", choices=["all", *SYSTEMS], default="all")
    parser.add_argument("--scenes", type=int, default=4000, help="to train on")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--run", default="runs/instances", help="folder of the image")
    parser.add_argument("--quick", action="store_true", help="a few steps only, to check that everything runs")
    options = parser.parse_args()
    if options.system in ("all", "sds") and not all(map(importlib.util.find_spec, ("skimage", "sklearn"))):
        parser.error("SDS needs scikit-image and scikit-learn: pip install 'kvision[classic]'.")
    count, held_out, epochs = (24, 8, 1) if options.quick else (options.scenes, 200, options.epochs)
    keras.utils.set_random_seed(0)
    train = digits.scenes(count, SIZE, sides=(0.25, 0.5), masks=True)
    test = digits.scenes(held_out, SIZE, held_out=True, sides=(0.25, 0.5), masks=True)
    rows, found, drawn = {}, {}, {}
    for name in SYSTEMS if options.system == "all" else [options.system]:
        start = time.perf_counter()
        print(f"{name} …", flush=True)
        detections, rows[name] = SYSTEMS[name](train, test, epochs, found)
        rows[name] = measured(test[1], detections) | rows[name]
        drawn[name] = [draw(test, detections, index) for index in range(SCENES)]
        print(f"{name:14}{rows[name]}  {time.perf_counter() - start:.0f} s in all", flush=True)
    print(f"\n{'':14}  AP^r   AP^r_vol   AP of boxes   training s")
    for name, row in rows.items():
        numbers = f"{row['mask_AP']:5.3f}      {row['mask_AP_vol']:5.3f}         {row['AP']:5.3f}"
        print(f"{name:14} {numbers}   {row['seconds']:8.0f}")
    run = pathlib.Path(options.run)
    run.mkdir(parents=True, exist_ok=True)
    captions = list(drawn) * SCENES
    sheet = drawing.grid([drawn[name][index] for index in range(SCENES) for name in drawn], len(drawn), captions)
    keras.utils.save_img(run / "instances.png", sheet, scale=False)
    print(f"image  {run / 'instances.png'}")


def draw(test, detections, index):
    """Detections of a scene that are surer than half, with their masks, over the ground truth."""
    one = {name: values[index] for name, values in detections.items()}
    shown = {name: values[one["scores"] > 0.5] for name, values in one.items()}
    masks = shown["masks"] if "masks" in shown else paste_mask_scores(shown["box_masks"], shown["boxes"], (SIZE, SIZE))
    truth = {name: test[1][name][index] for name in ("boxes", "labels", "masks")}
    found = shown["boxes"], shown["labels"], shown["scores"], masks
    return drawing.detections(test[0][index], *found, digits.CLASSES, truth, side=256)


def measured(targets, detections):
    """AP at an overlap of 0.5: `mask_AP` by regions (mAP^r), `mask_AP_vol` over nine overlaps, `AP` by boxes."""
    metric = VOCAveragePrecision(classes=digits.CLASSES, masks=True)
    metric.update_state(targets, detections)
    return metric.result()


def backbone(*levels):
    """A narrow VGG with group normalisation."""
    return applications.VGG(
        "tiny",
        include_top=False,
        input_shape=SHAPE,
        features=levels,
        norm="group",
        depths=(1, 1, 2, 2, 2),
        widths=(16, 32, 64, 96, 96),
    )


def fitted(model, train, epochs, rate=2e-3):
    """Trained by Adam at a one-cycle rate; the seconds, compilation included."""
    steps = epochs * -(-len(train[0]) // BATCH)
    schedule = optimizers.OneCycle(rate, total_steps=max(2, steps))
    model.compile(keras.optimizers.Adam(schedule, global_clipnorm=1.0), loss_weights={"mask_loss": 2.0})
    batches = tf.data.Dataset.from_tensor_slices(train).shuffle(len(train[0]), seed=0).batch(BATCH).prefetch(2)
    start = time.perf_counter()
    model.fit(batches, epochs=epochs, shuffle=False, verbose=2)  # the data set shuffles itself
    return time.perf_counter() - start


def mask_rcnn(train, test, epochs, found):
    """On a feature pyramid."""
    model = applications.MaskRCNN(
        input_shape=SHAPE,
        classes=CLASSES,
        backbone=backbone("C2", "C3", "C4", "C5"),
        channels=64,
        mask_channels=64,
        num_mask_samples=8,
        norm="group",
        **FEW,
    )
    seconds = fitted(model, train, epochs)
    found["mask_rcnn"] = model.predict(test[0], batch_size=BATCH, verbose=0)
    return found["mask_rcnn"], {"seconds": seconds}


def hypercolumns(train, test, epochs, found):
    """The detections of Mask R-CNN with other masks."""
    if "mask_rcnn" not in found:
        mask_rcnn(train, test, epochs, found)
    model = applications.Hypercolumns(
        input_shape=SHAPE,
        classes=CLASSES,
        backbone=backbone("C2", "C3", "C4"),
        levels=("C2", "C3", "C4"),
        channels=32,
        heatmap_size=28,
        num_mask_samples=4,
    )
    seconds = fitted(model, train, epochs)
    boxes = {name: found["mask_rcnn"][name] for name in ("boxes", "labels", "scores")}
    return model.predict({"images": test[0]} | boxes, batch_size=BATCH, verbose=0), {"seconds": seconds}


def mnc(train, test, epochs, found):
    """Three stages on one map, of stride 8 for digits this small; anchors of their size, dense layers narrow."""
    model = applications.MNC(
        input_shape=SHAPE,
        classes=CLASSES,
        backbone=backbone("C3"),
        level="C3",
        anchor_sizes=((24, 32, 48),),
        mask_units=128,
        units=256,
        **FEW,
    )
    seconds = fitted(model, train, epochs)
    return model.predict(test[0], batch_size=BATCH, verbose=0), {"seconds": seconds}


def sds_detector(train, test, epochs, found):
    """Regions of segmentation trees, two narrow networks on their crops, one SVM a class; a fifth of the scenes."""
    every = 5 if len(train[0]) >= 500 else 1
    images, targets = train[0][::every], {name: train[1][name][::every] for name in ("labels", "masks")}
    start = time.perf_counter()
    proposals, held_out = ([regions(image) for image in each] for each in (images, test[0]))
    overlaps = [
        sds.region_overlaps(masks, kept.astype(bool)).max(axis=0)
        for masks, every, labels in zip(held_out, test[1]["masks"], test[1]["labels"], strict=True)
        if len(kept := every[labels >= 0])
    ]
    recall = np.mean(np.concatenate(overlaps) >= 0.5)
    print(
        f"{np.mean([len(masks) for masks in proposals]):.0f} regions an image; {recall:.2f} of the digits overlap one"
    )
    network = applications.SDS(
        input_shape=(CROP, CROP, 3),
        classes=CLASSES,
        backbone=applications.ConvNet(2, 3, 1, input_shape=(CROP, CROP, 3), norm="group", filters=24),
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    batches = sds.RegionBatches(images, targets, proposals, CLASSES, size=CROP, padding=PADDING)
    network.fit(batches, epochs=max(1, epochs // 2), verbose=2)
    detector = applications.SDSDetector(network, padding=PADDING, batch_size=256, num_detections=20)
    detector.fit(images, targets, proposals)
    seconds = time.perf_counter() - start
    return padded(detector.detect(list(test[0]), held_out)), {"seconds": seconds, "recall": float(recall)}


def regions(image):
    return sds.region_proposals(image, scales=(20.0, 50.0, 100.0), min_size=12, num_proposals=120)


def padded(detections, rows=20):
    """A list of dicts of detections as one dict of arrays."""
    batch = {
        "boxes": np.zeros((len(detections), rows, 4), "float32"),
        "scores": np.zeros((len(detections), rows), "float32"),
        "labels": np.full((len(detections), rows), -1, "int32"),
        "masks": np.zeros((len(detections), rows, SIZE, SIZE), "uint8"),
    }
    for index, one in enumerate(detections):
        for name, values in batch.items():
            values[index, : len(one["labels"])] = one[name]
    return batch


SYSTEMS = {"mask_rcnn": mask_rcnn, "hypercolumns": hypercolumns, "mnc": mnc, "sds": sds_detector}


if __name__ == "__main__":
    main()
