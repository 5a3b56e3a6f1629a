"""The whole network beside a NumPy twin of figure 3b, bottlenecks linear, narrow ends added; and its other widths."""

import keras
import numpy as np
import pytest

from kvision import applications as A
from tests.applications.classification.twins import convolve, dense, randomised, scores_of
from tests.support import PARITY, assert_close


def test_equals_a_twin_of_figure_3b():
    model = A.MobileNetV2("tiny", input_shape=(40, 48, 3), classes=3, classifier_activation=None)
    weights = randomised(model, 0.3)
    for path in weights:
        if path.endswith("variance"):
            weights[path] = 0.5 + np.abs(weights[path])
    model.set_weights([weights[variable.path] for variable in model.weights])

    def normalised(x, name):
        mean, variance = (weights[f"{name}/moving_{moment}"] for moment in ("mean", "variance"))
        return (x - mean) / np.sqrt(variance + 1e-5) * weights[f"{name}/gamma"] + weights[f"{name}/beta"]

    def linear(x, name, norm, depthwise=False, **options):
        kernel = weights[f"{name}/kernel"]
        if depthwise:  # one window a channel: as many groups as channels
            kernel, options["groups"] = kernel.reshape(*kernel.shape[:2], 1, -1), x.shape[-1]
        layer = {"/kernel": kernel, "/bias": 0.0}
        positive, negative = (convolve(sign * x, layer, "", **options) for sign in (1, -1))  # each ends in a ReLU
        return normalised(positive - negative, norm)

    def relu6(x):
        return np.clip(x, 0, 6)

    image = np.random.default_rng(1).uniform(-1, 1, (40, 48, 3))
    x = relu6(linear(image, "features.0.0", "features.0.1", stride=2, padding=1))
    for index, (expansion, stride) in enumerate([(1, 1), (2, 2), (2, 1), (1, 2), (1, 2), (1, 2)], 1):
        y, name, part = x, f"features.{index}.conv", 0
        if expansion > 1:
            y, part = relu6(linear(y, f"{name}.0.0", f"{name}.0.1")), 1
        y = linear(y, f"{name}.{part}.0", f"{name}.{part}.1", depthwise=True, stride=stride, padding=1)
        y = linear(relu6(y), f"{name}.{part + 1}", f"{name}.{part + 2}")
        x = x + y if stride == 1 and x.shape == y.shape else y
    x = relu6(linear(x, "features.7.0", "features.7.1"))
    want = dense(x.mean(axis=(0, 1)), weights, "classifier.1", relu=False)
    assert np.abs(want).max() > 0.1
    assert_close(scores_of(model, image), want, tolerance=PARITY)


@pytest.mark.parametrize("width", [0.5, 1.4])
def test_other_widths_have_the_parameters_of_keras_own(width):
    """Section 6.1: below one, the last convolution keeps its 1280 channels."""
    theirs = {"alpha": width, "weights": None, "input_shape": (32, 32, 3)}
    with keras.StatelessScope(initialize_variables=False):
        models = A.MobileNetV2(str(width), input_shape=(32, 32, 3)), keras.applications.MobileNetV2(**theirs)
    ours, theirs = ([tuple(weight.shape) for weight in model.trainable_weights] for model in models)
    assert sorted(ours) == sorted(theirs)
