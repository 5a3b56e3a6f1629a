"""A classifier of windows, and the dense network that equals it on every pixel."""

import keras
import numpy as np
import pytest
from keras import layers

from kvision import applications as A
from kvision import layers as ours
from kvision.applications.segmentation.patch_classifier import windows
from tests.support import assert_close

WINDOW, IMAGE = (15, 12), (20, 17)


def chain(*parts, shape=(*WINDOW, 2)):
    """A sequential model with weights and statistics that are not those of the beginning."""
    model = keras.Sequential([keras.Input(shape), *parts])
    rng = np.random.default_rng(0)
    for layer in model.layers:
        layer.set_weights(
            [
                rng.uniform(0.5, 1.5, w.shape)
                if w.ndim == 1
                else rng.normal(scale=w[..., 0].size ** -0.5, size=w.shape)
                for w in layer.get_weights()
            ]
        )
    return model


def head(classes=3):
    return [layers.Flatten(), layers.Dense(16, "tanh"), layers.Dense(classes, "softmax")]


MODELS = {
    "builder": lambda: A.PatchClassifier("tiny", input_shape=(*WINDOW, 2), classes=3),
    "batch norm": lambda: A.PatchClassifier("tiny", input_shape=(*WINDOW, 2), classes=3, norm="batch"),
    "two poolings": lambda: chain(
        layers.Conv2D(4, 3),
        layers.MaxPooling2D(),
        layers.ReLU(),
        layers.Conv2D(6, (2, 3)),
        layers.MaxPooling2D(),
        *head(),
    ),
    "strides": lambda: chain(
        layers.Conv2D(4, 4, strides=(2, 1)), layers.Conv2D(5, 3, strides=2, activation="elu"), *head()
    ),
    "overlapping pooling": lambda: chain(layers.MaxPooling2D(3, strides=2), layers.Conv2D(4, 2), *head()),
    "average pooling": lambda: chain(layers.AveragePooling2D((2, 3)), layers.Conv2D(4, 2), *head()),
    "dilated": lambda: chain(layers.MaxPooling2D(), ours.Conv2D(4, 3, dilation_rate=2, padding=0), *head()),
    "groups": lambda: chain(ours.Conv2D(4, 3, groups=2), layers.MaxPooling2D(), layers.DepthwiseConv2D(2), *head()),
    "1x1 with padding": lambda: chain(
        layers.MaxPooling2D(), layers.Conv2D(4, 1, padding="same"), layers.BatchNormalization(), ours.PReLU(), *head()
    ),
    "global average": lambda: chain(
        layers.Conv2D(4, 3),
        layers.MaxPooling2D(),
        layers.Conv2D(3, 3),
        layers.GlobalAveragePooling2D(),
        layers.Softmax(),
    ),
    "global maximum": lambda: chain(
        layers.MaxPooling2D(), layers.Conv2D(4, 3), layers.GlobalMaxPooling2D(), layers.Dense(3)
    ),
    "a convolution to the end": lambda: chain(
        layers.MaxPooling2D(), layers.Conv2D(3, (7, 6)), layers.Flatten(), layers.Softmax(axis=1)
    ),
    "dropout between": lambda: chain(
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dropout(0.5),
        layers.Dense(4),
        layers.LeakyReLU(),
        layers.Dense(3),
    ),
}


def images_of(channels=2, count=2):
    return np.random.default_rng(1).normal(size=(count, *IMAGE, channels)).astype("float32")


def cut_by_loops(images):
    """Every pixel's window, cut one by one out of an image with zeros around it."""
    (height, width), cut = WINDOW, []
    around = np.zeros((len(images), 3 * IMAGE[0], 3 * IMAGE[1], images.shape[-1]), images.dtype)
    around[:, IMAGE[0] : 2 * IMAGE[0], IMAGE[1] : 2 * IMAGE[1]] = images
    for image in around:
        for row in range(IMAGE[0], 2 * IMAGE[0]):
            for column in range(IMAGE[1], 2 * IMAGE[1]):
                top, left = row - height // 2, column - width // 2
                cut.append(image[top : top + height, left : left + width])
    return np.stack(cut)


@pytest.mark.parametrize("name", MODELS)
def test_every_pixel_has_the_scores_of_its_window(name):
    """Also with the windows that torch or scikit-learn cut: `test_patch_classifier_parity.py`."""
    model, images = MODELS[name](), images_of()
    want = keras.ops.convert_to_numpy(model(cut_by_loops(images)))
    want = want.reshape(len(images), *IMAGE, want.shape[-1])
    got = A.dense(model, IMAGE)(images)
    assert np.ptp(want, axis=(0, 1, 2)).min() > 1e-3
    assert_close(got, want)


def test_a_sequential_model_that_grew_layer_by_layer():
    model = keras.Sequential([keras.Input((*WINDOW, 2))])
    for layer in (layers.Conv2D(4, 3), layers.MaxPooling2D(), layers.GlobalMaxPooling2D(), layers.Dense(3)):
        model.add(layer)
    images = images_of()
    want = keras.ops.convert_to_numpy(model(cut_by_loops(images)))
    assert_close(A.dense(model, IMAGE)(images), want.reshape(2, *IMAGE, 3))


@pytest.mark.parametrize("name", ["builder", "strides"])
def test_without_padding_the_inner_pixels_alone(name):
    model, images = MODELS[name](), images_of()
    whole, inner = (
        keras.ops.convert_to_numpy(A.dense(model, IMAGE, padding=kind)(images)) for kind in ("zero", "valid")
    )
    assert inner.shape[1:3] == (IMAGE[0] - WINDOW[0] + 1, IMAGE[1] - WINDOW[1] + 1)
    top, left = WINDOW[0] // 2, WINDOW[1] // 2
    assert_close(inner, whole[:, top:, left:][:, : inner.shape[1], : inner.shape[2]])


def test_windows_are_those_of_a_loop():
    images = images_of()
    pixels = np.argwhere(np.ones(images.shape[:3]))
    assert np.array_equal(windows(images, pixels, WINDOW), cut_by_loops(images))


def test_weights_from_a_path(tmp_path, capsys):
    model = MODELS["batch norm"]()
    model.save_weights(tmp_path / "patch.weights.h5")
    options = {"input_shape": (*WINDOW, 2), "norm": "batch", "weights": tmp_path / "patch.weights.h5"}
    same, other = (A.PatchClassifier("tiny", classes=classes, **options) for classes in (3, 5))
    assert all(map(np.array_equal, same.get_weights(), model.get_weights()))
    assert np.array_equal(other.get_layer("fc1").kernel, model.get_layer("fc1").kernel)
    assert "fc2 starts fresh: the file has another number of classes" in capsys.readouterr().out


def test_the_weights_are_copied():
    model = MODELS["builder"]()
    dense = A.dense(model, IMAGE)
    before = keras.ops.convert_to_numpy(dense(images_of()))
    model.set_weights([np.zeros_like(w) for w in model.get_weights()])
    assert np.array_equal(dense(images_of()), before)
    assert sum(w.size for w in dense.get_weights()) == sum(w.size for w in model.get_weights())


def test_a_classifier_tells_its_names_and_preprocessing():
    model = A.PatchClassifier("tiny", input_shape=(14, 14, 3), classes=3)
    model.class_names = ("a", "b", "c")
    dense = A.dense(model, (20, 20))
    assert dense.class_names == ("a", "b", "c")
    assert dense.preprocessing is model.preprocessing is not None


def test_sixteen_bits_keep_their_policy():
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    dense = A.dense(MODELS["builder"](), IMAGE)
    assert dense.get_layer("conv1").compute_dtype == dense.get_layer("fc1").compute_dtype == "bfloat16"
    assert dense.output.dtype == "float32"


def branches():
    x = keras.Input((*WINDOW, 2))
    y = layers.Conv2D(4, 3, name="left")(x)
    return keras.Model(x, layers.Flatten()(layers.Add(name="join")([y, layers.Conv2D(4, 3, name="right")(x)])))


def twice():
    x, conv = keras.Input((*WINDOW, 2)), layers.Conv2D(2, 3, name="again")
    return keras.Model(x, layers.GlobalMaxPooling2D()(conv(conv(x))))


REFUSED = {
    "branches": (branches, "join .Add. has 2 inputs"),
    "a layer twice": (twice, "again .Conv2D. .* comes twice"),
    "padding": (lambda: chain(layers.Conv2D(4, 3, padding="same", name="c1"), *head()), "c1 pads"),
    "padding by pixels": (lambda: chain(ours.Conv2D(4, 3, strides=2, padding=1, name="c1"), *head()), "c1 pads"),
    "ceil": (lambda: chain(ours.MaxPooling2D(2, padding="ceil", name="p1"), *head()), "p1 pads"),
    "group norm": (
        lambda: chain(layers.Conv2D(4, 3), layers.GroupNormalization(2, name="gn"), *head()),
        "gn .GroupNormalization. cannot be done for all pixels at once",
    ),
    "a norm of rows": (lambda: chain(layers.BatchNormalization(axis=1, name="bn"), *head()), "bn .BatchNormalization."),
    "a norm of the flattened": (
        lambda: chain(layers.Flatten(), layers.BatchNormalization(name="bn"), layers.Dense(3)),
        "bn .BatchNormalization.",
    ),
    "softmax of the flattened": (
        lambda: chain(layers.Flatten(), layers.Activation("softmax", name="soft"), layers.Dense(3)),
        "soft .Activation.",
    ),
    "reshape": (lambda: chain(layers.Reshape((5, 3, 24), name="r"), *head()), "r .Reshape."),
    "flat at the end": (lambda: chain(layers.MaxPooling2D(), layers.Flatten()), "gives .84,. for a window"),
    "a map at the end": (lambda: chain(layers.MaxPooling2D()), "gives .7, 6, 2. for a window"),
    "sizes unknown": (lambda: chain(layers.GlobalMaxPooling2D(), shape=(None, None, 2)), "of a static size"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_models_are_refused_by_the_name_of_the_layer(name):
    build, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        A.dense(build(), IMAGE)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            lambda: A.dense(MODELS["builder"](), (14, 30), padding="valid"),
            r"images of \(14, 30\) have no window of \(15, 12\)",
        ),
        (lambda: A.dense(MODELS["builder"](), IMAGE, padding="same"), "Unknown padding of dense: got 'same'"),
        (lambda: A.PatchClassifier(input_shape=(94, 62, 3)), "height and width must be at least 63"),
        (lambda: A.PatchClassifier(norm="group"), "got norm=.group., whose mean is that of one window"),
        (lambda: A.PatchClassifier(widths=(8,)), "got 1 widths and 4 kernel_sizes"),
        (lambda: windows(np.zeros((1, 5, 5, 1)), [(0, 5, 0)], 3), r"pixel \(0, 5, 0\) lies outside"),
        (lambda: windows(np.zeros((5, 5, 1)), [(0, 0, 0)], 3), "expected images .b, h, w, c."),
    ],
)
def test_errors_say_what_to_do(act, message):
    with pytest.raises(ValueError, match=message):
        act()


def test_the_smallest_window_leaves_one_cell():
    with keras.StatelessScope(initialize_variables=False):
        model = A.PatchClassifier(input_shape=(63, 95, 3))
    assert model.get_layer("pool4").output.shape[1:3] == (1, 3)
