"""Layers fitted on a data set: scikit-learn's numbers, one stable pass over any data set, saving, 16 bits, refusals."""

import functools
import tracemalloc

import keras
import numpy as np
import pytest
import sklearn.decomposition

tf = pytest.importorskip("tensorflow")  # reads its data

from kvision import data as readers
from kvision import layers, weights
from kvision.network import Network
from tests.support import assert_close

SHAPE = (4, 4, 3)
LAYERS = {
    "mean": layers.MeanImage,
    "pca": functools.partial(layers.PCA, 10),
    "whitened": functools.partial(layers.PCA, 10, whiten=True),
    "zca": layers.ZCAWhitening,
}
WHITENING = functools.partial(layers.PCA, whiten=True)
every_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


@functools.cache
def images(count=200, offset=120.0):
    """Images [count, 4, 4, 3] of which neighbouring pixels are alike."""
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(count, 48)) @ (rng.normal(size=(48, 48)) + 5 * np.eye(48))
    return (offset + mixed.reshape(count, *SHAPE)).astype("float32")


def fitted(make, data=None):
    layer = make()
    layer.adapt(images() if data is None else data)
    return layer


def rows_of(outputs):
    outputs = keras.ops.convert_to_numpy(outputs).astype("float64")
    return outputs.reshape(len(outputs), -1)


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("components", [10, None])
def test_pca_is_that_of_scikit_learn(whiten, components):
    layer = fitted(functools.partial(layers.PCA, components, whiten=whiten))
    rows = rows_of(images())
    want = sklearn.decomposition.PCA(components, whiten=whiten, svd_solver="full").fit(rows)
    coefficients = want.transform(rows)
    signs = np.sign(np.sum(keras.ops.convert_to_numpy(layer.components) * want.components_, axis=1))
    assert_close(keras.ops.convert_to_numpy(layer.components) * signs[:, None], want.components_)
    found = keras.ops.convert_to_numpy(layer.components)
    assert (found.max(axis=1) > -found.min(axis=1)).all()
    assert_close(layer.explained_variance, want.explained_variance_)
    assert_close(layer.explained_variance_ratio, want.explained_variance_ratio_)
    outputs = layer(images())
    assert_close(rows_of(outputs) * signs, coefficients, tolerance=(1e-5, 1e-4))  # of numbers up to 100, float32
    assert_close(rows_of(layer.inverse(outputs)), want.inverse_transform(coefficients), tolerance=(1e-5, 1e-4))


@pytest.mark.parametrize("make", [WHITENING, lambda: layers.ZCAWhitening(epsilon=0)])
def test_the_covariance_after_whitening_is_the_identity(make):
    outputs = rows_of(fitted(make)(images()))
    np.testing.assert_allclose(np.cov(outputs, rowvar=False), np.eye(48), atol=1e-5)
    np.testing.assert_allclose(outputs.mean(axis=0), 0, atol=1e-4)


def test_zca_turns_back_and_a_pca_does_not():
    """The whitening that is nearest to the images (Kessy, Lewin and Strimmer 2018) correlates with each pixel."""
    rows = rows_of(images())
    correlations = [
        np.mean([np.corrcoef(rows[:, i], outputs[:, i])[0, 1] for i in range(48)])
        for outputs in (rows_of(fitted(make)(images())) for make in (LAYERS["zca"], layers.PCA))
    ]
    assert correlations[0] > 0.5 > abs(correlations[1])
    matrix = rows_of(fitted(LAYERS["zca"])(np.eye(48).reshape(48, *SHAPE))) - rows_of(
        fitted(LAYERS["zca"])(np.zeros((1, *SHAPE)))
    )
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-4)


def test_the_mean_image_is_subtracted():
    assert_close(fitted(layers.MeanImage)(images()), images() - images().mean(axis=0, dtype="float64"))


@pytest.mark.parametrize(
    "make", [layers.MeanImage, layers.PCA, functools.partial(layers.PCA, whiten=True), LAYERS["zca"]]
)
def test_the_inverse_gives_the_images_back(make):
    layer = fitted(make)
    assert_close(layer.inverse(layer(images())), images(), tolerance=(1e-5, 1e-3))


def test_more_components_are_nearer_to_the_image():
    errors = []
    for count in (1, 10, 30, 48):
        layer = fitted(functools.partial(layers.PCA, count))
        errors.append(np.square(rows_of(layer.inverse(layer(images()))) - rows_of(images())).sum())
        left_out = layer.total_variance - keras.ops.sum(layer.explained_variance)
        assert errors[-1] == pytest.approx(float(left_out) * 199, rel=1e-3, abs=1)  # the two float32 sums are of 1e6
    assert errors == sorted(errors, reverse=True)


# One pass over any data set.


def test_an_offset_costs_no_digits():
    data = images(offset=0.0).astype("float64")
    layer = fitted(layers.PCA, iter(np.array_split(data + 1e4, 7)))
    want = np.linalg.eigvalsh(np.cov(rows_of(data), rowvar=False))[::-1]
    np.testing.assert_allclose(layer.explained_variance, want, rtol=1e-6)


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("sizes", [1, 3, 200])
def test_order_and_size_of_the_batches_do_not_matter(monkeypatch, sizes, shuffled):
    monkeypatch.setattr("kvision.moments._CHUNK", sizes * 48)
    data = np.random.default_rng(1).permutation(images()) if shuffled else images()
    layer = fitted(layers.PCA, (data[start : start + sizes] for start in range(0, 200, sizes)))
    want = np.linalg.eigh(np.cov(rows_of(images()), rowvar=False))
    np.testing.assert_allclose(layer.explained_variance, want[0][::-1], rtol=1e-6)
    np.testing.assert_allclose(np.abs(layer.components), np.abs(want[1][:, ::-1].T), atol=1e-6)


def test_memory_is_bounded_by_covariance_and_chunk(monkeypatch):
    monkeypatch.setattr("kvision.moments._CHUNK", 2**14)
    rng = np.random.default_rng(0)
    layer = layers.PCA()
    layer.build((None, 64))
    tracemalloc.start()
    try:
        layer.adapt(rng.random((256, 64)) for _ in range(100))  # 13 MB
        assert tracemalloc.get_traced_memory()[1] < 2e6
    finally:
        tracemalloc.stop()


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return images()[50 * index : 50 * index + 50], np.zeros(50)


def forms():
    """The same images in every form of data set."""
    data = tf.data.Dataset.from_tensor_slices((images(), np.zeros(200)))
    return {
        "array": images(),
        "tensor": keras.ops.convert_to_tensor(images()),
        "PyDataset": Batches(),
        "generator": (images()[start : start + 64] for start in range(0, 200, 64)),
        "samples": list(images()),
        "dicts": [{"images": images(), "image_size": np.full((200, 2), 4)}],
        "targets": [(images(), {"labels": np.zeros(200)})],
        "tf.data": data,
        "tf.data in batches": data.batch(64),
    }


@pytest.mark.parametrize("form", forms())
def test_every_form_of_a_data_set_is_read(form):
    want, got = fitted(layers.PCA), fitted(layers.PCA, forms()[form])
    assert_close(got.explained_variance, want.explained_variance)
    assert_close(got.components, want.components)
    assert_close(got.mean, want.mean)


def test_a_reader_is_not_moved_on():
    train = readers.arrays(images(), np.arange(200), batch_size=50, shuffle=True, seed=3)
    assert_close(fitted(layers.PCA, train).components, fitted(layers.PCA).components)
    assert train.source.order.position == (0, 0)


def test_adapt_twice_starts_anew():
    layer = fitted(layers.PCA, 3 * images()[:50] + 7)
    layer.adapt(images())
    assert_close(layer(images()), fitted(layers.PCA)(images()))


@pytest.mark.parametrize("count, rank", [(20, 19), (200, 36)])
def test_fewer_samples_than_numbers_and_constant_pixels_give_zeros_beyond_the_rank(count, rank):
    few = images()[:count].copy()
    few[:, 0] = 17.3
    layer = fitted(WHITENING, few)
    rows = rows_of(few)
    want = sklearn.decomposition.PCA(rank).fit(rows)
    assert_close(layer.explained_variance[:rank], want.explained_variance_)
    outputs = rows_of(layer(few))
    np.testing.assert_allclose(np.cov(outputs, rowvar=False), np.diag([1.0] * rank + [0.0] * (48 - rank)), atol=1e-5)
    assert_close(layer.inverse(outputs), few, tolerance=(1e-5, 1e-3))
    zca = fitted(LAYERS["zca"], few)
    changed = few.copy()
    changed[:, 0] += 100.0  # where nothing varied, nothing is amplified
    np.testing.assert_allclose(zca(changed)[:, 0], 0, atol=1e-3)
    assert_close(zca(changed)[:, 1:], zca(few)[:, 1:], tolerance=(0, 1e-3))


def test_epsilon_holds_small_variances_down():
    layer = fitted(lambda: layers.ZCAWhitening(epsilon=1e9))
    assert np.abs(rows_of(layer(images()))).max() < 0.1
    exact, held = fitted(lambda: layers.PCA(whiten=True)), fitted(lambda: layers.PCA(whiten=True, epsilon=3.0))
    variance = keras.ops.convert_to_numpy(exact.explained_variance)
    assert_close(
        held(images()), rows_of(exact(images())) * np.sqrt(variance / (variance + 3.0)), tolerance=(1e-5, 1e-4)
    )


# In a model, in `tf.data`, on disk.


@every_layer
def test_it_is_saved_with_the_model_and_without(make, tmp_path):
    layer = fitted(make)
    want = layer(images())
    inputs = keras.Input(SHAPE)
    model = keras.Model(inputs, layer(inputs))
    assert model.output_shape == (None, *want.shape[1:])
    model.save(tmp_path / "graph.keras")
    assert_close(keras.saving.load_model(tmp_path / "graph.keras").predict(images(), verbose=0), want)

    inputs = keras.Input(want.shape[1:])
    network = Network(inputs, keras.layers.Flatten()(inputs))
    network.preprocessing = layer
    network.save(tmp_path / "carried.keras")
    loaded = keras.saving.load_model(tmp_path / "carried.keras")
    assert_close(loaded.preprocessing(images()), want)
    assert_close(loaded.predict(loaded.preprocessing(images()), verbose=0), rows_of(want))


def carrying(layer):
    inputs = keras.Input(SHAPE)
    network = Network(inputs, keras.layers.Dense(2, name="dense")(inputs))
    network.preprocessing = layer
    return network


@pytest.mark.parametrize("name", ["net.keras", "net.weights.h5"])
def test_what_a_network_carries_is_no_weight_of_it(tmp_path, name):
    network, other = carrying(fitted(layers.MeanImage)), carrying(fitted(layers.MeanImage, images()[:9]))
    (network.save if name == "net.keras" else network.save_weights)(tmp_path / name)
    assert len(network.weights) == len(network.get_weights()) == 2
    clone = keras.models.clone_model(network)
    clone.set_weights(network.get_weights())
    assert clone.preprocessing is network.preprocessing
    for target in (carrying(None), other):
        weights.load(target, tmp_path / name)
        assert_close(target(images()), network(images()))
    assert_close(other.preprocessing(images()), fitted(layers.MeanImage, images()[:9])(images()))
    model = keras.Sequential([keras.Input(SHAPE), network])
    model.save_weights(tmp_path / "outer.weights.h5")
    around = keras.Sequential([keras.Input(SHAPE), carrying(None)])
    weights.load(around, tmp_path / "outer.weights.h5")
    assert_close(around(images()), network(images()))


@every_layer
def test_a_pipeline_takes_it_on_every_backend(make):
    layer = fitted(make)
    data = tf.data.Dataset.from_tensor_slices(images().astype("uint8")).batch(64).map(layer)
    got = np.concatenate([batch.numpy() for batch in data])
    assert data.element_spec.dtype == tf.float32
    assert_close(got, layer(images().astype("uint8")), tolerance=(1e-5, 1e-4))
    layer.adapt(images()[:100])  # what the pipeline has are constants, which need no variable of another device
    np.testing.assert_array_equal(np.concatenate([batch.numpy() for batch in data]), got)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_it_computes_in_float32_under_16_bit_and_in_a_compiled_step(policy):
    want = [np.asarray(fitted(make)(images())) for make in LAYERS.values()]
    keras.mixed_precision.set_dtype_policy(policy)
    inputs = keras.Input(SHAPE)
    made = [fitted(make) for make in LAYERS.values()]
    outputs = [layer(inputs) for layer in made]
    model = keras.Model(inputs, [*outputs, keras.layers.Dense(1)(outputs[1])])
    for got, right in zip(model(images()), want, strict=False):
        assert keras.backend.standardize_dtype(got.dtype) == "float32"
        assert_close(got, right)
    trained = keras.Model(inputs, model.outputs[-1])
    trained.compile("sgd", "mse", jit_compile=True)
    before = [np.asarray(weight) for layer in made for weight in layer.weights]
    assert np.isfinite(trained.fit(images(), np.zeros((200, 1)), verbose=0).history["loss"][0])
    for weight, right in zip((weight for layer in made for weight in layer.weights), before, strict=True):
        assert_close(weight, right)


def test_weights_that_are_set_count():
    layer, other = fitted(layers.PCA), layers.PCA()
    inputs = keras.Input(SHAPE)
    model = keras.Model(inputs, other(inputs))
    model.predict(images()[:2], verbose=0)
    model.set_weights(layer.get_weights())
    assert_close(model.predict(images(), verbose=0), layer(images()), tolerance=(1e-5, 1e-4))
    assert_close(other(images()), layer(images()))


# Refusals.


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: fitted(layers.PCA, np.zeros((1, 3))), "at least 2 samples, got 1"),
        (lambda: fitted(layers.PCA, []), "the data set is empty"),
        (lambda: fitted(layers.PCA, [np.zeros((0, 3))]), "the data set is empty"),
        (lambda: fitted(layers.PCA, [np.zeros((2, 3)), np.zeros((2, 4))]), r"one shape, \(3,\), got \(4,\)"),
        (lambda: fitted(layers.PCA, [np.array([[1.0, np.nan]])]), "NaN or infinity"),
        (lambda: fitted(layers.PCA, [{"labels": 1}]), r"got \['labels'\]"),
        (lambda: fitted(layers.PCA, np.array([["a"]])), "of numbers, got shape"),
        (lambda: fitted(layers.PCA, np.zeros((2, 65, 64, 3))), "12,480 numbers, whose covariance takes 1.2 GB"),
        (lambda: fitted(lambda: layers.PCA(5), np.zeros((9, 4))), "num_components=5, but .* 4 numbers"),
        (lambda: layers.PCA(0), "num_components is a whole number from 1, or None; got 0"),
        (lambda: layers.PCA(epsilon=1e-5), "no effect without whiten=True"),
        (lambda: layers.ZCAWhitening(epsilon=-1), "at least 0; got -1"),
        (lambda: layers.MeanImage(dtype="float16"), "float32 under any policy: got dtype 'float16'"),
        (lambda: layers.MeanImage()(np.zeros((1, 3))), r"is not fitted: call `adapt\(data\)`"),
        (lambda: layers.MeanImage()(keras.Input((None, None, 3))), "of static size, got"),
        (lambda: fitted(layers.MeanImage)(np.zeros((1, 5, 5, 3))), "expected shape=.None, 4, 4, 3."),
    ],
)
def test_what_cannot_be_fitted_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_data_set_without_end_is_refused():
    with pytest.raises(ValueError, match="repeats without end"):
        fitted(layers.PCA, tf.data.Dataset.from_tensors(np.zeros((2, 3))).repeat())
