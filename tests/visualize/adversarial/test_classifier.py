"""What is a classifier, and what is refused as none."""

import keras
import numpy as np
import pytest

from kvision.visualize.adversarial import Classifier, fast_gradient
from tests.support import assert_close
from tests.visualize.adversarial.victims import BOUNDS, BUDGET, SHAPE, linear, pixels, weights

layers = keras.layers


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (lambda x: layers.Conv2D(3, 1)(x), r"gives \(.*\): expected a classifier"),
        (lambda x: layers.Flatten()(layers.Conv2D(3, 1)(x)) * np.inf, "not finite"),
        (lambda x: keras.ops.softmax(layers.Flatten()(x) * 9.0) ** 1.0, "gives probabilities"),
    ],
)
def test_models_that_are_no_classifiers(outputs, message):
    image = keras.Input(SHAPE)
    with pytest.raises(ValueError, match=message):
        fast_gradient(keras.Model(image, outputs(image)), pixels(2), BUDGET, bounds=BOUNDS)


def test_one_logit_is_two_classes():
    image = keras.Input(SHAPE)
    one = keras.Model(image, layers.Dense(1, activation="sigmoid")(layers.Flatten()(image)))
    two, (matrix, bias) = linear(2)[0].model, weights(2)
    one.set_weights([(matrix[:, 1:] - matrix[:, :1]), bias[1:] - bias[:1]])
    images = pixels()
    found, expected = (fast_gradient(model, images, 0.3, bounds=BOUNDS) for model in (one, two))
    assert_close(found.images, expected.images)
    assert found.predicted.tolist() == expected.predicted.tolist()
    assert found.success.any()


def test_a_classifier_sees_the_weights_of_the_moment():
    model = keras.Sequential([keras.Input(SHAPE), layers.Flatten(), layers.Dense(3)])
    classifier = Classifier(model)
    before = classifier.logits(pixels())
    model.set_weights([2 * weight for weight in model.get_weights()])
    assert_close(classifier.logits(pixels()), 2 * before)


@keras.saving.register_keras_serializable("tests")
class Hidden(keras.Model):
    """A sigmoid that no graph shows."""

    def __init__(self):
        super().__init__(name="hidden")
        self.flat, self.fc = layers.Flatten(), layers.Dense(1, activation="sigmoid")

    def call(self, x):
        return self.fc(self.flat(x))


def test_a_sigmoid_that_is_not_seen_is_refused():
    model = Hidden()
    images = np.full((2, *SHAPE), 0.5, "float32")
    model(images)
    with pytest.raises(ValueError, match="hidden gives probabilities.*softmax or sigmoid was not found"):
        fast_gradient(model, images, 0.1, bounds=BOUNDS)


def test_sigmoids_of_several_classes_are_refused():
    model = keras.Sequential([keras.Input(SHAPE), layers.Flatten(), layers.Dense(3, "sigmoid")], name="tags")
    with pytest.raises(ValueError, match="tags ends in a sigmoid for each of 3 classes"):
        fast_gradient(model, np.full((1, *SHAPE), 0.5), 0.1, bounds=BOUNDS)
