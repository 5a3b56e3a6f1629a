"""The recurrent network: counts, a NumPy twin of its passes, alignment, and deep supervision."""

import keras
import numpy as np
import pytest

from kvision.applications import RecurrentCNN
from tests.applications.classification.twins import count, randomised
from tests.applications.segmentation.twins import convolve, pool
from tests.support import PARITY, SLOW, assert_close


@pytest.mark.parametrize("passes", [1, 2, 3])
@pytest.mark.parametrize(("classes", "total"), [(8, 98_083), (33, 139_358)])
def test_the_count_is_that_of_one_pass(passes, classes, total):
    with keras.StatelessScope(initialize_variables=False):
        model = RecurrentCNN(passes=passes, classes=classes)
    parameters = sum(np.prod(weight.shape) for weight in model.trainable_weights)
    assert parameters == count([(8, 3 + classes, 25), (8, 25, 50), (1, 50, classes)]) == total


def one_pass(weights, x):
    x = np.tanh(pool(convolve(x, weights, "conv1")))
    return convolve(np.tanh(pool(convolve(x, weights, "conv2"))), weights, "conv3")


def smaller(image, spacing):
    """The image around every pixel whose row and column `spacing` divides, under a triangle."""
    for axis in (0, 1):
        image = np.moveaxis(image, axis, 0)
        pixels = np.arange(len(image))
        weights = np.maximum(1 - abs(pixels[::spacing, None] - pixels) / spacing, 0)
        image = np.tensordot(weights / weights.sum(axis=1, keepdims=True), image, 1)
        image = np.moveaxis(image, 0, axis)
    return image


def twin(weights, image, classes, passes):
    """The logits of each pass, at every fourth, sixteenth … pixel."""
    found = [one_pass(weights, np.concatenate([image, np.zeros((*image.shape[:2], classes))], axis=-1))]
    for index in range(1, passes):
        seen = smaller(image, 4**index)
        found.append(one_pass(weights, np.concatenate([seen, found[-1]], axis=-1)))
    return found


@pytest.mark.parametrize("size", [(64, 80), (67, 65)], ids=str)
@pytest.mark.parametrize("dense", [True, False], ids=["dense", "strided"])
def test_each_pass_equals_its_twin(size, dense):
    model = RecurrentCNN("tiny", input_shape=(*size, 3), classes=3, all_passes=True, dense=dense)
    weights = randomised(model)
    image = np.random.default_rng(0).uniform(-1, 1, (*size, 3))
    outputs = model(image[None].astype("float32"))
    assert list(outputs) == ["pass1", "pass2", "pass3"]
    for index, (got, want) in enumerate(zip(outputs.values(), twin(weights, image, 3, 3), strict=True), start=1):
        got = keras.ops.convert_to_numpy(got)[0, :: 4**index, :: 4**index]
        assert_close(got / abs(want).max(), want / abs(want).max(), tolerance=PARITY)


def test_between_its_cells_a_strided_pass_is_interpolated():
    model = RecurrentCNN("tiny", input_shape=(16, 16, 3), classes=3, passes=1, dense=False)
    logits = keras.ops.convert_to_numpy(model(np.random.default_rng(0).normal(size=(1, 16, 16, 3))))
    assert_close(logits[:, 2, ::4], (logits[:, 0, ::4] + logits[:, 4, ::4]) / 2)
    assert_close(logits[:, 13:, ::4], np.repeat(logits[:, 12:13, ::4], 3, axis=1))


@pytest.mark.parametrize(("variant", "reach"), [("tiny", 6), ("2014", 12)])
def test_a_pixel_reaches_as_far_in_every_direction(variant, reach):
    """13 and 25 pixels of context, centred: of even windows that is not a matter of course."""
    model = RecurrentCNN(variant, input_shape=(40, 40, 3), classes=3, passes=1)
    images = np.random.default_rng(0).normal(size=(1, 40, 40, 3)).astype("float32")
    changed = images.copy()
    changed[:, 20, 18] = 100.0
    differs = np.any(keras.ops.convert_to_numpy(model(images)) != keras.ops.convert_to_numpy(model(changed)), axis=-1)
    rows, columns = np.nonzero(differs[0])
    assert (rows.min(), rows.max()) == (20 - reach, 20 + reach)
    assert (columns.min(), columns.max()) == (18 - reach, 18 + reach)


def test_weights_of_three_passes_serve_any_number(tmp_path):
    model = RecurrentCNN("tiny", input_shape=(16, 16, 3), classes=3, all_passes=True)
    model.save_weights(tmp_path / "passes.weights.h5")
    images = np.random.default_rng(0).normal(size=(1, 16, 16, 3))
    want = model(images)
    for passes in (1, 2):
        fewer = RecurrentCNN(
            "tiny", input_shape=(16, 16, 3), classes=3, passes=passes, weights=tmp_path / "passes.weights.h5"
        )
        assert_close(fewer(images), want[f"pass{passes}"])


def test_every_pass_is_supervised_with_its_weight():
    model = RecurrentCNN("tiny", input_shape=(16, 16, 3), classes=3, all_passes=True)
    losses = {name: keras.losses.SparseCategoricalCrossentropy(True, ignore_class=255) for name in model.output}
    factors = {"pass1": 0.25, "pass2": 0.5, "pass3": 1.0}
    model.compile("sgd", losses, loss_weights=factors)
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(2, 16, 16, 3)), rng.integers(0, 3, (2, 16, 16))
    logs = model.evaluate(images, dict.fromkeys(losses, labels), return_dict=True, verbose=0)
    assert_close(logs["loss"], sum(factor * logs[f"{name}_loss"] for name, factor in factors.items()))
    assert len({logs[f"{name}_loss"] for name in factors}) == 3


@pytest.mark.parametrize("norm", ["batch", pytest.param("group", marks=SLOW)])
def test_norms(norm):
    model = RecurrentCNN("tiny", input_shape=(24, 32, 3), norm=norm)
    assert np.isfinite(keras.ops.convert_to_numpy(model(np.ones((2, 24, 32, 3), "float32"), training=True))).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"passes": 0}, "at least 1 pass"),
        ({"input_shape": (15, 32, 3), "passes": 2, "dense": False}, "at least 16 pixels"),
        ({"norm": "bach"}, "Unknown norm: got 'bach'"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RecurrentCNN(**{"variant": "tiny", "input_shape": (24, 32, 3)} | options)
