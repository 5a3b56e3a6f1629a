"""Training steps of kvision on a card: forward, backward and update of a batch that lies there, in mixed_bfloat16.

Runs on the backend that Keras runs on; on JAX nothing here needs TensorFlow.
"""

import harness
import keras
import numpy as np
from card_inputs import CLASSES, SIZES, detection_batch

from kvision import applications, training
from kvision.optimizers import SGD

PRODUCTS, SIDE = 10, 512 if harness.QUICK else 8192


def seen():
    """The cards that the backend sees, and versions."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        cards = [device.device_kind for device in jax.devices() if device.platform != "cpu"]
        version = jax.__version__
    else:
        import tensorflow as tf

        details = tf.config.experimental.get_device_details
        cards = [details(card).get("device_name", card.name) for card in tf.config.list_physical_devices("GPU")]
        version = tf.__version__
    return {"cards": cards, "backend": backend, backend: version, "keras": keras.__version__}


def classifier(name, build):
    def factory():
        batch, size = SIZES[name]
        keras.utils.set_random_seed(0)
        keras.config.set_dtype_policy("mixed_bfloat16")
        model = build(input_shape=(size, size, 3), weights=None)
        model.compile(SGD(0.01, momentum=0.9), "sparse_categorical_crossentropy")
        rng = np.random.default_rng(0)
        images = keras.ops.convert_to_tensor(rng.random((batch, size, size, 3), dtype="float32"))
        labels = keras.ops.convert_to_tensor(rng.integers(0, 1000, batch).astype("int32"))
        flop = 2 * 3 * batch * training.describe(model).multiply_adds  # two a multiply-add, three passes
        return lambda: float(model.train_on_batch(images, labels)), {"images": batch, "flop": flop}

    return factory


def detector(name, build, *levels, masks=False, **options):
    def factory():
        batch, size = SIZES[name]
        keras.utils.set_random_seed(0)
        keras.config.set_dtype_policy("mixed_bfloat16")
        shape = (size, size, 3)
        backbone = applications.ResNet50(include_top=False, input_shape=shape, features=levels, norm="frozen_batch")
        model = build(input_shape=shape, classes=CLASSES, backbone=backbone, **options)
        model.compile(SGD(1e-4, momentum=0.9))
        images, targets = detection_batch(name)
        if not masks:
            del targets["masks"]
        images, targets = keras.tree.map_structure(keras.ops.convert_to_tensor, (255 * images, targets))
        return lambda: model.train_on_batch(images, targets), {"images": batch}

    return factory


def matrix_products():
    """Several large ones in a row: the fastest thing the card does."""
    rng = np.random.default_rng(0)
    a = keras.ops.cast(rng.normal(size=(SIDE, SIDE)).astype("float32") / SIDE**0.5, "bfloat16")

    def step():
        x = a
        for _ in range(PRODUCTS):
            x = keras.ops.matmul(x, a)
        return float(keras.ops.cast(x[0, 0], "float32"))

    return step, {"flop": PRODUCTS * 2 * SIDE**3}


CASES = {
    "matrix-products": matrix_products,
    "resnet50": classifier("resnet50", applications.ResNet50),
    "vit-b16": classifier("vit-b16", applications.ViTB16),
    "retinanet": detector("retinanet", applications.RetinaNet, "C3", "C4", "C5"),
    "mask-rcnn": detector("mask-rcnn", applications.MaskRCNN, "C2", "C3", "C4", "C5", masks=True, num_mask_samples=128),
}

if __name__ == "__main__":
    harness.serve(CASES)
