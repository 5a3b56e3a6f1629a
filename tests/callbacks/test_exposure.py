"""Images, instances and pixels in the logs equal a count in NumPy, in every mode of training; budgets end it."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from kvision.callbacks import Exposure, RunHistory, Vitals, read_history
from kvision.detection.detector import Detector
from kvision.metrics import ExposureCount
from kvision.part import Part
from tests.applications.detection.rows import ROWS
from tests.applications.detection.test_detectors import batch_of
from tests.callbacks.runs import tiny_model
from tests.support import SLOW

UNITS = ["images_seen", "instances_seen", "pixels_seen"]
SHAPE = (16, 24, 3)
IMAGES = 10
BATCH = 4  # and a last one of 2


@keras.saving.register_keras_serializable("kvision_tests")
class Head(Part):
    """The least that a detector needs."""

    loss_names = ("loss_of_maps",)
    classes = 3

    def __init__(self, **options):
        super().__init__(**options)
        self.complete()

    def losses(self, features, targets, training):
        return {"loss_of_maps": ops.mean(ops.square(ops.cast(features["maps"], "float32")))}

    def check(self, x, y):
        pass

    def decode(self, features):
        maps = ops.cast(features["maps"], "float32")[:, 0, :2]
        return {"boxes": maps, "scores": maps[..., 0], "labels": ops.cast(maps[..., 0], "int32")}


def detector(policy="float32", optimizer=None, **options):
    keras.config.set_dtype_policy(policy)
    images = keras.Input(SHAPE)
    maps = keras.layers.Conv2D(4, 3, activation="relu", name="maps")(keras.layers.Rescaling(1 / 255)(images))
    model = Detector(keras.Model(images, {"maps": maps}), Head())
    model.compile(optimizer or keras.optimizers.SGD(0.01), **options)
    keras.config.set_dtype_policy("float32")
    return model


def scenes(images=IMAGES):
    """Images and targets: some rows padding, some crowds, some images smaller than the padded ones."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 255, (images, *SHAPE)).astype("float32")
    corner = rng.uniform(0, 8, (images, 5, 2))
    return x, {
        "boxes": np.concatenate([corner, corner + 6], -1).astype("float32"),
        "labels": rng.integers(-1, 3, (images, 5)).astype("int32"),
        "crowd": rng.integers(0, 2, (images, 5)).astype("int32"),
        "image_size": np.stack([rng.integers(8, side + 1, images) for side in SHAPE[:2]], -1).astype("int32"),
    }


def by_hand(targets, rows=slice(None)):
    """Images, instances and pixels, one after another."""
    instances = pixels = 0
    sizes, crowds = targets["image_size"][rows], targets["crowd"][rows]
    for labels, crowd, (height, width) in zip(targets["labels"][rows], crowds, sizes, strict=True):
        instances += sum(1 for label, many in zip(labels, crowd, strict=True) if label >= 0 and not many)
        pixels += int(height) * int(width)
    return len(sizes), instances, pixels


def logged(history):
    """`[(images, instances, pixels)]` of the epochs."""
    return list(zip(*(history.history[name] for name in UNITS), strict=True))


def times(counts, factor):
    return tuple(number * factor for number in counts)


MODES = {
    "float32": {},
    "mixed_float16": {"policy": "mixed_float16"},
    "mixed_bfloat16": {"policy": "mixed_bfloat16"},
    "jit": {"jit_compile": True},
    "several steps a call": {"steps_per_execution": 2},
    "more steps a call than an epoch has": {"steps_per_execution": 4},
    "jit, several steps a call": {"jit_compile": True, "steps_per_execution": 2},
    "accumulation": {"optimizer": lambda: keras.optimizers.SGD(0.01, gradient_accumulation_steps=2)},
}


@pytest.mark.parametrize(
    ("mode", "validation"),
    [("float32", True), ("accumulation", True)]
    + [
        pytest.param(mode, validation, marks=pytest.mark.slow)
        for mode, validation in [("float32", False), ("several steps a call", False)]
        + [(mode, True) for mode in MODES if mode not in ("float32", "accumulation")]
    ],
)
def test_a_detector_counts_what_it_trains_on(mode, validation):
    options = dict(MODES[mode])
    model = detector(optimizer=options.pop("optimizer", lambda: None)(), **options)
    x, targets = scenes()
    exposure = Exposure()
    data = {"validation_data": scenes(3), "validation_batch_size": 2} if validation else {}
    history = model.fit(x, targets, batch_size=BATCH, epochs=3, verbose=0, callbacks=[exposure], **data)
    want = by_hand(targets)
    assert want[1] < (targets["labels"] >= 0).sum()
    assert logged(history) == [times(want, epoch) for epoch in (1, 2, 3)]
    assert all(type(number) is int for numbers in logged(history) for number in numbers)
    assert exposure.get_state() == dict(zip(UNITS, times(want, 3), strict=True))


@SLOW
def test_a_published_detector_is_counted():
    model = ROWS[0].tiny()
    model.compile(keras.optimizers.SGD(0.001))
    x, targets = batch_of(ROWS[0])
    history = model.fit(x, targets, batch_size=1, epochs=2, verbose=0, callbacks=[Exposure()])
    assert logged(history) == [(2, 3, 2 * 64 * 64), (4, 6, 4 * 64 * 64)]
    assert "exposure" not in " ".join(history.history)


def test_without_the_callback_nothing_is_logged():
    x, targets = scenes()
    model = detector()
    history = model.fit(x, targets, validation_data=(x, targets), verbose=0).history
    assert set(history) == {"loss", "loss_of_maps", "val_loss", "val_loss_of_maps"}
    assert len(model.evaluate(x, targets, verbose=0)) == 2


def test_the_count_is_no_part_of_the_model_and_the_plain_step_comes_back(tmp_path):
    x, targets = scenes()
    model = detector()
    model.fit(x, targets, batch_size=BATCH, verbose=0)
    plain, metrics = model.train_function, len(model.metrics)
    saving = keras.callbacks.ModelCheckpoint(tmp_path / "model.keras")
    for _ in range(2):
        exposure = Exposure()
        history = model.fit(x, targets, batch_size=BATCH, verbose=0, callbacks=[exposure, saving])
        assert logged(history) == [by_hand(targets)]
        assert model.train_function is plain
        assert len(model.metrics) == metrics
    copy = keras.saving.load_model(tmp_path / "model.keras")
    assert not any(isinstance(metric, ExposureCount) for metric in copy.metrics)
    history = copy.fit(x, targets, batch_size=BATCH, verbose=0, callbacks=[Exposure()])
    assert logged(history) == [by_hand(targets)]


class Evaluates(keras.callbacks.Callback):
    """Resets Keras's metrics where Keras itself would not."""

    def __init__(self, *data, within=False):
        super().__init__()
        self.data = data
        self.within = within

    def on_train_batch_end(self, batch, logs=None):
        if self.within:
            self.model.evaluate(*self.data, verbose=0)

    def on_epoch_end(self, epoch, logs=None):
        self.model.evaluate(*self.data, verbose=0)


@pytest.mark.parametrize("budget", [None, 1e12])
def test_evaluations_by_other_callbacks_do_not_count(budget):
    x, targets = scenes()
    callbacks = [Evaluates(*scenes(3), within=True), Exposure(stop_at_pixels=budget)]
    history = detector().fit(x, targets, batch_size=BATCH, epochs=2, verbose=0, callbacks=callbacks)
    assert logged(history) == [times(by_hand(targets), epoch) for epoch in (1, 2)]


@pytest.mark.parametrize("vitals_first", [True, False])
def test_vitals_beside_it_count_no_step_twice(vitals_first):
    x, targets = scenes()
    callbacks = [Vitals(every=1), Exposure()] if vitals_first else [Exposure(), Vitals(every=1)]
    history = detector().fit(x, targets, batch_size=BATCH, epochs=2, verbose=0, callbacks=callbacks)
    assert logged(history) == [times(by_hand(targets), epoch) for epoch in (1, 2)]


def generator(x, targets):
    while True:
        for start in range(0, IMAGES, BATCH):
            rows = slice(start, start + BATCH)
            yield x[rows], {name: array[rows] for name, array in targets.items()}


@pytest.mark.parametrize("stop", ["images", "instances", "pixels"])
def test_a_budget_ends_training_with_the_batch_that_reaches_it(stop, capsys):
    x, targets = scenes()
    place = UNITS.index(f"{stop}_seen")
    ends = [slice(0, 4), slice(0, 8), slice(0, 10)]  # after the first, second and third batch of an epoch
    epoch, second = by_hand(targets), by_hand(targets, ends[1])
    for budget, want in [
        (by_hand(targets, ends[1])[place], second),  # reached exactly
        (by_hand(targets, ends[0])[place] + 0.5, second),
        (epoch[place] + 1, tuple(np.add(epoch, by_hand(targets, ends[0])))),  # in the second epoch
        (epoch[place], epoch),  # with the epoch's last batch
    ]:
        exposure = Exposure(**{f"stop_at_{stop}": budget})
        data = generator(x, targets)
        history = detector().fit(data, steps_per_epoch=3, epochs=9, verbose=0, shuffle=False, callbacks=[exposure])
        assert logged(history)[-1] == want
        assert len(logged(history)) == 1 + (budget == epoch[place] + 1)
    assert f"Training ended by its budget: {epoch[place]:,} {stop} seen of {epoch[place]:,}." in capsys.readouterr().out


def test_a_budget_ends_several_steps_a_call_with_the_call():
    x, targets = scenes()
    model = detector(steps_per_execution=2)
    history = model.fit(
        generator(x, targets),
        steps_per_epoch=6,
        epochs=3,
        shuffle=False,
        verbose=0,
        callbacks=[Exposure(stop_at_images=9)],
    )
    assert logged(history) == [tuple(np.add(by_hand(targets), by_hand(targets, slice(0, 4))))]


def test_an_unreached_budget_is_silent(capsys):
    x, targets = scenes()
    history = detector().fit(x, targets, batch_size=BATCH, verbose=0, callbacks=[Exposure(stop_at_pixels=1e12)])
    assert logged(history) == [by_hand(targets)]
    assert capsys.readouterr().out == ""


def test_two_fits_add_up_and_a_state_goes_on():
    x, targets = scenes()
    model, exposure, want = detector(), Exposure(), by_hand(targets)
    for _ in range(2):
        history = model.fit(x, targets, batch_size=BATCH, verbose=0, callbacks=[exposure])
    assert logged(history) == [times(want, 2)]
    resumed = Exposure()
    resumed.set_state(exposure.get_state())
    assert logged(model.fit(x, targets, batch_size=BATCH, verbose=0, callbacks=[resumed])) == [times(want, 3)]


@pytest.mark.parametrize("tracker_first", [True, False])
def test_the_history_of_the_run_receives_the_numbers(tmp_path, tracker_first):
    x, targets = scenes()
    callbacks = [RunHistory(tmp_path), Exposure()] if tracker_first else [Exposure(), RunHistory(tmp_path)]
    detector().fit(x, targets, batch_size=BATCH, epochs=2, verbose=0, callbacks=callbacks)
    rows = [event["logs"] for event in read_history(tmp_path) if event["event"] == "epoch"]
    assert [tuple(row[name] for name in UNITS) for row in rows] == [times(by_hand(targets), epoch) for epoch in (1, 2)]


def classifier(shape=(8, 6, 3), model=keras.Model, **options):
    images = keras.Input(shape)
    logits = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(images))
    model = model(images, logits)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), **options)
    return model


def photos(count=IMAGES):
    return np.ones((count, 8, 6, 3), "float32"), np.arange(count) % 2


def in_batches(x, y):
    """Of unknown number, as a generator of files is."""
    for _ in range(2):
        for start in range(0, len(x), BATCH):
            yield x[start : start + BATCH], y[start : start + BATCH]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"steps_per_execution": 4},
        *(
            pytest.param(options, marks=pytest.mark.slow)
            for options in ({"jit_compile": True}, {"steps_per_execution": 2})
        ),
    ],
    ids=str,
)
def test_a_classifier_counts_its_last_smaller_batch_as_it_is(options):
    x, y = photos()
    model = classifier(**options)
    for exposure, data in [(Exposure(), {}), (Exposure(batch_size=BATCH), {"validation_data": photos(7)})]:
        history = model.fit(
            x, y, batch_size=BATCH, epochs=2, verbose=0, callbacks=[Evaluates(*photos(7)), exposure], **data
        )
        assert logged(history) == [(10, 10, 10 * 48), (20, 20, 20 * 48)]


def test_a_classifier_on_data_of_unknown_length_beside_validation():
    x, y = photos()
    with pytest.warns(UserWarning, match="ran out of data"):
        history = classifier().fit(
            in_batches(x, y), shuffle=False, verbose=0, validation_data=photos(7), callbacks=[Exposure()]
        )
    assert logged(history) == [(20, 20, 20 * 48)]


def test_a_classifier_ends_at_its_budget():
    history = classifier().fit(
        *photos(), batch_size=BATCH, epochs=5, verbose=0, callbacks=[Exposure(stop_at_pixels=13 * 48)]
    )
    assert logged(history) == [(10, 10, 480), (14, 14, 14 * 48)]


class Stepping(keras.Model):
    """Has a step of its own, of which nobody knows what it counts."""

    def train_step(self, *arguments):
        return super().train_step(*arguments)


class Measuring(keras.Model):
    """Has metrics of its own."""

    @property
    def metrics(self):
        return [self._loss_tracker]


@pytest.mark.parametrize("kind", [Stepping, Measuring])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_model_that_counts_otherwise_needs_its_batch_size(kind, steps):
    x, y = photos()
    with pytest.raises(ValueError, match=r"of its own.*give Exposure\(batch_size=...\)"):
        classifier(model=kind).fit(x, y, verbose=0, callbacks=[Exposure()])
    model = classifier(model=kind, steps_per_execution=steps)
    history = model.fit(x, y, batch_size=BATCH, epochs=2, verbose=0, callbacks=[Exposure(batch_size=BATCH)])
    assert logged(history) == [(12, 12, 12 * 48), (24, 24, 24 * 48)]


def test_a_model_without_pictures_counts_no_pixels():
    model, x, y = tiny_model(), np.zeros((6, 4), "float32"), np.zeros(6, "int32")
    history = model.fit(x, y, verbose=0, callbacks=[Exposure()]).history
    assert history["images_seen"] == history["instances_seen"] == [6]
    assert "pixels_seen" not in history
    with pytest.raises(ValueError, match="stop_at_pixels needs the size of the images"):
        model.fit(x, y, verbose=0, callbacks=[Exposure(stop_at_pixels=9)])
    with pytest.raises(ValueError, match="fixed size"):
        classifier(shape=(None, None, 3)).fit(*photos(), verbose=0, callbacks=[Exposure(stop_at_pixels=9)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "`batch_size` counts the images in a batch: got 0"),
        ({"batch_size": 2.5}, "got 2.5"),
        ({"stop_at_images": 0}, "`stop_at_images` is the number of images .* got 0"),
        ({"stop_at_instances": float("inf")}, "`stop_at_instances` .* got inf"),
        ({"stop_at_pixels": "1e9"}, "`stop_at_pixels` .* got '1e9'"),
    ],
)
def test_unusable_numbers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Exposure(**options)


class Counting(keras.Model):
    """Any model that holds a count can be followed."""

    def __init__(self):
        super().__init__()
        self.shown = ExposureCount()
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, images):
        return ops.mean(images) * self.scale

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if training:
            self.shown.update_state(x, y)
        return y_pred


def test_figure_2_of_rethinking_pretraining():
    """What one image counts is measured; the paper's numbers of epochs and images are its own (section 3, Figure 2)."""
    exposure = Exposure()
    classifier(shape=(224, 224, 3)).fit(np.zeros((1, 224, 224, 3)), np.zeros(1), verbose=0, callbacks=[exposure])
    imagenet = np.array(list(exposure.get_state().values()), "int64")
    detection = Counting()
    detection.compile("sgd")
    targets = {"labels": np.zeros((1, 7), "int32")}
    detection.fit(np.zeros((1, 800, 1333, 3), "float32"), targets, verbose=0, callbacks=[exposure])
    coco = np.array(list(exposure.get_state().values()), "int64") - imagenet
    assert imagenet.tolist() == [1, 1, 224 * 224]
    assert coco.tolist() == [1, 7, 800 * 1333]

    pretrained = 100 * 1_281_167 * imagenet + 24 * 118_287 * coco
    scratch = 72 * 118_287 * coco
    images, instances, pixels = pretrained / scratch
    assert images > 15
    assert 2 < instances < 3
    assert 1 < pixels < 1.1  # the bars of the figure are about as long


REPLICAS = """
import keras
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

from kvision.callbacks import Exposure
from tests.callbacks.test_exposure import by_hand, classifier, detector, logged, photos, scenes, times

with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    models = detector(), classifier()
x, targets = scenes()
history = models[0].fit(x, targets, batch_size=4, epochs=2, verbose=0, callbacks=[Exposure()])
assert logged(history) == [times(by_hand(targets), epoch) for epoch in (1, 2)], logged(history)
history = models[1].fit(*photos(), batch_size=4, epochs=2, verbose=0, callbacks=[Exposure()])
assert logged(history) == [(10, 10, 480), (20, 20, 960)], logged(history)
print("equal")
"""


@pytest.mark.slow
@pytest.mark.tensorflow_only
def test_two_replicas_count_as_one():
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run(
        [sys.executable, "-c", REPLICAS], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("equal")
