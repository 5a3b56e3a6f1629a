"""`fit` of a ResNet-20 on JPEG files or on images prepared once, by kvision and by a plain Keras script: WHO:FROM.

The same images, resized to 36x36 pixels, cropped to 32x32 at random and mirrored, the same network, batches and SGD.
A step is two epochs of one `fit`.
"""

import functools
import tempfile

import harness

tf = harness.tensorflow()

import fit_images
import keras
from keras import layers

BATCH, CROP, RESIZED = fit_images.BATCH, fit_images.CROP, fit_images.RESIZED
SHAPE = (CROP, CROP, 3)


def kvision_network():
    from kvision import applications
    from kvision.optimizers import SGD

    model = applications.ResNet("cifar20", shortcut="projection", input_shape=SHAPE, classes=fit_images.CLASSES)
    model.compile(SGD(fit_images.RATE, momentum=0.9), "sparse_categorical_crossentropy")
    return model


def kvision_data(prepared):
    from kvision import data

    sizes = {"image_size": (RESIZED, RESIZED), "batch_size": BATCH}
    images = functools.partial(data.image_folder, fit_images.folder(), check="header", **sizes)
    if prepared:
        directory = tempfile.mkdtemp()
        data.write_records(images(), directory, verbose=0)
        dataset = data.records(directory, batch_size=BATCH, shuffle=True, drop_remainder=True)
    else:
        dataset = images(shuffle=True, drop_remainder=True)
    augmented = data.augment(dataset, [data.Crop(SHAPE[:2]), data.HorizontalFlip()])
    return augmented.map(lambda x, y: (x / 127.5 - 1.0, y), tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def keras_network():
    """ResNet-20 with projections on Keras's layers."""

    def unit(x, filters, window, strides=1):
        x = layers.Conv2D(filters, window, strides, padding="same", use_bias=False, kernel_initializer="he_normal")(x)
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)

    image = keras.Input(SHAPE)
    x = layers.ReLU()(unit(image, 16, 3))
    for width in (16, 32, 64):
        for block in range(3):
            strides = 2 if block == 0 and width > 16 else 1
            shortcut = x if strides == 1 else unit(x, width, 1, 2)
            y = unit(layers.ReLU()(unit(x, width, 3, strides)), width, 3)
            x = layers.ReLU()(layers.Add()([y, shortcut]))
    x = layers.GlobalAveragePooling2D()(x)
    outputs = layers.Dense(fit_images.CLASSES, activation="softmax", kernel_initializer="he_normal")(x)
    model = keras.Model(image, outputs)
    model.compile(keras.optimizers.SGD(fit_images.RATE, momentum=0.9), "sparse_categorical_crossentropy")
    return model


def keras_data(prepared):
    change = [layers.RandomCrop(*SHAPE[:2]), layers.RandomFlip("horizontal"), layers.Rescaling(1 / 127.5, -1.0)]

    def augment(images, labels):
        for layer in change:
            images = layer(images, training=True)
        return images, labels

    read = functools.partial(
        keras.utils.image_dataset_from_directory, fit_images.folder(), image_size=(RESIZED, RESIZED), verbose=False
    )
    if prepared:
        images = read(batch_size=None, shuffle=False).cache()
        dataset = images.shuffle(fit_images.COUNT, seed=0).batch(BATCH, drop_remainder=True)
    else:
        dataset = read(batch_size=BATCH, shuffle=True, seed=0)
    return dataset.map(augment, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def training(network, data, prepared):
    def factory():
        keras.utils.set_random_seed(0)
        model, dataset = network(), data(prepared)

        def step():
            model.fit(dataset, epochs=fit_images.EPOCHS, shuffle=False, verbose=0)

        def told():
            fresh = network()
            losses = fresh.fit(dataset, epochs=fit_images.TAUGHT, shuffle=False, verbose=0).history["loss"]
            return {"parameters": fresh.count_params(), "loss": losses[-1]}

        return step, {"images": fit_images.EPOCHS * fit_images.COUNT, "told": told}

    return factory


CASES = {
    "kvision:jpeg": training(kvision_network, kvision_data, False),
    "kvision:records": training(kvision_network, kvision_data, True),
    "keras:jpeg": training(keras_network, keras_data, False),
    "keras:cached": training(keras_network, keras_data, True),
}

if __name__ == "__main__":
    harness.serve(CASES)
