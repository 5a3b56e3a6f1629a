"""Average precision reaches the logs, in time for callbacks that wait for it, from data of every kind."""

import os
import subprocess
import sys
import weakref

import keras
import numpy as np
import pytest
from keras import ops

import kvision
from kvision.callbacks import DetectionMetrics, Report, RunHistory, read_history
from kvision.callbacks.validated_weights import ValidatedWeights
from kvision.metrics import COCOAveragePrecision, VOCAveragePrecision
from tests.applications.detection.rows import ROWS
from tests.applications.detection.test_detectors import batch_of
from tests.callbacks.runs import tiny_model

TWELVE = "AP AP50 AP75 AP_small AP_medium AP_large AR1 AR10 AR100 AR_small AR_medium AR_large".split()
DECIDED = [name for name in TWELVE if not name.endswith("large")]  # the objects of the tests are small and medium
SIDE = 112


class Finder(keras.Model):
    """Finds the boxes that are written into the pixels, less wide of the mark as it trains."""

    def __init__(self):
        super().__init__()
        self.error = self.add_weight(shape=(), initializer=keras.initializers.Constant(0.8), name="error")

    def call(self, images):
        boxes = images[:, :2, :4, 0]
        width = (boxes[:, :, 2:3] - boxes[:, :, :1]) * self.error
        pixels = ops.cast(images[:, None, :, :, 1] > 0, "uint8")
        return {
            "boxes": boxes + ops.concatenate([width, 0 * width] * 2, -1),
            "scores": images[:, :2, 4, 0],
            "labels": ops.cast(images[:, :2, 5, 0], "int32"),
            "masks": ops.concatenate([pixels, pixels], 1),
        }

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return self.error**2


def scenes(images=10):
    """Two objects an image, a few images without any; and their targets."""
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0, 50, (images, 2, 2)).astype("float32")
    boxes = np.concatenate([boxes, boxes + rng.uniform(10, 60, (images, 2, 2))], -1).astype("float32")
    labels = rng.integers(0, 3, (images, 2)).astype("int32")
    labels[::4] = -1
    pixels = np.zeros((images, SIDE, SIDE, 3), "float32")
    pixels[:, :2, :4, 0] = boxes
    pixels[:, :2, 4, 0] = rng.uniform(0, 1, (images, 2))
    pixels[:, :2, 5, 0] = labels
    pixels[:, 2:5, 3:, 1] = 1
    masks = np.repeat((pixels[:, None, :, :, 1] > 0).astype("uint8"), 2, axis=1)
    return pixels, {"boxes": boxes, "labels": labels, "masks": masks}


def fit(callbacks, epochs=4, model=None, rate=0.1):
    """Two steps an epoch; the error shrinks by a factor (1 - 2 · rate) a step."""
    model = model or Finder()
    if not model.compiled:
        model.compile(keras.optimizers.SGD(rate))
    images, targets = scenes()
    data = images[:8], {name: array[:8] for name, array in targets.items()}
    return model, model.fit(*data, batch_size=4, epochs=epochs, verbose=0, callbacks=callbacks).history


def test_the_numbers_that_objects_decide_enter_the_logs():
    images, targets = scenes()
    measured = []

    class Direct(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            metric = COCOAveragePrecision()
            metric.update_state(targets, self.model.predict(images, verbose=0))
            assert list(metric.result()) == TWELVE
            measured.append({f"val_{name}": metric.result()[name] for name in DECIDED})

    _, history = fit([DetectionMetrics((images, targets)), Direct()])
    assert [name for name in history if name != "loss"] == [f"val_{name}" for name in DECIDED]
    assert measured == [{name: history[name][epoch] for name in measured[0]} for epoch in range(4)]
    assert history["val_AP"][0] < history["val_AP"][1] < history["val_AP"][-1]


def batches(kind, images, targets):
    parts = [slice(0, 4), slice(4, 8), slice(8, 10)]
    pairs = [(images[rows], {name: array[rows] for name, array in targets.items()}) for rows in parts]
    if kind == "list":
        return pairs
    if kind == "three of a batch":
        return [(*pair, np.ones(len(pair[0]))) for pair in pairs]
    if kind == "tuple of batches":
        return tuple(pairs)
    if kind == "PyDataset":

        class Images(keras.utils.PyDataset):
            def __len__(self):
                return len(pairs)

            def __getitem__(self, place):
                return pairs[place % 3]  # never out of range

        return Images()
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((images, targets)).batch(4)


@pytest.mark.parametrize("kind", ["list", "three of a batch", "tuple of batches", "PyDataset", "tf.data"])
def test_data_of_every_kind_give_the_same_numbers(kind):
    images, targets = scenes()
    _, want = fit([DetectionMetrics((images, targets), batch_size=3)], epochs=2)
    _, got = fit([DetectionMetrics(batches(kind, images, targets))], epochs=2)
    assert got == want


@pytest.mark.parametrize("masks", [False, True])
def test_masks_are_measured_when_asked_for(masks):
    _, history = fit([DetectionMetrics(scenes(), masks=masks)], epochs=1)
    small = {f"val_mask_{name}" for name in DECIDED if not name.endswith("medium")}
    assert {name for name in history if "mask" in name} == (small if masks else set())
    if masks:
        assert history["val_mask_AP"] == [pytest.approx(1.0)]
        assert history["val_AP"][0] < 0.5


def test_early_stopping_waits_for_it():
    stop = keras.callbacks.EarlyStopping(monitor="val_AP", mode="max", patience=2)
    _, history = fit([DetectionMetrics(scenes()), stop], epochs=40, rate=0.3)
    best = int(np.argmax(history["val_AP"]))
    assert history["val_AP"][best] == pytest.approx(1.0)
    assert len(history["val_AP"]) == best + 1 + 2 < 40


@pytest.mark.parametrize("tracker_first", [True, False])
def test_trackers_record_it_wherever_they_stand(tmp_path, tracker_first):
    trackers, metrics = [RunHistory(tmp_path), Report(tmp_path)], [DetectionMetrics(scenes())]
    _, history = fit(trackers + metrics if tracker_first else metrics + trackers, epochs=2)
    logs = [event["logs"] for event in read_history(tmp_path) if event["event"] == "epoch"]
    assert [entry["val_AP50"] for entry in logs] == history["val_AP50"]
    assert set(logs[0]) == {"loss", *(f"val_{name}" for name in DECIDED)}
    assert "val_AP_small" in "".join(page.read_text() for page in tmp_path.glob("*.html"))


def test_every_second_epoch():
    seen = []
    tell = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append("val_AP" in logs))
    fit([DetectionMetrics(scenes(), every=2), tell], epochs=5)
    assert seen == [False, True, False, True, False]


def test_another_metric():
    metric = VOCAveragePrecision(classes=["a", "b", "c"])
    callback = DetectionMetrics(scenes(), metric=metric)
    _, history = fit([callback], epochs=2, rate=0.3)
    assert set(history) == {"loss", "val_AP"}
    assert callback.metric is metric
    by_class = [entry["AP"] for entry in metric.per_class().values()]
    assert history["val_AP"][-1] == pytest.approx(np.mean(by_class))


def test_batches_are_read_one_by_one_and_let_go():
    images, targets = scenes()
    alive, read = weakref.WeakSet(), []

    class Batch(dict):
        __hash__ = object.__hash__

    class Data:
        def __iter__(self):
            for start in range(0, 10, 2):
                batch = Batch({name: array[start : start + 2] for name, array in targets.items()})
                alive.add(batch)
                read.append(len(alive))
                yield images[start : start + 2], batch
                del batch

    fit([DetectionMetrics(Data())], epochs=2)
    assert len(read) == 1 + 5 + 5  # the first batch is looked at before training
    assert max(read) <= 2


def test_the_training_is_the_same_with_and_without():
    x, y = np.random.default_rng(0).normal(size=(16, 4)).astype("float32"), np.zeros(16, "int32")

    class Dropping(DetectionMetrics):
        def on_epoch_end(self, epoch, logs=None):
            self.model.predict_on_batch(x)
            super().on_epoch_end(epoch, logs)

    class Nothing:
        reset_state = update_state = lambda *_: None
        result = dict

    data = [(np.zeros((1, 4, 4, 3), "float32"), {"boxes": np.zeros((1, 1, 4)), "labels": np.full((1, 1), -1, "int32")})]
    weights = []
    for callbacks in ([], [Dropping(data, every=9, metric=Nothing())]):
        model = tiny_model()
        model.fit(x, y, epochs=3, batch_size=4, verbose=0, callbacks=callbacks)
        weights.append(model.get_weights())
    assert all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))


REPLICAS = """
import keras
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

from kvision.callbacks import DetectionMetrics
from tests.callbacks.test_detection_metrics import Finder, fit, scenes

one = fit([DetectionMetrics(scenes(), batch_size=4)], epochs=2)[1]
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    model = Finder()
    model.compile(keras.optimizers.SGD(0.1 / 2))  # each replica adds the whole of this model's loss
two = fit([DetectionMetrics(scenes(), batch_size=4)], epochs=2, model=model)[1]
print(max(abs(a - b) for a, b in zip(one["val_AP"], two["val_AP"], strict=True)), one["val_AP"])
"""


@pytest.mark.slow
@pytest.mark.tensorflow_only
def test_two_replicas_give_the_numbers_of_one():
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run(
        [sys.executable, "-c", REPLICAS], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert float(done.stdout.split()[0]) < 1e-6


def test_it_prints_nothing(capfd):
    _, history = fit([DetectionMetrics(scenes())], epochs=1)
    assert history["val_AP"]
    assert capfd.readouterr() == ("", "")


def without(name):
    images, targets = scenes()
    return images, {key: array for key, array in targets.items() if key != name}


@pytest.mark.parametrize(
    "data, options, message",
    [
        (without("boxes"), {}, r'"boxes".*"labels".*got \[.labels., .masks.\]'),
        (without("labels"), {}, "labels"),
        ([(scenes()[0], np.zeros(10))], {}, "got ndarray"),
        ([scenes()[0]], {}, r"pairs \(images, targets\): got ndarray"),
        ([], {}, "Validation data are empty"),
        (without("masks"), {"masks": True}, 'masks=True needs "masks" or "box_masks".*got'),
    ],
)
def test_data_that_cannot_be_scored_are_an_error_before_training(data, options, message):
    model = Finder()
    with pytest.raises(ValueError, match=message):
        fit([DetectionMetrics(data, **options)], model=model)
    assert int(model.optimizer.iterations) == 0


def endless():
    import tensorflow as tf

    return tf.data.Dataset.from_tensors(scenes()).repeat()


@pytest.mark.parametrize(
    "make, options, message",
    [
        (lambda: iter([scenes()]), {}, "read at the end of every epoch: got a list_iterator"),
        (endless, {}, r"infinite tf.data.Dataset. Leave out repeat\(\)"),
        (scenes, {"every": 0}, "got every=0, expected at least 1"),
        (scenes, {"masks": True, "metric": VOCAveragePrecision()}, "give the one or the other"),
    ],
)
def test_what_cannot_work_is_an_error_at_once(make, options, message):
    with pytest.raises(ValueError, match=message):
        DetectionMetrics(make(), **options)


def test_a_model_that_finds_nothing_of_the_kind_is_an_error():
    model = keras.Sequential([keras.Input((SIDE, SIDE, 3)), keras.layers.Flatten(), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(
        ValueError, match="must predict a dict with boxes, scores and labels, as a detector does: got ndarray"
    ):
        model.fit(np.zeros((4, SIDE, SIDE, 3)), np.zeros(4), verbose=0, callbacks=[DetectionMetrics(scenes())])


def test_it_is_reached_from_the_package():
    assert kvision.callbacks.DetectionMetrics is DetectionMetrics
    assert kvision.metrics.COCOAveragePrecision is COCOAveragePrecision


@pytest.mark.parametrize("swap", [None, False, True], ids=["no averages", "in validation", "at the epoch's end"])
@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_it_measures_the_weights_that_were_validated(swap, first):
    """`SwapEMAWeights` puts its averages in place for `val_loss`; `val_AP` of other weights could not be compared."""
    model = Finder()
    model.compile(keras.optimizers.SGD(0.2, use_ema=swap is not None, ema_momentum=0.8))
    images, targets = scenes()
    callbacks = [DetectionMetrics((images, targets))]
    callbacks += [] if swap is None else [keras.callbacks.SwapEMAWeights(swap_on_epoch=swap)]
    history = model.fit(
        images,
        targets,
        batch_size=4,
        epochs=4,
        verbose=0,
        validation_data=(images, targets),
        callbacks=callbacks if first else callbacks[::-1],
    ).history
    validated = Finder()
    for loss, precision in zip(history["val_loss"], history["val_AP"], strict=True):
        validated.error.assign(loss**0.5)
        want = DetectionMetrics((images, targets)).measure(validated)["AP"]
        assert precision == pytest.approx(want, abs=1e-6)
    assert len(set(history["val_AP"])) >= 3


@pytest.mark.parametrize("swap", [False, True], ids=["in validation", "at the epoch's end"])
def test_averages_in_place_for_a_measurement_are_not_trained_on(swap):
    images, targets = scenes()
    histories = []
    for measured in ([], [DetectionMetrics((images, targets))]):
        model = Finder()
        model.compile(keras.optimizers.SGD(0.2, use_ema=True, ema_momentum=0.8))
        callbacks = [*measured, keras.callbacks.SwapEMAWeights(swap_on_epoch=swap)]
        data = {"validation_data": (images, targets), "batch_size": 4, "epochs": 3, "verbose": 0}
        histories.append(model.fit(images, targets, callbacks=callbacks, **data).history)
    plain, measured = histories
    for name in ("loss", "val_loss"):
        assert measured[name] == pytest.approx(plain[name], rel=1e-4)


def test_labels_beyond_the_classes_of_the_detector_are_an_error_before_training():
    row = ROWS[0]
    model = row.tiny()
    images, targets = batch_of(row)
    targets["labels"] = np.where(targets["labels"] >= 0, targets["labels"] + 5, -1)
    callback = DetectionMetrics((images, targets), batch_size=1)
    callback.set_model(model)
    with pytest.raises(ValueError, match="beyond the last of 3 classes, 2: image 0, row 0: 5"):
        callback.on_train_begin()
    targets["labels"][0] = np.minimum(targets["labels"][0], 2)  # of arrays all are looked at, not only a first batch
    with pytest.raises(ValueError, match="beyond the last of 3 classes, 2: image 1, row 0"):
        callback.on_train_begin()


def test_weights_that_are_as_good_as_the_validated_ones_stay():
    """A swap there and back rounds; it must not be taken for other weights."""
    model = Finder()
    model.compile(keras.optimizers.SGD(0.2, use_ema=True, ema_momentum=0.8))
    fit([], model=model, epochs=2)
    model.error.assign(before := 0.7)  # the averages are elsewhere
    for shift in (0.0, 1e-6):
        validated = ValidatedWeights()
        model.error.assign(before + shift)
        validated.see(model)
        model.error.assign(before)
        with validated.in_place(model):
            assert float(model.error) == pytest.approx(before, abs=1e-5)
        assert float(model.error) == pytest.approx(before, abs=1e-5)
