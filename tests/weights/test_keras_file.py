"""Weight files of Keras: all fits, or nothing is changed."""

import keras
import numpy as np
import pytest

from kvision import weights
from kvision.applications import ResNet
from tests.weights.states import unchanged


@pytest.mark.parametrize("name", ["net.weights.h5", "net.keras"])
def test_keras_files_load_and_those_of_another_network_are_refused(model, tmp_path, name):
    same = ResNet("tiny", input_shape=(32, 32, 3), classes=3)
    other = ResNet("tiny", input_shape=(32, 32, 3), classes=3, width=16)
    for net, path in ((same, tmp_path / "same"), (other, tmp_path / "other")):
        path.mkdir()
        net.save(path / name) if name.endswith(".keras") else net.save_weights(path / name)
    with unchanged(model), pytest.raises(ValueError, match=r"nothing was changed(.|\n)*the file gives \(7, 7, 3, 16\)"):
        weights.load(model, tmp_path / "other" / name)
    weights.load(model, tmp_path / "same" / name)
    assert all(np.array_equal(a, b) for a, b in zip(same.get_weights(), model.get_weights(), strict=True))


def test_the_code_in_a_keras_file_is_not_run(tmp_path):
    """Only arrays are read: a Lambda beside them, whose name alone would need code, does no harm."""
    image = keras.Input((4,))
    code = keras.layers.Lambda(lambda x: x * 2, name="code")
    source = keras.Model(image, keras.layers.Dense(2, name="fc")(code(image)))
    source.save(tmp_path / "code.keras")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="fc")])
    weights.load(model, tmp_path / "code.keras")
    assert all(np.array_equal(a, b) for a, b in zip(source.get_weights(), model.get_weights(), strict=True))


def test_the_file_of_a_trained_model_loads_into_a_fresh_one(tmp_path):
    """Its optimizer, metrics and random states are left alone, here and there."""
    small, fresh = (
        keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5), keras.layers.Dense(2, "softmax", name="fc")])
        for _ in range(2)
    )
    small.compile(keras.optimizers.Adam(), "sparse_categorical_crossentropy", metrics=["accuracy"])
    small.fit(np.zeros((2, 4), "float32"), np.arange(2), verbose=0)
    small.save(tmp_path / "net.keras")
    for _ in range(2):
        weights.load(fresh, tmp_path / "net.keras")
        assert all(np.array_equal(a, b) for a, b in zip(small.get_weights()[:2], fresh.get_weights()[:2], strict=True))
        fresh.compile(keras.optimizers.SGD(momentum=0.9), "mse")
        fresh.optimizer.build(fresh.trainable_variables)


def test_a_layer_is_found_by_its_own_name_whatever_lies_around_it(tmp_path):
    class Block(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="block")
            self.inner = keras.layers.Dense(3, name="fc")

        def call(self, x):
            return self.inner(x)

    source = keras.Sequential([keras.Input((4,)), Block()])
    source.save_weights(tmp_path / "net.weights.h5")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="fc"), keras.layers.Dense(2, name="head")])
    weights.remember(model, top=("head",))
    weights.load(model, tmp_path / "net.weights.h5")
    assert all(np.array_equal(a, b) for a, b in zip(source.get_weights(), model.get_weights()[:2], strict=True))


def test_weights_of_16_bits(tmp_path):
    build = lambda: keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, dtype="bfloat16", name="fc")])  # noqa: E731
    source, model = build(), build()
    source.save_weights(tmp_path / "net.weights.h5")
    weights.load(model, tmp_path / "net.weights.h5")
    assert np.array_equal(*(np.asarray(m.layers[0].kernel, "float32") for m in (source, model)))


def test_a_layer_that_loads_in_its_own_way(tmp_path):
    normalize = keras.layers.Normalization(name="normalize")
    normalize.adapt(np.arange(12, dtype="float32").reshape(4, 3))
    source = keras.Sequential([keras.Input((3,)), normalize])
    source.save_weights(tmp_path / "net.weights.h5")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Normalization(name="normalize")])
    weights.load(model, tmp_path / "net.weights.h5")
    x = np.ones((1, 3), "float32")
    assert np.array_equal(source.predict(x, verbose=0), model.predict(x, verbose=0))


def broken(path, change):
    import h5py

    with h5py.File(path, "r+") as file:
        change(file)


def declared(file, **options):
    del file["layers/dense/vars/1"]
    file.create_dataset("layers/dense/vars/1", shape=(2**40,), dtype="float32", **options)


def outside(file):
    del file["layers/dense/vars/1"]
    file.create_dataset("layers/dense/vars/1", shape=(3,), dtype="float32", external=[("/etc/hostname", 0, 12)])


def linked(file):
    import h5py

    del file["layers/dense/vars/1"]
    file["layers/dense/vars/1"] = h5py.ExternalLink("other.h5", "secret")


def virtual(file):
    import h5py

    del file["layers/dense/vars/1"]
    layout = h5py.VirtualLayout((3,), "float32")
    layout[:] = h5py.VirtualSource("other.h5", "secret", (3,))
    file.create_virtual_dataset("layers/dense/vars/1", layout)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: declared(file), "declares 4,398,046,511,104 bytes"),
        (lambda file: declared(file, chunks=(1024,), compression="gzip"), "declares 4,398,046,511,104 bytes"),
        (outside, "declares 12 bytes"),
        (virtual, "declares 12 bytes"),
        (linked, "fc/bias: wants .* not there"),
    ],
    ids=["contiguous", "compressed", "another file", "virtual", "link"],
)
def test_an_array_that_is_not_in_the_file_is_refused(model, tmp_path, change, message):
    model.save_weights(tmp_path / "net.weights.h5")
    broken(tmp_path / "net.weights.h5", change)
    with unchanged(model), pytest.raises(ValueError, match=message):
        weights.load(model, tmp_path / "net.weights.h5")


def test_where_layers_lie_in_a_file(model, tmp_path):
    model.save_weights(tmp_path / "net.weights.h5")
    found = weights.saved_layers(tmp_path / "net.weights.h5")
    assert {"layers/conv2d", "layers/batch_normalization_3", "layers/dense"} <= set(found)
    assert weights.saved_layers(tmp_path / "missing.weights.h5") == weights.saved_layers("coco") == ()
