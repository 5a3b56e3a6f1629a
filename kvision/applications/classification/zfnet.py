"""ZFNet: Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks" (2013), figure 3.

AlexNet with 7x7 windows at stride 2 in the first layer, stride 2 in the second, and no groups. ReLU, then pooling,
then "contrast normalization across feature maps", for which the paper gives no constants: Krizhevsky's are used. Its
110, 55, 26, 13 and 6 pixels a side follow from a padding of 1 in conv1 and poolings whose last window reaches over the
edge. With `norm`, that replaces the contrast normalisation and follows every convolution. No reference implementation
is its equal.

How it trains (section 3.1): SGD with momentum 0.9, batch 128, rate 0.01 divided by 10 by hand, dropout 0.5, kernels
from deviation 0.01, biases 0; filters whose root mean square exceeds 0.1 are scaled back to it (`filter_radius`).
"""

import keras
from keras import ops

from kvision.applications.building import build_network, finish, image_input, variant_row
from kvision.applications.classification import imagenet
from kvision.layers import AdaptiveAveragePooling2D, LocalResponseNormalization, MaxPooling2D
from kvision.layers.conventions import conventions

# Figure 3.
VARIANTS = {
    "2013": {"widths": (96, 256, 384, 384, 256), "units": 4096},
    "tiny": {"widths": (8, 8, 8, 8, 8), "units": 16},
}

PROOF = "a NumPy twin of the network and the layer table"

preprocess_input = imagenet.preprocess_input
decode_predictions = imagenet.decode_predictions


def ZFNet(
    variant="2013",
    *,
    include_top=True,
    weights=None,
    input_shape=(224, 224, 3),
    classes=1000,
    classifier_activation="softmax",
    norm=None,
    activation="relu",
    initializer="normal_0.01",
    bias_initializer="zero",
    dropout_rate=0.5,
    filter_radius=0.1,
    features=None,
    widths=None,
    units=None,
    name=None,
):
    """Build ZFNet: 62,357,608 parameters.

    Args:
        variant: A row of `VARIANTS`: `"2013"`.
        include_top: End with the three dense layers; otherwise the map after the last pooling is returned.
        weights: None, or the path of a weight file.
        input_shape: (height, width, channels), at least 47 pixels.
        classes: Number of classes.
        classifier_activation: Of the last layer; None gives logits.
        norm: None, the paper's contrast normalisation, or `"batch"`, `"sync_batch"`, `"group"`, `"frozen_batch"`.
        activation, initializer, bias_initializer: Names, see `kvision.layers.conventions.conventions`.
        dropout_rate: Of the two hidden dense layers, in [0, 1).
        filter_radius: Largest root mean square of a convolution's filter, kept after every step; None lets them grow.
        features: Names of the maps to return instead: `"C1"` (conv1), `"C2"` (pool1, before the contrast
            normalisation), `"C3"` (conv2), `"C4"` (conv5), `"C5"` (pool5).
        widths, units: Channels of the convolutions, width of the dense layers; None takes the row's.
        name: Of the model.

    Returns:
        A `keras.Model`: images [b, h, w, c], prepared by `preprocess_input`, → [b, classes] float32. Maps of another
        size than 6x6 are averaged to 6x6 before the dense layers.

    Raises:
        ValueError: on an unknown variant or name, a wrong shape, or fewer than one class.

    >>> ZFNet("tiny", include_top=False).output_shape
    (None, 6, 6, 8)
    """
    row = variant_row("ZFNet", VARIANTS, variant, widths=widths, units=units)
    images = image_input("ZFNet", input_shape, stride=32, smallest=47, classes=classes)
    bound = conventions(norm, activation, initializer, bias_initializer)
    constraint = filter_radius and FilterRadius(filter_radius)

    def convolve(x, index, kernel_size, **options):
        width = row["widths"][index - 1]
        x = bound.conv(width, kernel_size, kernel_constraint=constraint, name=f"conv{index}", **options)(x)
        return bound.activation(name=f"relu{index}")(bound.norm(name=f"bn{index}")(x))

    def pool(x, index):
        return MaxPooling2D(3, strides=2, padding="ceil", name=f"pool{index}")(x)

    def normalize_contrast(x, index):
        return LocalResponseNormalization(name=f"norm{index}")(x) if norm is None else x

    levels = {}
    x = levels["C1"] = convolve(images, 1, 7, strides=2, padding=1)
    x = levels["C2"] = pool(x, 1)
    x = levels["C3"] = convolve(normalize_contrast(x, 1), 2, 5, strides=2, padding=0)
    x = normalize_contrast(pool(x, 2), 2)
    for index in (3, 4, 5):
        x = levels["C4"] = convolve(x, index, 3)
    x = levels["C5"] = pool(x, 5)

    if include_top:
        if x.shape[1:3] != (6, 6):
            x = AdaptiveAveragePooling2D((6, 6), name="avgpool")(x)
        x = keras.layers.Flatten(name="flatten")(x)
        for index in (6, 7):
            x = bound.activation(name=f"relu{index}")(bound.dense(row["units"], name=f"fc{index}")(x))
            x = keras.layers.Dropout(dropout_rate, name=f"drop{index}")(x)
        x = bound.dense(classes, activation=classifier_activation, dtype="float32", name="fc8")(x)
    model = build_network(
        images,
        x,
        levels,
        include_top=include_top,
        features=features,
        name=name or f"zfnet_{variant}",
        preprocessing=preprocess_input,
    )
    return finish(model, weights, top=("fc6", "fc7", "fc8"))


@keras.saving.register_keras_serializable("kvision")
class FilterRadius(keras.constraints.Constraint):
    """Scale filters whose root mean square exceeds `radius` back to it (section 3.1).

    Args:
        radius: Largest root mean square of one output channel's weights, > 0.
    """

    def __init__(self, radius):
        self.radius = radius

    def __call__(self, kernel):
        axes = tuple(range(len(kernel.shape) - 1))
        size = ops.sqrt(ops.mean(ops.square(kernel), axis=axes, keepdims=True))
        return kernel * (self.radius / ops.maximum(size, self.radius))

    def get_config(self):
        return {"radius": self.radius}
