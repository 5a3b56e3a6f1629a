"""Interpretation of classifiers: numbers worked out from the logits, whatever form model, data and labels have."""

import os
import signal

import keras
import numpy as np
import pytest
from keras import layers
from matplotlib.colors import to_rgb

import kvision
from kvision import drawing
from kvision.drawing import confusion_chart, reliability_diagram
from kvision.visualize import ClassifierInterpretation, Interpretation, classifier_interpretation
from tests.support import TOLERANCES

NAMES = ("cat", "dog", "cow")
COUNT = 23


def data(count=COUNT, classes=3):
    """Images of one pixel that hold their own logits, and labels that these mostly agree with."""
    rng = np.random.default_rng(0)
    images = rng.normal(0, 3, (count, 1, 1, classes)).astype("float32")
    labels = np.where(rng.random(count) < 0.6, images[:, 0, 0].argmax(-1), rng.integers(0, classes, count))
    return images, labels.astype("int64")


IMAGES, LABELS = data()
LOGITS = IMAGES[:, 0, 0].astype("float64")
LOGS = LOGITS - np.log(np.exp(LOGITS).sum(-1, keepdims=True))
LOSSES, PREDICTIONS = -LOGS[np.arange(COUNT), LABELS], LOGS.argmax(-1)


def network(*ending, classes=3, name="net", **options):
    return keras.Sequential([keras.Input((1, 1, classes)), layers.Flatten(), *ending], name=name, **options)


class Subclass(keras.Model):
    """Of a graph that is not known, ending in a softmax or not."""

    def __init__(self, softmax):
        super().__init__(name="subclass")
        self.flatten = layers.Flatten()
        self.ends_in_softmax = softmax

    def call(self, x):
        x = self.flatten(x)
        return keras.ops.softmax(x) if self.ends_in_softmax else x


def subclass(softmax):
    model = Subclass(softmax)
    model(IMAGES)
    return model


def identity(activation):
    return layers.Dense(3, activation=activation, kernel_initializer="identity")


MODELS = {
    "logits": lambda: network(),
    "a softmax layer": lambda: network(layers.Softmax()),
    "a softmax of a layer": lambda: network(identity("softmax")),
    "a log-softmax": lambda: network(identity("log_softmax")),
    "nested": lambda: keras.Sequential([keras.Input((1, 1, 3)), network(layers.Softmax(), name="inner")]),
    "a subclass with softmax": lambda: subclass(True),
    "a subclass without": lambda: subclass(False),
}


def check(found, tolerance=TOLERANCES["float32"]):
    """All numbers, as the logits give them."""
    rtol, atol = tolerance
    assert isinstance(found, ClassifierInterpretation) and found.num_images == COUNT
    np.testing.assert_allclose(found.losses, LOSSES, rtol=rtol, atol=10 * atol)
    np.testing.assert_array_equal(found.labels, LABELS)
    np.testing.assert_array_equal(found.predictions, PREDICTIONS)
    np.testing.assert_allclose(found.probabilities, np.exp(LOGS.max(-1)), rtol=rtol, atol=atol)
    assert found.accuracy == np.mean(PREDICTIONS == LABELS)
    matrix = [[np.sum((row == LABELS) & (column == PREDICTIONS)) for column in range(3)] for row in range(3)]
    assert found.confusion.tolist() == matrix and found.confusion.dtype == "int64"
    worst = found.top_losses(5)
    assert [each.index for each in worst] == np.argsort(-LOSSES)[:5].tolist()
    for each in worst:
        np.testing.assert_array_equal(each.image, IMAGES[each.index])
        assert each.loss == pytest.approx(LOSSES[each.index], rel=rtol, abs=10 * atol)
        assert each.label_probability == pytest.approx(np.exp(-LOSSES[each.index]), rel=10 * rtol, abs=atol)
        assert (each.label, each.prediction) == (LABELS[each.index], PREDICTIONS[each.index])


@pytest.mark.parametrize("form", MODELS)
def test_logits_and_probabilities_are_told_apart(form):
    check(Interpretation(MODELS[form](), (IMAGES, LABELS), batch_size=10))


class Dataset(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        rows = slice(10 * index, 10 * index + 10)
        return IMAGES[rows], LABELS[rows]


def of_tensorflow():
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(7)


BATCHES = [(IMAGES[:10], LABELS[:10]), (IMAGES[10:12], LABELS[10:12]), (IMAGES[12:], LABELS[12:], np.ones(11))]
DATA = {
    "one-hot": lambda: (IMAGES, np.eye(3)[LABELS]),
    "a column": lambda: (IMAGES, LABELS[:, None].astype("float32")),
    "lists": lambda: (IMAGES, LABELS.tolist()),
    "batches": lambda: BATCHES,
    "PyDataset": Dataset,
    "tf.data": of_tensorflow,
}


@pytest.fixture(scope="module")
def plain():
    return network()


@pytest.mark.parametrize("form", DATA)
def test_data_and_labels_of_every_form(form, plain):
    check(Interpretation(plain, DATA[form](), batch_size=5))


def test_one_output_stands_for_two_classes():
    images, labels = IMAGES[..., :1], (LABELS > 0).astype("int64")
    logits = images[:, 0, 0, 0].astype("float64")
    want = np.log1p(np.exp(-np.where(labels == 1, logits, -logits)))
    for ending in ([], [layers.Dense(1, "sigmoid", kernel_initializer="ones")]):
        found = Interpretation(network(*ending, classes=1), (images, labels[:, None]))
        np.testing.assert_allclose(found.losses, want, rtol=1e-5, atol=1e-6)
        assert found.num_classes == 2 and found.predictions.tolist() == (logits > 0).astype(int).tolist()


def test_a_sure_error_has_its_own_loss_though_its_probability_is_0():
    images = np.array([[0.0, 500, 0], [0, 900, 0], [0, 200, 0]], "float32").reshape(3, 1, 1, 3)
    found = Interpretation(network(layers.Softmax()), (images, [0, 0, 0]))
    assert [each.index for each in found.top_losses(3)] == [1, 0, 2]
    assert found.losses.tolist() == pytest.approx([500, 900, 200])


def test_images_are_given_and_kept_before_preprocessing(plain):
    pixels = (IMAGES + 20) * 5
    found = Interpretation(plain, (pixels, LABELS), preprocess=lambda x: x / 5 - 20)
    np.testing.assert_allclose(found.losses, LOSSES, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found.top_losses(1)[0].image, pixels[np.argmax(LOSSES)])


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_16_bits(policy):
    keras.mixed_precision.set_dtype_policy(policy)
    found = Interpretation(network(identity("softmax")), (IMAGES, LABELS))
    assert found.losses == pytest.approx(LOSSES, abs=0.1)
    assert found.losses.dtype == "float64"


def test_the_most_confused_and_the_calibration(plain):
    found = Interpretation(plain, (IMAGES, LABELS), class_names=NAMES)
    confused = found.most_confused()
    matrix = found.confusion
    assert sum(each.count for each in confused) == (PREDICTIONS != LABELS).sum()
    assert [each.count for each in confused] == sorted((each.count for each in confused), reverse=True)
    for each in confused:
        assert each.count == matrix[NAMES.index(each.label), NAMES.index(each.prediction)]
        assert each.total == matrix[NAMES.index(each.label)].sum()
    assert found.most_confused(min_count=2) == [each for each in confused if each.count >= 2]
    metric = kvision.metrics.ExpectedCalibrationError(from_logits=True)
    metric.update_state(LABELS, IMAGES[:, 0, 0])
    assert found.calibration().expected_error == pytest.approx(float(metric.result()), abs=1e-6)


def test_it_says_what_stands_out(plain):
    found = Interpretation(plain, (IMAGES, LABELS), class_names=NAMES)
    first, most = found.most_confused()[0], found.top_losses(1)[0]
    text = str(found)
    assert text.startswith(f"net on {COUNT} images of 3 classes: accuracy {found.accuracy:.3f}, mean loss ")
    assert f"Most confused: {first.label} as {first.prediction}, {first.count} of {first.total}" in text
    assert f"Expected calibration error {found.calibration().expected_error:.3f}" in text
    assert f"has image {most.index}: {NAMES[most.label]}, predicted {NAMES[most.prediction]} with" in text
    right = Interpretation(plain, (IMAGES, PREDICTIONS))
    assert "Every image is classified right." in str(right) and right.most_confused() == []


def test_it_draws(plain):
    found = Interpretation(plain, (IMAGES, LABELS), class_names=NAMES)
    sheet = found.draw_top_losses(4, side=120)
    assert sheet.dtype == "uint8" and sheet.shape[1] == 2 * 120 + 3 * 4
    axes = found.draw_confusion().axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(NAMES)
    written = {(round(text.get_position()[1]), round(text.get_position()[0])): text.get_text() for text in axes.texts}
    assert written == {(r, c): str(n) for (r, c), n in np.ndenumerate(found.confusion) if n}
    above, below = found.draw_calibration(bins=5).axes
    assert [bar.get_height() for bar in below.patches] == found.calibration(5).counts.tolist()
    held = found.calibration(5).counts > 0
    assert [bar.get_height() for bar in above.patches] == found.calibration(5).accuracies[held].tolist()
    with pytest.raises(ValueError, match="as many confidences, accuracies and counts"):
        reliability_diagram([0.1], [0.1, 0.2], [1])


def test_of_many_classes_the_most_confused_are_drawn():
    images, labels = data(60, classes=40)
    found = Interpretation(network(classes=40), (images, labels))
    axes = found.draw_confusion().axes[0]
    drawn = [int(label.get_text()) for label in axes.get_yticklabels()]
    assert len(drawn) == 30 and drawn == sorted(drawn)
    assert {int(each.label) for each in found.most_confused(2)} <= set(drawn)
    assert "30 of 40 classes" in axes.get_title()


def chosen_classes(labels, predictions, classes=1000):
    """The classes that are drawn of a model that predicts these, and the title."""
    images = np.eye(classes, dtype="float32")[predictions][:, None, None] * 9
    axes = Interpretation(network(classes=classes), (images, np.array(labels))).draw_confusion().axes[0]
    return [int(label.get_text()) for label in axes.get_yticklabels()], axes.get_title()


def test_classes_that_nobody_confused_are_not_drawn():
    drawn, title = chosen_classes([700, 3, 3, 999, 50], [701, 3, 5, 999, 50])
    assert drawn == [3, 5, 700, 701] and "the 4 of 1000 classes that are confused most" in title
    drawn, title = chosen_classes([700, 3, 3], [700, 3, 3])
    assert drawn == [3, 700] and "the 2 of 1000 classes of most images: none is confused" in title


def contrast(*colours):
    """Of two colours, by WCAG 2."""
    parts = np.array([to_rgb(colour) for colour in colours])
    linear = np.where(parts <= 0.03928, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    dark, light = sorted(linear @ (0.2126, 0.7152, 0.0722) + 0.05)
    return light / dark


def test_numbers_of_a_confusion_matrix_are_readable_in_every_cell():
    matrix = np.array([[100 - n if row == n else 0 for row in range(30)] for n in range(30)])
    matrix[:, 29] += np.arange(30) * 3  # off the diagonal, from light cells to dark ones
    axes = confusion_chart(matrix).axes[0]
    cells = axes.images[0]
    for text in axes.texts:
        column, row = (round(position) for position in text.get_position())
        background = cells.cmap(cells.norm(cells.get_array()[row, column]))[:3]
        assert contrast(text.get_color(), background) > 4.2, (row, column)
        assert text.get_fontsize() >= 8


def test_the_loss_is_in_the_caption_however_long_the_names_are(plain, monkeypatch):
    captions = []

    def grid(images, captions_of=captions, *, captions):
        captions_of += captions
        return drawing.grid(images, captions=captions)

    monkeypatch.setattr(classifier_interpretation, "grid", grid)
    for names in (NAMES, [f"{name} of Staffordshire" for name in NAMES]):
        found = Interpretation(plain, (IMAGES, LABELS), class_names=names)
        captions.clear()
        found.draw_top_losses(4)
        for caption, each in zip(captions, found.top_losses(4), strict=True):
            lines = caption.split("\n")
            assert lines[0] == f"loss {each.loss:.2f}, {each.probability:.2f}"
            assert " ".join(lines[1:]) == f"{names[each.label]} → {names[each.prediction]}"
            assert max(map(len, lines)) <= 30


def test_images_of_the_highest_losses_alone_are_kept(plain):
    found = Interpretation(plain, BATCHES, keep=4)
    assert [each.index for each in found.top_losses(4)] == np.argsort(-LOSSES)[:4].tolist()
    assert len(found._kept) == 4
    assert all(made.base is None and made.shape == (1, 1, 3) for *_, made in found._kept)  # no view of a batch
    with pytest.raises(ValueError, match="expected k from 1 to keep=4"):
        found.top_losses(5)


def test_the_model_of_the_moment_is_measured_anew():
    model = network(identity(None))
    found = Interpretation(model, (IMAGES, LABELS), measure=False)
    assert found.num_images == 0
    found.update()
    check(found)
    model.layers[-1].kernel.assign(np.zeros((3, 3)))
    found.update()
    assert found.losses == pytest.approx(np.full(COUNT, np.log(3)), abs=1e-6)
    assert found.num_images == COUNT


def state(model):
    return (
        [np.array(weight) for weight in model.get_weights()],
        [layer.trainable for layer in model.layers],
        [sorted(vars(layer)) for layer in model.layers],
    )


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_stays_as_it_is(fails, tmp_path):
    model = network(layers.BatchNormalization(), layers.Dropout(0.5), identity("softmax"))
    model.layers[-1].trainable = False
    model.compile("sgd", "sparse_categorical_crossentropy")
    before = state(model)

    def preprocess(images):
        if fails:
            raise ArithmeticError("on purpose")
        return images

    if fails:
        with pytest.raises(ArithmeticError):
            Interpretation(model, (IMAGES, LABELS), preprocess=preprocess)
    else:
        Interpretation(model, (IMAGES, LABELS), preprocess=preprocess)
    for one, two in zip(state(model), before, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    model.save(tmp_path / "net.keras")
    again = keras.saving.load_model(tmp_path / "net.keras")
    np.testing.assert_array_equal(again.predict(IMAGES, verbose=0), model.predict(IMAGES, verbose=0))


class Interrupted(list):
    """Batches, and Ctrl-C within the second one when they are read for the third time."""

    reads = 0

    def __iter__(self):
        self.reads += 1
        for number, batch in enumerate(super().__iter__()):
            if number == 1 and self.reads == 3:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch


def test_ctrl_c_gives_what_there_is(plain):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        source = Interrupted([(IMAGES[:5], LABELS[:5]), (IMAGES[5:9], LABELS[5:9]), (IMAGES[9:], LABELS[9:])])
        found = Interpretation(plain, source)
    finally:
        signal.signal(signal.SIGINT, before)
    assert source.reads == 3 and found.num_images == 9
    np.testing.assert_allclose(found.losses, LOSSES[:9], rtol=1e-5, atol=1e-5)


def test_progress_is_shown_when_asked_for(plain, capfd):
    Interpretation(plain, BATCHES)
    assert capfd.readouterr().out == ""
    Interpretation(plain, BATCHES, verbose=1)
    assert "3/3" in capfd.readouterr().out


BOXES = {"boxes": np.zeros((COUNT, 1, 4)), "labels": np.zeros((COUNT, 1), int)}
DIVERGED = IMAGES * np.float32("inf")


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (None, {}, "needs data with labels: got None"),
        (IMAGES, {}, r"got images \(23, 1, 1, 3\) without labels"),
        ((IMAGES, LABELS, np.ones(COUNT)), {}, r"got \(images, labels, sample weights\). Give \(images, labels\)"),
        (data, {}, r"got the function data. Of a generator function give list\(function\(\)\)"),
        (3, {}, r"needs batches \(images, targets\) or a tuple of arrays: got int"),
        ((IMAGES, None), {}, r"needs labels: got \(images, None\)"),
        ([IMAGES], {}, r"Batches of data are pairs \(images, targets\): got ndarray"),
        ([], {}, "the data are empty"),
        ((IMAGES[:0], LABELS[:0]), {}, "the data are empty"),
        (iter(BATCHES), {}, "got a list_iterator, which can be read only once"),
        ((IMAGES, LABELS[:4]), {}, r"as many targets as images, got \[4, 23\] rows"),
        ([(IMAGES[0], LABELS[0])], {}, r"batches of images \[b, h, w, c\], got \(1, 1, 3\)"),
        ((IMAGES, LABELS + 2), {}, r"image \d+ has the label [34]: expected 0 to 2"),
        ((IMAGES, LABELS - 1), {}, r"image \d+ has the label -1: expected 0 to 2"),
        ([BATCHES[0], (IMAGES[:2], LABELS[:2] * 0 + 7)], {}, "image 10 has the label 7"),
        ((IMAGES, np.eye(4)[LABELS]), {}, r"expected integer labels \[b\] or one-hot \[b, 3\]"),
        ((IMAGES, np.full((COUNT, 3), 1 / 3)), {}, "image 0 has the labels .* expected one-hot"),
        ((IMAGES, LABELS + 0.5), {}, "expected integer labels"),
        ((IMAGES, np.array(["cat"] * COUNT)), {}, "expected integer labels .* got <U3"),
        ((IMAGES, BOXES), {}, r"net is a classifier: expected labels .* got targets with \['boxes', 'labels'\]"),
        ((np.zeros((4, 2, 2, 3)), LABELS[:4]), {}, r"net takes images \[b, 1, 1, 3\]: got \[4, 2, 2, 3\]"),
        ((IMAGES * np.nan, LABELS), {}, "not finite"),
        ((IMAGES, LABELS), {"class_names": ["a", "b"]}, "net has 3 classes: class_names must be as many, got 2"),
        ((IMAGES, LABELS), {"keep": 0}, "must be at least 1, got keep=0"),
        ((IMAGES, LABELS), {"preprocess": lambda x: x + np.inf}, "predicts numbers that are not finite for image 0"),
    ],
)
def test_what_cannot_be_interpreted_is_an_error(source, options, message, plain):
    with pytest.raises(ValueError, match=message):
        Interpretation(plain, source, **options)


@pytest.mark.tensorflow_only
def test_data_that_never_end_are_refused(plain):
    with pytest.raises(ValueError, match="the data never end"):
        Interpretation(plain, of_tensorflow().repeat())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: network(layers.Dense(3, "sigmoid")), "a sigmoid for each of 3 classes"),
        (lambda: keras.Sequential([keras.Input((1, 1, 3)), layers.Conv2D(3, 1)]), r"gives \(23, 1, 1, 3\): expected"),
        (lambda: keras.Sequential([layers.Flatten()]), "a built keras.Model, got Sequential"),
        (lambda: "net", "a built keras.Model, got str"),
    ],
)
def test_models_that_are_no_classifiers(model, message):
    with pytest.raises(ValueError, match=message):
        Interpretation(model(), (IMAGES, LABELS))


def test_names_of_the_data_in_another_order_are_an_error():
    model = kvision.network.Network(*(lambda x: (x, layers.Flatten()(x)))(keras.Input((1, 1, 3))), name="named")
    model.class_names = NAMES
    source = Dataset()
    source.class_names = ("cat", "cow", "dog")
    with pytest.raises(ValueError, match=r"differ from label 1 on: got \('cow', 'dog'\) and \('dog', 'cow'\)"):
        Interpretation(model, source)
    source.class_names = NAMES
    assert Interpretation(model, source).most_confused()[0].label in NAMES


@pytest.mark.slow
def test_a_network_of_some_depth_gives_what_it_predicts():
    model = kvision.applications.ResNet("tiny", input_shape=(32, 32, 3), classes=5)
    rng = np.random.default_rng(0)
    images, labels = rng.normal(0, 1, (20, 32, 32, 3)).astype("float32"), rng.integers(0, 5, 20)
    found = Interpretation(model, (images, labels), batch_size=8)
    predicted = model.predict(images, verbose=0)
    np.testing.assert_allclose(found.probabilities, predicted.max(-1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.losses, -np.log(predicted[np.arange(20), labels]), rtol=1e-3, atol=1e-4)
