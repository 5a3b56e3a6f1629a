"""What is wrong at the end of an epoch reaches report, W&B and logs, and the training does not feel it."""

import keras
import numpy as np
import pytest
from keras import layers

from kvision.callbacks import InterpretationImages, Report, WandbLogger
from kvision.metrics import ERROR_KINDS, ExpectedCalibrationError
from kvision.trackers.events import Images
from kvision.visualize import Interpretation
from tests.callbacks.test_detection_images import Recorder, home  # noqa: F401
from tests.trackers.report_page import page_data
from tests.trackers.wandb_file import column, read_run
from tests.visualize.test_detector_interpretation import finder, scenes

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, 40)
IMAGES = (RNG.normal(0, 1, (40, 4, 4, 1)) + LABELS[:, None, None, None]).astype("float32")
THREE = ["top_losses", "confusion", "calibration"]


def classifier(**options):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((4, 4, 1)), layers.Flatten(), layers.Dropout(0.2), layers.Dense(3, "softmax")], name="net"
    )
    options = {"optimizer": keras.optimizers.SGD(0.05), "metrics": ["accuracy"]} | options
    model.compile(loss="sparse_categorical_crossentropy", **options)
    return model


def fit(*callbacks, epochs=2, model=None, validate=True, **options):
    model = model or classifier()
    validation = {"validation_data": (IMAGES[:20], LABELS[:20])} if validate else {}
    options = {"batch_size": 10, "epochs": epochs, "verbose": 0} | validation | options
    return model, model.fit(IMAGES, LABELS, callbacks=list(callbacks), **options).history


def events_of(images, **options):
    recorder = Recorder()
    fit(images, recorder, **options)
    return [event for event in recorder.events if isinstance(event, Images)]


HALF = (IMAGES[:20], LABELS[:20])


def test_a_classifier_each_so_many_epochs():
    events = events_of(InterpretationImages(HALF, num_images=4, every=2), epochs=4)
    assert [event.step for event in events] == [8, 16]
    assert all(list(event.images) == THREE and not event.overlays for event in events)


def test_the_calibration_error_is_that_of_the_metric():
    model = classifier(metrics=[ExpectedCalibrationError(name="ece")])
    _, history = fit(InterpretationImages(HALF), model=model, epochs=3)
    assert history["val_calibration_error"] == pytest.approx(history["val_ece"], abs=1e-6)
    assert len(set(history["val_calibration_error"])) == 3  # the model of each epoch


def test_a_metric_of_that_name_stays():
    images = InterpretationImages(HALF)
    metric = ExpectedCalibrationError(from_logits=True)  # another number: the model gives probabilities
    _, history = fit(images, model=classifier(metrics=[metric]), epochs=1)
    assert history["val_calibration_error"] == [pytest.approx(float(metric.result()), abs=1e-6)]
    assert abs(float(metric.result()) - images.interpretation.calibration().expected_error) > 1e-2


def test_the_training_is_the_same_with_and_without():
    before, plain = fit(epochs=3)
    after, measured = fit(InterpretationImages(HALF), epochs=3)
    assert measured.pop("val_calibration_error") and measured == plain
    for one, two in zip(before.get_weights(), after.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_what_is_seen_last_can_be_asked():
    images = InterpretationImages(HALF, class_names=("a", "b", "c"))
    model, _ = fit(images)
    again = Interpretation(model, HALF)
    np.testing.assert_allclose(images.interpretation.losses, again.losses, rtol=1e-5, atol=1e-6)
    assert images.interpretation.most_confused()[0].label in "abc"


@pytest.mark.parametrize(
    ("swap", "first"),
    [
        (False, True),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((False, False), (True, False), (True, True))),
    ],
)
def test_it_measures_the_weights_that_were_validated(swap, first):
    optimizer = keras.optimizers.SGD(0.3, use_ema=True, ema_momentum=0.8)
    images = InterpretationImages(HALF)
    callbacks = [images, keras.callbacks.SwapEMAWeights(swap_on_epoch=swap)]
    metrics = [ExpectedCalibrationError(name="ece")]
    _, history = fit(*callbacks[:: 1 if first else -1], model=classifier(optimizer=optimizer, metrics=metrics))
    assert history["val_calibration_error"] == pytest.approx(history["val_ece"], abs=1e-5)


def test_the_report_shows_a_classifier(tmp_path):
    fit(InterpretationImages(HALF, num_images=4), Report(tmp_path), epochs=1)
    images = page_data(tmp_path / "report.html")["images"]
    assert [image["name"] for image in images] == THREE


@pytest.mark.slow
def test_wandb_gets_a_classifier(home):  # noqa: F811
    fit(InterpretationImages(HALF, num_images=2), WandbLogger(), epochs=1)
    run = read_run(home)
    for name in THREE:
        ((step, _),) = column(run, f"images/{name}")
        assert step == 4


# Detectors


def fit_finder(*callbacks, epochs=1):
    model = finder()
    model.compile(keras.optimizers.SGD(0.0))
    model.fit(*scenes(), batch_size=9, epochs=epochs, verbose=0, callbacks=list(callbacks))


def test_a_detector():
    recorder = Recorder()
    fit_finder(InterpretationImages(scenes(), num_images=6, class_names=("cat", "dog")), recorder)
    bars, worst = (event for event in recorder.events if isinstance(event, Images))
    assert list(bars.images) == ["errors"] and not bars.overlays
    assert list(worst.images) == ["worst 1-2", "worst 3-4", "worst 5-6"]
    assert bars.step == worst.step == 1
    overlays = {overlay.caption: overlay for overlay in worst.overlays["worst"]}
    assert len(overlays) == 6
    overlay = overlays["image 1: 1 class"]
    assert overlay.layers["errors"]["labels"].tolist() == [ERROR_KINDS.index("class")]
    assert [overlay.classes[label] for label in overlay.layers["truth"]["labels"]] == ["cat"]
    assert overlay.image.shape == (80, 96, 3)


@pytest.mark.slow
def test_the_report_and_wandb_show_a_detector(tmp_path, home):  # noqa: F811
    fit_finder(InterpretationImages(scenes(), num_images=2), Report(tmp_path / "run"), WandbLogger())
    names = [image["name"] for image in page_data(tmp_path / "run" / "report.html")["images"]]
    assert sorted(names) == ["errors", "worst 1-1", "worst 2-2"]
    run = read_run(home)
    ((_, logged),) = column(run, "images/worst")
    assert logged["count"] == 2 and len(logged["all_boxes"]) == 2
    assert column(run, "images/errors")


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ((IMAGES, LABELS + 1), {}, "has the label 3: expected 0 to 2"),
        ((IMAGES, {"boxes": np.zeros((40, 1, 4)), "labels": LABELS[:, None]}), {}, "net is a classifier"),
        (iter([HALF]), {}, "can be read only once"),
        ([], {}, "the data are empty"),
        (HALF, {"class_names": "ab"}, "class_names are texts"),
    ],
)
def test_what_cannot_be_interpreted_is_told_before_the_first_step(source, options, message):
    model = classifier()
    with pytest.raises(ValueError, match=message):
        fit(InterpretationImages(source, every=9, **options), model=model)
    assert int(model.optimizer.iterations) == 0


@pytest.mark.parametrize("name", ["num_images", "every"])
def test_impossible_numbers_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        InterpretationImages(HALF, **{name: 0})
