"""The loss at chance: right for healthy models, and a sentence for each planted fault."""

import logging
import math

import keras
import numpy as np
import pytest

from kvision.training import check_gradients, check_initial_loss
from tests.applications.detection import rows as detectors
from tests.training.models import CLASSES, batch, compiled, convnet

L = keras.losses
ONE_HOT = np.eye(CLASSES, dtype="float32")

# name: (last activation, loss, one-hot labels, loss at chance in closed form)
AT_CHANCE = {
    "softmax": ("softmax", "sparse_categorical_crossentropy", False, math.log(CLASSES)),
    "logits": (None, L.SparseCategoricalCrossentropy(from_logits=True), False, math.log(CLASSES)),
    "smoothed labels": ("softmax", L.CategoricalCrossentropy(label_smoothing=0.1), True, math.log(CLASSES)),
    "sigmoid": ("sigmoid", "binary_crossentropy", True, math.log(2)),
    "focal": ("sigmoid", L.BinaryFocalCrossentropy(gamma=2.0), True, math.log(2) / 4),
    "hinge": (None, "hinge", True, 1.0),
    "no level": (None, "mse", True, None),
}


@pytest.mark.filterwarnings("ignore:.*from_logits=True")
@pytest.mark.parametrize("name", AT_CHANCE)
def test_a_healthy_model_starts_at_chance(name):
    activation, loss, one_hot, level = AT_CHANCE[name]
    x, y = batch()
    verdict = check_initial_loss(
        compiled(convnet(activation, kernel_initializer="zeros"), loss=loss), (x, ONE_HOT[y] if one_hot else y)
    )
    assert verdict.ok, verdict
    assert verdict.expected == ({} if level is None else {"loss": pytest.approx(level, rel=1e-5)})
    if level is not None:
        assert verdict.loss == pytest.approx(level, rel=1e-5)


# name: (model, loss, scale of the images, words of the sentence)
FAULTS = {
    "images not scaled": (lambda: convnet(), "sparse_categorical_crossentropy", 255.0, "inputs that were not scaled"),
    "logits as scores": (lambda: convnet(None), "sparse_categorical_crossentropy", 1.0, "end in a softmax"),
    "softmax twice": (lambda: convnet(), L.SparseCategoricalCrossentropy(from_logits=True), 1.0, "applied twice"),
    "sigmoid with softmax's loss": (
        lambda: convnet("sigmoid"),
        "sparse_categorical_crossentropy",
        1.0,
        "end in a softmax",
    ),
    "weights too large": (
        lambda: convnet(kernel_initializer=keras.initializers.RandomNormal(stddev=3.0)),
        "sparse_categorical_crossentropy",
        1.0,
        "confident and wrong",
    ),
    "not finite": (
        lambda: convnet(bias_initializer=keras.initializers.Constant(np.nan)),
        "sparse_categorical_crossentropy",
        1.0,
        "not finite",
    ),
    "negative regularization": (
        lambda: convnet(kernel_regularizer=lambda kernel: -0.1 * keras.ops.sum(kernel**2)),
        "sparse_categorical_crossentropy",
        1.0,
        "negative",
    ),
}


@pytest.mark.filterwarnings("ignore:.*from_logits=True")
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_named(name):
    build, loss, scale, words = FAULTS[name]
    verdict = check_initial_loss(compiled(build(), loss=loss), batch(scale=scale))
    assert not verdict.ok
    assert words in verdict.sentence


@pytest.mark.parametrize(
    ("activation", "loss", "words"),
    [
        ("softmax", "binary_crossentropy", "only one class"),
        (None, "binary_crossentropy", "scores in 0 to 1"),
        ("sigmoid", L.BinaryCrossentropy(from_logits=True), "applied twice"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*from_logits=True")
def test_a_last_activation_that_does_not_fit_a_sigmoids_loss(activation, loss, words):
    x, y = batch()
    verdict = check_initial_loss(compiled(convnet(activation), loss=loss), (x, ONE_HOT[y]))
    assert not verdict.ok
    assert words in verdict.sentence


def test_a_softmax_over_one_output():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1, "softmax")])
    x = np.random.default_rng(0).normal(size=(8, 8)).astype("float32")
    model.compile("sgd", "categorical_crossentropy")
    with pytest.warns(Warning, match="num_classes|softmax over axis"):
        verdict = check_initial_loss(model, (x, np.ones((8, 1), "float32")))
    assert "one output" in verdict.sentence


def test_a_trained_model_is_below_chance():
    model = compiled(convnet(), keras.optimizers.Adam(0.01))
    model.fit(*batch(), epochs=40, verbose=0)
    assert "below" in check_initial_loss(model, batch()).sentence


def test_regularization_raises_the_loss():
    model = compiled(convnet(kernel_regularizer=keras.regularizers.L2(0.1)))
    verdict = check_initial_loss(model, batch())
    penalty = 0.1 * np.sum(
        np.square(model.layers[-1].kernel.numpy() if hasattr(model.layers[-1].kernel, "numpy") else 0)
    )
    assert verdict.regularized - verdict.loss == pytest.approx(penalty, rel=1e-4)
    assert "with regularization" in verdict.sentence


def test_two_outputs_add_up():
    image = keras.Input((8,))
    outputs = {"a": keras.layers.Dense(1, "sigmoid", name="a")(image), "b": keras.layers.Dense(3, name="b")(image)}
    model = keras.Model(image, outputs)
    losses = {"a": "binary_crossentropy", "b": L.CategoricalCrossentropy(from_logits=True)}
    model.compile("sgd", losses, loss_weights={"a": 2.0, "b": 1.0})
    x = np.random.default_rng(0).normal(size=(12, 8)).astype("float32")
    y = {"a": (np.arange(12)[:, None] % 2).astype("float32"), "b": np.eye(3, dtype="float32")[np.arange(12) % 3]}
    assert check_initial_loss(model, (x, y)).expected["loss"] == pytest.approx(2 * math.log(2) + math.log(3), rel=1e-5)


@pytest.mark.parametrize("labels", [np.arange(32) % CLASSES + 1, np.full(32, -1)])
def test_labels_that_no_output_is_for(labels):
    with pytest.raises(ValueError, match=r"integers from 0 to 3: got \S+ at index"):
        check_initial_loss(compiled(convnet()), (batch()[0], labels))


def test_the_label_that_a_loss_ignores_is_none_of_the_classes_and_stays():
    x, y = batch()
    y = np.where(np.arange(len(y)) < 5, 255, y)
    model = compiled(
        convnet("softmax", kernel_initializer="zeros"), loss=L.SparseCategoricalCrossentropy(ignore_class=255)
    )
    assert check_initial_loss(model, (x, y)).loss == pytest.approx(math.log(CLASSES), rel=1e-5)
    with pytest.raises(ValueError, match="integers from 0 to 3: got 254 at index 2"):
        check_initial_loss(model, (x, np.where(np.arange(len(y)) == 2, 254, y)))


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (convnet, batch, "compiled"),
        (lambda: compiled(convnet()), lambda: batch()[0], "read again|inputs and targets"),
        (lambda: compiled(convnet()), lambda: iter([batch()]), "read again"),
        (lambda: compiled(convnet()), lambda: batch(0), "no rows"),
    ],
)
def test_what_cannot_be_checked_is_refused(model, data, message):
    with pytest.raises(ValueError, match=message):
        check_initial_loss(model(), data())


def boxes(masks=False):
    rng = np.random.default_rng(0)
    targets = {
        "boxes": np.tile(np.array([[8, 8, 40, 40], [30, 20, 60, 50]], "float32"), (2, 1, 1)),
        "labels": np.array([[0, 1], [2, -1]], "int32"),
    }
    if masks:
        targets["masks"] = np.ones((2, 2, 64, 64), "uint8")
    return rng.uniform(0, 255, (2, 64, 64, 3)).astype("float32"), targets


@pytest.mark.slow
def test_a_retinanet_starts_at_its_prior_and_not_without():
    (row,) = (row for row in detectors.ROWS if row.name == "retinanet")
    detector = row.tiny()
    detector.compile("sgd")
    verdict = check_initial_loss(detector, boxes())
    assert verdict.ok, verdict
    assert set(verdict.losses) == {"classification_loss", "box_loss"}
    # Almost all of it is that of the positives: 0.25 (1 - 0.01)^2 log(1 / 0.01).
    assert verdict.expected["classification_loss"] == pytest.approx(0.25 * 0.99**2 * math.log(100), rel=0.01)
    (bias,) = (variable for variable in detector.trainable_variables if variable.path.endswith("cls_logits/bias"))
    bias.assign(np.zeros(bias.shape))
    assert "confident and wrong" in check_initial_loss(detector, boxes()).sentence


@pytest.mark.slow
def test_a_detector_with_proposals_starts_at_chance():
    detector = detectors.tiny_two_stage(detectors.A.CascadeRCNN, norm="group")
    detector.compile("sgd")
    verdict = check_initial_loss(detector, boxes())
    assert verdict.ok, verdict
    assert verdict.expected == pytest.approx(
        {"rpn_objectness_loss": math.log(2)}
        | {f"classification_loss_{k}": math.log(4) / 2 ** (k - 1) for k in (1, 2, 3)}
    )


@pytest.mark.parametrize(
    ("loss", "encode", "message"),
    [
        ("sparse_categorical_crossentropy", ONE_HOT.__getitem__, r"one integer a sample: got \[32, 4\].*argmax"),
        (L.SparseCategoricalCrossentropy(), ONE_HOT.__getitem__, r"one integer a sample: got \[32, 4\].*argmax"),
        ("categorical_crossentropy", np.asarray, r"one-hot, \[32, 4\]: got \[32\].* sparse_categorical_crossentropy"),
        ("categorical_focal_crossentropy", lambda y: y[:, None], r"one-hot, \[32, 4\]: got \[32, 1\].*to_categorical"),
    ],
)
def test_labels_of_the_other_crossentropy_are_named(loss, encode, message):
    x, y = batch()
    with pytest.raises(ValueError, match=message):
        check_initial_loss(compiled(convnet(), loss=loss), (x, encode(y)))


@pytest.mark.tensorflow_only
def test_checks_of_many_models_in_one_process_print_no_warning_of_retracing(caplog):
    logger = logging.getLogger("tensorflow")
    logger.addHandler(caplog.handler)
    try:
        for _ in range(6):
            model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(4)])
            compiled(model, loss=L.SparseCategoricalCrossentropy(from_logits=True))
            check_initial_loss(model, batch(4))
            check_gradients(model, batch(4), coordinates=0, weights=1)
    finally:
        logger.removeHandler(caplog.handler)
    assert "retracing" not in caplog.text
