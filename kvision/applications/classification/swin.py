"""Swin Transformer: Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows" (2021).

Section 3.3's T, S, B and L. Layers carry timm's names (`swin_tiny_patch4_window7_224`, …), which these equal;
torchvision's `swin_t`, `swin_s`, `swin_b` load through `RENAMES`. Any image size is taken: zeros pad patches,
windows and mergings at the bottom and right, as in the authors' detection code (torchvision crops an image whose size
4 does not divide). The named maps C2 to C5 each end with a layer normalisation of their own, `norm0` to `norm3`, as in
the authors' detectors; published classifiers have none of these.

How it trains (section 4.1, appendix A2.1): AdamW, batch 1024, 300 epochs, rate 1e-3 with 20 epochs of warm-up and
cosine decay, weight decay 0.05, gradients clipped at norm 1, the augmentation of Touvron 2020 without repetition,
stochastic depth 0.2 (T), 0.3 (S), 0.5 (B); L: 0.2, in the authors' configuration for ImageNet-22K.
"""

import functools
import operator

import keras
from keras import ops

from kvision.applications.building import build_network, finish, image_input, variant_of, variant_row
from kvision.applications.classification import imagenet
from kvision.layers import MLP, Conv2D, LayerNormalization, StochasticDepth, WindowAttention

# Section 3.3: channels of the first stage, blocks of each stage; heads of 32 channels.
VARIANTS = {
    "T": {"width": 96, "depths": (2, 2, 6, 2), "stochastic_depth_rate": 0.2},
    "S": {"width": 96, "depths": (2, 2, 18, 2), "stochastic_depth_rate": 0.3},
    "B": {"width": 128, "depths": (2, 2, 18, 2), "stochastic_depth_rate": 0.5},
    "L": {"width": 192, "depths": (2, 2, 18, 2), "stochastic_depth_rate": 0.2},
    "tiny": {"width": 32, "depths": (2, 1, 1, 1), "stochastic_depth_rate": 0.1},
}

_HEAD_WIDTH = 32

WEIGHTS = {
    variant: {"imagenet": imagenet.torchvision_weights(file, top1, resize=resize, interpolation="bicubic")}
    for variant, file, top1, resize in (
        ("T", "swin_t-704ceda3.pth", 81.474, 232),
        ("S", "swin_s-5e29d889.pth", 83.196, 246),
        ("B", "swin_b-68c6b09e.pth", 83.582, 238),
    )
}

RENAMES = {
    "timm": [(r"^head\.", "head.fc.")],
    "torchvision": [
        (r"^patch_embed\.proj\.", "features.0.0."),
        (r"^patch_embed\.norm\.", "features.0.2."),
        *((rf"^layers\.{stage}\.blocks\.", f"features.{2 * stage + 1}.") for stage in range(4)),
        *((rf"^layers\.{stage}\.downsample\.", f"features.{2 * stage}.") for stage in range(1, 4)),
        (r"\.mlp\.fc1\.", ".mlp.0."),
        (r"\.mlp\.fc2\.", ".mlp.3."),
    ],
}

# With `features`, each level has a normalisation of its own, which no published file has.
TOP = ("head", "norm", "norm0", "norm1", "norm2", "norm3")

PROOF = "torchvision swin_t and timm's Swin, fed the same weights"

preprocess_input = imagenet.preprocess_input
decode_predictions = imagenet.decode_predictions


def Swin(
    variant,
    *,
    include_top=True,
    weights=None,
    input_shape=(224, 224, 3),
    classes=1000,
    classifier_activation="softmax",
    features=None,
    width=None,
    depths=None,
    window=7,
    dropout_rate=0.0,
    attention_dropout_rate=0.0,
    stochastic_depth_rate=None,
    name=None,
):
    """Build a Swin Transformer.

    Args:
        variant: A row of `VARIANTS`: `"T"`, `"S"`, `"B"` or `"L"`.
        include_top: End with the classifier; otherwise the last map, normalised, is returned.
        weights: None, `"imagenet"` (see `WEIGHTS`; torchvision's files, which need torch), or the path of a weight
            file.
        input_shape: (height, width, channels), at least 32 pixels.
        classes: Number of classes.
        classifier_activation: Of the last layer; None gives logits.
        features: Names of the maps to return instead, `"C2"` to `"C5"`, each behind a layer normalisation of its own.
        width: Channels of the first stage, a multiple of 32; they double with each stage. None takes the row's.
        depths: Blocks of each stage; None takes the row's.
        window: Rows and columns of a window.
        dropout_rate: Of the dense layers but `qkv`, in [0, 1).
        attention_dropout_rate: Of the attention weights, in [0, 1).
        stochastic_depth_rate: Of the last block, in [0, 1]; grows linearly from 0 at the first; None takes the row's.
        name: Of the model.

    Returns:
        A `keras.Model`: images [b, h, w, c], prepared by `preprocess_input`, → [b, classes] float32.

    Raises:
        ValueError: on an unknown variant or level, a wrong shape, or fewer than one class.

    >>> Swin("T", input_shape=(75, 64, 3), include_top=False).output_shape
    (None, 3, 2, 768)
    """
    row = variant_row(
        "Swin", VARIANTS, variant, width=width, depths=depths, stochastic_depth_rate=stochastic_depth_rate
    )
    stride = 4 * 2 ** (len(row["depths"]) - 1)
    images = image_input("Swin", input_shape, stride=stride, classes=classes)
    initializer = functools.partial(keras.initializers.TruncatedNormal, stddev=0.02)
    norm = functools.partial(LayerNormalization, epsilon=1e-5)
    rates = _rising(row["stochastic_depth_rate"], sum(row["depths"]))
    block = functools.partial(_block, window=window, dropout=dropout_rate, attention_dropout=attention_dropout_rate)

    x = Conv2D(row["width"], 4, strides=4, kernel_initializer=initializer(), name="patch_embed.proj")(_pad(images, 4))
    x = norm(name="patch_embed.norm")(x)
    levels = {}
    for stage, depth in enumerate(row["depths"]):
        if stage > 0:
            x = PatchMerging(kernel_initializer=initializer(), name=f"layers.{stage}.downsample")(x)
        for index in range(depth):
            shift = window // 2 if index % 2 else 0
            x = block(x, shift, next(rates), norm, initializer, name=f"layers.{stage}.blocks.{index}")
        levels[f"C{stage + 2}"] = x if features is None else norm(name=f"norm{stage}")(x)

    if features is None:
        x = norm(name="norm")(x)
    if include_top:
        x = keras.layers.GlobalAveragePooling2D(name="avgpool")(x)
        x = keras.layers.Dense(
            operator.index(classes),
            activation=classifier_activation,
            kernel_initializer=initializer(),
            dtype="float32",
            name="head",
        )(x)
    model = build_network(
        images,
        x,
        levels,
        include_top=include_top,
        features=features,
        name=name or f"swin_{variant.lower()}",
        preprocessing=preprocess_input,
    )
    return finish(model, weights, WEIGHTS.get(variant), renames=RENAMES, top=TOP)


def _rising(last, count):
    """Rates from 0 to `last`, one per block."""
    return (last * index / max(count - 1, 1) for index in range(count))


def _pad(x, multiple):
    """Zeros below and to the right, up to a multiple of pixels."""
    below, right = (-pixels % multiple for pixels in x.shape[1:3])
    if not below and not right:
        return x
    return keras.layers.ZeroPadding2D(((0, below), (0, right)), name="patch_embed.pad")(x)


def _block(x, shift, rate, norm, initializer, name, *, window, dropout, attention_dropout):
    """Figure 3b: attention in windows, then an MLP, each normalised before and added."""
    channels = x.shape[-1]
    y = norm(name=f"{name}.norm1")(x)
    y = WindowAttention(
        channels // _HEAD_WIDTH,
        window=window,
        shift=shift,
        dropout_rate=attention_dropout,
        kernel_initializer=initializer(),
        name=f"{name}.attn",
    )(y)
    y = keras.layers.Dropout(dropout, name=f"{name}.attn_drop")(y)
    x = keras.layers.Add(name=f"{name}.add1")([x, StochasticDepth(rate, name=f"{name}.drop_path1")(y)])
    y = norm(name=f"{name}.norm2")(x)
    y = MLP(4 * channels, dropout_rate=dropout, kernel_initializer=initializer(), name=f"{name}.mlp")(y)
    return keras.layers.Add(name=f"{name}.add2")([x, StochasticDepth(rate, name=f"{name}.drop_path2")(y)])


@keras.saving.register_keras_serializable("kvision")
class PatchMerging(keras.layers.Layer):
    """Halve a map: each 2x2 neighbours side by side in the channels, normalised, then projected to twice the channels.

    Section 3.1. Odd maps are padded with a row or column of zeros.

    Args:
        kernel_initializer: Of the projection.

    Shapes: [b, h, w, c] → [b, ⌈h/2⌉, ⌈w/2⌉, 2c].
    """

    def __init__(self, kernel_initializer="glorot_uniform", **options):
        super().__init__(**options)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        channels = input_shape[-1]
        self.norm = LayerNormalization(epsilon=1e-5, dtype=self.dtype_policy, name="norm")
        self.reduction = keras.layers.Dense(
            2 * channels,
            use_bias=False,
            kernel_initializer=self.kernel_initializer,
            dtype=self.dtype_policy,
            name="reduction",
        )
        self.norm.build((None, None, None, 4 * channels))
        self.reduction.build((None, None, None, 4 * channels))

    def call(self, inputs):
        height, width, channels = inputs.shape[1:]
        if height % 2 or width % 2:
            inputs = ops.pad(inputs, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
        rows, columns = -(-height // 2), -(-width // 2)
        x = ops.reshape(inputs, (-1, rows, 2, columns, 2, channels))
        x = ops.reshape(ops.transpose(x, (0, 1, 3, 4, 2, 5)), (-1, rows, columns, 4 * channels))
        return self.reduction(self.norm(x))

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        return (batch, -(-height // 2), -(-width // 2), 2 * channels)

    def get_config(self):
        return super().get_config() | {"kernel_initializer": keras.initializers.serialize(self.kernel_initializer)}


SwinT = variant_of(Swin, "T", "SwinT", "Swin-T: 28,288,354 parameters.")
SwinS = variant_of(Swin, "S", "SwinS", "Swin-S: 49,606,258 parameters.")
SwinB = variant_of(Swin, "B", "SwinB", "Swin-B: 87,768,224 parameters.")
SwinL = variant_of(Swin, "L", "SwinL", "Swin-L: 196,532,476 parameters.")
