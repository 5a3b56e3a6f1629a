"""Small networks that the tests of attributions share, and twins of them in plain loops."""

import contextlib

import keras
import numpy as np
from keras import layers, ops

from kvision._keras import layers_of

SIZE = (8, 9, 3)


def images(count=3, size=SIZE, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *size)).astype("float32")


def linear(classes=4, size=SIZE):
    """A linear classifier, whose attributions are known in closed form."""
    model = keras.Sequential([keras.Input(size), layers.Flatten(), layers.Dense(classes, name="scores")])
    model.get_layer("scores").bias.assign(np.arange(classes))
    return model


def kernel(model):
    """The weights of `linear` as images: [classes, h, w, c]."""
    return ops.convert_to_numpy(model.get_layer("scores").kernel).T.reshape(-1, *model.input_shape[1:])


def pooled(size=SIZE):
    """Convolutions, a global average and a dense layer."""
    return keras.Sequential(
        [
            keras.Input(size),
            layers.Conv2D(12, 3, activation="relu", name="conv1"),
            layers.MaxPooling2D(2),
            layers.Conv2D(16, 2, activation="relu", name="conv2"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(4, name="scores"),
        ]
    )


class _Own(keras.Model):
    """The same network as a class of its own, whose graph is not known."""

    def __init__(self):
        super().__init__(name="own")
        self.conv1, self.conv2 = layers.Conv2D(12, 3), layers.Conv2D(16, 2)
        self.pool, self.relu, self.flatten = layers.MaxPooling2D(2), layers.ReLU(name="relu"), layers.Flatten()
        self.scores = layers.Dense(4)

    def call(self, x):
        x = self.pool(self.relu(self.conv1(x)))
        return self.scores(self.flatten(self.relu(self.conv2(x))))


def with_relus(form):
    """A network with two ReLUs, however they are written, and how its second one is named to a technique."""
    if form == "own class":
        model = _Own()
        model(np.zeros((1, *SIZE), "float32"))
        return _weighted(model), ("relu", 1)
    shared = layers.ReLU(name="shared")
    how = {
        "layer": (lambda x, n: layers.ReLU(name=f"relu{n}")(x), "relu2"),
        "activation": (None, "conv2"),
        "Activation": (lambda x, n: layers.Activation("relu", name=f"relu{n}")(x), "relu2"),
        "operation": (lambda x, n: ops.relu(x), None),
        "reused": (lambda x, n: shared(x), ("shared", 1)),
        "nested": (None, "inside/conv2"),
    }
    relu, name = how[form]

    def convolution(x, filters, side, number):
        conv = layers.Conv2D(filters, side, activation=None if relu else "relu", name=f"conv{number}")
        return relu(conv(x), number) if relu else conv(x)

    inputs = keras.Input(SIZE)
    second = convolution(layers.MaxPooling2D(2)(convolution(inputs, 12, 3, 1)), 16, 2, 2)
    features = layers.Flatten()(second)
    if form == "nested":
        features = keras.Model(inputs, features, name="inside")(inputs)
    model = keras.Model(inputs, layers.Dense(4, name="scores")(features))
    if form == "operation":
        name = second._keras_history.operation.name
    return _weighted(model), name


def _weighted(model):
    random = np.random.default_rng(1)
    model.set_weights([random.normal(0, 0.3, weight.shape) for weight in model.get_weights()])
    return model


def twin(images, weights, rule, target=None, unit=None):
    """Logits of `with_relus`, and what goes back to the pixels of one class or of a channel of its second ReLU."""
    kernel1, bias1, kernel2, bias2, dense, bias3 = weights
    logits, maps = [], []
    for image in images.astype("float64"):
        before1 = _convolve(image, kernel1) + bias1
        pooled1, switches = _pool(np.maximum(before1, 0))
        before2 = _convolve(pooled1, kernel2) + bias2
        active = np.maximum(before2, 0)
        logits.append(active.reshape(-1) @ dense + bias3)
        if unit is None:
            back = dense[:, target].reshape(active.shape)
        else:
            back = np.zeros_like(active)
            row, column = np.unravel_index(active[..., unit].argmax(), active.shape[:2])
            back[row, column, unit] = active[row, column, unit] if rule == "rectified" else 1
        back = _convolve_back(_through_relu(back, before2, rule), kernel2, pooled1.shape)
        unpooled = np.zeros_like(before1)
        for (i, j, channel), (row, column) in switches.items():
            unpooled[row, column, channel] += back[i, j, channel]
        maps.append(_convolve_back(_through_relu(unpooled, before1, rule), kernel1, image.shape))
    return np.array(logits), np.array(maps)


def _through_relu(back, before, rule):
    masks = {
        "gradient": before > 0,
        "guided": (before > 0) & (back > 0),
        "rectified": back > 0,
    }
    return np.where(masks[rule], back, 0)


def _convolve(x, kernel):
    height, width = kernel.shape[:2]
    rows, columns = x.shape[0] - height + 1, x.shape[1] - width + 1
    result = np.zeros((rows, columns, kernel.shape[3]))
    for i in range(rows):
        for j in range(columns):
            result[i, j] = (x[i : i + height, j : j + width, :, None] * kernel).sum(axis=(0, 1, 2))
    return result


def _convolve_back(back, kernel, shape):
    result = np.zeros(shape)
    for i in range(back.shape[0]):
        for j in range(back.shape[1]):
            result[i : i + kernel.shape[0], j : j + kernel.shape[1]] += (kernel * back[i, j]).sum(axis=3)
    return result


def _pool(x):
    rows, columns = x.shape[0] // 2, x.shape[1] // 2
    result, switches = np.zeros((rows, columns, x.shape[2])), {}
    for i in range(rows):
        for j in range(columns):
            for channel in range(x.shape[2]):
                window = x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2, channel]
                row, column = np.unravel_index(window.argmax(), (2, 2))
                switches[i, j, channel] = 2 * i + row, 2 * j + column
                result[i, j, channel] = window.max()
    return result, switches


@contextlib.contextmanager
def unchanged(model):
    """Fail if what is inside leaves a model other than it was: weights, `trainable`, attributes of layers, config."""
    before = _state(model)
    try:
        yield
    finally:
        after = _state(model)
        for one, two in zip(before[0], after[0], strict=True):
            np.testing.assert_array_equal(one, two)
        assert before[1:] == after[1:]


def _state(model):
    owners = {id(each): each for each in layers_of(model, include_self=True)}
    for layer in list(owners.values()):
        owners |= {id(each): each for each in getattr(layer, "operations", ())}
    attributes = {(key, name): id(value) for key, owner in owners.items() for name, value in vars(owner).items()}
    attributes = {key: value for key, value in attributes.items() if key[1] != "_called"}  # Keras notes the first call
    trainable = [(weight.path, weight.trainable) for weight in model.weights]
    return model.get_weights(), trainable, attributes, str(model.get_config())
