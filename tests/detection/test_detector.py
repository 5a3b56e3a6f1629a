"""What a detector adds to a `TaskModel`: the data contract, one number of boxes, detections."""

import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

from kvision import applications as A
from kvision.callbacks import DetectionMetrics
from tests.applications.detection.rows import CLASSES, ROWS, SHAPE, tiny_vgg
from tests.applications.detection.test_detectors import batch_of
from tests.support import assert_close

ROOT = pathlib.Path(__file__).parent.parent.parent
ROW = ROWS[0]


def detector():
    keras.utils.set_random_seed(0)
    model = A.RetinaNet(
        input_shape=SHAPE, classes=CLASSES, backbone=tiny_vgg("C3", "C4", "C5"), channels=8, num_detections=20
    )
    model.compile(keras.optimizers.SGD(0.01))
    return model


@pytest.fixture(scope="module")
def shared():
    return detector()


def bad_batch():
    x, targets = batch_of(ROW)
    targets["labels"] = np.where(targets["labels"] == 2, CLASSES, targets["labels"])
    return x, targets


class Batches(keras.utils.PyDataset):
    """Two equal batches."""

    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return self.batch


def test_what_breaks_the_contract_is_refused_before_the_first_step(shared):
    message = r"beyond the last of 3 classes, 2: image 0, row 1"
    with pytest.raises(ValueError, match=message):
        shared.fit(*bad_batch(), verbose=0)
    with pytest.raises(ValueError, match=message):
        shared.fit(Batches(bad_batch()), verbose=0)
    with pytest.raises(ValueError, match=message):
        shared.fit(*batch_of(ROW), validation_data=bad_batch(), verbose=0)
    with pytest.raises(ValueError, match=message):
        shared.evaluate(*bad_batch(), verbose=0)


def test_targets_without_rows_are_refused(shared):
    x, targets = batch_of(ROW)
    none = {name: values[:, :0] for name, values in targets.items()}
    with pytest.raises(ValueError, match=r"the targets have no rows, boxes \(2, 0, 4\).*a row of zeros"):
        shared.fit(x, none, verbose=0)


def test_images_of_another_size_than_it_was_built_for_are_refused(shared):
    images, targets = batch_of(ROW)
    shared.fit(images, targets, verbose=0)
    smaller = images[:, :48, :56]
    message = r"was built for images of \(64, 64, 3\) .*: got \(48, 56, 3\)\. Read them with image_size=\(64, 64\)"
    for call in (shared.fit, shared.evaluate):
        with pytest.raises(ValueError, match=f"^retinanet {message}"):
            call(smaller, targets, verbose=0)
        with pytest.raises(ValueError, match=f"^retinanet {message}"):
            call(Batches((smaller, targets)), verbose=0)
    with pytest.raises(ValueError, match=f"^retinanet {message}"):
        shared.predict(smaller, verbose=0)
    with pytest.raises(ValueError, match=message):
        shared(smaller)


def test_what_is_no_batch_of_images_is_refused(shared):
    images, targets = batch_of(ROW)
    with pytest.raises(ValueError, match=r"one array: got a list of 2\. Stack images of one size by np\.stack"):
        shared.fit(list(images), targets, verbose=0)
    with pytest.raises(ValueError, match=r"got one image of shape \(64, 64, 3\)\. Give image\[None\]"):
        shared.predict(images[0], verbose=0)
    with pytest.raises(ValueError, match="detect takes photos: got a data set, which is for predict"):
        shared.detect(type("DataSet", (), {"element_spec": None})())


def test_its_messages_name_what_a_detector_has(shared):
    with pytest.raises(ValueError, match=r"brings its own losses \(classification_loss, box_loss\).*DetectionMetrics"):
        detector().compile("sgd", metrics=["accuracy"])
    with pytest.raises(ValueError, match='no class_weight: mark what not to learn by "crowd" or the label -1'):
        shared.fit(*batch_of(ROW), sample_weight=np.ones(2), verbose=0)


@pytest.mark.tensorflow_only  # JAX compiles anew for each number
def test_batches_of_different_numbers_of_boxes_are_refused():
    model = detector()
    x, targets = batch_of(ROW)
    model.train_on_batch(x, targets)
    with pytest.raises(ValueError, match="got batches of different ones. Pad all targets"):
        model.train_on_batch(x, {name: values[:, :3] for name, values in targets.items()})


def test_training_gives_features_and_inference_detections_too(shared):
    x, _ = batch_of(ROW)
    assert set(shared(x, training=True)) == {"class_logits", "box_deltas"}
    assert set(shared(x)) == {"class_logits", "box_deltas", "detections"}


@pytest.mark.slow
def test_thresholds_changed_after_predict_hold(shared):
    x, _ = batch_of(ROW)
    numbers = []
    for shared.head.score_threshold in (0.0, 0.9999, 0.0):
        numbers.append(int((shared.predict(x, verbose=0)["labels"] >= 0).sum()))
    assert numbers[0] == numbers[2] == 40
    assert numbers[1] == 0
    assert shared.head.decoder.score_threshold == 0.0


@pytest.mark.slow
@pytest.mark.tensorflow_only
def test_it_is_exported_to_what_predict_gives(shared, tmp_path):
    import tensorflow as tf

    shared.head.decoder.score_threshold = 0.0
    x, _ = batch_of(ROW)
    shared.export(tmp_path / "saved", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "saved")
    served, want = loaded.serve(tf.constant(x)), shared.predict(x, verbose=0)
    assert (want["labels"] >= 0).all()
    assert set(served) == set(want)
    for name in want:
        assert_close(served[name], want[name])


REPLICAS = """
import contextlib
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import numpy as np
from kvision.optimizers import SGD
from tests.detection.test_detector import ROW, batch_of, detector

def train(scope):
    with scope:
        model = detector()
        model.compile(SGD(0.01, momentum=0.9))
    batches = tf.data.Dataset.from_tensors(batch_of(ROW)).repeat(2)
    history = model.fit(batches, shuffle=False, verbose=0).history
    return np.concatenate([np.ravel(weight) for weight in model.get_weights()]), history["loss"]

alone = train(contextlib.nullcontext())
together = train(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope())
np.testing.assert_allclose(together[0], alone[0], rtol=1e-3, atol=1e-5)
np.testing.assert_allclose(together[1], alone[1], rtol=1e-4)
print("equal")
"""


@pytest.mark.slow
@pytest.mark.tensorflow_only
def test_two_replicas_train_as_one():
    done = subprocess.run([sys.executable, "-c", REPLICAS], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("equal")


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [
        ("val_AP", "max"),
        ("val_AP50", "max"),
        ("val_mask_AP_small", "max"),
        ("val_AR100", "max"),
        ("val_AR300", "max"),
        ("val_box_loss", "min"),
        ("val_loss", "auto"),
        ("val_APs", "auto"),
    ],
)
def test_callbacks_that_watch_average_precision_know_which_way_is_better(shared, monitor, mode):
    stop = keras.callbacks.EarlyStopping(monitor)
    shared._tell_modes([stop])
    assert stop.mode == mode


@pytest.mark.slow
def test_early_stopping_on_average_precision_needs_no_mode():
    model = detector()
    x, targets = batch_of(ROW)
    callbacks = [DetectionMetrics((x, targets)), keras.callbacks.EarlyStopping("val_AP", patience=1)]
    assert len(model.fit(x, targets, epochs=3, verbose=0, callbacks=callbacks).history["val_AP"]) >= 2


def test_targets_without_area_are_refused_before_the_first_step(shared):
    x, targets = batch_of(ROW)
    targets["labels"][1] = np.maximum(targets["labels"][1], 0)
    with pytest.raises(ValueError, match="without area: image 1, row 1.*mark the rows as padding by the label -1"):
        shared.fit(x, targets, verbose=0)


def test_a_box_without_area_trains_as_padding_does(shared):
    """In batches that no check has seen."""
    x, good = batch_of(ROW)
    careless = {name: values.copy() for name, values in good.items()}
    careless["labels"][:, 2:] = 0
    careless["boxes"][:, 4] = [12, 5, 12, 40]
    features = shared(x, training=True)
    losses, want = (shared.head.losses(features, targets, training=True) for targets in (careless, good))
    for name, value in want.items():
        assert_close(losses[name], value)
