"""Insertion and deletion: a probability known in closed form, pixel by pixel."""

import signal

import keras
import numpy as np
import pytest

from kvision.visualize import insertion_deletion
from tests.support import SLOW, assert_close
from tests.visualize import nets

SIZE = (2, 3, 1)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.fixture(scope="module")
def summing():
    """Two classes, whose logits are the sum of all pixels, and 0."""
    model = nets.linear(classes=2, size=SIZE)
    model.set_weights([np.stack([np.ones(6), np.zeros(6)], axis=1), np.zeros(2)])
    return model


@pytest.fixture(scope="module")
def probabilities(summing):
    return keras.Sequential([keras.Input(SIZE), summing, keras.layers.Softmax()])


@pytest.mark.parametrize("ending", ["logits", *(pytest.param(ending, marks=SLOW) for ending in ("softmax", "sigmoid"))])
def test_deletion_and_insertion_follow_the_order_of_the_map(ending, summing, probabilities):
    image = np.reshape([3.0, 1.0, 2.0, 0.0, -1.0, 4.0], (1, *SIZE)).astype("float32")
    maps = image[..., 0]
    model = {
        "logits": summing,
        "softmax": probabilities,
        "sigmoid": keras.Sequential([keras.Input(SIZE), summing, keras.layers.Activation("sigmoid")]),
    }[ending]
    found = insertion_deletion(model, image, maps, 0, steps=6, fill=0.0, batch_size=5)
    left = np.array([9, 5, 2, 0, -1, -1, 0])
    assert_close(found.deletion_curve[0], sigmoid(left))
    areas = (sigmoid(left)[1:] + sigmoid(left)[:-1]).sum() / 12
    assert_close(found.deletion[0], areas)
    assert_close(found.fractions, np.arange(7) / 6)
    assert_close(found.insertion_curve[0, -1], sigmoid(9))
    assert found.insertion_curve.shape == (1, 7) and found.insertion.shape == (1,)


@SLOW
def test_insertion_begins_with_the_blurred_image(summing):
    image = np.reshape([3.0, 1.0, 2.0, 0.0, -1.0, 4.0], (1, *SIZE)).astype("float32")
    found = insertion_deletion(summing, image, image[..., 0], 0, steps=2)
    assert_close(found.insertion_curve[0, 0], sigmoid(9))  # a deviation of a tenth of a pixel changes nothing
    large = nets.linear(classes=2, size=(40, 40, 1))
    weights = np.zeros((1600, 2))
    weights[20 * 40 + 20, 0] = 1.0  # the pixel in the middle
    large.set_weights([weights, np.zeros(2)])
    spot = np.zeros((1, 40, 40, 1), "float32")
    spot[0, 20, 20] = 4.0
    found = insertion_deletion(large, spot, spot[..., 0], 0, steps=1600)
    assert_close(found.insertion_curve[0, :2], sigmoid(np.array([4 / (2 * np.pi * 2**2), 4])), tolerance=(1e-4, 1e-4))
    assert_close(found.deletion_curve[0, :2], sigmoid(np.array([4, 4 / 1600])), tolerance=(1e-4, 1e-4))


@SLOW
def test_a_good_map_beats_a_bad_one(summing):
    images = nets.images(4, SIZE)
    good, bad = (insertion_deletion(summing, images, sign * images[..., 0], 0, steps=6, fill=0.0) for sign in (1, -1))
    assert (good.deletion < bad.deletion).all()
    assert len(good.insertion) == 4


def test_stopped_it_gives_the_first_images(summing):
    images = nets.images(4, SIZE)
    calls = []

    def prepare(x):
        calls.append(1)
        if len(calls) == 4:  # tried on one image, traced for the classes, for the outputs, then for the curves
            signal.raise_signal(signal.SIGINT)
        return x

    found = insertion_deletion(summing, images, images[..., 0], steps=3, batch_size=17, preprocess=prepare)
    assert len(found.insertion) == 2 and found.deletion_curve.shape == (2, 4)


@pytest.mark.parametrize(
    ("maps", "options", "message"),
    [
        (np.zeros((1, *SIZE)), {}, r"maps are finite and \[b, h, w\], \[1, 2, 3\]: got \[1, 2, 3, 1\]"),
        (np.full((1, 2, 3), np.nan), {}, "maps are finite"),
        (np.zeros((1, 2, 3)), {"steps": 0}, "at least 1 step, got 0"),
        (np.zeros((1, 2, 3)), {"target": lambda outputs: outputs[:, 0]}, "expected a class index"),
        (np.zeros((1, 2, 3)), {"target": 2}, "has the classes 0 to 1: got target 2"),
    ],
)
def test_what_cannot_be_is_refused(summing, maps, options, message):
    with pytest.raises(ValueError, match=message):
        insertion_deletion(summing, np.zeros((1, *SIZE)), maps, **options)


def spots(end):
    """The sum of the pixels minus 1 behind an end, as it is, and as probabilities [b, 2] in NumPy."""
    ends = {
        "one logit": (1, None),
        "one sigmoid": (1, "sigmoid"),
        "log-softmax": (2, "log_softmax"),
        "logits": (2, None),
    }
    classes, activation = ends[end]
    model = keras.Sequential([keras.Input(SIZE), keras.layers.Flatten(), keras.layers.Dense(classes, activation)])
    weights = np.zeros((6, classes), "float32")
    weights[:, -1] = 1
    model.set_weights([weights, np.array([0, -1.0][-classes:], "float32")])
    return model


@pytest.mark.parametrize("end", ["one logit", "one sigmoid", "log-softmax", "logits"])
def test_the_curve_is_a_probability_whatever_the_network_ends_in(end):
    image = np.zeros((1, *SIZE), "float32")
    image[0, 0, 1] = 3.0
    for target, expected in ((None, sigmoid(2.0)), (1, sigmoid(2.0)), (0, 1 - sigmoid(2.0))):
        found = insertion_deletion(spots(end), image, image[..., 0], target, steps=6, fill=0.0)
        assert_close(found.insertion_curve[0, -1], expected, tolerance=(1e-4, 1e-5))
        assert_close(found.deletion_curve[0, [0, -1]], [expected, sigmoid(-1.0) if target != 0 else 1 - sigmoid(-1.0)])
