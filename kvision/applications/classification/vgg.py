"""VGG: Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition" (2014).

Table 1, configurations A, B, D, E. Layers carry the names and indices of torchvision's `vgg11…19` (`norm=None`) and
`vgg11_bn…19_bn` (`norm="batch"`), which these equal. Deviation: He initialization, with which the deep ones train from
scratch without normalisation; the paper initialized them with layers of the trained configuration A.

How it trains (section 3.1): SGD with momentum 0.9, batch 256, rate 0.01 divided by 10 at plateaus, weight decay 5e-4.
"""

import itertools

import keras

from kvision.applications.building import build_network, finish, image_input, variant_of, variant_row
from kvision.applications.classification import imagenet
from kvision.layers import AdaptiveAveragePooling2D
from kvision.layers.conventions import conventions

# Table 1: 3x3 convolutions in each of the five stages; every stage ends with a 2x2 max pooling.
_WIDTHS = {"widths": (64, 128, 256, 512, 512), "units": 4096}
VARIANTS = {
    "11": {"depths": (1, 1, 2, 2, 2), **_WIDTHS},
    "13": {"depths": (2, 2, 2, 2, 2), **_WIDTHS},
    "16": {"depths": (2, 2, 3, 3, 3), **_WIDTHS},
    "19": {"depths": (2, 2, 4, 4, 4), **_WIDTHS},
    "tiny": {"depths": (1, 1, 1, 1, 1), "widths": (8, 8, 16, 16, 16), "units": 32},
}

# Torchvision's weights (IMAGENET1K_V1) as timm publishes them, where the dense layers are convolutions; accuracies from
# torchvision's table. The second of each is that of the form with batch norm.
_ACCURACIES = {"11": (69.020, 70.370), "13": (69.928, 71.586), "16": (71.592, 73.360), "19": (72.376, 74.218)}
WEIGHTS = {
    f"{variant}{form}": {
        "imagenet": imagenet.timm_weights(f"vgg{variant}{suffix}.tv_in1k", top1, licence="BSD-3-Clause")
    }
    for variant, accuracies in _ACCURACIES.items()
    for form, suffix, top1 in zip(("", " with batch norm"), ("", "_bn"), accuracies, strict=True)
}
RENAMES = {
    "timm": [
        (r"^classifier\.0\.", "pre_logits.fc1."),
        (r"^classifier\.3\.", "pre_logits.fc2."),
        (r"^classifier\.6\.", "head.fc."),
    ]
}

TOP = ("classifier.0", "classifier.3", "classifier.6")

PROOF = "torchvision vgg11 … vgg19 and vgg11_bn … vgg19_bn, fed the same weights"

preprocess_input = imagenet.preprocess_input
decode_predictions = imagenet.decode_predictions


def VGG(
    variant,
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
    depths=None,
    widths=None,
    units=None,
    name=None,
):
    """Build a VGG network.

    Args:
        variant: A row of `VARIANTS`: `"11"`, `"13"`, `"16"`, `"19"`.
        include_top: End with the three dense layers; otherwise the map after the last pooling is returned.
        weights: None, `"imagenet"` (see `WEIGHTS`), or the path of a weight file.
        input_shape: (height, width, channels), at least 32 pixels.
        classes: Number of classes.
        classifier_activation: Of the last layer; None gives logits.
        norm: None, `"batch"`, `"sync_batch"`, `"group"` or `"frozen_batch"`, after every convolution.
        activation, initializer, bias_initializer: Names, see `kvision.layers.conventions.conventions`.
        dropout_rate: Of the two hidden dense layers, in [0, 1).
        features: Names of the maps to return instead, `"C0"` to `"C5"`: C2 is conv3's, C3 conv4's, C4 conv5's last map,
            C5 the last pooling.
        depths, widths, units: Convolutions and channels of each stage, width of the dense layers; None takes the row's.
        name: Of the model.

    Returns:
        A `keras.Model`: images [b, h, w, c], prepared by `preprocess_input`, → [b, classes] float32. Maps of another
        size than 7x7 are averaged to 7x7 before the dense layers, as torchvision does.

    Raises:
        ValueError: on an unknown variant or name, a wrong shape, or fewer than one class.

    >>> VGG("11", input_shape=(32, 32, 3), include_top=False).output_shape
    (None, 1, 1, 512)
    """
    row = variant_row("VGG", VARIANTS, variant, depths=depths, widths=widths, units=units)
    images = image_input("VGG", input_shape, stride=2 ** len(row["depths"]), classes=classes)
    bound = conventions(norm, activation, initializer, bias_initializer)

    stages = convolutional_stages(images, row["depths"], row["widths"], bound, norm)
    levels = {f"C{stage}": last for stage, (last, _) in enumerate(stages)}
    x = levels[f"C{len(stages)}"] = stages[-1][1]

    if include_top:
        if x.shape[1:3] != (7, 7):
            x = AdaptiveAveragePooling2D((7, 7), name="avgpool")(x)
        x = keras.layers.Flatten(name="flatten")(x)
        for layer in (0, 3):
            x = bound.dense(row["units"], name=f"classifier.{layer}")(x)
            x = bound.activation(name=f"classifier.{layer + 1}")(x)
            x = keras.layers.Dropout(dropout_rate, name=f"classifier.{layer + 2}")(x)
        x = bound.dense(classes, activation=classifier_activation, dtype="float32", name="classifier.6")(x)
    model = build_network(
        images,
        x,
        levels,
        include_top=include_top,
        features=features,
        name=name or f"vgg_{variant}",
        preprocessing=preprocess_input,
    )
    form = {None: variant, "group": None}.get(norm, f"{variant} with batch norm")
    return finish(model, weights, WEIGHTS.get(form), RENAMES, top=TOP)


def convolutional_stages(x, depths, widths, bound, norm=None, pool_padding="valid"):
    """The stages of table 1, without the classifier.

    Args:
        x: Images.
        depths, widths: Convolutions and channels of each stage.
        bound: What `conventions(norm, …)` gives.
        norm: The name it was given.
        pool_padding: Of the max pooling: `"valid"` leaves out an odd last row, `"same"` keeps it (Caffe's rule).

    Returns:
        `[(last map, the same pooled), …]`, one pair a stage.
    """
    stages, index = [], itertools.count()
    for depth, width in zip(depths, widths, strict=True):
        for _ in range(depth):
            x = bound.conv(width, 3, use_bias=True, name=f"features.{next(index)}")(x)
            if norm is not None:
                x = bound.norm(name=f"features.{next(index)}")(x)
            x = bound.activation(name=f"features.{next(index)}")(x)
        pooled = keras.layers.MaxPooling2D(2, padding=pool_padding, name=f"features.{next(index)}")(x)
        stages.append((x, pooled))
        x = pooled
    return stages


VGG11 = variant_of(VGG, "11", "VGG11", "VGG-11 (A): 132,863,336 parameters.")
VGG13 = variant_of(VGG, "13", "VGG13", "VGG-13 (B): 133,047,848 parameters.")
VGG16 = variant_of(VGG, "16", "VGG16", 'VGG-16 (D): 138,357,544 parameters; with `norm="batch"` 138,365,992.')
VGG19 = variant_of(VGG, "19", "VGG19", "VGG-19 (E): 143,667,240 parameters.")
