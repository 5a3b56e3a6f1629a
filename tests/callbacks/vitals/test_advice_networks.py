"""Advice on networks of the package: healthy detectors stay silent, images that were not prepared are told."""

import re

import keras
import numpy as np
import pytest
from keras import layers

from kvision import applications, data
from kvision.callbacks import Vitals
from kvision.callbacks.vitals.tapped_step import images_of
from kvision.layers import MeanImage
from kvision.network import Network
from tests.applications.detection.rows import ROWS, SHAPE

DETECTORS = {row.name: row for row in ROWS}


def small_shapes(images):
    """Small images of one object each: the coarse levels of a pyramid have none."""
    return data.shapes(images, image_size=SHAPE[:2], classes=3, max_shapes=2, masks=True)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "clipped"), [("retinanet", True), ("mask_rcnn", False)])
def test_a_healthy_detector_is_silent(name, clipped, capsys):
    keras.utils.set_random_seed(0)
    row = DETECTORS[name]
    images, targets = small_shapes(64)
    if not row.masks:
        targets = {key: value for key, value in targets.items() if key not in ("masks", "box_masks")}
    model = row.tiny()
    model.compile(keras.optimizers.Adam(1e-3, global_clipnorm=1.0 if clipped else None))
    vitals = Vitals(every=10)
    losses = model.fit(images, targets, batch_size=8, epochs=14, callbacks=[vitals], verbose=0).history["loss"]
    assert losses[-1] < 0.9 * losses[0]
    assert [advice.text for advice in vitals.advice] == []
    assert capsys.readouterr().out == ""


def classifier(*before, channels=3):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, channels))
    x = inputs
    for layer in before:
        x = layer(x)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, activation="relu")(x))
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(x))


def raw(channels=3):
    return np.random.default_rng(0).integers(0, 256, (16, 32, 32, channels)).astype("uint8")


def own_network():
    keras.utils.set_random_seed(0)
    return applications.ResNet("tiny", classes=4, input_shape=(32, 32, 3))


def mean_image():
    layer = MeanImage()
    layer.adapt(raw())
    return layer


def carrying_a_mean_image():
    model = classifier()
    network = Network(model.inputs, model.outputs, name="net")
    network.preprocessing = mean_image()
    return network


PREPARED = {
    "raw": (
        classifier,
        raw,
        "The images reach 255, unprepared: prepare them to about -1...1, such as by keras.",
    ),
    "raw, grey": (lambda: classifier(channels=1), lambda: raw(1), "The images reach 255, unprepared: "),
    "raw, nested": (lambda: classifier(classifier().layers[1]), raw, "The images reach 255, unprepared: "),
    "scaled": (classifier, lambda: raw() / 255.0, None),
    "minus the mean colour": (classifier, lambda: raw() - np.array([104.0, 117.0, 124.0]), None),
    "scaled inside": (lambda: classifier(layers.Rescaling(1 / 255)), raw, None),
    "minus the mean image inside": (lambda: classifier(mean_image()), raw, None),
    "fitted, raw": (carrying_a_mean_image, raw, "The images reach 255, unprepared: prepare them by net.preprocessing$"),
    "ours, raw": (
        own_network,
        raw,
        "The images reach 255, unprepared: prepare them by .*preprocessing, to at most 2",
    ),
    "ours, in 0...1": (own_network, lambda: raw() / 255.0, None),
    "ours, prepared": (own_network, lambda: own_network().preprocessing(raw()), None),
}


@pytest.mark.parametrize(("make", "images", "told"), PREPARED.values(), ids=PREPARED)
def test_images_that_were_not_prepared_are_told_after_the_first_epoch(make, images, told):
    model, vitals = make(), Vitals()
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.fit(images().astype("float32"), np.arange(16) % 4, batch_size=8, callbacks=[vitals], verbose=0)
    texts = [advice.text for advice in vitals.advice if advice.vital == "inputs"]
    assert len(texts) == (told is not None)
    if told:
        assert re.match(told, texts[0])


@pytest.mark.parametrize(
    ("x", "found"),
    [
        (np.ones((2, 4, 4, 3)), True),
        (np.ones((2, 4, 4, 1)), True),
        (np.ones((2, 4, 4, 8)), False),  # features
        (np.ones((2, 4)), False),
        ({"proposals": np.ones((2, 9, 4)), "images": np.ones((2, 4, 4, 3))}, True),
    ],
)
def test_images_are_found_among_the_inputs(x, found):
    for batch in (x, (x,), (x, np.ones(2)), (x, np.ones(2), np.ones(2))):
        images = images_of(batch)
        assert (images is not None) is found
        assert images is None or len(images.shape) == 4
