"""The mean of scores over views, as a model that predicts, evaluates, is saved and exported, and is not trained."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers, ops

from kvision import test_time
from kvision.applications import ConvNet
from kvision.network import Preprocessing
from kvision.test_time.views import cut_views
from tests.support import assert_close

SIZE, LARGER = (8, 8), (12, 10)


def classifier(activation="softmax"):
    """One whose scores lie far apart, so that a mean of logits is another."""
    kernel = keras.initializers.RandomNormal(stddev=2.0, seed=1)
    top = layers.Dense(3, activation=activation, kernel_initializer=kernel)
    return keras.Sequential([keras.Input((*SIZE, 3)), layers.Flatten(), top])


def batch(size=LARGER, rows=4):
    return np.random.default_rng(0).normal(size=(rows, *size, 3)).astype("float32")


@pytest.fixture(scope="module")
def average():
    return test_time.TestTimeAverage(classifier(), test_time.TenCrops(), LARGER)


@keras.saving.register_keras_serializable("kvision_tests")
def left_and_right(image_size, model_size):
    return [test_time.View(image_size, (0, left, *model_size)) for left in (0, image_size[1] - model_size[1])]


@pytest.mark.parametrize("activation", [None, "softmax", "linear"])
@pytest.mark.parametrize(
    "rule", [test_time.TenCrops(), test_time.Flips(), left_and_right], ids=["ten crops", "flips", "left and right"]
)
def test_it_is_the_mean_of_the_scores_of_each_view(rule, activation):
    model, images = classifier("softmax" if activation is None else None), batch()
    views = ops.convert_to_numpy(cut_views(images, rule(LARGER, SIZE), SIZE))
    scores = [ops.convert_to_numpy(model(views[:, view])).astype("float64") for view in range(views.shape[1])]
    if activation == "softmax":
        scores = [np.exp(rows) / np.exp(rows).sum(axis=1, keepdims=True) for rows in scores]
    got = test_time.TestTimeAverage(model, rule, LARGER, activation=activation)(images)
    assert_close(got, np.mean(scores, axis=0))


def test_it_is_saved_with_its_views_and_metrics(average, tmp_path):
    images, labels = batch(), np.arange(4) % 3
    average.compile("sparse_categorical_crossentropy", metrics=["accuracy"])
    average.save(tmp_path / "average.keras")
    loaded = keras.saving.load_model(tmp_path / "average.keras")
    scores = average.predict(images, verbose=0)
    assert_close(loaded.predict(images, verbose=0), scores, tolerance=(0, 0))
    loss = -np.mean(np.log(scores[np.arange(4), labels]))
    accuracy = np.mean(scores.argmax(axis=1) == labels)
    for model in (average, loaded):
        assert_close(model.evaluate(images, labels, batch_size=3, verbose=0), [loss, accuracy])


@pytest.mark.slow
@pytest.mark.tensorflow_only
def test_a_new_process_that_imports_kvision_alone_loads_it(average, tmp_path):
    average.save(tmp_path / "average.keras")
    np.save(tmp_path / "images.npy", batch())
    script = (
        "import keras, kvision, numpy as np; model = keras.saving.load_model('average.keras');"
        "np.save('scores.npy', model.predict(np.load('images.npy'), verbose=0))"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    assert_close(np.load(tmp_path / "scores.npy"), average.predict(batch(), verbose=0))


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_it_compiles_and_keeps_images_and_scores_in_float32(policy):
    keras.mixed_precision.set_dtype_policy(policy)
    model = keras.Sequential([keras.Input((*SIZE, 3)), layers.Flatten(), layers.Dense(3, activation="softmax")])
    average = test_time.TestTimeAverage(model, test_time.MultiScale(mirrored=True))
    images = batch(SIZE)
    eager = average(images)
    average.compile(jit_compile=True)
    scores = average.predict(images, verbose=0)
    assert scores.dtype == "float32"
    assert_close(scores, eager, keras.dtype_policies.get(policy).compute_dtype)
    views = cut_views(images, test_time.MultiScale(mirrored=True)(SIZE, SIZE), SIZE)
    exact = np.mean([ops.cast(model(views[:, view]), "float32") for view in range(6)], axis=0)
    assert_close(eager, exact, tolerance=(1e-5, 1e-5))  # the mean itself is float32's: each score rounds alike


def test_batch_statistics_stay():
    """Inside a training step of another model as well."""
    norm = layers.BatchNormalization()
    model = keras.Sequential([keras.Input((*SIZE, 3)), norm, layers.Flatten(), layers.Dense(2, activation="softmax")])
    average = test_time.TestTimeAverage(model, test_time.Flips())
    images = keras.Input((*SIZE, 3))
    around = keras.Model(images, average(images))
    around.compile("sgd", "sparse_categorical_crossentropy")
    around.train_on_batch(batch(SIZE), np.zeros(4))
    assert_close(norm.moving_mean, np.zeros(3), tolerance=(0, 0))


@pytest.mark.slow
@pytest.mark.tensorflow_only
def test_the_exported_model_gives_the_same(average, tmp_path):
    average.export(tmp_path / "exported", verbose=False)
    served = keras.layers.TFSMLayer(tmp_path / "exported", call_endpoint="serve")
    assert_close(served(batch()), average.predict(batch(), verbose=0))


def test_what_the_network_carries_is_at_hand():
    network = ConvNet(1, 1, 0, input_shape=(8, 8, 3), classes=2)
    network.class_names = ("cat", "dog")
    average = test_time.TestTimeAverage(network, test_time.Flips())
    assert isinstance(average.preprocessing, Preprocessing)
    assert average.class_names == ("cat", "dog")
    assert (average.num_views, average.image_size) == (2, (8, 8))
    plain = test_time.TestTimeAverage(classifier(), test_time.Flips())
    assert (plain.preprocessing, plain.class_names) == (None, None)


def nested(activation):
    images = keras.Input((*SIZE, 3))
    return keras.Model(images, classifier(activation)(images))


def ends_in(layer):
    return keras.Sequential([keras.Input((*SIZE, 3)), *classifier(None).layers, layer])


@pytest.mark.parametrize(
    "model",
    [
        classifier,
        lambda: nested("sigmoid"),
        lambda: ends_in(layers.Softmax()),
        lambda: ends_in(layers.Activation("softmax")),
    ],
    ids=["dense", "nested", "softmax layer", "activation"],
)
def test_scores_are_recognised(model):
    assert test_time.TestTimeAverage(model(), test_time.Flips()).num_views == 2
    with pytest.raises(ValueError, match="already: leave out"):
        test_time.TestTimeAverage(model(), test_time.Flips(), activation="softmax")


FLIPS = test_time.Flips()


def of(model=classifier, views=FLIPS, **options):
    return lambda: test_time.TestTimeAverage(model(), views, **options)


def network(shape, outputs=1):
    images = keras.Input(shape)
    made = [layers.Dense(2, activation="softmax")(layers.GlobalAveragePooling2D()(images)) for _ in range(outputs)]
    return keras.Model(images, made)


@pytest.mark.parametrize(
    "make, message",
    [
        (of(lambda: classifier(None)), 'ends in logits.*activation="softmax"'),
        (of(lambda: nested(None)), "ends in logits"),
        (of(lambda: ends_in(layers.LayerNormalization())), "unknown kind"),
        (of(activation="relu"), "one of.*got 'relu'"),
        (of(lambda: network((None, None, 3))), "static size"),
        (of(lambda: network((8, 8, 3), outputs=2)), "TestTimeDetection"),
        (of(image_size=10), "whole pixels: got 10"),
        (of(image_size=(10, 10, 3)), "whole pixels: got"),
        (of(views=test_time.TenCrops()), "need larger images: got 8 x 8"),
        (of(views=lambda image_size, model_size: []), "at least one"),
        (of(views=lambda image_size, model_size: [(0, 0)]), "list of kvision.test_time.View"),
    ],
)
def test_what_cannot_be_averaged_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda model: model.fit(batch(), np.zeros(4)), "is not trained: call fit of the model inside"),
        (lambda model: model.train_on_batch(batch(), np.zeros(4)), "is not trained"),
        (lambda model: model.compile("sgd", "sparse_categorical_crossentropy"), "without an optimizer.*'sgd'"),
        (lambda model: model.compile(keras.optimizers.SGD()), "without an optimizer"),
        (lambda model: model.compile(optimizer="sgd"), "without an optimizer"),
        (lambda model: model(batch(SIZE)), r"takes images \[b, 12, 10, 3\]: got .*8, 8, 3"),
    ],
)
def test_what_it_does_not_do_is_refused(average, call, message):
    with pytest.raises(ValueError, match=message):
        call(average)


@pytest.mark.tensorflow_only  # it traces sizes as unknown; on JAX Keras empties a model whose `predict` raises
@pytest.mark.parametrize("first", [LARGER, SIZE], ids=["right first", "wrong first"])
def test_images_of_another_size_are_refused(first):
    average = test_time.TestTimeAverage(classifier(), test_time.TenCrops(), LARGER)
    if first == LARGER:
        average.predict(batch(), verbose=0)
    with pytest.raises(Exception, match=r"takes images \[b, 12, 10, 3\]: got .*8, 8, 3|Incompatible shapes|8.*12"):
        average.predict(batch(SIZE), verbose=0)
    assert average.predict(batch(rows=3), verbose=0).shape == (3, 3)
