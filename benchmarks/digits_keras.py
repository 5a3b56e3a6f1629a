"""The main job, `examples/train_digits.py`, as a plain Keras script: the same network, augmentation and schedule."""

import math
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import digits_data
import keras
import tensorflow as tf
from keras import layers, ops


class OneCycle(keras.optimizers.schedules.LearningRateSchedule):
    """Up from a 25th of the rate within 30 % of the steps, then down to a 10,000th of that, by cosines."""

    def __init__(self, highest, steps):
        self.highest, self.steps = highest, steps

    def __call__(self, step):
        first, top = self.highest / 25, 0.3 * self.steps - 1
        step = ops.cast(step, "float32")
        rising = self.between(first, self.highest, step / top)
        falling = self.between(self.highest, first / 1e4, (step - top) / (self.steps - 1 - top))
        return ops.where(step <= top, rising, falling)

    def between(self, begin, end, fraction):
        return end + (begin - end) / 2 * (1 + ops.cos(math.pi * fraction))


def lenet5():
    def convolution(filters, use_bias=False):
        return layers.Conv2D(filters, 5, use_bias=use_bias, kernel_initializer="he_normal")

    x = image = keras.Input((32, 32, 1))
    for filters in (6, 16):
        x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(convolution(filters)(x))
        x = layers.MaxPooling2D(2)(layers.ReLU()(x))
    x = layers.Flatten()(layers.ReLU()(convolution(120, use_bias=True)(x)))
    x = layers.ReLU()(layers.Dense(84, kernel_initializer="he_normal")(x))
    return keras.Model(image, layers.Dense(10, activation="softmax", kernel_initializer="he_normal")(x))


def main():
    options = digits_data.arguments()
    keras.utils.set_random_seed(options.seed)
    train, test = digits_data.digits(options.quick)
    filled = {"fill_mode": "constant", "fill_value": -1.0, "seed": options.seed}
    geometry = keras.Sequential(
        [
            layers.RandomRotation(0.03, **filled),
            layers.RandomTranslation(0.07, 0.07, **filled),
            layers.RandomZoom(0.1, **filled),
        ]
    )
    batches = tf.data.Dataset.from_tensor_slices(train).shuffle(len(train[1]), seed=options.seed)
    batches = batches.batch(digits_data.BATCH)
    augmented = batches.map(lambda x, y: (geometry(x, training=True), y), tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
    model = lenet5()
    rate = OneCycle(digits_data.RATE, digits_data.EPOCHS * int(batches.cardinality()))
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    held_out = tf.data.Dataset.from_tensor_slices(test).cache().batch(digits_data.BATCH)
    model.fit(augmented, validation_data=held_out, epochs=2 if options.quick else digits_data.EPOCHS, verbose=2)


if __name__ == "__main__":
    main()
