"""MobileNetV2: Sandler, Howard, Zhu, Zhmoginov, Chen, "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (2018).

Table 2; equals torchvision's `mobilenet_v2`: symmetric padding, batch-norm epsilon 1e-5. Widths other than 1.0 follow
section 6.1: every layer's channels are scaled and rounded to multiples of 8, the last one's only upwards.

How it trains (section 6.1): RMSProp with decay and momentum 0.9, batch 96 on each of 16 GPUs, rate 0.045 falling by 2 %
an epoch, weight decay 4e-5.
"""

import keras

from kvision.applications.building import build_network, finish, image_input, round_channels, variant_row
from kvision.applications.classification import imagenet
from kvision.layers.conventions import conventions

# Table 2: expansion t, channels c, repeats n, stride s.
_BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
VARIANTS = {
    "1.0": {"blocks": _BLOCKS, "width": 1.0, "last": 1280},
    "1.4": {"blocks": _BLOCKS, "width": 1.4, "last": 1280},
    "0.75": {"blocks": _BLOCKS, "width": 0.75, "last": 1280},
    "0.5": {"blocks": _BLOCKS, "width": 0.5, "last": 1280},
    "0.35": {"blocks": _BLOCKS, "width": 0.35, "last": 1280},
    "tiny": {
        "blocks": ((1, 16, 1, 1), (2, 16, 2, 2), (1, 16, 1, 2), (1, 16, 1, 2), (1, 16, 1, 2)),
        "width": 0.5,
        "last": 32,
    },
}

WEIGHTS = {
    "1.0": {
        "imagenet": imagenet.torchvision_weights("mobilenet_v2-b0353104.pth", 71.878),
        "imagenet_v2": imagenet.torchvision_weights("mobilenet_v2-7ebf99e0.pth", 72.154, resize=232),
    }
}

PROOF = "torchvision mobilenet_v2, fed the same weights and the published ones"

preprocess_input = imagenet.preprocess_input
decode_predictions = imagenet.decode_predictions


def MobileNetV2(
    variant="1.0",
    *,
    include_top=True,
    weights=None,
    input_shape=(224, 224, 3),
    classes=1000,
    classifier_activation="softmax",
    norm="batch",
    activation="relu6",
    initializer="he",
    bias_initializer="zero",
    dropout_rate=0.2,
    features=None,
    width=None,
    name=None,
):
    """Build MobileNetV2: 3,504,872 parameters at width 1.0.

    Args:
        variant: A row of `VARIANTS`, named by its width: `"1.0"`, `"1.4"`, `"0.75"`, `"0.5"`, `"0.35"`.
        include_top: End with the classifier; otherwise the last map is returned.
        weights: None, `"imagenet"` or `"imagenet_v2"` (see `WEIGHTS`; torchvision's files, which need torch), or the
            path of a weight file.
        input_shape: (height, width, channels), at least 32 pixels.
        classes: Number of classes.
        classifier_activation: Of the last layer; None gives logits.
        norm: `"batch"`, `"sync_batch"`, `"group"`, `"frozen_batch"` or None.
        activation, initializer, bias_initializer: Names, see `kvision.layers.conventions.conventions`.
        dropout_rate: Before the classifier, in [0, 1).
        features: Names of the maps to return instead, `"C1"` to `"C5"`, the last block of each stride: the last 1x1
            convolution belongs to the classifier.
        width: Factor of all channels, > 0; None takes the row's.
        name: Of the model.

    Returns:
        A `keras.Model`: images [b, h, w, c], prepared by `preprocess_input`, → [b, classes] float32.

    Raises:
        ValueError: on an unknown variant or name, a wrong shape, or fewer than one class.

    >>> MobileNetV2(classes=10).output_shape
    (None, 10)
    """
    row = variant_row("MobileNetV2", VARIANTS, variant, width=width)
    images = image_input("MobileNetV2", input_shape, stride=32, classes=classes)
    bound = conventions(norm, activation, initializer, bias_initializer)

    levels, index, stride = {}, 1, 2
    x = bound.conv(round_channels(32 * row["width"]), 3, strides=2, name="features.0.0")(images)
    x = bound.activation(name="features.0.2")(bound.norm(name="features.0.1")(x))
    for expansion, channels, repeats, first_strides in row["blocks"]:
        for strides in (first_strides,) + (1,) * (repeats - 1):
            channels_out = round_channels(channels * row["width"])
            x = _inverted_residual(x, channels_out, strides, expansion, bound, name=f"features.{index}")
            index += 1
        stride *= first_strides
        levels[f"C{stride.bit_length() - 1}"] = x
    x = bound.conv(round_channels(row["last"] * max(1.0, row["width"])), 1, name=f"features.{index}.0")(x)
    x = bound.activation(name=f"features.{index}.2")(bound.norm(name=f"features.{index}.1")(x))

    if include_top:
        x = keras.layers.GlobalAveragePooling2D(name="avgpool")(x)
        x = keras.layers.Dropout(dropout_rate, name="classifier.0")(x)
        x = bound.dense(classes, activation=classifier_activation, dtype="float32", name="classifier.1")(x)
    model = build_network(
        images,
        x,
        levels,
        include_top=include_top,
        features=features,
        name=name or f"mobilenet_v2_{variant}",
        preprocessing=preprocess_input,
    )
    return finish(model, weights, WEIGHTS.get(variant), top=("classifier",))


def _inverted_residual(x, channels, strides, expansion, bound, name):
    """Figure 3b: 1x1 to widen, 3x3 in each channel, 1x1 to narrow without activation; the narrow ends are added."""
    y, part = x, 0
    if expansion > 1:
        y = bound.conv(expansion * x.shape[-1], 1, name=f"{name}.conv.0.0")(y)
        y = bound.activation(name=f"{name}.conv.0.2")(bound.norm(name=f"{name}.conv.0.1")(y))
        part = 1
    y = bound.depthwise(3, strides=strides, name=f"{name}.conv.{part}.0")(y)
    y = bound.activation(name=f"{name}.conv.{part}.2")(bound.norm(name=f"{name}.conv.{part}.1")(y))
    y = bound.conv(channels, 1, name=f"{name}.conv.{part + 1}")(y)
    y = bound.norm(name=f"{name}.conv.{part + 2}")(y)
    return keras.layers.Add(name=f"{name}.add")([x, y]) if strides == 1 and x.shape == y.shape else y
