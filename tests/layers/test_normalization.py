import itertools
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest

from kvision.layers import BatchNormalization, GroupNormalization
from tests.ops.differentiation import value_and_gradients
from tests.support import TOLERANCES, assert_close

SHAPES = [(6, 4, 5, 8), (6, 8)]
ON_JAX = keras.backend.backend() == "jax"
# (dtype policy, jit): TensorFlow compiles with XLA once, JAX always, for its eager steps take longer
FIT_ROWS = [("float32", True), ("mixed_float16", ON_JAX), ("mixed_bfloat16", ON_JAX)]
FIT_ROWS += [] if ON_JAX else [("float32", False)]
FIT_ROWS_OF_CI = [("group", ("float32", True)), ("group", ("mixed_float16", ON_JAX))]
FIT_ROWS_OF_CI += [("batch", ("mixed_bfloat16", ON_JAX)), ("batch", ("float32", True))]

# ours, Keras's
PAIRS = {
    "batch": (BatchNormalization, keras.layers.BatchNormalization),
    "batch without scale": (
        lambda: BatchNormalization(scale=False, momentum=0.5),
        lambda: keras.layers.BatchNormalization(scale=False, momentum=0.5),
    ),
    "batch without offset": (
        lambda: BatchNormalization(center=False, epsilon=0.1),
        lambda: keras.layers.BatchNormalization(center=False, epsilon=0.1),
    ),
    "group": (
        lambda: GroupNormalization(4, epsilon=1e-3),
        lambda: keras.layers.GroupNormalization(4, epsilon=1e-3),
    ),
    "instance": (
        lambda: GroupNormalization(-1, epsilon=1e-3, scale=False, center=False),
        lambda: keras.layers.GroupNormalization(-1, scale=False, center=False),
    ),
}


def data(shape, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(1.0, 2.0, shape) + rng.normal(size=shape[-1])).astype("float32")


def fill(layer):
    """Set every weight to a random value in [0.5, 1.5), the same ones at every call."""
    rng = np.random.default_rng(3)
    for weight in layer.weights:
        weight.assign(0.5 + rng.random(weight.shape))


def pair(name, shape, dtype="float32"):
    """Both layers of a pair, built for `shape`, with equal weights."""
    layers = []
    for make in PAIRS[name]:
        keras.mixed_precision.set_dtype_policy(dtype)
        layers.append(make())
        layers[-1].build(shape)
        fill(layers[-1])
    return layers


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PAIRS)
def test_output_gradients_and_statistics_equal_keras(name, shape, training):
    upstream = np.random.default_rng(1).normal(size=shape).astype("float32")
    results = []
    for layer in pair(name, shape):

        def apply(x, *trainable, layer=layer):
            fixed = [weight.value for weight in layer.non_trainable_variables]
            options = {"training": training} if "batch" in name else {}
            return layer.stateless_call(trainable, fixed, x, **options)[0]

        weights = [np.asarray(weight) for weight in layer.trainable_variables]
        y, gradients = value_and_gradients(apply, (data(shape), *weights), upstream)
        for step in range(3):
            layer(data(shape, seed=step), **({"training": training} if "batch" in name else {}))
        results.append((y, gradients, [np.asarray(weight) for weight in layer.weights]))
    (y, gradients, weights), (keras_y, keras_gradients, keras_weights) = results
    assert_close(y, keras_y)
    for got, want in zip(gradients, keras_gradients, strict=True):
        assert_close(got, want)
    for got, want in zip(weights, keras_weights, strict=True):
        assert_close(got, want)


@pytest.mark.parametrize(
    "name, dtype, jit",
    [
        pytest.param(name, *row, marks=pytest.mark.slow if (name, row) in FIT_ROWS_OF_CI else ())
        for name in ("batch", "group")
        for row in FIT_ROWS
    ],
)
def test_fit_equals_keras(name, dtype, jit):
    results = []
    for layer in pair(name, (None, 5, 5, 8), dtype):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((7, 7, 3)), keras.layers.Conv2D(8, 3), layer, keras.layers.Flatten()])
        model.add(keras.layers.Dense(2, dtype="float32"))
        model.compile(keras.optimizers.SGD(0.001), "mse", jit_compile=jit)
        x, y = data((24, 7, 7, 3)), data((24, 2), seed=1)
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
        assert {weight.dtype for weight in model.weights} == {"float32"}
        results.append(([np.asarray(weight) for weight in model.weights], model(x)))
    assert_close(results[0][1], results[1][1], dtype.removeprefix("mixed_"))
    for got, want in zip(results[0][0], results[1][0], strict=True):
        assert_close(got, want, dtype.removeprefix("mixed_"))


def test_trainable_false_means_inference_as_in_keras():
    for layer in pair("batch", (6, 4, 5, 8)):
        layer.trainable = False
        before = layer.get_weights()
        assert_close(layer(data((6, 4, 5, 8)), training=True), layer(data((6, 4, 5, 8)), training=False))
        for got, want in zip(layer.get_weights(), before, strict=True):
            np.testing.assert_array_equal(got, want)
        assert not layer.trainable_weights


@pytest.mark.parametrize("layer", [BatchNormalization(), GroupNormalization(2)], ids=["batch", "group"])
def test_sizes_unknown_until_the_call(layer):
    model = keras.Sequential([keras.Input((None, None, 4)), layer])
    assert model.output_shape == (None, None, None, 4)
    twin = keras.Sequential([keras.Input((None, None, 4)), type(layer).__base__.from_config(keras_config(layer))])
    for sizes in ((3, 4), (5, 2)):
        assert_close(model.predict(data((2, *sizes, 4)), verbose=0), twin.predict(data((2, *sizes, 4)), verbose=0))


def keras_config(layer):
    return {key: value for key, value in layer.get_config().items() if key not in ("frozen", "name")}


def classifier(*norms):
    """A small model with two normalisations in it, all weights filled at random."""
    model = keras.Sequential([keras.Input((6, 6, 3))])
    for norm in norms:
        model.add(keras.layers.Conv2D(8, 3))
        model.add(norm())
    model.add(keras.layers.GlobalAveragePooling2D())
    return model


KINDS = {
    "keras": keras.layers.BatchNormalization,
    "batch": BatchNormalization,
    "frozen": lambda: BatchNormalization(frozen=True),
    "synchronized": lambda: BatchNormalization(synchronized=True),
}
PATHS = [("keras group", "group"), ("group", "keras group")]
PATHS += [  # every kind from and into Keras's file; the others follow from these
    pytest.param(*kinds, marks=() if "keras" in kinds else pytest.mark.slow)
    for kinds in itertools.permutations(KINDS, 2)
]


@pytest.mark.parametrize("saved, loaded", PATHS)
def test_weight_files_load_into_every_kind(saved, loaded, tmp_path):
    kinds = {
        **KINDS,
        "keras group": lambda: keras.layers.GroupNormalization(4),
        "group": lambda: GroupNormalization(4, epsilon=1e-3),
    }
    source, target = (classifier(kinds[kind], kinds[kind]) for kind in (saved, loaded))
    fill(source)
    source.save_weights(tmp_path / "a.weights.h5")
    target.load_weights(tmp_path / "a.weights.h5")
    for got, want in zip(target.weights, source.weights, strict=False):
        assert got.shape == want.shape
    x = data((2, 6, 6, 3))
    assert_close(target.predict(x, verbose=0), source.predict(x, verbose=0))


CONFIGURED = [
    lambda: BatchNormalization(),
    lambda: BatchNormalization(momentum=0.9, epsilon=1e-5, frozen=True, name="bn1"),
    lambda: BatchNormalization(synchronized=True, scale=False, beta_initializer="ones"),
    lambda: BatchNormalization(axis=1, center=False, gamma_regularizer="l2"),
    lambda: GroupNormalization(),
    lambda: GroupNormalization(4, epsilon=0.1, center=False),
]


@pytest.mark.parametrize("make", CONFIGURED)
def test_config_round_trip(make, tmp_path):
    layer = make()
    config = layer.get_config()
    assert type(layer).from_config(config).get_config() == config
    model = keras.Sequential([keras.Input((8, 3, 8)), layer])
    fill(model)
    assert layer.get_config() == config  # a built layer still says what was asked for
    model.save(tmp_path / "a.keras")
    loaded = keras.models.load_model(tmp_path / "a.keras")
    assert type(loaded.layers[0]) is type(layer)
    assert loaded.layers[0].get_config() == config
    assert len(loaded.trainable_weights) == len(model.trainable_weights)
    x = data((2, 8, 3, 8))
    assert_close(loaded(x, training=True), model(x, training=True))


def test_frozen_does_not_move_and_lets_gradients_through():
    model = classifier(KINDS["frozen"], KINDS["frozen"])
    fill(model)
    model.trainable = False
    model.trainable = True  # thaws every other layer
    frozen = [layer for layer in model.layers if isinstance(layer, BatchNormalization)]
    assert len(model.trainable_weights) == 4  # kernel and bias of two convolutions
    before, kernel = [layer.get_weights() for layer in frozen], np.asarray(model.weights[0])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(data((8, 6, 6, 3)), data((8, 8)), batch_size=4, verbose=0)
    for layer, weights in zip(frozen, before, strict=True):
        for got, want in zip(layer.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(got, want)
    assert np.abs(np.asarray(model.weights[0]) - kernel).max() > 1e-4
    x = data((8, 6, 6, 3))
    assert_close(model(x, training=True), model(x, training=False))


def test_frozen_and_synchronized_exclude_each_other():
    with pytest.raises(ValueError, match="frozen=True and synchronized=True"):
        BatchNormalization(frozen=True, synchronized=True)


MASK = np.random.default_rng(0).random((6, 8, 3)) < 0.5


@pytest.mark.parametrize(
    "options, call",
    [
        ({"axis": 1}, {}),
        ({"axis": 3}, {}),
        ({"renorm": True, "renorm_clipping": {"rmax": 2.0}}, {}),
        ({}, {"mask": MASK}),
    ],
    ids=["axis 1", "axis 3", "renorm", "mask"],
)
def test_what_has_no_fast_kernel_equals_keras(options, call):
    layers = BatchNormalization(**options), keras.layers.BatchNormalization(**options)
    shape = (6, 8, 3, 4)
    outputs = []
    for layer in layers:
        layer.build(shape)
        fill(layer)
        outputs.append([layer(data(shape), training=training, **call) for training in (True, True, False)])
    for got, want in zip(outputs[0] + layers[0].weights, outputs[1] + layers[1].weights, strict=True):
        assert_close(got, want)


def test_group_axis_other_than_the_last_equals_keras():
    layers = GroupNormalization(4, axis=1, epsilon=1e-3), keras.layers.GroupNormalization(4, axis=1)
    got, want = (layer(data((2, 8, 3, 5))) for layer in layers)
    assert_close(got, want)


@pytest.mark.parametrize("channels, groups", [(64, 32), (32, 32), (96, 32), (48, 8), (24, 8), (12, 4), (6, 2), (7, 1)])
def test_default_number_of_groups(channels, groups):
    layer = GroupNormalization()
    layer.build((2, 3, 3, channels))
    assert layer.groups == groups


def test_default_number_of_groups_is_the_one_used():
    x = data((2, 3, 3, 12))
    assert_close(GroupNormalization()(x), keras.layers.GroupNormalization(4, epsilon=1e-5)(x))


@pytest.mark.parametrize("groups", [5, 16])
def test_groups_that_do_not_fit_fail_on_build(groups):
    with pytest.raises(ValueError, match=rf"divide the 8 channels: got groups={groups}"):
        GroupNormalization(groups)(data((1, 2, 2, 8)))


def test_16_bit_layer_returns_16_bit_and_keeps_its_statistics_in_float32():
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    x = data((4, 3, 3, 8)) * 50  # squares and sums leave float16
    layer = BatchNormalization(momentum=0.0)
    assert layer(x, training=True).dtype == GroupNormalization(2)(x).dtype == layer.compute_dtype == "float16"
    assert_close(layer.moving_variance, np.var(x.astype("float16").astype("float64"), (0, 1, 2)), tolerance=(1e-4, 0))
    assert_close(layer(x), (x - x.mean((0, 1, 2))) / x.std((0, 1, 2)), tolerance=TOLERANCES["float16"])


@pytest.mark.tensorflow_only
@pytest.mark.parametrize("name", ["batch", "group"])
def test_several_steps_in_one_execution(name):
    weights = []
    for steps in (1, 4):
        keras.utils.set_random_seed(0)
        layer, _ = pair(name, (None, 5, 5, 8))
        model = keras.Sequential([keras.Input((7, 7, 3)), keras.layers.Conv2D(8, 3), layer, keras.layers.Flatten()])
        model.compile(keras.optimizers.SGD(0.01), "mse", steps_per_execution=steps)
        model.fit(data((16, 7, 7, 3)), data((16, 200)), batch_size=4, shuffle=False, verbose=0)
        weights.append([np.asarray(weight) for weight in model.weights])
    for got, want in zip(*weights, strict=True):
        assert_close(got, want)


REPLICAS = """
    import keras
    import numpy as np
    import tensorflow as tf

    from kvision.layers import BatchNormalization, GroupNormalization

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    rng = np.random.default_rng(0)
    x = rng.normal(2.0, 3.0, (8, 6, 6, 3)).astype("float32")
    x[4:] += 5  # the halves that the replicas see differ
    y = rng.normal(size=(8, 8)).astype("float32")


    def train(norm):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((6, 6, 3)), keras.layers.Conv2D(8, 3), norm()])
        model.add(keras.layers.GlobalAveragePooling2D())
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(tf.data.Dataset.from_tensors((x, y)).repeat(3), verbose=0)
        return [np.asarray(weight) for weight in model.weights]


    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


    def difference(norm, joined):
        with strategy.scope():
            replicas = train(norm)
        return max(np.abs(a - b).max() for a, b in zip(replicas, train(joined), strict=True))


    print("synchronized", difference(lambda: BatchNormalization(synchronized=True), BatchNormalization))
    print("batch", difference(BatchNormalization, BatchNormalization))
    print("group", difference(lambda: GroupNormalization(4), lambda: GroupNormalization(4)))
"""


@pytest.mark.slow
@pytest.mark.tensorflow_only
def test_two_replicas():
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(REPLICAS)], capture_output=True, text=True, check=False, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]
    differences = {name: float(value) for name, value in map(str.split, run.stdout.splitlines())}
    assert differences["synchronized"] < 1e-5  # equals batch normalisation of the joined batch
    assert differences["group"] < 1e-5
    assert differences["batch"] > 1e-2  # every replica by itself: the test distinguishes
