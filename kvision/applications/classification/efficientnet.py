"""EfficientNet: Tan & Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (2019).

Table 1 is B0; B1 to B7 are its published scalings. They equal torchvision's `efficientnet_b0…b7`: symmetric padding,
batch-norm epsilon 1e-5 (B5 to B7 1e-3), stochastic depth that drops whole images' branches, more often with depth.
The authors' own networks, timm's `tf_efficientnet_b0…b7`, are these with `padding="same"`, epsilon 1e-3 and momentum
0.99; EfficientDet stands on them.

How it trains (section 5.2): RMSProp with decay and momentum 0.9, rate 0.256 falling by 3 % every 2.4 epochs, weight
decay 1e-5, batch-norm momentum 0.99, AutoAugment, dropout from 0.2 (B0) to 0.5 (B7), stochastic depth 0.2.
"""

import math

import keras

from kvision.applications.building import build_network, finish, image_input, round_channels, variant_of, variant_row
from kvision.applications.classification import imagenet
from kvision.errors import choose
from kvision.layers import SqueezeExcite, StochasticDepth
from kvision.layers.conventions import conventions

# Table 1, stages 2 to 8: expansion, window, stride, channels, layers.
_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


def _published(width, depth, resolution, dropout_rate, epsilon=1e-5, momentum=0.9):
    return {
        "stages": _STAGES,
        "width": width,
        "depth": depth,
        "resolution": resolution,
        "dropout_rate": dropout_rate,
        "epsilon": epsilon,
        "momentum": momentum,
    }


# The coefficients its authors published; near `compound_scaling(phi)` for phi = 0, 0.5, 1, 2, 3, 4, 5, 6.
VARIANTS = {
    "b0": _published(1.0, 1.0, 224, 0.2),
    "b1": _published(1.0, 1.1, 240, 0.2),
    "b2": _published(1.1, 1.2, 260, 0.3),
    "b3": _published(1.2, 1.4, 300, 0.3),
    "b4": _published(1.4, 1.8, 380, 0.4),
    "b5": _published(1.6, 2.2, 456, 0.4, epsilon=1e-3, momentum=0.99),
    "b6": _published(1.8, 2.6, 528, 0.5, epsilon=1e-3, momentum=0.99),
    "b7": _published(2.0, 3.1, 600, 0.5, epsilon=1e-3, momentum=0.99),
    "tiny": {
        **_published(0.25, 1.0, 32, 0.2),
        "stages": ((1, 3, 1, 32, 1), (2, 5, 2, 32, 2), (1, 3, 2, 32, 1), (1, 3, 2, 32, 1), (1, 3, 2, 32, 1)),
    },
}

# Height and width of the centre; the short side before; the file; the accuracy.
_BICUBIC = {
    "b0": (224, 256, "efficientnet_b0_rwightman-7f5810bc.pth", 77.692),
    "b1": (240, 256, "efficientnet_b1_rwightman-bac287d4.pth", 78.642),
    "b2": (288, 288, "efficientnet_b2_rwightman-c35c1473.pth", 80.608),
    "b3": (300, 320, "efficientnet_b3_rwightman-b3899882.pth", 82.008),
    "b4": (380, 384, "efficientnet_b4_rwightman-23ab8bcd.pth", 83.384),
    "b5": (456, 456, "efficientnet_b5_lukemelas-1a07897c.pth", 83.444),
    "b6": (528, 528, "efficientnet_b6_lukemelas-24a108a5.pth", 84.008),
    "b7": (600, 600, "efficientnet_b7_lukemelas-c5b4e57e.pth", 84.122),
}
WEIGHTS = {
    variant: {"imagenet": imagenet.torchvision_weights(file, top1, resize=resize, crop=crop, interpolation="bicubic")}
    for variant, (crop, resize, file, top1) in _BICUBIC.items()
}
WEIGHTS["b1"]["imagenet_v2"] = imagenet.torchvision_weights(
    "efficientnet_b1-c27df63c.pth", 79.838, resize=255, crop=240
)

PROOF = "torchvision efficientnet_b0 … b7, fed the same weights"

# Timm counts the stages from 0, and names the layers of a block by what they do.
_TIMM_BLOCKS = {
    1: (("0.0", "conv_dw"), ("0.1", "bn1"), ("1", "se"), ("2.0", "conv_pw"), ("2.1", "bn2")),
    6: (
        *(("0.0", "conv_pw"), ("0.1", "bn1"), ("1.0", "conv_dw"), ("1.1", "bn2")),
        *(("2", "se"), ("3.0", "conv_pwl"), ("3.1", "bn3")),
    ),
}
RENAMES = {
    "timm": [
        (r"^features\.0\.0\.", "conv_stem."),
        (r"^features\.0\.1\.", "bn1."),
        *(
            (rf"^features\.{stage}\.(\d+)\.block\.{ours}\.", rf"blocks.{stage - 1}.\1.{theirs}.")
            for stage, (expansion, *_) in enumerate(_STAGES, 1)
            for ours, theirs in _TIMM_BLOCKS[expansion]
        ),
        (r"\.se\.fc1\.", ".se.conv_reduce."),
        (r"\.se\.fc2\.", ".se.conv_expand."),
        (rf"^features\.{len(_STAGES) + 1}\.0\.", "conv_head."),
        (rf"^features\.{len(_STAGES) + 1}\.1\.", "bn2."),
        (r"^classifier\.1\.", "classifier."),
    ]
}

preprocess_input = imagenet.preprocess_input
decode_predictions = imagenet.decode_predictions


def compound_scaling(phi, *, alpha=1.2, beta=1.1, gamma=1.15):
    """Depth, width and resolution for 1.92 ** phi times the multiplications of B0 (section 3.3, equation 3).

    Args:
        phi: How much more to spend; 0 is B0.
        alpha, beta, gamma: How depth, width and resolution share it; the paper's grid search found these, for which
            alpha · beta² · gamma² is 1.92, near 2.

    Returns:
        `{"depth": factor, "width": factor, "resolution": pixels}`, keyword arguments of `EfficientNet`.

    >>> compound_scaling(1)
    {'depth': 1.2, 'width': 1.1, 'resolution': 258}
    """
    return {"depth": alpha**phi, "width": beta**phi, "resolution": round(224 * gamma**phi)}


def EfficientNet(
    variant,
    *,
    include_top=True,
    weights=None,
    input_shape=None,
    classes=1000,
    classifier_activation="softmax",
    norm="batch",
    activation="silu",
    initializer="he",
    bias_initializer="zero",
    dropout_rate=None,
    stochastic_depth_rate=0.2,
    features=None,
    width=None,
    depth=None,
    resolution=None,
    padding="symmetric",
    epsilon=None,
    momentum=None,
    name=None,
):
    """Build an EfficientNet.

    Args:
        variant: A row of `VARIANTS`: `"b0"` to `"b7"`.
        include_top: End with the classifier; otherwise the map of stage 9's convolution is returned.
        weights: None, `"imagenet"`, of b1 `"imagenet_v2"` too (see `WEIGHTS`; torchvision's, which need torch), or
            the path of a weight file.
        input_shape: (height, width, channels), at least 32 pixels; None is `resolution` squared, in colour.
        classes: Number of classes.
        classifier_activation: Of the last layer; None gives logits.
        norm: `"batch"`, `"sync_batch"`, `"group"`, `"frozen_batch"` or None.
        activation, initializer, bias_initializer: Names, see `kvision.layers.conventions.conventions`.
        dropout_rate: Before the classifier, in [0, 1); None takes the row's.
        stochastic_depth_rate: Of the last block, in [0, 1]; earlier blocks in proportion to their index.
        features: Names of the maps to return instead: `"C1"` to `"C5"`, the last block of each stride. C5 is stage 8's:
            the convolution of stage 9 belongs to the classifier.
        width, depth: Factors of all channels and of all stages' layers, > 0; None takes the row's.
        resolution: Height and width of the default `input_shape`, in pixels; None takes the row's.
        padding: Of convolutions of stride 2: `"symmetric"`, torchvision's, or `"same"`, the authors' and TensorFlow's,
            which puts the odd pixel behind. Weights belong to one of them: the published ones here to the former.
        epsilon, momentum: Of the norm; None takes the row's. The authors' are 1e-3 and 0.99.
        name: Of the model.

    Returns:
        A `keras.Model`: images [b, h, w, c], prepared by `preprocess_input`, → [b, classes] float32.

    Raises:
        ValueError: on an unknown variant or name, a wrong shape, or fewer than one class.

    >>> EfficientNet("b0", **compound_scaling(1)).input_shape
    (None, 258, 258, 3)
    """
    row = variant_row(
        "EfficientNet",
        VARIANTS,
        variant,
        width=width,
        depth=depth,
        resolution=resolution,
        dropout_rate=dropout_rate,
        epsilon=epsilon,
        momentum=momentum,
    )
    published = WEIGHTS.get(variant, {})
    if weights in published and (padding != "symmetric" or epsilon is not None):
        raise ValueError(
            f'EfficientNet: weights={weights!r} are torchvision\'s, of padding="symmetric" and its epsilon: got '
            f"padding={padding!r}, epsilon={epsilon!r}. Leave both out, or load weights of that form by their path."
        )
    padding = choose("padding of EfficientNet", {"symmetric": None, "same": "same"}, padding)
    input_shape = input_shape or (row["resolution"], row["resolution"], 3)
    images = image_input("EfficientNet", input_shape, stride=32, classes=classes)
    bound = conventions(
        norm, activation, initializer, bias_initializer, epsilon=row["epsilon"], momentum=row["momentum"]
    )

    def squeeze(channels, name):
        return SqueezeExcite(channels, activation, initializer, bias_initializer, name=name)

    depths = [math.ceil(layers * row["depth"]) for *_, layers in row["stages"]]
    levels, index, stride = {}, 0, 2
    stem = bound.conv(round_channels(32 * row["width"]), 3, strides=2, padding=padding, name="features.0.0")
    x = stem(images)
    x = bound.activation(name="features.0.2")(bound.norm(name="features.0.1")(x))
    for stage, (expansion, kernel_size, first_strides, channels, _) in enumerate(row["stages"], 1):
        for block in range(depths[stage - 1]):
            x = _inverted_residual(
                x,
                round_channels(channels * row["width"]),
                kernel_size,
                first_strides if block == 0 else 1,
                expansion,
                stochastic_depth_rate * index / sum(depths),
                bound,
                squeeze,
                padding,
                name=f"features.{stage}.{block}",
            )
            index += 1
        stride *= first_strides
        levels[f"C{stride.bit_length() - 1}"] = x

    last = f"features.{len(row['stages']) + 1}"
    x = bound.conv(4 * x.shape[-1], 1, name=f"{last}.0")(x)
    x = bound.activation(name=f"{last}.2")(bound.norm(name=f"{last}.1")(x))
    if include_top:
        x = keras.layers.GlobalAveragePooling2D(name="avgpool")(x)
        x = keras.layers.Dropout(row["dropout_rate"], name="classifier.0")(x)
        x = bound.dense(classes, activation=classifier_activation, dtype="float32", name="classifier.1")(x)
    model = build_network(
        images,
        x,
        levels,
        include_top=include_top,
        features=features,
        name=name or f"efficientnet_{variant}",
        preprocessing=preprocess_input,
    )
    return finish(model, weights, published, RENAMES, top=("classifier",))


def _inverted_residual(x, channels, kernel_size, strides, expansion, drop_rate, bound, squeeze, padding, name):
    """MBConv: 1x1 to widen, a window in each channel, squeeze and excitation, 1x1 to narrow without activation."""
    y, part = x, 0
    if expansion > 1:
        y = bound.conv(expansion * x.shape[-1], 1, name=f"{name}.block.0.0")(y)
        y = bound.activation(name=f"{name}.block.0.2")(bound.norm(name=f"{name}.block.0.1")(y))
        part = 1
    y = bound.depthwise(kernel_size, strides=strides, padding=padding, name=f"{name}.block.{part}.0")(y)
    y = bound.activation(name=f"{name}.block.{part}.2")(bound.norm(name=f"{name}.block.{part}.1")(y))
    y = squeeze(max(1, x.shape[-1] // 4), name=f"{name}.block.{part + 1}")(y)
    y = bound.conv(channels, 1, name=f"{name}.block.{part + 2}.0")(y)
    y = bound.norm(name=f"{name}.block.{part + 2}.1")(y)
    if strides > 1 or x.shape != y.shape:
        return y
    if drop_rate:
        y = StochasticDepth(drop_rate, name=f"{name}.stochastic_depth")(y)
    return keras.layers.Add(name=f"{name}.add")([x, y])


EfficientNetB0 = variant_of(EfficientNet, "b0", "EfficientNetB0", "EfficientNet-B0, 224 pixels: 5,288,548 parameters.")
EfficientNetB1 = variant_of(EfficientNet, "b1", "EfficientNetB1", "EfficientNet-B1, 240 pixels: 7,794,184 parameters.")
EfficientNetB2 = variant_of(EfficientNet, "b2", "EfficientNetB2", "EfficientNet-B2, 260 pixels: 9,109,994 parameters.")
EfficientNetB3 = variant_of(EfficientNet, "b3", "EfficientNetB3", "EfficientNet-B3, 300 pixels: 12,233,232 parameters.")
EfficientNetB4 = variant_of(EfficientNet, "b4", "EfficientNetB4", "EfficientNet-B4, 380 pixels: 19,341,616 parameters.")
EfficientNetB5 = variant_of(EfficientNet, "b5", "EfficientNetB5", "EfficientNet-B5, 456 pixels: 30,389,784 parameters.")
EfficientNetB6 = variant_of(EfficientNet, "b6", "EfficientNetB6", "EfficientNet-B6, 528 pixels: 43,040,704 parameters.")
EfficientNetB7 = variant_of(EfficientNet, "b7", "EfficientNetB7", "EfficientNet-B7, 600 pixels: 66,347,960 parameters.")
