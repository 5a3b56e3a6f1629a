"""A probe looks into any model, at any depth, and leaves it as it was."""

import logging

import keras
import numpy as np
import pytest
from keras import ops

from kvision.network import Preprocessing
from kvision.visualize import Probe, find_place, places
from kvision.visualize.images import check_differentiable, checked_images
from kvision.visualize.logits import kind_of
from kvision.visualize.probe import guided, rectified
from kvision.visualize.targets import check_unit, class_indices, in_chunks, target_score, unit_values
from tests.support import assert_close

SIZE = 8


def images(count=3, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, (count, SIZE, SIZE, 3)).astype("float32")


@keras.saving.register_keras_serializable("tests")
class Block(keras.Layer):
    """A composite layer, whose parts no graph shows."""

    def __init__(self, **options):
        super().__init__(**options)
        self.inner = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="inner.conv")

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        return x + self.inner(x)


def nested(name="nested", activation="softmax"):
    """A model in a model, names with dots, a composite layer, a layer that is called twice, and a bare ReLU."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Conv2D(4, 3, padding="same", name="stem.conv")(inputs)
    x = ops.relu(x)
    shared = keras.layers.ReLU(name="shared")
    x = shared(keras.layers.BatchNormalization(name="norm")(x))
    trunk = keras.Model(inputs, shared(x - 0.1), name="trunk")
    pixels = keras.Input((SIZE, SIZE, 3))
    x = trunk(keras.layers.Rescaling(1 / 255)(pixels))
    x = Block(name="block")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(keras.layers.MaxPooling2D(2)(x))
    return keras.Model(pixels, keras.layers.Dense(5, activation=activation, name="head")(x), name=name)


@pytest.fixture(scope="module")
def model():
    return nested()


def values_of(model):
    return [np.array(ops.convert_to_numpy(variable)) for variable in model.variables]


# Places


def test_every_layer_and_operation_has_a_path(model):
    paths = list(places(model))
    assert {"trunk", "trunk/stem.conv", "trunk/norm", "trunk/shared", "block/inner.conv", "head"} <= set(paths)
    assert sum("relu" in path.lower() for path in paths) == 1  # the operation without a layer


@pytest.mark.parametrize(
    "name, path", [("stem.conv", "trunk/stem.conv"), ("trunk/norm", "trunk/norm"), ("inner.conv", "block/inner.conv")]
)
def test_a_layer_is_found_by_the_end_of_its_path(model, name, path):
    assert find_place(model, name)[0] == path
    assert find_place(model, find_place(model, name)[1])[0] == path


def test_a_layer_that_is_not_there_names_the_nearest(model):
    with pytest.raises(ValueError, match=r"layer of nested: got 'stem_conv'.*'trunk/stem.conv'"):
        find_place(model, "stem_conv")
    with pytest.raises(ValueError, match="Unknown layer of nested: got 'other'"):
        find_place(model, keras.layers.Dense(1, name="other"))


def test_a_name_of_two_layers_lists_their_paths():
    def part(name):
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="fc")], name=name)

    model = keras.Sequential([keras.Input((4,)), part("one"), part("two")])
    with pytest.raises(ValueError, match="2 layers named 'fc'.*'one/fc', 'two/fc'"):
        find_place(model, "fc")
    assert find_place(model, "two/fc")[0] == "two/fc"


# What a run gives


def test_activations_are_those_of_a_model_cut_there(model):
    looks = Probe(model, ["norm", "inner.conv", "pool", ("shared", 0), ("shared", 1)])(images()).activations
    trunk, pixels = model.get_layer("trunk"), images() / 255
    for name in ("norm", "pool"):
        owner, x = (trunk, pixels) if name == "norm" else (model, images())
        cut = keras.Model(owner.inputs[0], owner.get_layer(name).output)
        assert_close(looks[name], cut(x, training=False))
    norm = np.maximum(ops.convert_to_numpy(looks["norm"]), 0)
    assert_close(looks["shared (0)"], norm)
    assert_close(looks["shared (1)"], np.maximum(norm - 0.1, 0), tolerance=(1e-5, 1e-5))
    assert_close(looks["shared (1)"], trunk(pixels, training=False))
    inner = model.get_layer("block").inner(trunk(pixels, training=False))
    assert_close(looks["inner.conv"], inner)


def test_a_layer_called_twice_asks_which_call(model):
    with pytest.raises(ValueError, match=r"layer 'shared' 2 times. Give \(name, call\) with a call from 0 to 1"):
        Probe(model, ["shared"])(images())
    with pytest.raises(ValueError, match="2 times"):
        Probe(model, [("shared", 2)])(images())
    with pytest.raises(ValueError, match="given twice"):
        Probe(model, ["head", "head"])


def test_a_model_that_is_not_built_is_refused():
    with pytest.raises(ValueError, match="Expected a built keras.Model, got Sequential"):
        Probe(keras.Sequential([keras.layers.Dense(1)]))


@pytest.mark.parametrize(
    "end",
    [
        lambda x: keras.layers.Dense(5, "softmax", name="fc")(x),
        lambda x: keras.layers.Softmax()(keras.layers.Dense(5, name="fc")(x)),
        lambda x: keras.layers.Activation("softmax")(keras.layers.Dense(5, name="fc")(x)),
        lambda x: ops.softmax(keras.layers.Dense(5, name="fc")(x)),
        lambda x: keras.layers.Reshape((5,))(keras.layers.Dense(5, "sigmoid", name="fc")(x)),
        lambda x: keras.Sequential([keras.Input((4,)), keras.layers.Dense(5, "softmax", name="fc")])(x),
    ],
    ids=["dense", "layer", "activation", "operation", "reshaped", "nested"],
)
def test_logits_are_taken_before_any_softmax(end, caplog):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, end(inputs), name="ends")
    x = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    _, fc = find_place(model, "fc")
    with caplog.at_level(logging.WARNING, logger="kvision"):
        outputs = Probe(model)(x).outputs
        Probe(model)
    assert_close(outputs, x @ ops.convert_to_numpy(fc.kernel), tolerance=(1e-4, 1e-5))
    assert caplog.messages == ["ends ends in probabilities: the logits before them are used."]
    assert_close(Probe(model, logits=False)(x).outputs, model(x))


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "sigmoid", "relu", "linear"])
def test_probabilities_are_told_by_trying(name):
    expected = name if "soft" in name or name == "sigmoid" else None
    assert kind_of(keras.activations.get(name)) == expected
    assert kind_of(lambda x: keras.activations.get(name)(x)) == expected


# Gradients


def test_gradients_are_those_of_differences(model):
    probe = Probe(model, ["stem.conv", "pool"])
    score, arguments = target_score(probe, images(), [0, 3, 4])
    scores, by_images, by_layers = probe.with_gradients(score, ["stem.conv", "pool"])(images(), *arguments)
    outputs = ops.convert_to_numpy(probe(images()).outputs)
    assert_close(scores, outputs[np.arange(3), [0, 3, 4]])
    kernel = ops.convert_to_numpy(model.get_layer("head").kernel)
    assert_close(by_layers["pool"], kernel[:, [0, 3, 4]].T)
    assert by_layers["stem.conv"].shape == (3, SIZE, SIZE, 4)
    direction = np.random.default_rng(1).normal(size=images().shape).astype("float32")
    step = 0.02

    def at(change):
        return np.asarray(ops.convert_to_numpy(score(probe(images() + change * direction), *arguments)), "float64")

    slopes = (at(step) - at(-step)) / (2 * step)
    assert_close(slopes, np.sum(ops.convert_to_numpy(by_images) * direction, axis=(1, 2, 3)), tolerance=(2e-2, 1e-5))


def test_the_preprocessing_is_differentiated_too(model):
    plain, prepared = Probe(model), Probe(model, preprocess=Preprocessing(value_range=(0.0, 25.5)))
    score, arguments = target_score(plain, images(), 1)
    _, expected, _ = plain.with_gradients(score)(images(), *arguments)
    _, found, _ = prepared.with_gradients(score)(images() * 10, *arguments)
    assert_close(found * 10, expected)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_small_gradients_survive_16_bits(policy):
    keras.config.set_dtype_policy(policy)
    try:
        inputs = keras.Input((SIZE, SIZE, 3))
        x = keras.layers.Conv2D(4, 3, activation="relu")(keras.layers.Rescaling(1e-4)(inputs))
        model = keras.Model(inputs, keras.layers.Dense(2, dtype="float32")(keras.layers.GlobalAveragePooling2D()(x)))
    finally:
        keras.config.set_dtype_policy("float32")
    probe = Probe(model)
    score, arguments = target_score(probe, images(), 0)
    _, gradient, _ = probe.with_gradients(score)(images(), *arguments)
    gradient = ops.convert_to_numpy(gradient)
    assert gradient.dtype == np.float32
    assert 0 < np.abs(gradient).max() < 1e-4
    assert (gradient != 0).mean() > 0.5


def test_one_unit_rules_of_relu():
    """Guided: only positive gradients, to active units. Rectified: only positive ones, to all."""
    inputs = keras.Input((1, 1, 4))
    outputs = keras.layers.Flatten()(ops.relu(inputs))
    weights = np.array([[1.0], [-1.0], [1.0], [-1.0]], "float32")
    head = keras.layers.Dense(1, use_bias=False)
    model = keras.Model(inputs, head(outputs))
    head.set_weights([weights])
    x = np.array([2.0, 2.0, -2.0, -2.0], "float32").reshape(1, 1, 1, 4)
    expected = {None: [1, -1, 0, 0], guided: [1, 0, 0, 0], rectified: [1, 0, 1, 0]}
    for rule, gradient in expected.items():
        run = Probe(model, relu=rule).with_gradients(lambda look: look.outputs[:, 0])
        assert ops.convert_to_numpy(run(x)[1]).ravel().tolist() == gradient


def test_a_net_without_relu_has_no_such_rule():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, "tanh")], name="smooth")
    with pytest.raises(ValueError, match="smooth has no ReLU"):
        Probe(model, relu=guided)


# The model stays as it is


def test_the_model_is_as_it_was_also_after_an_error(tmp_path):
    model = nested("kept")
    model.get_layer("head").trainable = False
    layers = [place for place in places(model).values() if isinstance(place, keras.Layer)]
    before, attributes = values_of(model), [sorted(vars(layer)) for layer in layers]
    trainable = [layer.trainable for layer in layers]
    outputs = model(images(), training=False)

    def check():
        assert all(np.array_equal(one, other) for one, other in zip(before, values_of(model), strict=True))
        assert [sorted(vars(layer)) for layer in layers] == attributes
        assert [layer.trainable for layer in layers] == trainable
        assert model.get_layer("head").activation is keras.activations.softmax
        assert_close(model(images(), training=False), outputs)

    probe = Probe(model, ["stem.conv", ("shared", 1)], relu=guided)
    score, arguments = target_score(probe, images(), None)
    probe.with_gradients(score, ["stem.conv"])(images(), *arguments)
    check()

    def broken(look):
        raise RuntimeError("a score that fails")

    with pytest.raises(RuntimeError, match="a score that fails"):
        probe.with_gradients(broken)(images())
    with pytest.raises(Exception, match=r"."):
        probe(np.zeros((1, SIZE, SIZE, 7), "float32"))
    check()
    model.save(tmp_path / "kept.keras")
    loaded = keras.saving.load_model(tmp_path / "kept.keras")
    assert_close(loaded(images(), training=False), outputs)


def test_a_probe_sees_the_weights_of_the_moment():
    model = nested("moving")
    probe = Probe(model)
    before = ops.convert_to_numpy(probe(images()).outputs)
    head = model.get_layer("head")
    head.bias.assign(head.bias + 1.0)
    assert_close(probe(images()).outputs, before + 1, tolerance=(1e-4, 1e-4))


# Images, targets, units, chunks


@pytest.mark.parametrize(
    "given, message",
    [
        (np.zeros((1, SIZE, SIZE, 1)), r"takes images \[b, 8, 8, 3\]: got \[1, 8, 8, 1\]. Give images of 3"),
        (np.zeros((1, 9, SIZE, 3)), r"got \[1, 9, 8, 3\]. Resize them"),
        (np.zeros((SIZE, SIZE)), r"Expected images \[b, h, w, c\] of numbers, at least one: got float64 \[8, 8\]"),
        (np.zeros((0, SIZE, SIZE, 3)), r"at least one: got float64 \[0, 8, 8, 3\]"),
        (np.full((1, SIZE, SIZE, 3), 0.5), "nested begins with a Rescaling of images of 0…255: got values from 0.5 to"),
        (np.full((1, SIZE, SIZE, 3), 9000.0), "0…255: got values from 9e"),
        (np.full((2, SIZE, SIZE, 3), np.nan), "Image 0 holds values that are not finite"),
    ],
)
def test_images_of_another_form_are_refused(model, given, message):
    with pytest.raises(ValueError, match=message):
        checked_images(model, given)


def test_images_of_another_range_are_refused(model):
    from kvision.applications import ResNet

    network = ResNet("tiny", input_shape=(32, 32, 3), classes=3)
    photo = np.full((1, 32, 32, 3), 200, "uint8")
    with pytest.raises(ValueError, match=r"got images from 200 to 200. Pass preprocess=model.preprocessing"):
        checked_images(network, photo)
    assert checked_images(network, photo, network.preprocessing).dtype == np.float32
    assert checked_images(network, network.preprocessing(photo)).shape == (1, 32, 32, 3)
    with pytest.raises(ValueError, match=r"0…255: got values from 0.784 to 0.784. Multiply"):
        checked_images(network, photo / 255, network.preprocessing)
    assert checked_images(model, photo[0, :SIZE, :SIZE]).shape == (1, SIZE, SIZE, 3)


@pytest.mark.parametrize(
    "preprocess, message",
    [
        ("vgg", "preprocess is a function from images to what nested takes: got 'vgg'"),
        (lambda x: np.asarray(x) / 2, "preprocess gives ndarray: expected a tensor.*use keras.ops"),
        (lambda x: x.no_such_method(), "preprocess fails on a tensor.*use keras.ops"),
        (keras.applications.vgg16.preprocess_input, "takes images of 0…255: got values from 0.5 to 0.5"),
    ],
    ids=["no function", "numpy", "fails", "keras's"],
)
def test_a_preprocess_that_cannot_be_is_refused(model, preprocess, message):
    with pytest.raises(ValueError, match=message):
        checked_images(model, np.full((1, SIZE, SIZE, 3), 0.5), preprocess)


def test_a_preprocess_may_change_the_size_and_the_channels(model):
    def prepared(x):
        return ops.image.resize(ops.repeat(x, 3, axis=-1), (SIZE, SIZE))

    grey = np.random.default_rng(0).uniform(0, 255, (2, 16, 16, 1)).astype("float32")
    probe = Probe(model, preprocess=prepared)
    score, arguments = target_score(probe, checked_images(model, grey, prepared), None)
    assert probe.with_gradients(score)(grey, *arguments)[1].shape == grey.shape


def test_integer_inputs_have_no_gradient():
    model = keras.Sequential([keras.Input((4, 4, 3), dtype="uint8"), keras.layers.Rescaling(1.0)], name="bytes")
    with pytest.raises(ValueError, match="of bytes is uint8, through which no gradient flows"):
        check_differentiable(model)


@pytest.mark.parametrize(
    "target, message",
    [
        (5, "classes 0 to 4: got target 5"),
        (-1, "classes 0 to 4: got target -1"),
        ([0, 1], "one for each of the 3 images"),
        (1.5, "target is a class index"),
        ([0, 9, 1], "got target 9"),
    ],
)
def test_classes_that_are_not_there_are_refused(model, target, message):
    with pytest.raises(ValueError, match=message):
        class_indices(Probe(model), images(), target)


def test_the_default_is_the_predicted_class(model):
    expected = ops.convert_to_numpy(model(images(5), training=False)).argmax(axis=1)
    assert class_indices(Probe(model), images(5), None, batch_size=2).tolist() == expected.tolist()


def single(activation=None):
    """A model of one output, which is the mean of the pixels minus 100."""
    model = keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            keras.layers.Rescaling(1.0, offset=-100.0),
            keras.layers.Flatten(),
            keras.layers.Dense(1, activation, kernel_initializer="ones", use_bias=False),
        ],
        name="single",
    )
    model.layers[-1].kernel.assign(model.layers[-1].kernel / (SIZE * SIZE * 3))
    return model


@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_one_output_stands_for_two_classes(activation):
    x = np.stack([np.full((SIZE, SIZE, 3), value, "float32") for value in (90, 108)])
    probe = Probe(single(activation))
    assert class_indices(probe, x, None).tolist() == [0, 1]
    slope = 1 / (SIZE * SIZE * 3)
    for target, signs in ((None, (-1, 1)), (0, (-1, -1)), (1, (1, 1))):
        score, arguments = target_score(probe, x, target)
        scores, gradients, _ = probe.with_gradients(score)(x, *arguments)
        assert_close(scores, np.multiply(signs, (-10, 8)), tolerance=(1e-4, 1e-4))
        assert_close(ops.convert_to_numpy(gradients)[:, 0, 0, 0], np.multiply(signs, slope), tolerance=(1e-4, 1e-7))
    with pytest.raises(ValueError, match="single has the classes 0 to 1: got target 2"):
        class_indices(probe, x, 2)


class Own(keras.Model):
    """A model whose softmax, or sigmoid, nobody sees from outside."""

    def __init__(self, units=3, end=ops.softmax):
        super().__init__(name="own")
        self.fc = keras.layers.Dense(units, name="fc")
        self.end = end
        self.flat = keras.layers.Flatten()

    def build(self, shape):
        self.fc.build((None, int(np.prod(shape[1:]))))
        self.built = True

    def call(self, x):
        return self.end(self.fc(self.flat(x / 255)))


@pytest.mark.parametrize("units, end", [(3, ops.softmax), (1, ops.sigmoid), (3, ops.sigmoid)])
def test_probabilities_that_cannot_be_taken_away_are_refused(units, end):
    model = Own(units, end)
    model.build((None, SIZE, SIZE, 3))
    probe = Probe(model)
    with pytest.raises(ValueError, match="own gives probabilities.*Build it without that end, or give target=function"):
        target_score(probe, images(), 0)
    found = class_indices(probe, images(), None, probabilities=True)
    outputs = ops.convert_to_numpy(model(images()))
    assert found.tolist() == (outputs.argmax(axis=1) if units > 1 else outputs[:, 0] > 0.5).astype(int).tolist()


def test_logits_that_happen_to_lie_between_0_and_1_are_none():
    model = Own(3, lambda x: x)
    model.build((None, SIZE, SIZE, 3))
    model.fc.bias.assign([0.2, 0.5, 0.4])
    model.fc.kernel.assign(0.02 * model.fc.kernel)
    assert class_indices(Probe(model), images(), None).tolist() == [1, 1, 1]


def test_a_function_of_probabilities_is_a_target():
    model = Own()
    model.build((None, SIZE, SIZE, 3))
    probe = Probe(model, ["fc"])
    score, arguments = target_score(probe, images(), lambda outputs: outputs[:, 0])
    assert not arguments
    assert probe.with_gradients(score, ["fc"])(images())[2]["fc"].shape == (3, 3)


@pytest.mark.parametrize("unit", [4, -1, (0, 0), (8, 0, 0), (0, 0, 4)])
def test_units_out_of_range_are_refused(unit):
    with pytest.raises(ValueError, match=r"gives \[b, 8, 8, 4\]: got unit"):
        check_unit("conv", (None, 8, 8, 4), unit)


def test_units_are_channels_or_single_values():
    x = np.arange(2 * 2 * 3 * 4, dtype="float32").reshape(2, 2, 3, 4)
    assert_close(unit_values(ops.convert_to_tensor(x), check_unit("conv", x.shape, 1)), x[..., 1].reshape(2, 6))
    assert_close(unit_values(ops.convert_to_tensor(x), check_unit("conv", x.shape, (1, 2, 3))), x[:, 1, 2, 3:])
    assert_close(unit_values(ops.convert_to_tensor(x[:, 0, 0]), check_unit("fc", (2, 4), 3)), x[:, 0, 0, 3:])


def test_chunks_have_one_size_and_lose_nothing():
    sizes = []

    def double(rows):
        sizes.append(len(rows))
        return {"twice": ops.convert_to_tensor(rows) * 2}

    x = np.arange(7.0, dtype="float32")
    assert in_chunks(double, 3, x)["twice"].tolist() == (2 * x).tolist()
    assert sizes == [3, 3, 3]
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        in_chunks(double, 0, x)
