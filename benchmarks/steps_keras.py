"""The same networks made of Keras's own layers: training steps MODEL:POLICY, and predictions MODEL-inference:BATCH."""

import harness

tf = harness.tensorflow()

import keras
import numpy as np
from keras import layers


def resnet50(norm):
    """ResNet-50 v1.5, torchvision's topology, on Keras's layers."""

    def unit(x, filters, window, strides=1, activate=True):
        if strides > 1 and window > 1:
            x = layers.ZeroPadding2D(window // 2)(x)
        padding = "valid" if strides > 1 else "same"
        x = norm()(layers.Conv2D(filters, window, strides, padding=padding, use_bias=False)(x))
        return layers.ReLU()(x) if activate else x

    image = keras.Input((224, 224, 3))
    x = layers.MaxPooling2D(3, 2, padding="same")(unit(image, 64, 7, 2))
    for width, depth, first_stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(depth):
            strides = first_stride if block == 0 else 1
            shortcut = unit(x, 4 * width, 1, strides, activate=False) if block == 0 else x
            y = unit(unit(x, width, 1), width, 3, strides)
            x = layers.ReLU()(layers.Add()([unit(y, 4 * width, 1, activate=False), shortcut]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(1000, activation="softmax", dtype="float32")(x))


# Where Keras has no network of its own for a comparison, the same topology is built from its layers.
MODELS = {
    "resnet50": (lambda: resnet50(lambda: layers.BatchNormalization(momentum=0.9, epsilon=1e-5)), 16),
    "resnet50-group": (lambda: resnet50(lambda: layers.GroupNormalization(32, epsilon=1e-5)), 16),
    "vgg16": (lambda: keras.applications.VGG16(weights=None), 8),
    "efficientnet-b0": (lambda: keras.applications.EfficientNetB0(weights=None), 16),
}


def training_step(build, batch, policy):
    """`train_on_batch` on random images: one compiled forward, backward and update."""

    def factory():
        keras.utils.set_random_seed(0)
        keras.mixed_precision.set_dtype_policy(policy)
        model = build()
        model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "sparse_categorical_crossentropy", jit_compile=False)
        rng = np.random.default_rng(0)
        images = rng.random((batch, *model.input_shape[1:]), dtype="float32")
        labels = rng.integers(0, model.output_shape[-1], batch).astype("int32")
        return lambda: model.train_on_batch(images, labels), {"images": batch}

    return factory


def prediction(build, batch):
    """`predict_on_batch` of random images."""

    def factory():
        keras.utils.set_random_seed(0)
        model = build()
        images = np.random.default_rng(0).random((batch, *model.input_shape[1:]), dtype="float32")
        return lambda: model.predict_on_batch(images), {"images": batch}

    return factory


CASES = {
    f"{name}:{policy}": training_step(build, batch, policy)
    for name, (build, batch) in MODELS.items()
    for policy in ("float32", "mixed_bfloat16", "mixed_float16")
}
CASES |= {f"resnet50-inference:{batch}": prediction(MODELS["resnet50"][0], batch) for batch in (1, 32)}

if __name__ == "__main__":
    harness.serve(CASES)
