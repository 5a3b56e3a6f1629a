"""Semantic segmentation of kvision: training steps; a patch classifier on all pixels at once, and window by window."""

import harness

tf = harness.tensorflow()

import keras
import numpy as np
from steps_kvision import matrix_product

import kvision
from kvision import applications
from kvision.applications.segmentation.patch_classifier import windows
from kvision.optimizers import SGD

SIDE, BATCH, CLASSES = 256, 2, 21
PATCHES = 96  # pixels of the image that a patch classifier goes over
CHUNK = 256  # windows


def segmentation_step(build, output_weights=None):
    """`train_on_batch` with Keras's loss, ignored pixels among the labels."""

    def factory():
        keras.utils.set_random_seed(0)
        model = build()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)
        losses = dict.fromkeys(output_weights, loss) if output_weights else loss
        model.compile(SGD(0.01, momentum=0.9), losses, loss_weights=output_weights, jit_compile=False)
        rng = np.random.default_rng(0)
        images = rng.normal(size=(BATCH, SIDE, SIDE, 3)).astype("float32")
        labels = rng.integers(0, CLASSES, (BATCH, SIDE, SIDE)).astype("int32")
        labels[:, :8] = 255
        targets = dict.fromkeys(output_weights, labels) if output_weights else labels
        with keras.StatelessScope(initialize_variables=False):
            cost = kvision.training.describe(build()).multiply_adds
        facts = {"images": BATCH, "flop": 6 * BATCH * cost, "peak_case": "matrix-product:float32"}
        return lambda: model.train_on_batch(images, targets), facts

    return factory


def fcn_resnet50():
    return applications.FCNResNet50(input_shape=(SIDE, SIDE, 3), classes=CLASSES, auxiliary=True)


def fcn8s():
    return applications.FCN8s(input_shape=(SIDE, SIDE, 3), classes=CLASSES)


def all_at_once():
    model = applications.dense(applications.PatchClassifier(), (PATCHES, PATCHES))
    image = np.random.default_rng(0).normal(size=(1, PATCHES, PATCHES, 3)).astype("float32")
    return lambda: model.predict_on_batch(image), {"images": 1}


def window_by_window():
    model = applications.PatchClassifier()
    image = np.random.default_rng(0).normal(size=(1, PATCHES, PATCHES, 3)).astype("float32")
    pixels = np.argwhere(np.ones(image.shape[:3]))
    chunks = [pixels[start : start + CHUNK] for start in range(0, len(pixels), CHUNK)]

    def step():
        return [model.predict_on_batch(windows(image, chunk, model.input_shape[1:3])) for chunk in chunks]

    return step, {"images": 1}


CASES = {
    "fcn-resnet50": segmentation_step(fcn_resnet50, {"logits": 1.0, "auxiliary_logits": 0.5}),
    "fcn8s": segmentation_step(fcn8s),
    "patch-dense": all_at_once,
    "patch-windows": window_by_window,
    "matrix-product:float32": matrix_product("float32"),
}

if __name__ == "__main__":
    harness.serve(CASES)
