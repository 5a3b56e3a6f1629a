"""Networks that the attacks are tried on, and closed forms of the linear one."""

import functools

import keras
import numpy as np

from kvision.visualize.adversarial import Classifier

layers = keras.layers
SHAPE, CLASSES = (3, 4, 2), 5
PIXELS = 24
BOUNDS = (0.0, 1.0)
BUDGET = 0.05


@functools.cache
def weights(classes=CLASSES, scale=1.0):
    rng = np.random.default_rng(classes)
    return rng.standard_normal((PIXELS, classes)).astype("float32") * scale, rng.standard_normal(classes) * 0.1


@functools.cache
def linear(classes=CLASSES, scale=1.0):
    """A `Classifier` of W·x + b behind a softmax, and W [classes, pixels], b."""
    model = keras.Sequential([keras.Input(SHAPE), layers.Flatten(), layers.Dense(classes, activation="softmax")])
    model.set_weights(weights(classes, scale))
    return Classifier(model), weights(classes, scale)[0].T, weights(classes, scale)[1]


@functools.cache
def convolutional():
    """A nested network with a rescaling inside, of images of 0…255."""
    keras.utils.set_random_seed(1)
    trunk = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.Conv2D(32, 3, name="conv.2"),
            layers.BatchNormalization(),
            layers.ReLU(),
        ],
        name="trunk",
    )
    image = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(trunk(layers.Rescaling(1 / 127.5, offset=-1)(image)))
    sure = keras.initializers.RandomNormal(stddev=3.0, seed=1)
    return keras.Model(image, layers.Dense(4, "softmax", kernel_initializer=sure)(x), name="convolutional")


@functools.cache
def victim():
    return Classifier(convolutional())


def pixels(count=6, shape=SHAPE, high=1.0, seed=0):
    return (np.random.default_rng(seed).uniform(0.2, 0.8, (count, *shape)) * high).astype("float32")


def flat(images):
    return images.reshape(len(images), -1).astype("float64")


def softmax(logits):
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def loss_gradient(images, classes, matrix, biases):
    """Of the cross-entropy by the images, of a linear classifier: Wᵀ(p − y)."""
    logits = flat(images) @ matrix.T + biases
    return ((softmax(logits) - np.eye(len(biases))[classes]) @ matrix).reshape(images.shape)


def margins_of(images, matrix, biases):
    """`{(row, other): (margin, w)}` of the predicted class and every other one."""
    logits = flat(images) @ matrix.T + biases
    found = {}
    for row, label in enumerate(logits.argmax(axis=1)):
        for other in range(len(biases)):
            if other != label:
                found[row, other] = logits[row, label] - logits[row, other], matrix[other] - matrix[label]
    return found


def closed_form(images, matrix, biases, order):
    """The smallest margin over the norm of w that belongs to it."""
    sizes = {key: margin / np.linalg.norm(w, order) for key, (margin, w) in margins_of(images, matrix, biases).items()}
    return [min(size for (row, _), size in sizes.items() if row == each) for each in range(len(images))]
