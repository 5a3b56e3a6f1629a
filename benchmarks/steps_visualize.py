"""What looking inside costs beside a plain `predict`, and a step of style transfer beside a plain gradient."""

import importlib
import time

import harness

tf = harness.tensorflow()

import keras
import numpy as np

from kvision import applications, visualize

SIDE, IMAGES, BATCH = 128, 384, 32
LAYERS = ("features.13.conv.2", "features.18.2")
STYLE = 256


def network():
    return applications.MobileNetV2(input_shape=(SIDE, SIDE, 3), classifier_activation=None)


def images(count=IMAGES):
    return np.random.default_rng(0).normal(size=(count, SIDE, SIDE, 3)).astype("float32")


def predict(count=IMAGES):
    def factory():
        model, data = network(), images(count)
        return lambda: model.predict(data, batch_size=BATCH, verbose=0), {"images": count}

    return factory


def beyond_tracing(run):
    """Milliseconds of what a longer run takes beyond a shorter one: both trace the same."""

    def seconds(part):
        start = time.perf_counter()
        run(part)
        return time.perf_counter() - start

    return lambda: harness.Milliseconds((seconds(3) - seconds(1)) / 2 * 1e3)


def patches():
    model, data = network(), images(3 * IMAGES)
    layer = visualize.find_place(model, LAYERS[0])[0]
    units = list(range(32))

    def run(parts):
        visualize.maximally_activating_patches(model, data[: parts * IMAGES], layer, units, batch_size=BATCH)

    return beyond_tracing(run), {"images": IMAGES}


class NoEmbedding:
    """In the place of scikit-learn's t-SNE, whose time is its own."""

    kl_divergence_ = 0.0

    def __init__(self, **options):
        pass

    def fit_transform(self, codes):
        return codes[:, :2]


def codes():
    model, data = network(), images(3 * IMAGES)
    layer = visualize.find_place(model, LAYERS[1])[0]
    importlib.import_module("kvision.visualize.tsne")._estimator = lambda: NoEmbedding
    return beyond_tracing(lambda parts: visualize.tsne(model, data[: parts * IMAGES], layer, batch_size=BATCH)), {
        "images": IMAGES
    }


def occlusion():
    """One window of the default a forward pass, and one pass of the whole image."""
    model, data = network(), images(3)
    return beyond_tracing(lambda parts: visualize.occlusion(model, data[:parts], target=0, batch_size=BATCH)), {
        "images": WINDOWS
    }


WINDOWS = 1 + 29 * 29  # of 18 pixels every 4


def trunk():
    return keras.applications.VGG16(weights=None, include_top=False, input_shape=(STYLE, STYLE, 3))


def style():
    """The difference of a long and a short run, without what both trace."""
    model = trunk()
    content, other = np.random.default_rng(0).uniform(0, 255, (2, STYLE, STYLE, 3)).astype("float32")

    def seconds(steps):
        start = time.perf_counter()
        visualize.style_transfer(model, content, other, optimizer="adam", steps=steps, pooling="max", bounds=(0, 255))
        return time.perf_counter() - start

    return lambda: harness.Milliseconds((seconds(12) - seconds(2)) / 10 * 1e3), {"images": 1}


def plain_gradient():
    """Of the sum of the same layers by the image."""
    model = trunk()
    names = ["block1_conv1", "block2_conv1", "block3_conv1", "block4_conv1", "block4_conv2", "block5_conv1"]
    cut = keras.Model(model.inputs[0], [model.get_layer(name).output for name in names])
    image = tf.Variable(np.random.default_rng(0).uniform(0, 255, (1, STYLE, STYLE, 3)).astype("float32"))

    @tf.function
    def gradient():
        with tf.GradientTape() as tape:
            total = sum(tf.reduce_mean(each) for each in cut(image, training=False))
        return tape.gradient(total, image)

    return lambda: gradient().numpy(), {"images": 1}


CASES = {
    "predict": predict(),
    "predict-windows": predict(WINDOWS),
    "patches": patches,
    "codes": codes,
    "occlusion": occlusion,
    "style": style,
    "plain-gradient": plain_gradient,
}

if __name__ == "__main__":
    harness.serve(CASES)
