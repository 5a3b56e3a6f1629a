"""A model that brings its own losses, for any task: what `fit`, `evaluate`, `predict` and files do with it."""

import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from kvision.part import Part
from kvision.task_model import TaskModel
from tests.support import are_untuned, assert_close

ROOT = pathlib.Path(__file__).parent.parent


@keras.saving.register_keras_serializable("kvision_tests")
class Colours(Part):
    """Learns the mean colour of an image and its brightness; nothing about it has boxes."""

    loss_names = ("colour_loss", "brightness_loss")

    def __init__(self, units=3, scale=1.0, **options):
        super().__init__(**options)
        self.units = units
        self.scale = scale
        self.dense = keras.layers.Dense(units, name="colours", dtype="float32")
        self.dense.build((None, 4))
        self.complete()

    def check(self, x, y):
        if "colour" not in y:
            raise ValueError(f"Colours needs targets with a colour: got {sorted(y)}.")

    def losses(self, features, targets, training=None):
        error = self.dense(ops.cast(features["maps"], "float32")) - ops.cast(targets["colour"], "float32")
        return {
            "colour_loss": ops.mean(ops.square(error)),
            "brightness_loss": ops.mean(ops.abs(ops.sum(error, axis=-1))),
        }

    def decode(self, features):
        return {"colour": self.scale * self.dense(ops.cast(features["maps"], "float32"))}


def trunk():
    images = keras.Input((6, 8, 3))
    maps = keras.layers.Conv2D(4, 3, activation="relu")(keras.layers.Rescaling(1 / 255)(images))
    return keras.Model(images, {"maps": keras.layers.GlobalAveragePooling2D()(maps)})


def model_of(policy="float32", **options):
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    model = TaskModel(trunk(), Colours(name="head"))
    keras.config.set_dtype_policy("float32")
    model.compile(keras.optimizers.SGD(0.1), **options)
    return model


def batch(count=6):
    images = np.random.default_rng(0).uniform(0, 255, (count, 6, 8, 3)).astype("float32")
    return images, {"colour": (images.mean(axis=(1, 2)) / 255).astype("float32")}


def cut(batch, rows):
    return keras.tree.map_structure(lambda values: values[rows], batch)


class Batches(keras.utils.PyDataset):
    """The given batches."""

    def __init__(self, *batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


MODES = [
    {},
    {"policy": "mixed_float16"},
    *(
        pytest.param(mode, marks=pytest.mark.slow)
        for mode in (
            {"jit_compile": True},
            {"policy": "mixed_bfloat16"},
            {"run_eagerly": True},
            {"steps_per_execution": 2},
        )
    ),
]


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_it_learns_and_logs_every_loss(mode):
    model = model_of(**mode)
    x, y = batch()
    history = model.fit(x, y, batch_size=2, epochs=20, validation_data=(x, y), verbose=0).history
    names = {"loss", "colour_loss", "brightness_loss"}
    assert set(history) == names | {f"val_{name}" for name in names}
    assert history["loss"][-1] < 0.3 * history["loss"][0]
    assert_close(history["loss"][-1], history["colour_loss"][-1] + history["brightness_loss"][-1])
    assert model.predict(x, batch_size=4, verbose=0)["colour"].shape == (6, 3)


@pytest.mark.tensorflow_only
def test_what_reads_arrays_is_not_tuned_so_that_an_epoch_ends_with_its_last_step():
    model, (x, y) = model_of(), batch()
    assert are_untuned(lambda: model.fit(x, y, verbose=0)) == [True]


def test_losses_are_means_over_images_not_over_batches():
    """Batches of 4 and 2: their mean would weigh the images of the second twice."""
    model, data = model_of(), batch()
    parts = [model.evaluate(*cut(data, rows), verbose=0, return_dict=True) for rows in (slice(0, 4), slice(4, 6))]
    whole = model.evaluate(*data, batch_size=4, verbose=0, return_dict=True)
    for name, value in whole.items():
        assert_close(value, (4 * parts[0][name] + 2 * parts[1][name]) / 6)
        assert abs(parts[0][name] - parts[1][name]) > 1e-3


def test_loss_weights_weigh_the_sum_and_not_the_parts(tmp_path):
    plain, weighted = model_of(), model_of(loss_weights={"brightness_loss": 100.0})
    before, after = (model.evaluate(*batch(), verbose=0, return_dict=True) for model in (plain, weighted))
    assert_close(after["brightness_loss"], before["brightness_loss"])
    assert_close(after["loss"], before["colour_loss"] + 100 * before["brightness_loss"], tolerance=(1e-4, 0))
    start = weighted.get_weights()
    weighted.train_on_batch(*batch())
    plain.train_on_batch(*batch())
    moved, less = (np.abs(model.get_weights()[-1] - start[-1]).max() for model in (weighted, plain))
    assert moved > 10 * less
    weighted.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    logs = copy.evaluate(*batch(), verbose=0, return_dict=True)
    assert_close(logs["loss"], logs["colour_loss"] + 100 * logs["brightness_loss"], tolerance=(1e-4, 0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "mse"}, r"brings its own losses \(colour_loss, brightness_loss\).*with `loss_weights`"),
        ({"metrics": ["accuracy"]}, "without `loss` and `metrics`"),
        ({"weighted_metrics": ["mae"]}, "without `loss` and `metrics`"),
        ({"loss_weights": {"color_loss": 1.0}}, "Unknown loss of .* in loss_weights: got 'color_loss'.*'colour_loss'"),
        ({"loss_weights": {"colour_loss": -1.0}}, "at least 0: got -1.0 for 'colour_loss'"),
        ({"loss_weights": {"colour_loss": float("nan")}}, "finite number"),
        ({"loss_weights": [1.0, 2.0]}, "loss_weights is a dict by the names colour_loss, brightness_loss"),
    ],
)
def test_what_compile_cannot_use_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        model_of(**options)


@pytest.fixture(scope="module")
def shared():
    return model_of()


BAD = {"colours": np.zeros((6, 3))}
WRONG = {
    "arrays": lambda x, y: ((x, BAD), {}),
    "a data set": lambda x, y: ((Batches((x, BAD)),), {}),
    "validation arrays": lambda x, y: ((x, y), {"validation_data": (x, BAD)}),
    "validation list": lambda x, y: ((x, y), {"validation_data": [x, BAD]}),
    "a validation data set": lambda x, y: ((x, y), {"validation_data": Batches((x, BAD))}),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_head_checks_the_first_batch_before_the_first_step(shared, case):
    arguments, options = WRONG[case](*batch())
    with pytest.raises(ValueError, match="needs targets with a colour: got .'colours'"):
        shared.fit(*arguments, verbose=0, **options)


def test_evaluate_checks_too(shared):
    with pytest.raises(ValueError, match="needs targets with a colour"):
        shared.evaluate(batch()[0], BAD, verbose=0)


@pytest.mark.tensorflow_only
def test_the_first_batch_of_tf_data_is_checked(shared):
    import tensorflow as tf

    x, y = batch()
    with pytest.raises(ValueError, match="needs targets with a colour"):
        shared.fit(tf.data.Dataset.from_tensors((x, BAD)), shuffle=False, verbose=0)
    shared.fit(tf.data.Dataset.from_tensors((x, y)), shuffle=False, verbose=0)
    with pytest.raises(ValueError, match="the training data has no batch"):
        shared.fit(tf.data.Dataset.from_tensors((x, y)).take(0), shuffle=False, verbose=0)


WEIGHTED = {
    "sample_weight": lambda x, y: ((x, y), {"sample_weight": np.ones(6)}),
    "class_weight": lambda x, y: ((x, y), {"class_weight": {0: 2.0}}),
    "in a data set": lambda x, y: ((Batches((x, y, np.ones(6))),), {}),
    "in validation data": lambda x, y: ((x, y), {"validation_data": (x, y, np.ones(6))}),
    "in a validation data set": lambda x, y: ((x, y), {"validation_data": Batches((x, y, np.ones(6)))}),
}


@pytest.mark.parametrize("case", WEIGHTED)
def test_weights_of_samples_are_refused(shared, case):
    arguments, options = WEIGHTED[case](*batch())
    before = shared.get_weights()
    with pytest.raises(ValueError, match="takes no sample_weight and no class_weight"):
        shared.fit(*arguments, verbose=0, **options)
    for weight, value in zip(shared.weights, before, strict=True):  # not one step was done
        assert np.array_equal(keras.ops.convert_to_numpy(weight), value)


EMPTY = {
    "a data set": lambda x, y: ((Batches(),), {}, "the training data has no batch"),
    "validation data": lambda x, y: ((x, y), {"validation_data": Batches()}, "the validation data has no batch"),
    "arrays": lambda x, y: (cut((x, y), slice(0, 0)), {}, r"the training data has no rows: got \(0, 6, 8, 3\)"),
    "no targets": lambda x, y: ((x,), {}, "inputs but no targets"),
    "no targets in a data set": lambda x, y: ((Batches((x,)),), {}, "inputs but no targets"),
}


@pytest.mark.parametrize("case", EMPTY)
def test_nothing_to_learn_from_is_refused(shared, case):
    arguments, options, message = EMPTY[case](*batch())
    with pytest.raises(ValueError, match=message):
        shared.fit(*arguments, verbose=0, **options)


def test_fit_takes_generators_and_positional_arguments(shared):
    shared.fit((batch() for _ in range(2)), steps_per_epoch=2, shuffle=False, verbose=0)
    assert len(shared.fit(*batch(), 2, 3, 0).history["loss"]) == 3


def test_a_head_alone_learns_from_given_features(tmp_path):
    whole = model_of()
    x, y = batch()
    features = whole.trunk.predict(x, verbose=0)
    model = TaskModel(None, whole.head)
    model.compile("sgd")
    got, want = (m.evaluate(inputs, y, verbose=0) for m, inputs in ((model, features), (whole, x)))
    assert_close(got, want)
    model.fit(features, y, verbose=0)
    model.save(tmp_path / "head.keras")
    copy = keras.saving.load_model(tmp_path / "head.keras")
    assert copy.trunk is None
    assert_close(copy.predict(features, verbose=0)["colour"], model.predict(features, verbose=0)["colour"])


def test_outputs_in_training_are_features_and_else_predictions_too(shared):
    x, _ = batch()
    assert set(shared(x, training=True)) == {"maps"}
    assert set(shared(x)) == {"maps", "predictions"}
    assert set(shared({"images": x, "words": x}, training=True)) == {"maps", "words"}


def test_an_option_changed_after_predict_holds(shared):
    x, y = batch()
    before = shared.predict(x, verbose=0)["colour"]
    shared.head.scale = 2.0
    try:
        assert_close(shared.predict(x, verbose=0)["colour"], 2 * before)
        assert_close(shared.predict_on_batch(x)["colour"], 2 * before)
        shared.evaluate(x, y, verbose=0)
    finally:
        shared.head.scale = 1.0
    assert_close(shared.predict(x, verbose=0)["colour"], before)


def test_a_part_is_saved_by_its_signature():
    part = Colours(units=5, scale=0.5, name="other")
    config = part.get_config()
    assert {"units", "scale", "name", "dtype", "trainable"} == set(config)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(part))
    assert (copy.units, copy.scale, copy.name, copy.built) == (5, 0.5, "other", True)


class Counter(keras.metrics.Metric):
    """Images seen."""

    def __init__(self):
        super().__init__(name="counter")
        self.count = self.add_variable((), "zeros", dtype="int32", name="count")

    def update_state(self, x, y):
        self.count.assign(self.count + ops.shape(x)[0])

    def reset_state(self):
        pass

    def result(self):
        return {}


@pytest.mark.parametrize("mode", [{}, pytest.param({"jit_compile": True}, marks=pytest.mark.slow)], ids=str)
def test_an_observer_sees_every_training_batch_and_is_no_part_of_the_model(mode, tmp_path):
    model, data, counter = model_of(**mode), batch(), Counter()
    model.fit(*data, batch_size=4, verbose=0)  # compiled without it
    plain, steps = model.train_function, []
    weights = len(model.weights)
    for fits in (1, 2):
        model.add_observer(counter)
        model.add_observer(counter)
        steps.append(model.train_function)
        assert steps[0] is steps[-1] is not plain  # compiled once
        history = model.fit(*data, batch_size=4, epochs=2, validation_data=data, verbose=0).history
        model.save(tmp_path / "during.keras")
        model.remove_observer(counter)
        assert model.train_function is plain
        assert int(counter.count) == 12 * fits
    model.fit(*data, batch_size=4, verbose=0)
    assert int(counter.count) == 24
    model.compile(keras.optimizers.SGD(0.0))  # the steps before belong to the optimizer before
    model.add_observer(counter)
    before = model.get_weights()
    model.fit(*data, batch_size=4, verbose=0)
    assert int(counter.count) == 30 and int(model.optimizer.iterations) == 2
    assert all(map(np.array_equal, before, model.get_weights()))
    model.remove_observer(counter)
    assert "counter" not in " ".join(history)
    assert len(model.weights) == weights
    copy = keras.saving.load_model(tmp_path / "during.keras")
    assert [metric.name for metric in copy.metrics] == [metric.name for metric in model.metrics]


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_it_is_saved_with_its_optimizer(policy, tmp_path):
    model = model_of(policy)
    model.fit(*batch(), verbose=0)
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    assert copy.head.get_config() == model.head.get_config()
    assert len(copy.optimizer.variables) == len(model.optimizer.variables)
    assert_close(copy.predict(batch()[0], verbose=0)["colour"], model.predict(batch()[0], verbose=0)["colour"])
    copy.fit(*batch(), verbose=0)


@pytest.mark.tensorflow_only
def test_it_is_exported_to_what_predict_gives(tmp_path):
    import tensorflow as tf

    model = model_of()
    x, _ = batch()
    model.export(tmp_path / "saved", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "saved")
    served = loaded.serve(tf.constant(x))
    assert set(served) == {"colour"}
    assert_close(served["colour"], model.predict(x, verbose=0)["colour"])
    head = TaskModel(None, model.head)
    with pytest.raises(ValueError, match="tell export their shapes by input_signature="):
        head.export(tmp_path / "head", verbose=False)
    head.export(tmp_path / "head", verbose=False, input_signature={"maps": keras.InputSpec(shape=(None, 4))})
    maps = model.trunk.predict(x, verbose=0)["maps"]
    loaded = tf.saved_model.load(tmp_path / "head")
    served = loaded.serve({"maps": tf.constant(maps)})
    assert_close(served["colour"], model.predict(x, verbose=0)["colour"])


@pytest.mark.tensorflow_only
def test_fit_traces_the_step_once():
    model, traced = model_of(), []
    model.compile("adam")  # which makes two variables for each weight
    losses = model.head.losses
    model.head.losses = lambda *arguments: traced.append(arguments) or losses(*arguments)
    model.fit(Batches(batch(), batch()), shuffle=False, verbose=0)
    assert len(traced) == 1


def test_regularizers_count():
    plain, regular = model_of(), model_of()
    (layer,) = (layer for layer in regular.trunk.layers if isinstance(layer, keras.layers.Conv2D))
    layer.kernel.regularizer = keras.regularizers.L2(10.0)
    penalty = 10.0 * np.sum(np.square(keras.ops.convert_to_numpy(layer.kernel)))
    losses = [model.evaluate(*batch(), verbose=0, return_dict=True)["loss"] for model in (plain, regular)]
    assert_close(losses[1] - losses[0], penalty, tolerance=(1e-3, 1e-4))  # a difference of larger numbers


def frozen(**options):
    from kvision.layers import BatchNormalization

    images = keras.Input((6, 8, 3))
    x = BatchNormalization(frozen=True, name="bn1")(keras.layers.Conv2D(4, 3)(images), training=False)
    model = TaskModel(keras.Model(images, {"maps": keras.layers.GlobalAveragePooling2D()(x)}), Colours(name="head"))
    model.compile("sgd", **options)
    return model


def test_frozen_statistics_that_nothing_was_loaded_into_are_refused_in_fit():
    model = frozen()
    model.evaluate(*batch(), verbose=0)  # it may be built fresh, and used
    with pytest.raises(ValueError, match=r"'bn1' still has its initial statistics.*Load weights.*norm=\"group\""):
        model.fit(*batch(), verbose=0)
    model.trunk.get_layer("bn1").moving_mean.assign(np.full(4, 0.1))
    model.fit(*batch(), verbose=0)


REPLICAS = """
import contextlib
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import numpy as np
from kvision.optimizers import SGD
from tests.test_task_model import batch, model_of

def train(scope):
    with scope:
        model = model_of()
        model.compile(SGD(0.01, momentum=0.9))
    batches = tf.data.Dataset.from_tensors(batch()).repeat(2)
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


@pytest.mark.parametrize("place", ["keyword", "positional", "list of callbacks"])
def test_callbacks_that_watch_a_loss_know_which_way_is_better(shared, place):
    """Keras knows the names of `compile` alone, and would raise when the first epoch is over."""
    stop = keras.callbacks.EarlyStopping("val_brightness_loss", patience=3)
    best = keras.callbacks.ReduceLROnPlateau("colour_loss")
    highest = keras.callbacks.EarlyStopping("colour_loss", mode="max")
    callbacks = [stop, best, highest]
    if place == "list of callbacks":
        callbacks = keras.callbacks.CallbackList(callbacks, add_history=True, model=shared)  # without, `fit` has none
    if place == "positional":
        shared.fit(*batch(), 3, 2, 0, callbacks, validation_data=batch())
    else:
        shared.fit(*batch(), epochs=2, verbose=0, callbacks=callbacks, validation_data=batch())
    assert [callback.mode for callback in (stop, best, highest)] == ["min", "min", "max"]
