"""The patches that excite units most, against a search over all activations."""

import signal

import keras
import numpy as np
import pytest

from kvision.visualize import maximally_activating_patches, receptive_field

SIZE = (18, 15)


@pytest.fixture(scope="module")
def model():
    """A nested network of photos in 0…255, with names that hold dots."""
    keras.utils.set_random_seed(1)
    image = keras.Input((*SIZE, 3))
    x = keras.layers.Conv2D(16, 3, padding="same", activation="relu", name="conv.1")(image)
    x = keras.layers.MaxPooling2D(name="pool.1")(x)
    x = keras.layers.Conv2D(16, 3, strides=2, padding="same", activation="relu", name="conv.2")(x)
    backbone = keras.Model(image, x, name="backbone")
    inputs = keras.Input((*SIZE, 3))
    x = backbone(keras.layers.Rescaling(1 / 255)(inputs))
    x = keras.layers.GlobalAveragePooling2D(name="average")(x)
    return keras.Model(inputs, keras.layers.Dense(4, activation="softmax", name="top")(x), name="outer")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (21, *SIZE, 3), dtype="uint8")


@pytest.fixture(scope="module")
def activations(model, images):
    """[n, rows, columns, 16] of conv.2."""
    backbone = model.get_layer("backbone")
    values = backbone(images.astype("float32") / 255)
    return keras.ops.convert_to_numpy(values)


def search(activations, unit, k, distinct):
    """`[(value, image, row, column)]`, by loops."""
    found = []
    for image, values in enumerate(activations[..., unit]):
        places = [(float(values[r, c]), image, r, c) for r in range(values.shape[0]) for c in range(values.shape[1])]
        places.sort(key=lambda each: -each[0])
        found += places[:1] if distinct else places
    return sorted(found, key=lambda each: -each[0])[:k]


class Counting:
    """Batches that are made when they are asked for, once."""

    def __init__(self, images, size, labels=False):
        self.images, self.size, self.labels, self.read = images, size, labels, 0

    def __iter__(self):
        for start in range(0, len(self.images), self.size):
            self.read += 1
            batch = self.images[start : start + self.size]
            yield (batch, np.zeros(len(batch))) if self.labels else batch


@pytest.mark.parametrize("distinct", [True, False], ids=["one an image", "all positions"])
@pytest.mark.parametrize("labels", [False, True])
def test_they_are_those_of_a_search(model, images, activations, distinct, labels):
    data = Counting(images, 8, labels)
    found = maximally_activating_patches(model, data, "conv.2", units=[3, 0, 7], k=5, distinct_images=distinct)
    assert data.read == 3
    assert found.units.tolist() == [3, 0, 7]
    for row, unit in enumerate(found.units):
        want = search(activations, unit, 5, distinct)
        np.testing.assert_allclose(found.values[row], [value for value, *_ in want], rtol=1e-4, atol=1e-6)
        if want[-1][0] > 0:  # ties of inactive units are any
            places = [(i, *p) for i, p in zip(found.image_indices[row], found.positions[row].tolist(), strict=True)]
            assert places == [tuple(rest) for _, *rest in want]


def test_a_patch_is_the_receptive_field_with_the_mean_beyond_the_border(model, images):
    found = maximally_activating_patches(model, images, "backbone/conv.2", k=6, batch_size=8)
    field = receptive_field(model, "conv.2")
    height, width = found.patches.shape[2:4]
    assert (height, width) == field.size == (8, 8)
    assert found.patches.dtype == np.uint8
    cut = 0
    for index in np.ndindex(found.values.shape):
        left, top, right, bottom = found.boxes_xyxy[index]
        (box,) = field.boxes_xyxy(*found.positions[index][:, None])
        assert box.tolist() == [left, top, right, bottom]
        image = images[found.image_indices[index]]
        whole = np.full((height, width, 3), int(image.mean()), "uint8")
        y = height - (bottom - top) if top == 0 and bottom < SIZE[0] else 0
        x = width - (right - left) if left == 0 and right < SIZE[1] else 0
        whole[y : y + bottom - top, x : x + right - left] = image[top:bottom, left:right]
        np.testing.assert_array_equal(found.patches[index], whole)
        cut += (bottom - top, right - left) != (height, width)
    assert cut  # some were at the border


def test_planted_squares_are_found_where_they_are():
    """A detector of bright squares, and one of dark ones."""
    image = keras.Input((20, 20, 1))
    model = keras.Model(image, keras.layers.Conv2D(2, 5, name="squares")(image))
    kernel = np.stack([np.ones((5, 5, 1)), -np.ones((5, 5, 1))], axis=-1)
    model.set_weights([kernel, np.zeros(2)])
    images = np.zeros((4, 20, 20, 1), "float32")
    images[2, 3:8, 11:16] = 1
    images[1] = 0.5
    found = maximally_activating_patches(model, images, "squares", k=1)
    assert found.image_indices[0, 0] == 2
    assert found.boxes_xyxy[0, 0].tolist() == [11, 3, 16, 8]
    assert (found.patches[0, 0] == 1).all()
    assert found.values[0, 0] == 25


def test_units_without_positions_see_whole_images_and_logits_are_ranked(model, images):
    found = maximally_activating_patches(model, images, "top", k=30, batch_size=8)
    assert found.patches.shape == (4, 21, *SIZE, 3)  # as many as there are
    assert found.boxes_xyxy[0, 0].tolist() == [0, 0, SIZE[1], SIZE[0]]
    probabilities = model.predict(images.astype("float32"), 8, 0)
    assert not np.allclose(found.values.max(), probabilities.max())
    logits = np.empty((21, 4))
    for unit in range(4):
        logits[found.image_indices[unit], unit] = found.values[unit]
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(softmax, probabilities, atol=1e-5)


def test_images_before_preprocessing(model, images):
    raw = maximally_activating_patches(model, images / np.float32(2), "conv.2", k=3, preprocess=lambda x: x * 2)
    plain = maximally_activating_patches(model, images, "conv.2", k=3)
    np.testing.assert_allclose(raw.values, plain.values, rtol=1e-4, atol=1e-5)
    active = plain.values > 0
    np.testing.assert_allclose(raw.patches[active] * 2, plain.patches[active], atol=1.01)


def test_memory_is_that_of_the_patches(model, images):
    """Batches do not stay: each is forgotten once it has been read."""
    import weakref

    alive = []

    def batches():
        for _ in range(6):
            batch = np.array(images[:8])
            alive.append(weakref.ref(batch))
            yield batch
            del batch
            assert sum(ref() is not None for ref in alive[:-1]) <= 1

    maximally_activating_patches(model, batches(), "conv.2", units=[0], k=2)
    assert len(alive) == 6


def test_ctrl_c_gives_the_best_so_far(model, images):
    def batches():
        yield images[:8]
        signal.raise_signal(signal.SIGINT)
        yield images[8:16]
        yield images[16:]

    found = maximally_activating_patches(model, batches(), "conv.2", k=20)
    assert found.image_indices.max() == 15
    assert found.values.shape == (16, 16)


def test_a_data_set_of_tensorflow(model, images):
    tf = pytest.importorskip("tensorflow")
    arrays = maximally_activating_patches(model, images, "conv.2", units=4, k=4, batch_size=8)
    data = tf.data.Dataset.from_tensor_slices((images, np.zeros(21))).batch(8)
    found = maximally_activating_patches(model, data, "conv.2", units=4, k=4)
    np.testing.assert_array_equal(found.image_indices, arrays.image_indices)
    with pytest.raises(ValueError, match=r"got \[18, 15, 3\]. Of a data set of single images take .batch\(32\)"):
        maximally_activating_patches(model, data.unbatch(), "conv.2")
    with pytest.raises(ValueError, match="has no end"):
        maximally_activating_patches(model, data.repeat(), "conv.2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": "conv.3"}, "conv.2"),
        ({"units": [16]}, "from 0 to 15"),
        ({"units": [1, 1]}, "different channels"),
        ({"k": 0}, "k must be at least 1"),
        ({"data": np.zeros((2, 9, 9, 3))}, "takes images"),
        ({"data": []}, "no image"),
        ({"data": "photos"}, "got str"),
        ({"data": (np.zeros((2, *SIZE, 3)), np.zeros(3))}, "a label for each image"),
        ({"data": [{"images": 1}]}, "got dict"),
        (
            {"data": np.zeros((*SIZE, 3))},
            r"got \[18, 15, 3\]. Of a data set .* np.stack\(images\), one .* image\[None\]",
        ),
        ({"data": [np.zeros((*SIZE, 3))] * 5}, r"got \[18, 15, 3\]. Of a data set of single images take .batch\(32\)"),
        ({"data": [(np.zeros((*SIZE, 3)), 0)]}, r"batches of images \[b, h, w, c\]: got \[18, 15, 3\]"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"k": 2_000_000}, "GiB"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input(model, images, change, message):
    arguments = {"data": images[:2], "layer": "conv.2"} | change
    with pytest.raises(ValueError, match=message):
        maximally_activating_patches(model, **arguments)


def test_the_model_stays_as_it_was(model, images):
    before = [np.array(weight) for weight in model.get_weights()]
    attributes = {id(layer): set(vars(layer)) for layer in model._flatten_layers()}
    maximally_activating_patches(model, images, "conv.2", k=1)
    with pytest.raises(ValueError, match="from 0 to 15"):
        maximally_activating_patches(model, images, "conv.2", units=99)
    assert all(np.array_equal(one, other) for one, other in zip(before, model.get_weights(), strict=True))
    assert {id(layer): set(vars(layer)) for layer in model._flatten_layers()} == attributes
