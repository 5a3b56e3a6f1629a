"""Which pixels the queries of a DETR look at (Carion et al. 2020, figure 6), and what its losses are worth.

    python examples/attend_to_objects.py

A small DETR (one layer of the encoder, two of the decoder, six queries) learns to find up to three real digits on
images of 64x64 pixels. From scratch it needs a trunk that knows something: four convolutions first learn which digits
there are, without their boxes. One plot shows, for held-out digits, what each query that found one looks at; the other
the same training with the auxiliary losses off, and with a weight of 1 for "no object" instead of 0.1.

On two processor cores, on 400 images of held-out digits, after every 466 steps; seconds with those of the trunk, 15
minutes for all three (2026-11-30):

    as in the paper               AP50 0.33  0.60  0.67  0.74  0.82  0.83 after 284 s
    without auxiliary losses           0.26  0.50  0.61  0.72  0.76  0.77 after 273 s
    "no object" weighs 1               0.12  0.57  0.70  0.75  0.80  0.82 after 280 s

With two layers to supervise the auxiliary losses are worth 0.06; with six queries to three objects "no object" is no
majority that needs a small weight, though a weight of 1 makes the beginning slow.
Needs `pip install "kvision[examples]"`.
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

SIZE, BATCH, SHAPE = 64, 32, (64, 64, 3)
ARMS = {
    "paper": ("as in the paper", {}),
    "no auxiliary": ("without auxiliary losses", {"auxiliary_losses": False}),
    "no-object 1": ('"no object" weighs 1', {"no_object_weight": 1.0}),
}
COLOURS = {"paper": "#2b7bba", "no auxiliary": "#d1453b", "no-object 1": "#8a5fb0"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, help="which detectors; all unless --quick")
    parser.add_argument("--steps", type=int, default=2800, help="of the training of each detector")
    parser.add_argument("--scenes", type=int, default=16_000, help="images to train on")
    parser.add_argument("--run", default="runs/attend_to_objects", help="folder of the results and the plots")
    parser.add_argument("--quick", action="store_true", help="a few steps, to check that everything runs")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.scenes = 4, 64
    arms = options.arms or (("paper",) if options.quick else tuple(ARMS))
    run = pathlib.Path(options.run)
    run.mkdir(parents=True, exist_ok=True)

    train, held_out = scenes(options.scenes), scenes(8 if options.quick else 400, held_out=True)
    results = {}
    for arm in arms:
        model, results[arm] = trained(arm, train, held_out, options.steps)
        (run / f"{arm.replace(' ', '_')}.json").write_text(json.dumps(results[arm]))
        print(f"{ARMS[arm][0]:28}AP50 {results[arm]['AP50'][-1]:.3f} after {results[arm]['seconds'][-1]:.0f} s")
        if arm == "paper":
            attention(model, held_out).savefig(run / "attention.png", dpi=150)
    curves(results).savefig(run / "losses.png", dpi=150)
    print(f"plots  {run / 'attention.png'}  {run / 'losses.png'}")


def scenes(count, held_out=False):
    """Scenes of one to three digits of 18 to 28 pixels on a plain background, as bytes."""
    images, targets = digits.scenes(count, SIZE, held_out, clutter=0, max_objects=3, sides=(0.28, 0.44))
    return images.astype("uint8"), targets


def batches(train):
    pairs = tf.data.Dataset.from_tensor_slices(train).shuffle(len(train[0]), seed=0).repeat().batch(BATCH)
    return pairs.map(lambda images, targets: (tf.cast(images, "float32"), targets)).prefetch(2)


def pretrained_trunk(train, steps):
    """Four convolutions, trained to say which digits are in an image."""
    network = applications.ConvNet(
        1, 4, 0, include_top=False, input_shape=SHAPE, filters=24, norm="batch", features=("C3",)
    )
    images = keras.Input(SHAPE)
    seen = keras.layers.GlobalMaxPooling2D()(network(network.preprocessing(images))["C3"])
    classifier = keras.Model(images, keras.layers.Dense(10, activation="sigmoid")(seen))
    classifier.compile(keras.optimizers.Adam(2e-3), "binary_crossentropy")
    present = batches(train).map(lambda images, targets: (images, tf.reduce_max(tf.one_hot(targets["labels"], 10), 1)))
    classifier.fit(present, epochs=1, steps_per_epoch=steps, shuffle=False, verbose=0)
    return network


def trained(arm, train, held_out, steps):
    """A detector and its AP50 on held-out digits by seconds of training, those of the trunk included."""
    keras.utils.set_random_seed(0)
    start = time.perf_counter()
    trunk = pretrained_trunk(train, max(1, steps // 4))
    seconds, epochs = time.perf_counter() - start, min(6, steps)
    print(f"{ARMS[arm][0]}: trunk after {seconds:.0f} s", flush=True)
    model = detector(trunk, **ARMS[arm][1])
    model.compile(optimizer(steps))
    precision = callbacks.DetectionMetrics((held_out[0].astype("float32"), held_out[1]), batch_size=BATCH)
    pairs, result = batches(train), {"seconds": [seconds], "AP50": [0.0]}
    for epoch in range(epochs):
        start = time.perf_counter()
        model.fit(
            pairs,
            initial_epoch=epoch,
            epochs=epoch + 1,
            steps_per_epoch=steps // epochs,
            shuffle=False,  # the data set shuffles itself
            verbose=0,
        )
        seconds += time.perf_counter() - start
        result["seconds"].append(seconds)
        result["AP50"].append(precision.measure(model)["AP50"])
        print(f"  AP50 {result['AP50'][-1]:.3f} after {seconds:.0f} s", flush=True)
    return model, result


def detector(trunk, **options):
    return applications.DETR(
        "tiny",
        input_shape=SHAPE,
        classes=10,
        backbone=trunk,
        level="C3",
        num_queries=6,
        channels=96,
        num_heads=4,
        hidden_units=192,
        dropout_rate=0.0,
        **options,
    )


def optimizer(steps):
    """The rate warms up for 100 steps and falls to a tenth for the last fifth, as the authors drop it.

    They clip at 0.1 and give the backbone a tenth of the rate; here, from scratch, nothing is clipped as early, and the
    trunk goes on to learn with the others.
    """
    rate = kvision.optimizers.MultiStep(
        5e-4, [round(0.8 * steps)], warmup_steps=min(100, round(0.1 * steps)), warmup_factor=0.01
    )
    return kvision.optimizers.AdamW(rate, weight_decay=1e-4, global_clipnorm=1.0)


def attention(model, held_out, rows=4, score=0.6):
    """Images of three digits, and for the query that found each what it looks at."""
    images, targets = held_out
    chosen = np.argsort(-(targets["labels"] >= 0).sum(axis=1), kind="stable")[:rows]
    model.head.attention_maps = True
    found = model.predict(images[chosen].astype("float32"), verbose=0)
    model.head.attention_maps = False
    figure = Figure(figsize=(8, 2 * len(chosen)), layout="compressed")
    grid = figure.subplots(len(chosen), 4, squeeze=False)
    for row, image in enumerate(images[chosen]):
        grid[row][0].imshow(image)
        for axes in grid[row]:
            axes.set(xticks=[], yticks=[])
        queries = np.flatnonzero(found["scores"][row] > score)[:3]
        for axes, query in zip(grid[row][1:], queries, strict=False):
            looked = found["attention_maps"][row, query]
            axes.imshow(image.mean(axis=-1), cmap="gray")
            axes.imshow(looked, cmap="inferno", alpha=0.6, extent=(0, SIZE, SIZE, 0), interpolation="bilinear")
            left, top, right, bottom = found["boxes"][row, query]
            axes.plot([left, right, right, left, left], [top, top, bottom, bottom, top], color="#7fd1ff", lw=1.5)
            axes.set_title(f"{found['labels'][row, query]}: {found['scores'][row, query]:.2f}", fontsize=9)
    return figure


def curves(results):
    """AP50 on held-out digits by seconds of training."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for arm, result in results.items():
        label = f"{ARMS[arm][0]}: {result['AP50'][-1]:.2f}"
        axes.plot(result["seconds"], result["AP50"], "o-", color=COLOURS[arm], label=label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
    axes.set(
        xlabel="seconds of training, those of the trunk included",
        xlim=(0, None),
        ylabel="AP50 on held-out digits",
        ylim=(0, 1),
    )
    axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main()
