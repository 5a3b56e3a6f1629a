"""Residual networks: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition" (2015).

ImageNet networks: table 1; the stride of a bottleneck sits on its 3x3 convolution ("v1.5"), as in torchvision, whose
`resnet18…152` these equal. CIFAR networks: section 4.2, three stages of 2n layers, option A shortcuts (identity, new
channels are zero), and the plain networks of figure 6 that show what happens without shortcuts.

With `deformable` stages: Dai et al., "Deformable Convolutional Networks" (2017), and Zhu et al., "Deformable ConvNets
v2" (2018), section 3.1: the taps of every 3x3 convolution of these stages have learned offsets.

How it trains (section 3.4): SGD with momentum 0.9, batch 256, rate 0.1 divided by 10 at plateaus, weight decay 1e-4.
CIFAR (section 4.2): batch 128, rate 0.1 divided by 10 at 32k and 48k of 64k iterations.
"""

import functools

import keras
from keras import ops

from kvision.applications.building import build_network, finish, image_input, variant_of, variant_row
from kvision.applications.classification import imagenet
from kvision.errors import choose
from kvision.layers import MaxPooling2D
from kvision.layers.conventions import conventions

# Table 1 of the paper; "cifar" rows: section 4.2, 6n + 2 layers. `width` is that of the first stage.
_IMAGENET = {"stem": "imagenet", "shortcut": "projection", "width": 64}
_CIFAR = {"stem": "cifar", "block": "basic", "width": 16}
VARIANTS = {
    "18": {"block": "basic", "depths": (2, 2, 2, 2), **_IMAGENET},
    "34": {"block": "basic", "depths": (3, 4, 6, 3), **_IMAGENET},
    "50": {"block": "bottleneck", "depths": (3, 4, 6, 3), **_IMAGENET},
    "101": {"block": "bottleneck", "depths": (3, 4, 23, 3), **_IMAGENET},
    "152": {"block": "bottleneck", "depths": (3, 8, 36, 3), **_IMAGENET},
    "cifar20": {"depths": (3, 3, 3), "shortcut": "identity", **_CIFAR},
    "cifar56": {"depths": (9, 9, 9), "shortcut": "identity", **_CIFAR},
    "plain20": {"depths": (3, 3, 3), "shortcut": None, **_CIFAR},
    "plain56": {"depths": (9, 9, 9), "shortcut": None, **_CIFAR},
    "tiny": {"block": "bottleneck", "depths": (1, 1, 1, 1), **_IMAGENET, "width": 8},
}

# Torchvision's weights as timm publishes them, accuracies from torchvision's table of weights: "imagenet" is its
# IMAGENET1K_V1, "imagenet_v2" its IMAGENET1K_V2, trained longer.
_V1 = {"18": 69.758, "34": 73.314, "50": 76.130, "101": 77.374, "152": 78.312}
_V2 = {"50": 80.858, "101": 81.886, "152": 82.284}
_BSD = {"licence": "BSD-3-Clause"}
WEIGHTS = {
    depth: {"imagenet": imagenet.timm_weights(f"resnet{depth}.tv_in1k", top1, **_BSD)} for depth, top1 in _V1.items()
}
for depth, top1 in _V2.items():
    WEIGHTS[depth]["imagenet_v2"] = imagenet.timm_weights(f"resnet{depth}.tv2_in1k", top1, resize=232, **_BSD)

PROOF = "torchvision resnet18 … resnet152, fed the same weights"

preprocess_input = imagenet.preprocess_input
decode_predictions = imagenet.decode_predictions


def ResNet(
    variant,
    *,
    include_top=True,
    weights=None,
    input_shape=(224, 224, 3),
    classes=1000,
    classifier_activation="softmax",
    norm="batch",
    activation="relu",
    initializer="he",
    bias_initializer="zero",
    features=None,
    deformable=(),
    modulated=True,
    dilated=(),
    block=None,
    depths=None,
    width=None,
    shortcut=None,
    name=None,
):
    """Build a residual network.

    Args:
        variant: A row of `VARIANTS`: `"18"`, `"34"`, `"50"`, `"101"`, `"152"`, `"cifar20"`, `"plain20"`, …
        include_top: End with the classifier; otherwise the last map is returned.
        weights: None, `"imagenet"` or `"imagenet_v2"` (see `WEIGHTS`), or the path of a weight file.
        input_shape: (height, width, channels), at least the stride of the last map (32; CIFAR 4).
        classes: Number of classes.
        classifier_activation: Of the last layer; None gives logits.
        norm: `"batch"`, `"sync_batch"`, `"group"`, `"frozen_batch"` or None.
        activation, initializer, bias_initializer: Names, see `kvision.layers.conventions.conventions`.
        features: Names of the maps to return instead: `"C1"` to `"C5"` (CIFAR `"C0"` to `"C2"`).
        deformable: Levels whose stages have deformable 3x3 convolutions, such as `("C3", "C4", "C5")`; initially these
            equal plain ones.
        modulated: Whether these also weight their taps: True is v2, False v1.
        dilated: Levels, such as `("C5",)`, whose stages keep the map's size and spread their 3x3 windows instead of
            stepping by two: torchvision's `replace_stride_with_dilation`, DETR's DC5. `feature_info` tells the strides.
        block: `"basic"` or `"bottleneck"`; None takes the row's.
        depths: Blocks of each stage; None takes the row's.
        width: Channels of the first stage; None takes the row's.
        shortcut: `"projection"` (option B) or `"identity"` (option A); None takes the row's.
        name: Of the model.

    Returns:
        A `keras.Model`: images [b, h, w, c], prepared by `preprocess_input`, → [b, classes] float32.

    Raises:
        ValueError: on an unknown variant or name, a wrong shape, or fewer than one class.

    >>> ResNet("18", input_shape=(64, 64, 3), classes=10).output_shape
    (None, 10)
    """
    row = variant_row("ResNet", VARIANTS, variant, block=block, depths=depths, width=width, shortcut=shortcut)
    stem, stem_stride = STEMS[row["stem"]]
    stride = stem_stride * 2 ** (len(row["depths"]) - 1)
    images = image_input("ResNet", input_shape, stride=stride, classes=classes)
    bound = conventions(norm, activation, initializer, bias_initializer)
    add = functools.partial(choose("shortcut", SHORTCUTS, row["shortcut"]), bound=bound)
    block = functools.partial(choose("block", BLOCKS, row["block"]), bound=bound, add=add)

    stages = [f"C{(stem_stride * 2**stage).bit_length() - 1}" for stage in range(len(row["depths"]))]
    deformable = [choose("deformable level", {level: level for level in stages}, level) for level in deformable]
    deformable_conv = functools.partial(bound.deformable, modulated=modulated)

    dilated = [choose("dilated level", {level: level for level in stages[1:]}, level) for level in dilated]

    levels, dilations = {}, {}
    x = stem(images, row["width"], levels, bound)
    dilation = 1
    for stage, (level, depth) in enumerate(zip(stages, row["depths"], strict=True)):
        conv3x3 = deformable_conv if level in deformable else bound.conv
        first_stride = 1 if stage == 0 or level in dilated else 2
        for index in range(depth):  # the first block of a stage that does not step sees the map of the one before
            window = functools.partial(conv3x3, dilation_rate=dilation)
            strides = first_stride if index == 0 else 1
            x = block(x, row["width"] * 2**stage, strides, conv3x3=window, name=f"layer{stage + 1}.{index}")
            if index == 0 and level in dilated:
                dilation *= 2
        levels[level], dilations[level] = x, dilation

    if include_top:
        x = keras.layers.GlobalAveragePooling2D(name="avgpool")(x)
        x = bound.dense(classes, activation=classifier_activation, dtype="float32", name="fc")(x)
    model = build_network(
        images,
        x,
        levels,
        include_top=include_top,
        features=features,
        name=name or f"resnet_{variant}",
        preprocessing=preprocess_input,
    )
    model.feature_info = {
        level: info | {"stride": info["stride"] // dilations.get(level, 1)}
        for level, info in model.feature_info.items()
    }
    return finish(model, weights, WEIGHTS.get(variant), top=("fc",))


def _imagenet_stem(x, width, levels, bound):
    x = bound.conv(width, 7, strides=2, name="conv1")(x)
    x = levels["C1"] = bound.activation(name="relu")(bound.norm(name="bn1")(x))
    return MaxPooling2D(3, strides=2, padding=1, name="maxpool")(x)


def _cifar_stem(x, width, levels, bound):
    x = bound.conv(width, 3, name="conv1")(x)
    return bound.activation(name="relu")(bound.norm(name="bn1")(x))


def _basic_block(x, width, strides, *, bound, conv3x3, add, name):
    """Figure 5 left: two 3x3 convolutions."""
    y = conv3x3(width, 3, strides=strides, name=f"{name}.conv1")(x)
    y = bound.activation(name=f"{name}.relu1")(bound.norm(name=f"{name}.bn1")(y))
    y = conv3x3(width, 3, name=f"{name}.conv2")(y)
    y = bound.norm(name=f"{name}.bn2")(y)
    return bound.activation(name=f"{name}.relu2")(add(x, y, strides, name=name))


def _bottleneck_block(x, width, strides, *, bound, conv3x3, add, name):
    """Figure 5 right: 1x1 to reduce, 3x3, 1x1 to restore four times the width."""
    y = bound.conv(width, 1, name=f"{name}.conv1")(x)
    y = bound.activation(name=f"{name}.relu1")(bound.norm(name=f"{name}.bn1")(y))
    y = conv3x3(width, 3, strides=strides, name=f"{name}.conv2")(y)
    y = bound.activation(name=f"{name}.relu2")(bound.norm(name=f"{name}.bn2")(y))
    y = bound.conv(4 * width, 1, name=f"{name}.conv3")(y)
    y = bound.norm(name=f"{name}.bn3")(y)
    return bound.activation(name=f"{name}.relu3")(add(x, y, strides, name=name))


def _add_projection(x, y, strides, *, bound, name):
    """Option B: a 1x1 convolution where the shapes differ."""
    if x.shape != y.shape:
        x = bound.conv(y.shape[-1], 1, strides=strides, name=f"{name}.downsample.0")(x)
        x = bound.norm(name=f"{name}.downsample.1")(x)
    return keras.layers.Add(name=f"{name}.add")([x, y])


def _add_identity(x, y, strides, *, bound, name):
    """Option A: every other pixel, new channels zero on both sides."""
    if x.shape != y.shape:
        x = PadChannels(y.shape[-1], strides, name=f"{name}.downsample")(x)
    return keras.layers.Add(name=f"{name}.add")([x, y])


def _no_add(x, y, strides, *, bound, name):
    """The plain networks of figure 6."""
    return y


@keras.saving.register_keras_serializable("kvision")
class PadChannels(keras.layers.Layer):
    """Option A shortcut of section 4.2: subsample, then pad the channels with zeros; no parameters.

    Args:
        channels: Of the output; the new ones are split evenly before and behind.
        strides: Keep every `strides`-th row and column.
    """

    def __init__(self, channels, strides, **options):
        super().__init__(**options)
        self.channels = channels
        self.strides = strides

    def call(self, inputs):
        new = self.channels - inputs.shape[-1]
        kept = inputs[:, :: self.strides, :: self.strides]
        return ops.pad(kept, ((0, 0), (0, 0), (0, 0), (new // 2, new - new // 2)))

    def get_config(self):
        return super().get_config() | {"channels": self.channels, "strides": self.strides}


STEMS = {"imagenet": (_imagenet_stem, 4), "cifar": (_cifar_stem, 1)}
BLOCKS = {"basic": _basic_block, "bottleneck": _bottleneck_block}
SHORTCUTS = {"projection": _add_projection, "identity": _add_identity, None: _no_add}


_CIFAR_DATA = {"input_shape": (32, 32, 3), "classes": 10}

ResNet18 = variant_of(ResNet, "18", "ResNet18", "ResNet-18: 11,689,512 parameters.")
ResNet34 = variant_of(ResNet, "34", "ResNet34", "ResNet-34: 21,797,672 parameters.")
ResNet50 = variant_of(ResNet, "50", "ResNet50", "ResNet-50: 25,557,032 parameters.")
ResNet101 = variant_of(ResNet, "101", "ResNet101", "ResNet-101: 44,549,160 parameters.")
ResNet152 = variant_of(ResNet, "152", "ResNet152", "ResNet-152: 60,192,808 parameters.")
ResNet20 = variant_of(ResNet, "cifar20", "ResNet20", "ResNet-20 for CIFAR: 269,722 parameters.", **_CIFAR_DATA)
ResNet56 = variant_of(ResNet, "cifar56", "ResNet56", "ResNet-56 for CIFAR.", **_CIFAR_DATA)
PlainNet20 = variant_of(ResNet, "plain20", "PlainNet20", "ResNet-20 without its shortcuts.", **_CIFAR_DATA)
PlainNet56 = variant_of(
    ResNet,
    "plain56",
    "PlainNet56",
    "ResNet-56 without its shortcuts: trains worse than `PlainNet20` (figure 6).",
    **_CIFAR_DATA,
)
