"""SqueezeNet: Iandola, Han, Moskewicz, Ashraf, Dally, Keutzer, "SqueezeNet: AlexNet-level accuracy with 50x fewer
parameters and <0.5MB model size" (2016).

"1.0" is table 1 of the paper; "1.1" its authors' later form, with the poolings two fire modules earlier and a 3x3 stem,
at 2.4 times fewer multiplications. Both equal torchvision's `squeezenet1_0` and `squeezenet1_1`: no padding in conv1,
poolings whose last window may reach over the edge, ReLU after the class maps. With `norm`, that follows every
convolution but the last.

How it trains (the authors' solver file): SGD with momentum 0.9, batch 512, rate 0.04 falling linearly over 170,000
iterations, weight decay 2e-4.
"""

import itertools

import keras

from kvision.applications.building import build_network, finish, image_input, variant_row
from kvision.applications.classification import imagenet
from kvision.layers import MaxPooling2D
from kvision.layers.conventions import conventions

# Table 1. Each stage ends with a pooling, the last with the classifier; a fire module is (squeeze, expand 1x1 = 3x3).
_LATE = ((48, 192), (48, 192), (64, 256))
VARIANTS = {
    "1.0": {
        "stem": (96, 7),
        "stages": (((16, 64), (16, 64), (32, 128)), ((32, 128), *_LATE), ((64, 256),)),
        "smallest": 21,
    },
    "1.1": {
        "stem": (64, 3),
        "stages": (((16, 64), (16, 64)), ((32, 128), (32, 128)), (*_LATE, (64, 256))),
        "smallest": 17,
    },
    "tiny": {"stem": (8, 3), "stages": (((4, 8),), ((4, 8),), ((4, 8),)), "smallest": 17},
}

WEIGHTS = {
    "1.0": {"imagenet": imagenet.torchvision_weights("squeezenet1_0-b66bff10.pth", 58.092)},
    "1.1": {"imagenet": imagenet.torchvision_weights("squeezenet1_1-b8a52dc0.pth", 58.178)},
}

PROOF = "torchvision squeezenet1_0 and squeezenet1_1, fed the same weights"

preprocess_input = imagenet.preprocess_input
decode_predictions = imagenet.decode_predictions


def SqueezeNet(
    variant="1.1",
    *,
    include_top=True,
    weights=None,
    input_shape=(224, 224, 3),
    classes=1000,
    classifier_activation="softmax",
    norm=None,
    activation="relu",
    initializer="he",
    bias_initializer="zero",
    dropout_rate=0.5,
    features=None,
    name=None,
):
    """Build SqueezeNet: 1,248,424 parameters ("1.0"), 1,235,496 ("1.1").

    Args:
        variant: A row of `VARIANTS`: `"1.0"` or `"1.1"`.
        include_top: End with the class maps and their means; otherwise the last fire module's map is returned.
        weights: None, `"imagenet"` (without `norm`, see `WEIGHTS`; torchvision's files, which need torch), or the path
            of a weight file.
        input_shape: (height, width, channels), at least 21 pixels ("1.1": 17).
        classes: Number of classes.
        classifier_activation: Of the mean class maps; None gives logits, which are not negative.
        norm: None, `"batch"`, `"sync_batch"`, `"group"` or `"frozen_batch"`.
        activation, initializer, bias_initializer: Names, see `kvision.layers.conventions.conventions`.
        dropout_rate: Before the class maps, in [0, 1).
        features: Names of the maps to return instead: `"C1"` (the stem's) to `"C4"`, before the convolution of the
            class maps.
        name: Of the model.

    Returns:
        A `keras.Model`: images [b, h, w, c], prepared by `preprocess_input`, → [b, classes] float32.

    Raises:
        ValueError: on an unknown variant or name, a wrong shape, or fewer than one class.

    >>> SqueezeNet("1.1", classes=10).output_shape
    (None, 10)
    """
    row = variant_row("SqueezeNet", VARIANTS, variant)
    images = image_input("SqueezeNet", input_shape, stride=16, smallest=row["smallest"], classes=classes)
    bound = conventions(norm, activation, initializer, bias_initializer)

    def convolve(x, filters, kernel_size, name, relu, **options):
        x = bound.conv(filters, kernel_size, name=name, **options)(x)
        return bound.activation(name=relu)(bound.norm(name=f"{name}.bn")(x))

    def fire(x, squeeze, expand, name):
        x = convolve(x, squeeze, 1, f"{name}.squeeze", f"{name}.squeeze_activation")
        maps = [
            convolve(x, expand, size, f"{name}.expand{size}x{size}", f"{name}.expand{size}x{size}_activation")
            for size in (1, 3)
        ]
        return keras.layers.Concatenate(name=f"{name}.concatenate")(maps)

    width, kernel_size = row["stem"]
    levels = {}
    x = levels["C1"] = convolve(images, width, kernel_size, "features.0", "features.1", strides=2, padding=0)
    index = itertools.count(2)
    for stage, modules in enumerate(row["stages"], 2):
        x = MaxPooling2D(3, strides=2, padding="ceil", name=f"features.{next(index)}")(x)
        for squeeze, expand in modules:
            x = fire(x, squeeze, expand, name=f"features.{next(index)}")
        levels[f"C{stage}"] = x

    if include_top:
        x = keras.layers.Dropout(dropout_rate, name="classifier.0")(x)
        x = bound.conv(classes, 1, use_bias=True, name="classifier.1")(x)
        x = bound.activation(name="classifier.2")(x)
        x = keras.layers.GlobalAveragePooling2D(name="classifier.3")(x)
        x = keras.layers.Activation(classifier_activation or "linear", dtype="float32", name="scores")(x)
    model = build_network(
        images,
        x,
        levels,
        include_top=include_top,
        features=features,
        name=name or f"squeezenet_{variant}",
        preprocessing=preprocess_input,
    )
    return finish(model, weights, WEIGHTS.get(variant) if norm is None else None, top=("classifier",))
