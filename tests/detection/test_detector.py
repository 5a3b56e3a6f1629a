"""The thin model of all detectors: what it refuses, and that it is a plain Keras model in everything else."""

import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

from tests.applications.detection.rows import CLASSES, ROWS
from tests.applications.detection.test_detectors import batch_of
from tests.support import assert_close

ROOT = pathlib.Path(__file__).parent.parent.parent
ROW = ROWS[0]


def detector():
    keras.utils.set_random_seed(0)
    model = ROW.tiny()
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


def test_bad_arrays_are_refused_before_the_first_step(shared):
    with pytest.raises(ValueError, match=r"beyond the last of 3 classes, 2: image 0, row 1"):
        shared.fit(*bad_batch(), verbose=0)


def test_bad_validation_data_is_refused(shared):
    with pytest.raises(ValueError, match="beyond the last"):
        shared.fit(*batch_of(ROW), validation_data=bad_batch(), verbose=0)


def test_the_first_batch_of_a_dataset_is_checked(shared):
    with pytest.raises(ValueError, match="beyond the last"):
        shared.fit(Batches(bad_batch()), verbose=0)


@pytest.mark.tensorflow_only
def test_the_first_batch_of_tf_data_is_checked(shared):
    import tensorflow as tf

    with pytest.raises(ValueError, match="beyond the last"):
        shared.fit(tf.data.Dataset.from_tensors(bad_batch()), verbose=0)
    shared.fit(tf.data.Dataset.from_tensors(batch_of(ROW)), shuffle=False, verbose=0)


def test_fit_takes_datasets_and_generators(shared):
    batches = Batches(batch_of(ROW))
    history = shared.fit(batches, validation_data=batches, shuffle=False, verbose=0).history
    assert {"loss", "box_loss", "val_loss", "val_box_loss"} <= set(history)
    shared.fit((batch_of(ROW) for _ in range(2)), steps_per_epoch=2, shuffle=False, verbose=0)


def test_positional_arguments_of_fit_reach_keras(shared):
    assert len(shared.fit(*batch_of(ROW), 2, 3, 0).history["loss"]) == 3


def test_compile_takes_no_loss_and_no_metrics():
    model = ROW.tiny()
    with pytest.raises(ValueError, match=r"brings its own losses \(classification_loss, box_loss\)"):
        model.compile("sgd", loss="mse")
    with pytest.raises(ValueError, match="DetectionMetrics"):
        model.compile("sgd", metrics=["accuracy"])


@pytest.mark.parametrize("weights", [{"sample_weight": np.ones(2)}, {"class_weight": {0: 2.0}}])
def test_weights_are_refused_before_the_first_step(shared, weights):
    with pytest.raises(ValueError, match="takes no sample_weight and no class_weight"):
        shared.fit(*batch_of(ROW), verbose=0, **weights)


def test_weights_inside_a_dataset_are_refused():
    with pytest.raises(ValueError, match="takes no sample_weight"):
        detector().fit(Batches((*batch_of(ROW), np.ones(2))), shuffle=False, verbose=0)


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


@pytest.mark.tensorflow_only
def test_fit_traces_the_step_once():
    model, traced = detector(), []
    model.compile("adam")  # which makes two variables for each weight
    losses = model.head.losses
    model.head.losses = lambda *arguments: traced.append(arguments) or losses(*arguments)
    model.fit(Batches(batch_of(ROW)), shuffle=False, verbose=0)
    assert len(traced) == 1


def test_regularizers_count():
    plain, regular = detector(), detector()
    for layer in regular.trunk._flatten_layers(include_self=False):
        if layer.name == "head.regression_head.bbox_reg":
            layer.kernel.regularizer = keras.regularizers.L2(10.0)
            penalty = 10.0 * np.sum(np.square(keras.ops.convert_to_numpy(layer.kernel)))
    losses = [model.evaluate(*batch_of(ROW), verbose=0, return_dict=True)["loss"] for model in (plain, regular)]
    assert_close(losses[1] - losses[0], penalty, tolerance=(1e-3, 1e-4))  # a difference of larger numbers


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
