"""A network that trains in a blink, with what could go astray by chance: dropout, shuffling, momentum."""

import keras
import numpy as np

STEPS = 4  # an epoch of `fit_tiny`


def tiny_model(optimizer=None, **compile_options):
    """A dense network of 4 inputs and 2 classes; the same weights every time."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, activation="relu", name="hidden"),
            keras.layers.Dropout(0.25),
            keras.layers.Dense(2, name="classes"),
        ]
    )
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9) if optimizer is None else optimizer
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], **compile_options)
    return model


def fit_tiny(model, callbacks=(), epochs=2, **options):
    """`STEPS` batches an epoch of fixed data, with validation."""
    numbers = np.random.default_rng(0)
    x, y = numbers.normal(size=(8 * STEPS, 4)).astype("float32"), numbers.integers(0, 2, 8 * STEPS)
    options = {"batch_size": 8, "verbose": 0, "validation_data": (x[:8], y[:8]), **options}
    return model.fit(x, y, epochs=epochs, callbacks=list(callbacks), **options)


class Late(keras.callbacks.Callback):
    """Adds an entry to the logs of an epoch, as a vital does."""

    def on_epoch_end(self, epoch, logs=None):
        logs["late"] = epoch + 0.5
