"""Small models and batches for the sanity checks, healthy and with planted faults."""

import random

import keras
import numpy as np

from kvision._keras import global_seed_variable

CLASSES = 4


def batch(rows=32, scale=1.0, seed=0):
    """Images [rows, 8, 8, 3] whose class shows in their mean colour, and labels in turn."""
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % CLASSES
    colours = np.eye(CLASSES)[labels][:, None, None, :3]
    return scale * (rng.normal(size=(rows, 8, 8, 3)) + colours).astype("float32"), labels.astype("int32")


def convnet(activation="softmax", *, dropout=0.0, norm=False, hidden="relu", **dense):
    """Two convolutions, a hidden dense layer and an output; `dense` goes to the output."""
    layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3, activation=hidden, kernel_initializer="he_normal")]
    layers += [keras.layers.BatchNormalization()] if norm else []
    layers += [keras.layers.Conv2D(8, 3, activation=hidden, kernel_initializer="he_normal"), keras.layers.Flatten()]
    layers += [keras.layers.Dropout(dropout)] if dropout else []
    return keras.Sequential([*layers, keras.layers.Dense(CLASSES, activation=activation, **dense)])


def compiled(model, optimizer="sgd", loss="sparse_categorical_crossentropy", **options):
    model.compile(optimizer, loss, **options)
    return model


def everything(model):
    """All that a check must leave bit for bit as it was."""
    seed = global_seed_variable()
    variables = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
    variables += [] if seed is None else [seed]
    return {
        "variables": [np.asarray(keras.ops.convert_to_numpy(variable)).tobytes() for variable in variables],
        "objects": [id(getattr(model, name)) for name in ("optimizer", "train_function", "test_function")],
        "flags": [layer.trainable for layer in model.layers],
        "settings": [
            (getattr(layer, "rate", None), getattr(layer, "activity_regularizer", None)) for layer in model.layers
        ],
        "regularizers": [getattr(variable, "regularizer", None) for variable in model.variables],
        "activations": [getattr(layer, "activation", None) for layer in model.layers],
        "random": (random.getstate(), np.random.get_state()[1].tobytes(), np.random.get_state()[2]),
    }


def restless():
    """A model with all that a check may disturb, after a few steps of training: optimizer slots, metrics, seeds."""
    options = {"kernel_regularizer": keras.regularizers.L2(0.01), "activity_regularizer": keras.regularizers.L1(0.01)}
    model = convnet(dropout=0.5, norm=True, **options)
    compiled(model, keras.optimizers.SGD(0.01, momentum=0.9), metrics=["accuracy"])
    keras.random.uniform((1,))
    model.fit(*batch(), batch_size=16, verbose=0)
    return model
