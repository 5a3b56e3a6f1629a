"""Calibration error: by hand, against a loop over bins, against torchmetrics, and inside compiled training."""

import keras
import numpy as np
import pytest

from kvision.metrics import Calibration, ExpectedCalibrationError


def rows(count=500, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, classes)).astype("float32")
    labels = np.where(rng.random(count) < 0.6, logits.argmax(-1), rng.integers(0, classes, count))
    return logits, labels.astype("int32")


def softmax(logits):
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def loop(confidences, correct, bins=15):
    """Expected and maximum error, one bin after the other, after the paper's equations 3 and 5."""
    expected, most = 0.0, 0.0
    for number in range(bins):
        inside = [(c, r) for c, r in zip(confidences, correct, strict=True) if number / bins < c <= (number + 1) / bins]
        if inside:
            gap = abs(sum(r for _, r in inside) / len(inside) - sum(c for c, _ in inside) / len(inside))
            expected, most = expected + gap * len(inside) / len(confidences), max(most, gap)
    return expected, most


def test_a_few_by_hand():
    # Bins of a fifth: 0.2 closes the first one, 1 the last; 0.21 and 0.4 share one.
    found = Calibration.of([0.0, 0.2, 0.21, 0.4, 1.0], [False, True, False, True, True], bins=5)
    assert found.counts.tolist() == [2, 2, 0, 0, 1]
    assert found.confidences[[0, 1, 4]].tolist() == pytest.approx([0.1, 0.305, 1.0])
    assert found.accuracies[[0, 1, 4]].tolist() == [0.5, 0.5, 1.0]
    assert np.isnan(found.accuracies[2])
    assert found.expected_error == pytest.approx((2 * 0.4 + 2 * 0.195) / 5)
    assert found.maximum_error == pytest.approx(0.4)
    assert found.overconfidence == pytest.approx(0.362 - 0.6)
    assert found.edges.tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])


def test_it_is_what_a_loop_over_bins_gives():
    logits, labels = rows()
    probabilities = softmax(logits).astype("float64")
    confidences, correct = probabilities.max(-1), probabilities.argmax(-1) == labels
    found = Calibration.of(confidences, correct)
    assert (found.expected_error, found.maximum_error) == pytest.approx(loop(confidences, correct))


FORMS = {
    "integers": (lambda labels: labels, lambda logits: softmax(logits), {}),
    "a column": (lambda labels: labels[:, None], lambda logits: softmax(logits), {}),
    "one-hot": (lambda labels: np.eye(4)[labels], lambda logits: softmax(logits), {}),
    "logits": (lambda labels: labels, lambda logits: logits, {"from_logits": True}),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_metric_over_batches_is_the_whole(form):
    of_labels, of_logits, options = FORMS[form]
    logits, labels = rows()
    metric = ExpectedCalibrationError(**options)
    for part in (slice(0, 200), slice(200, 207), slice(207, 500)):
        metric.update_state(of_labels(labels[part]), of_logits(logits[part]))
    probabilities = softmax(logits)
    want = Calibration.of(probabilities.max(-1), probabilities.argmax(-1) == labels)
    assert float(metric.result()) == pytest.approx(want.expected_error, abs=1e-6)
    assert metric.calibration().counts.tolist() == want.counts.tolist()
    assert metric.calibration().maximum_error == pytest.approx(want.maximum_error, abs=1e-5)
    metric.reset_state()
    assert float(metric.result()) == 0


@pytest.mark.parametrize("from_logits", [False, True])
def test_one_output_stands_for_two_classes(from_logits):
    logits, labels = rows(classes=1, seed=1)[0], np.random.default_rng(1).integers(0, 2, 500)
    chance = 1 / (1 + np.exp(-logits[:, 0].astype("float64")))
    metric = ExpectedCalibrationError(from_logits=from_logits)
    metric.update_state(labels, logits if from_logits else chance[:, None])
    want = Calibration.of(np.maximum(chance, 1 - chance), (chance > 0.5) == labels)
    assert float(metric.result()) == pytest.approx(want.expected_error, abs=1e-5)


def test_many_batches_stay_exact():
    metric = ExpectedCalibrationError(bins=1)
    for _ in range(60):
        metric.update_state(np.zeros(5000, int), np.tile(np.float32([0.7, 0.3]), (5000, 1)))
    assert float(metric.result()) == pytest.approx(0.3, abs=1e-6)
    assert metric.calibration().counts.tolist() == [300_000]


def test_it_works_in_compile_and_knows_its_direction():
    logits, labels = rows(64)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Softmax()(keras.layers.Dense(4, kernel_initializer="identity")(inputs)))
    metric = ExpectedCalibrationError()
    model.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy", metrics=[metric])
    stop = keras.callbacks.EarlyStopping("val_calibration_error", patience=1)
    history = model.fit(
        logits, labels, validation_data=(logits, labels), epochs=2, batch_size=20, verbose=0, callbacks=[stop]
    ).history
    probabilities = softmax(logits)
    want = Calibration.of(probabilities.max(-1), probabilities.argmax(-1) == labels).expected_error
    assert history["calibration_error"] == pytest.approx([want] * 2, abs=1e-6)
    assert history["val_calibration_error"] == pytest.approx([want] * 2, abs=1e-6)
    assert bool(stop.monitor_op(1.0, 2.0))
    # A label beyond the classes, in a compiled step.
    model.compile("sgd", lambda labels, predictions: keras.ops.mean(predictions), metrics=[metric])
    again = model.evaluate(logits, labels + 1, verbose=0, return_dict=True)
    assert np.isnan(again["calibration_error"])


def test_config_makes_it_again():
    metric = ExpectedCalibrationError(bins=7, from_logits=True, name="ece")
    again = ExpectedCalibrationError.from_config(metric.get_config())
    assert (again.bins, again.from_logits, again.name) == (7, True, "ece")


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([0, 3], [[0.5, 0.5], [0.5, 0.5]], "row 1 has the label 3, expected 0 to 1"),
        ([0, 1], [[0.5, 0.5], [-2.0, 5.0]], r"row 1 has the predictions \[-2.0, 5.0\]…, .*from_logits=True"),
        ([0], [[np.nan, 0.5]], "row 0 has the predictions"),
        ([[0, 1, 0]], [[0.5, 0.5]], r"labels \(1, 3\) and predictions \(1, 2\)"),
        ([0], [0.5], r"predictions \(1,\)"),
    ],
)
def test_what_cannot_be_counted_is_an_error(labels, predictions, message):
    with pytest.raises(ValueError, match=message):
        ExpectedCalibrationError().update_state(labels, predictions)


def test_other_arguments_that_cannot_be():
    with pytest.raises(ValueError, match="bins is a whole number of at least 1: got 0"):
        ExpectedCalibrationError(bins=0)
    with pytest.raises(ValueError, match="counts predictions and weighs none"):
        ExpectedCalibrationError().update_state([0], [[0.5, 0.5]], sample_weight=[1.0])
    with pytest.raises(ValueError, match=r"probabilities in \[0, 1\]: got -1 to 3"):
        Calibration.of([-1.0, 3.0], [True, True])
    with pytest.raises(ValueError, match=r"confidences \[n\]"):
        Calibration.of([[0.5]], [True])


@pytest.mark.parity
@pytest.mark.parametrize(("norm", "name"), [("l1", "expected_error"), ("max", "maximum_error")])
def test_torchmetrics_says_the_same(norm, name):
    import torch
    from torchmetrics.classification import MulticlassCalibrationError

    logits, labels = rows(2000, classes=7)
    theirs = MulticlassCalibrationError(7, n_bins=15, norm=norm)
    probabilities = softmax(logits)
    want = float(theirs(torch.from_numpy(probabilities), torch.from_numpy(labels.astype("int64"))))
    found = Calibration.of(probabilities.max(-1), probabilities.argmax(-1) == labels)
    assert getattr(found, name) == pytest.approx(want, abs=1e-5)
    metric = ExpectedCalibrationError()
    metric.update_state(labels, probabilities)
    assert getattr(metric.calibration(), name) == pytest.approx(want, abs=1e-5)
