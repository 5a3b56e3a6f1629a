"""A network carries what its images go through, its levels and the names of foreign weights, wherever it goes."""

import copy
import functools

import keras
import numpy as np
import pytest

from kvision import weights
from kvision.applications import VGG, GoogLeNet, ResNet, cut
from kvision.network import Network, Preprocessing
from tests.support import are_untuned, assert_close

OTHER = Preprocessing(mean=(0.1, 0.2, 0.3), deviation=0.5)
PUBLISHED = weights.Published("someone/net", "net.safetensors", "timm", "MIT", 50.0, "none", preprocessing=OTHER)
RENAMES = {"timm": [(r"^conv1\.", "stem.")]}
OLDER = {"timm": [(r"^trunk\.", "stem.")]}


@functools.cache
def network():
    images = keras.Input((8, 8, 3), name="images")
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same", name="conv1")(images)
    model = Network(images, keras.layers.GlobalAveragePooling2D()(x), name="net")
    model.class_names = ["cat", "dog", "cow", "hen"]
    model.preprocessing = OTHER
    model.feature_info = {"C1": {"stride": 2, "channels": 4, "layer": "conv1"}}
    weights.remember(model, RENAMES, {"mine": PUBLISHED}, OLDER)
    return model


def saved(model, folder):
    model.save(folder / "net.keras")
    return keras.saving.load_model(folder / "net.keras")


def cloned(model, folder):
    return keras.models.clone_model(model)


def cloned_with_a_function(model, folder):
    return keras.models.clone_model(model, clone_function=lambda layer: type(layer).from_config(layer.get_config()))


def nested(model, folder):
    images = keras.Input((8, 8, 3))
    return saved(keras.Model(images, model(images)), folder).get_layer("net")


def from_config(model, folder):
    return Network.from_config(model.get_config())


def from_json(model, folder):
    return keras.models.model_from_json(model.to_json())


def deep_copied(model, folder):
    return copy.deepcopy(model)


WAYS = [saved, cloned, cloned_with_a_function, nested, from_config, from_json, deep_copied]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_what_it_carries_goes_along(way, tmp_path):
    model, other = network(), way(network(), tmp_path)
    assert type(other) is Network
    assert other is not model
    assert other.class_names == ("cat", "dog", "cow", "hen")
    assert other.preprocessing == OTHER
    assert other.feature_info == {"C1": {"stride": 2, "channels": 4, "layer": "conv1"}}
    assert other.weight_sources == model.weight_sources
    assert weights.published_names(other) == ("mine",)
    kernel = np.arange(108.0).reshape(4, 3, 3, 3)
    weights.load_torch(other, {"trunk.weight": kernel, "stem.bias": np.zeros(4)}, source="timm")
    assert_close(other.get_layer("conv1").kernel, kernel.transpose(2, 3, 1, 0))


def test_networks_do_not_share_what_they_carry(tmp_path):
    clone = keras.models.clone_model(network())
    clone.preprocessing = None
    clone.feature_info["C1"]["stride"] = 4  # a copy
    assert network().preprocessing == OTHER
    assert clone.feature_info == network().feature_info
    assert saved(clone, tmp_path).preprocessing is None


@pytest.mark.parametrize("size", [8, None])
def test_a_network_around_another_has_nothing_of_it(size):
    images = keras.Input((size, size, 3))
    inner = Network(images, keras.layers.Conv2D(4, 3, name="conv")(images), name="inner")
    inner.preprocessing = OTHER
    inner.feature_info = {"C0": {"stride": 1, "channels": 4, "layer": "conv"}}
    assert keras.models.clone_model(inner).preprocessing == OTHER
    images = keras.Input((8, 8, 3))
    outer = Network(images, inner(OTHER(images)))
    assert (outer.preprocessing, outer.feature_info) == (None, {})


def test_a_plain_network_carries_nothing():
    images = keras.Input((8, 8, 3))
    model = Network(images, keras.layers.Dense(1)(keras.layers.Flatten()(images)))
    assert (model.preprocessing, model.feature_info, model.weight_sources) == (None, {}, weights.WeightSources())
    model.compile("sgd", "mse")
    assert np.isfinite(model.fit(np.ones((2, 8, 8, 3)), np.zeros((2, 1)), verbose=0).history["loss"][0])


def test_auxiliary_heads_keep_it_and_so_does_the_network_without_them(tmp_path):
    with keras.StatelessScope(initialize_variables=False):
        model = GoogLeNet("tiny", input_shape=(32, 32, 3), auxiliary=True)
        weights.remember(model, RENAMES)
        others = [keras.models.clone_model(model), type(model).from_config(model.get_config()), model.inference_model()]
    assert list(model.feature_info) == ["C1", "C2", "C3", "C4", "C5"]
    assert [type(other).__name__ for other in others] == ["AuxiliaryClassifier", "AuxiliaryClassifier", "Network"]
    for other in others:
        assert other.feature_info == model.feature_info
        assert other.preprocessing == model.preprocessing
        assert other.weight_sources == model.weight_sources != weights.WeightSources()


def test_rules_that_a_function_computes_cannot_be_saved(tmp_path):
    model = keras.models.clone_model(network())
    weights.remember(model, older_names={"timm": [("a", lambda found: "b")]})
    with pytest.raises(ValueError, match="a function computes the rule for 'a'. Write it as rules"):
        model.save(tmp_path / "net.keras")


@pytest.mark.parametrize("wrong", ["cat", [0, 1], {3: "cat"}], ids=str)
def test_class_names_are_texts_in_order(wrong):
    with pytest.raises(ValueError, match="net: class_names are texts in the order of the labels"):
        network().class_names = wrong


@pytest.mark.parametrize("wrong", [3, lambda images: images, np.sqrt], ids=["number", "lambda", "numpy"])
def test_preprocessing_that_would_not_load_is_refused(wrong):
    with pytest.raises(ValueError, match="must be a function or an object that Keras can save with the model"):
        keras.models.clone_model(network()).preprocessing = wrong


@keras.saving.register_keras_serializable("tests")
def halve(images):
    return images / 2


def test_registered_functions_and_keras_layers_are_preprocessing(tmp_path):
    for theirs in (halve, keras.layers.Rescaling(0.5)):
        model = keras.models.clone_model(network())
        model.preprocessing = theirs
        assert_close(saved(model, tmp_path).preprocessing(np.ones((1, 2, 2, 3), "float32")), np.full((1, 2, 2, 3), 0.5))
        assert len(model.layers) == 3  # it is no part of the network


# Preprocessing

IMAGES = np.random.default_rng(0).integers(0, 256, size=(2, 5, 4, 3)).astype("uint8")
MEAN, DEVIATION = (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)
CASES = {
    "torchvision": (Preprocessing(mean=MEAN, deviation=DEVIATION), lambda x: (x / 255 - MEAN) / DEVIATION),
    "around zero": (Preprocessing(value_range=(-1, 1)), lambda x: x / 127.5 - 1),
    "all": (Preprocessing(value_range=(-1, 3), mean=0.25, deviation=2), lambda x: (x / 255 * 4 - 1 - 0.25) / 2),
    "the range alone": (Preprocessing(), lambda x: x / 255),
}


@pytest.mark.parametrize("name", CASES)
def test_preprocessing_equals_its_formula(name):
    preprocessing, formula = CASES[name]
    want = formula(IMAGES.astype("float64"))
    got = preprocessing(IMAGES)
    assert isinstance(got, np.ndarray)
    assert got.dtype == "float32"
    assert_close(got, want)
    for dtype in ("uint8", "float16"):
        tensor = preprocessing(keras.ops.convert_to_tensor(IMAGES.astype(dtype)))
        assert keras.ops.is_tensor(tensor)
        assert keras.backend.standardize_dtype(tensor.dtype) == "float32"
        assert_close(tensor, want)


@pytest.mark.parametrize("name", CASES)
def test_preprocessing_can_stand_in_a_model_that_is_saved(name, tmp_path):
    preprocessing, _ = CASES[name]
    images = keras.Input((5, 4, 3), dtype="uint8")
    model = keras.Model(images, preprocessing(images))
    assert_close(saved(model, tmp_path)(IMAGES), preprocessing(IMAGES))
    assert Preprocessing.from_config(preprocessing.get_config()) == preprocessing


@pytest.mark.parametrize("wrong", [{"value_range": (1, 0)}, {"deviation": 0}, {"deviation": (1.0, -1.0, 1.0)}], ids=str)
def test_impossible_preprocessing_is_refused(wrong):
    with pytest.raises(ValueError, match="Preprocessing: got .*above 0"):
        Preprocessing(**wrong)


# cut


def test_cut_shares_weights_and_carries_on():
    model = ResNet("tiny", input_shape=(64, 48, 3), classes=3)
    trunk = cut(model, {"C3": "layer2.0.relu3", "P": "layer3.0.bn1"}, name="trunk")
    assert (trunk.name, cut(model, ("C3",)).name) == ("trunk", "resnet_tiny")
    assert trunk.get_layer("conv1") is model.get_layer("conv1")
    assert trunk.feature_info == {
        "C3": {"stride": 8, "channels": 64, "layer": "layer2.0.relu3"},
        "P": {"stride": 8, "channels": 32, "layer": "layer3.0.bn1"},
    }
    assert trunk.preprocessing is model.preprocessing
    again = cut(trunk, ("P",))
    assert again.feature_info == {"P": trunk.feature_info["P"]}
    assert cut(network(), ("C1",)).weight_sources == network().weight_sources != weights.WeightSources()


def test_cut_knows_better_than_sizes_what_the_builder_knew():
    with keras.StatelessScope(initialize_variables=False):
        model = VGG("tiny", input_shape=(43, 37, 3), include_top=False)
        assert model.output_shape == (None, 1, 1, 16)  # which strides of 64 would explain as well
        assert cut(model, ("C5",)).feature_info["C5"]["stride"] == 32


def chain(size, layers, channels=3):
    images = keras.Input((*size, channels))
    x = images
    for layer in layers:
        x = layer(x)
    layers[-1].name = "last"
    return keras.Model(images, x)


def conv(kernel_size, strides, padding):
    return keras.layers.Conv2D(4, kernel_size, strides=strides, padding=padding)


STRIDES = {
    "exact": ((64, 48), lambda: [conv(3, 8, "same")], 8),
    "patches of 14": ((224, 28), lambda: [conv(14, 14, "valid")], 14),
    "rounded up": ((43, 37), lambda: [conv(3, 2, "same") for _ in range(5)], 32),
    "rounded down": ((229, 230), lambda: [keras.layers.MaxPooling2D(2) for _ in range(5)], 32),
    "without padding": ((227, 227), lambda: [conv(11, 4, "valid")], 4),
    "sizes unknown": ((None, None), lambda: [conv(3, 2, "same")], None),
    "no map": ((8, 8), lambda: [keras.layers.Flatten()], None),
}


@pytest.mark.parametrize("name", STRIDES)
def test_strides_of_any_model_follow_from_its_static_shapes(name):
    size, layers, stride = STRIDES[name]
    model = chain(size, layers())
    model = keras.models.clone_model(model)
    trunk = cut(model, {"X": "last"})
    assert trunk.feature_info["X"]["stride"] == stride
    assert trunk.feature_info["X"]["channels"] == model.output.shape[-1]
    assert trunk.preprocessing is None


def test_cut_refuses_what_it_cannot_cut():
    model = network()
    with pytest.raises(ValueError, match="Unknown layer of net: got 'conv2'.*'conv1'"):
        cut(model, {"C1": "conv2"})
    with pytest.raises(ValueError, match="Unknown level of net: got 'C7'.*'C1'"):
        cut(model, ("C7",))
    with pytest.raises(ValueError, match=r"cut needs a functional keras.Model with known inputs, got Sequential"):
        cut(keras.Sequential([keras.layers.Dense(1)]), {"C1": "dense"})


# Mean and deviation of a data set.


@functools.cache
def photos():
    return np.random.default_rng(0).integers(0, 200, (6, 5, 4, 3)).astype("uint8") + np.array([0, 20, 50], "uint8")


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0), (0, 255)])
def test_preprocessing_fits_the_channels_of_a_data_set(value_range):
    fitted = Preprocessing.fit([(photos()[:4], np.zeros(4)), (photos()[4:], np.zeros(2))], value_range=value_range)
    prepared = fitted(photos()).astype("float64")
    np.testing.assert_allclose(prepared.mean((0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(prepared.std((0, 1, 2)), 1, atol=1e-6)
    low, high = value_range
    scaled = low + photos() / 255 * (high - low)
    np.testing.assert_allclose(fitted.mean, scaled.mean((0, 1, 2)))
    np.testing.assert_allclose(fitted.deviation, scaled.std((0, 1, 2)))
    assert Preprocessing.from_config(fitted.get_config()) == fitted


def test_a_given_deviation_stays_and_a_constant_channel_is_not_divided_by_nothing():
    alike = photos().copy()
    alike[..., 1] = 77
    assert Preprocessing.fit(alike, deviation=0.5).deviation == 0.5
    fitted = Preprocessing.fit(alike, value_range=(0, 255))
    assert fitted.deviation[1] == 1
    np.testing.assert_allclose(fitted(alike)[..., 1], 0, atol=1e-4)


def test_padding_does_not_count():
    padded = np.zeros((6, 9, 9, 3), "uint8")
    padded[:, :5, :4] = photos()
    batch = (padded, {"image_size": np.full((6, 2), (5, 4))})
    want = Preprocessing.fit(photos())
    for got in (Preprocessing.fit([batch]), Preprocessing.fit([{"images": padded, **batch[1]}])):
        np.testing.assert_allclose(got.mean, want.mean)
        np.testing.assert_allclose(got.deviation, want.deviation)


def test_images_of_many_sizes_are_fitted():
    fitted = Preprocessing.fit([photos()[0], photos()[1, :2], photos()[2, :, 1:]])
    pixels = np.concatenate([part.reshape(-1, 3) for part in (photos()[0], photos()[1, :2], photos()[2, :, 1:])])
    np.testing.assert_allclose(fitted.mean, pixels.mean(0) / 255)


@pytest.mark.parametrize(
    "data, message",
    [
        (np.zeros((2, 3, 3, 3)) + 0.5, "of 0…255, as they were read, got values from 0.5 to 0.5"),
        (np.array([[[[-100.0], [100.0]]]]), "got values from -100 to 100"),
        ([], "got no pixels"),
        ([np.full((2, 2, 3), 9), np.full((2, 2, 1), 9)], "have 3 channels, and others 1"),
        (np.zeros((5, 7)), r"expected images \[h, w, c\], alone or in batches, got shape \(5, 7\)"),
        (np.full((1, 2, 2, 3), np.nan), "NaN or infinity"),
    ],
)
def test_what_is_no_data_set_of_images_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing.fit(data)


@pytest.mark.tensorflow_only
@pytest.mark.parametrize("by", ["fit", "train_on_batch"])
def test_a_step_is_traced_once(by):
    """Keras's own model makes the variables of optimizer and metrics within the step, and traces it again."""
    traced, data = [], (np.zeros((2, 8, 8, 3), "float32"), np.zeros(2, "int32"))

    def loss(labels, scores):
        traced.append(scores)
        return keras.losses.sparse_categorical_crossentropy(labels, scores)

    model = keras.models.clone_model(network())
    model.compile(keras.optimizers.Adam(name="adam"), loss, metrics=["accuracy", "sparse_top_k_categorical_accuracy"])
    getattr(model, by)(*data, **{"verbose": 0} if by == "fit" else {})
    assert len(traced) == 1
    plain = keras.Model(model.inputs, model.outputs)
    plain.compile(keras.optimizers.Adam(name="adam"), loss, metrics=["accuracy", "sparse_top_k_categorical_accuracy"])
    plain.train_on_batch(*data)
    assert [v.path for v in model.optimizer.variables] == [v.path for v in plain.optimizer.variables]
    assert list(model.get_metrics_result()) == list(plain.get_metrics_result())


# Label maps that no network learns from

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)
BAD = np.zeros((2, 8, 8), "int32")
BAD[1, 4, 5] = 3
FINE = np.where(BAD == 3, 255, 0).astype("int32")


class Maps(keras.utils.PyDataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return np.zeros((2, 8, 8, 3)), BAD


def pixels(several=False, classes=3):
    images = keras.Input((8, 8, 3), name="images")
    logits = keras.layers.Conv2D(classes, 1, name="logits")(images)
    return Network(
        images, {"logits": logits, "aux": keras.layers.Identity()(logits)} if several else logits, name="net"
    )


def given(kind, maps):
    """Arguments of `fit` with maps as the training data, or as those to validate on."""
    images = np.zeros((2, 8, 8, 3), "float32")
    if kind in ("validation arrays", "validation data set"):
        held_out = (images, maps) if kind == "validation arrays" else given("data set", maps)["x"]
        return {"x": images, "y": FINE, "validation_data": held_out}
    if kind == "data set":
        import tensorflow as tf

        return {"x": tf.data.Dataset.from_tensors((images, maps))}
    return {"x": Maps()} if kind == "PyDataset" else {"x": images, "y": maps}


KINDS = ("arrays", "PyDataset", "validation arrays")
KINDS += (pytest.param("data set", marks=pytest.mark.tensorflow_only),)
KINDS += (pytest.param("validation data set", marks=pytest.mark.tensorflow_only),)


@pytest.mark.parametrize("kind", KINDS)
def test_label_maps_are_checked_before_the_first_step(kind):
    model = pixels()
    model.compile("sgd", LOSS)
    what = "validation" if kind.startswith("val") else "training"
    with pytest.raises(ValueError, match=f"net: image 1 of the {what} data has the label 3 at row 4, column 5"):
        model.fit(**given(kind, BAD), verbose=0)
    assert int(model.optimizer.iterations) == 0
    if what == "training":
        with pytest.raises(ValueError, match="image 1 of the data has the label 3"):
            model.evaluate(**given(kind, BAD), verbose=0)


@pytest.mark.parametrize("kind", ["fit", "validation", "evaluate"])
def test_labels_of_arrays_are_checked_before_the_first_step(kind):
    images = keras.Input((4,))
    model = Network(images, keras.layers.Dense(3)(images), name="net")
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=9))
    x, fine, bad = np.zeros((3, 4), "float32"), np.array([0, 9, 2]), np.array([1, 2, 3])
    calls = {
        "fit": ("training data", lambda: model.fit(x, bad, verbose=0)),
        "validation": ("validation data", lambda: model.fit(x, fine, validation_data=(x, bad), verbose=0)),
        "evaluate": ("data", lambda: model.evaluate(x, bad, verbose=0)),
    }
    what, call = calls[kind]
    with pytest.raises(ValueError, match=f"net: row 2 of the {what} has the label 3; the model has 3 classes"):
        call()
    assert int(model.optimizer.iterations) == 0
    model.fit(x, fine, validation_data=(x, fine), verbose=0)


@pytest.mark.tensorflow_only
def test_what_reads_arrays_is_not_tuned_so_that_an_epoch_ends_with_its_last_step():
    images = keras.Input((4,))
    model = Network(images, keras.layers.Dense(3)(images))
    model.compile("sgd", "sparse_categorical_crossentropy")
    assert are_untuned(lambda: model.fit(np.zeros((3, 4), "float32"), np.array([0, 1, 2]), verbose=0)) == [True]


def test_a_data_set_of_images_is_not_read_before_the_training():
    reads = []

    class Data(keras.utils.PyDataset):
        num_batches = 1

        def __getitem__(self, index):
            reads.append(index)
            return np.zeros((3, 4), "float32"), np.array([0, 1, 2])

    images = keras.Input((4,))
    model = Network(images, keras.layers.Dense(3)(images))
    model.compile("sgd", "sparse_categorical_crossentropy")
    plain = keras.Model(images, keras.layers.Dense(3)(images))
    plain.compile("sgd", "sparse_categorical_crossentropy")
    counts = []
    for each in (plain, model):
        each.fit(Data(), verbose=0)
        counts.append(len(reads))
    assert counts[1] == 2 * counts[0]


@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", keras.losses.sparse_categorical_crossentropy])
def test_a_loss_that_ignores_nothing_is_told_so(loss):
    model = pixels()
    model.compile("sgd", loss)
    with pytest.raises(ValueError, match="has the label 255 at row 4, column 5; .* and none is ignored"):
        model.fit(np.zeros((2, 8, 8, 3)), FINE, verbose=0)


def test_the_maps_of_each_output_are_checked_by_its_loss():
    model = pixels(several=True)
    model.compile("sgd", {"logits": LOSS, "aux": keras.losses.SparseCategoricalCrossentropy(from_logits=True)})
    images, fine = np.zeros((2, 8, 8, 3), "float32"), np.zeros_like(BAD)
    for y in ({"logits": BAD, "aux": fine}, {"logits": fine, "aux": FINE}):
        with pytest.raises(ValueError, match="net: image 1 of the training data has the label"):
            model.fit(images, y, verbose=0)
    assert np.isfinite(model.fit(images, {"logits": FINE, "aux": fine}, verbose=0).history["loss"][0])


def test_other_losses_are_left_to_keras():
    model = pixels()
    model.compile("sgd", "mse")
    zeros = np.zeros((2, 8, 8, 3), "float32")
    assert np.isfinite(model.fit(zeros, zeros - 1, verbose=0).history["loss"][0])
