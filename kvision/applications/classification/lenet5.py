"""LeNet-5: LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document Recognition" (1998), II.

"1998" is the paper's network: trainable sub-sampling, the connection table of C3 (table I), the squashing function
1.7159 tanh(2x/3) of appendix A after every layer up to F6, and an output of squared distances to ten fixed codes of
7x12 pixels (figure 3). "modern" is the form taught today: dense C3, ReLU, max pooling, softmax.

How it trains (section III): patterns of 32x32 scaled to −0.1…1.175, batch 1, the criterion of equation 9 (`MAPLoss`).
"""

import math

import keras
import numpy as np
from keras import ops

from kvision.applications.building import build_network, finish, image_input, variant_row
from kvision.layers.conventions import conventions, kernel_initializer
from kvision.network import Preprocessing

# Table I: the maps of S2 that each map of C3 sees.
C3_TABLE = (
    *((i, (i + 1) % 6, (i + 2) % 6) for i in range(6)),
    *((i, (i + 1) % 6, (i + 2) % 6, (i + 3) % 6) for i in range(6)),
    *((i, (i + 1) % 6, (i + 3) % 6, (i + 4) % 6) for i in range(3)),
    (0, 1, 2, 3, 4, 5),
)

# Figure 3: the ASCII digits as bitmaps of 7x12; a hash is +1, a dot −1.
_BITMAPS = """
.#####. ...##.. .#####. ####### .#####. .#####. ..####. ####### .#####. .#####.
....... ..###.. ....... .....## ....... ....... .##.... .....## ##...## ##..###
..###.. .####.. .#####. ....##. ....... ####### ##..... .....## ##...## ##...##
.##.##. ...##.. ##...## ...##.. .##..## ##..... ##..... ....##. ##...## ##...##
##...## ...##.. #....## ..####. .##..## ##..... ######. ...##.. .#####. ##..###
##...## ...##.. ....##. .....## ###..## .####.. ###..## ...##.. ##...## .######
##...## ...##.. ..###.. .....## ##...## ..####. ##...## ..##... ##...## .....##
##...## ...##.. .##.... .....## ##...## .....## ##...## ..##... ##...## .....##
.##.##. ...##.. ##..... ##...## ##..### ##...## ###..## ..##... ##...## ....##.
..###.. .###### ####### .#####. .###### .#####. .#####. ..##... .#####. .####..
....... ....... ....... ....... .....## ....... ....... ....... ....... .......
....... ....... ....... ....... .....## ....... ....... ....... ....... .......
"""

VARIANTS = {
    "1998": {"activation": "squash", "initializer": "fan_in"},
    "modern": {"activation": "relu", "initializer": "he"},
}

PROOF = "a NumPy twin of the whole network, and the counts of the paper"


# Grey images of 0…255 (background 0): in the paper's range their mean is near 0 and their variance near 1.
preprocess_input = Preprocessing(value_range=(-0.1, 1.175))


def decode_predictions(predictions):
    """The most probable digit of each image, as a list of `(digit, score)`; takes the scores of ten classes."""
    predictions = ops.convert_to_numpy(predictions)
    if predictions.ndim != 2 or predictions.shape[1] != 10:
        raise ValueError(f"decode_predictions expects scores of ten digits, [images, 10]; got {predictions.shape}.")
    return [(int(row.argmax()), float(row.max())) for row in predictions]


def LeNet5(
    variant="1998",
    *,
    include_top=True,
    weights=None,
    input_shape=(32, 32, 1),
    classes=10,
    classifier_activation="softmax",
    norm=None,
    activation=None,
    initializer=None,
    bias_initializer="zero",
    features=None,
    name=None,
):
    """Build LeNet-5.

    Args:
        variant: `"1998"`, the paper's network, or `"modern"`.
        include_top: End with the classifier; otherwise the map of S4 is returned.
        weights: None, or the path of a weight file.
        input_shape: (height, width, channels); with the classifier 32x32 pixels, since C5 sees all of S4.
        classes: Number of classes; the fixed codes of "1998" are those of the ten digits, so it takes 10 only.
        classifier_activation: Of the output. "1998" gives `softmax` of minus the squared distances; None gives the
            distances themselves, as the paper does (the smallest wins).
        norm: After C1 and C3 of "modern": None, `"batch"`, `"sync_batch"`, `"group"` or `"frozen_batch"`.
        activation, initializer: Names, see `kvision.layers.conventions.conventions`; None takes the variant's.
        bias_initializer: A name, likewise.
        features: Names of the maps to return instead: `"C0"` (C1 of the paper), `"C1"` (C3), `"C2"` (S4).
        name: Of the model.

    Returns:
        A `keras.Model`: images [b, 32, 32, c], prepared by `preprocess_input`, → [b, classes] float32.

    Raises:
        ValueError: on an unknown variant or name, another size, or classes that "1998" has no codes for.

    >>> LeNet5("modern").count_params()
    61706
    """
    row = variant_row("LeNet5", VARIANTS, variant, activation=activation, initializer=initializer)
    name = name or f"lenet5_{variant}"
    images = image_input("LeNet5", input_shape, stride=16, classes=classes)
    if include_top and tuple(input_shape[:2]) != (32, 32):
        raise ValueError(
            f"LeNet5: C5 sees all of S4, so the input is 32x32 pixels; got {tuple(input_shape[:2])}. Pad MNIST's 28x28 "
            "by 2 on every side, or pass include_top=False."
        )
    if variant == "1998":
        x, levels = _paper(images, row, include_top, classes, classifier_activation, norm)
    else:
        x, levels = _modern(images, row, include_top, classes, classifier_activation, norm, bias_initializer)
    model = build_network(
        images,
        x,
        levels,
        include_top=include_top,
        features=features,
        name=name,
        preprocessing=preprocess_input,
    )
    return finish(model, weights, top=("C5", "F6", "output"))


def _paper(x, row, include_top, classes, classifier_activation, norm):
    if norm is not None:
        raise ValueError(
            f'LeNet5: "1998" has no normalisation, got norm={norm!r}. Take LeNet5("modern", norm={norm!r}).'
        )
    if classes != 10:
        raise ValueError(
            f'LeNet5: "1998" compares with the codes of the ten digits, got classes={classes}. Take "modern".'
        )
    initializer = FanInUniform() if row["initializer"] == "fan_in" else kernel_initializer(row["initializer"])
    bound = conventions(None, squash if row["activation"] == "squash" else row["activation"], initializer)

    levels = {}
    x = bound.conv(6, 5, padding="valid", name="C1")(x)
    x = levels["C0"] = bound.activation(name="C1.squash")(x)
    x = bound.activation(name="S2.squash")(Subsampling(name="S2")(x))
    x = TableConv2D(C3_TABLE, 5, kernel_initializer=initializer, name="C3")(x)
    x = levels["C1"] = bound.activation(name="C3.squash")(x)
    x = levels["C2"] = bound.activation(name="S4.squash")(Subsampling(name="S4")(x))
    if include_top:
        x = bound.activation(name="C5.squash")(bound.conv(120, 5, padding="valid", name="C5")(x))
        x = keras.layers.Flatten(name="flatten")(x)
        x = bound.activation(name="F6.squash")(bound.dense(84, name="F6")(x))
        x = DistanceToCodes(classifier_activation, dtype="float32", name="output")(x)
    return x, levels


def _modern(x, row, include_top, classes, classifier_activation, norm, bias_initializer):
    bound = conventions(norm, row["activation"], row["initializer"], bias_initializer)
    levels = {}
    x = bound.conv(6, 5, padding="valid", name="C1")(x)
    x = levels["C0"] = bound.activation(name="C1.act")(bound.norm(name="C1.norm")(x))
    x = keras.layers.MaxPooling2D(2, name="S2")(x)
    x = bound.conv(16, 5, padding="valid", name="C3")(x)
    x = levels["C1"] = bound.activation(name="C3.act")(bound.norm(name="C3.norm")(x))
    x = levels["C2"] = keras.layers.MaxPooling2D(2, name="S4")(x)
    if include_top:
        x = bound.conv(120, 5, padding="valid", use_bias=True, name="C5")(x)
        x = keras.layers.Flatten(name="flatten")(bound.activation(name="C5.act")(x))
        x = bound.activation(name="F6.act")(bound.dense(84, name="F6")(x))
        x = bound.dense(classes, activation=classifier_activation, dtype="float32", name="output")(x)
    return x, levels


@keras.saving.register_keras_serializable("kvision")
def squash(x):
    """Appendix A: 1.7159 tanh(2x/3), so that squash(±1) = ±1 and the curvature is largest there."""
    return 1.7159 * ops.tanh(x * (2.0 / 3.0))


@keras.saving.register_keras_serializable("kvision")
class FanInUniform(keras.initializers.Initializer):
    """Appendix A: uniform in ±2.4 / fan-in."""

    def __init__(self, seed=None):
        self.seed = seed

    def __call__(self, shape, dtype=None):
        limit = 2.4 / math.prod(shape[:-1])
        return keras.initializers.RandomUniform(-limit, limit, seed=self.seed)(shape, dtype)

    def get_config(self):
        return {"seed": self.seed}


@keras.saving.register_keras_serializable("kvision")
class Subsampling(keras.layers.Layer):
    """S2 and S4: the sum over each 2x2 window, times a trainable coefficient, plus a trainable bias, per map.

    Shapes: [b, h, w, c] → [b, h // 2, w // 2, c].
    """

    def build(self, input_shape):
        channels = (input_shape[-1],)
        self.coefficient = self.add_weight(
            shape=channels, initializer=keras.initializers.Constant(0.25), name="coefficient"
        )
        self.bias = self.add_weight(shape=channels, initializer="zeros", name="bias")

    def call(self, inputs):
        return 4 * ops.average_pool(inputs, 2) * self.coefficient + self.bias


@keras.saving.register_keras_serializable("kvision")
class TableConv2D(keras.layers.Layer):
    """A convolution without padding in which each output map sees only the input maps that a table lists.

    Args:
        table: For each output map, the indices of its input maps.
        kernel_size: Rows and columns of the window.
        kernel_initializer: Of each map's kernel.

    Only the connections of the table are weights: Σ |row| · kernel_size² of them, and one bias per map.
    Shapes: [b, h, w, c] → [b, h − kernel_size + 1, w − kernel_size + 1, len(table)].
    """

    def __init__(self, table, kernel_size, kernel_initializer="glorot_uniform", **options):
        super().__init__(**options)
        self.table = tuple(tuple(maps) for maps in table)
        self.kernel_size = kernel_size
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        size = self.kernel_size
        kernels = [
            ops.reshape(self.kernel_initializer.clone()((size, size, len(maps), 1)), (size, size, len(maps)))
            for maps in self.table  # a clone each: one initializer would give maps of equal fan-in equal kernels
        ]
        self.kernel = self.add_weight(
            shape=(size, size, sum(map(len, self.table))),
            initializer=lambda shape, dtype: ops.cast(ops.concatenate(kernels, axis=-1), dtype),
            name="kernel",
        )
        self.bias = self.add_weight(shape=(len(self.table),), initializer="zeros", name="bias")
        self._connections = np.zeros((sum(map(len, self.table)), input_shape[-1] * len(self.table)), "float32")
        row = 0
        for output, maps in enumerate(self.table):
            for channel in maps:
                self._connections[row, channel * len(self.table) + output] = 1.0
                row += 1

    def call(self, inputs):
        size, outputs = self.kernel_size, len(self.table)
        connections = ops.cast(self._connections, self.compute_dtype)
        dense = ops.reshape(ops.matmul(self.kernel, connections), (size, size, inputs.shape[-1], outputs))
        return ops.conv(inputs, dense, padding="valid") + self.bias

    def compute_output_shape(self, input_shape):
        rows, columns = (n - self.kernel_size + 1 for n in input_shape[1:3])
        return (input_shape[0], rows, columns, len(self.table))

    def get_config(self):
        return super().get_config() | {
            "table": self.table,
            "kernel_size": self.kernel_size,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


@keras.saving.register_keras_serializable("kvision")
class DistanceToCodes(keras.layers.Layer):
    """Equation 7: yᵢ = Σⱼ (xⱼ − wᵢⱼ)² to the ten fixed codes of ±1; with an activation, that of −y.

    Args:
        activation: Name of the function applied to −y (`"softmax"`), or None for the distances themselves.

    Shapes: [b, 84] → [b, 10].
    """

    def __init__(self, activation=None, **options):
        super().__init__(**options)
        self.activation = activation and keras.activations.get(activation)

    def call(self, inputs):
        distances = ops.sum(ops.square(ops.expand_dims(inputs, 1) - digit_codes()), axis=-1)
        return self.activation(-distances) if self.activation else distances

    def get_config(self):
        return super().get_config() | {"activation": self.activation and keras.activations.serialize(self.activation)}


def digit_codes():
    """The ten codes of figure 3: float32 [10, 84] of ±1, row by row of the 7x12 bitmaps."""
    columns = zip(*(line.split() for line in _BITMAPS.strip().split("\n")), strict=True)
    return np.array([[1.0 if pixel == "#" else -1.0 for pixel in "".join(rows)] for rows in columns], "float32")


@keras.saving.register_keras_serializable("kvision")
class MAPLoss(keras.losses.Loss):
    """Equation 9: the distance of the right class, plus log(e^−j + Σ e^−yᵢ), which pushes the wrong ones away.

    Args:
        margin: The paper's positive constant j: distances beyond it no longer count.

    `y_true`: class indices [b]; `y_pred`: distances [b, classes], from `LeNet5(classifier_activation=None)`.
    """

    def __init__(self, margin=1.0, name="map_loss", **options):
        super().__init__(name=name, **options)
        self.margin = margin

    def call(self, y_true, y_pred):
        y_pred = ops.cast(y_pred, "float32")
        right = ops.sum(ops.one_hot(ops.cast(y_true, "int32"), y_pred.shape[-1], dtype="float32") * y_pred, axis=-1)
        rubbish = ops.full_like(y_pred[:, :1], self.margin)
        return right + ops.logsumexp(-ops.concatenate([y_pred, rubbish], axis=-1), axis=-1)

    def get_config(self):
        return super().get_config() | {"margin": self.margin}
