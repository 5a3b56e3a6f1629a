"""Vision Transformer: Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale"
(2020); the sizes Ti and S: Touvron et al., "Training data-efficient image transformers" (2020).

Layers carry timm's names (`vit_tiny_patch16_224`, …, `vit_base_r50_s16_224`), which these equal; torchvision's
`vit_b_16`, `vit_b_32`, `vit_l_16`, `vit_l_32`, `vit_h_14` load through `RENAMES`. The hybrid's residual stem (section
4.1, "Model Variants") has group normalisation and standardised kernels, and Keras's "same" padding as the authors' has.
Deviations: all kernels are initialized from a truncated normal of deviation 0.02, as in Touvron's; no hidden layer in
the head, as for fine-tuning.

How it trains. Dosovitskiy, table 3, ImageNet: Adam, batch 4096, 300 epochs, rate 3e-3 with 10k steps of warm-up and
cosine decay, weight decay 0.3, gradients clipped at norm 1, dropout 0.1. Touvron, table 9: AdamW, batch 1024, 300
epochs, rate 1e-3 (5e-4 · batch / 512) with 5 epochs of warm-up and cosine decay, weight decay 0.05, label smoothing
0.1, stochastic depth 0.1, RandAugment 9/0.5, Mixup 0.8, CutMix 1.0, erasing 0.25; no dropout.
"""

import functools
import operator

import keras
from keras import ops

from kvision.applications.building import build_network, finish, image_input, variant_of, variant_row
from kvision.applications.classification import imagenet
from kvision.layers import Conv2D, GroupNormalization, LayerNormalization, LearnedPositions, TransformerEncoderBlock
from kvision.layers.positions import resize_position_embeddings as resize_position_embeddings
from kvision.network import Preprocessing

# Table 1 of Dosovitskiy 2020 and table 1 of Touvron 2020; the dropout and stochastic depth of their trainings.
_DOSOVITSKIY = {"dropout_rate": 0.1, "stochastic_depth_rate": 0.0, "stem_depths": ()}
_TOUVRON = {"dropout_rate": 0.0, "stochastic_depth_rate": 0.1, "stem_depths": ()}
_TI = {"depth": 12, "width": 192, "mlp_units": 768, "num_heads": 3, **_TOUVRON}
_S = {"depth": 12, "width": 384, "mlp_units": 1536, "num_heads": 6, **_TOUVRON}
_B = {"depth": 12, "width": 768, "mlp_units": 3072, "num_heads": 12, **_DOSOVITSKIY}
_L = {"depth": 24, "width": 1024, "mlp_units": 4096, "num_heads": 16, **_DOSOVITSKIY}
_H = {"depth": 32, "width": 1280, "mlp_units": 5120, "num_heads": 16, **_DOSOVITSKIY}
_TINY = {"depth": 2, "width": 32, "mlp_units": 64, "num_heads": 2, **_TOUVRON}
VARIANTS = {
    "Ti/16": {"patch_size": 16, **_TI},
    "S/16": {"patch_size": 16, **_S},
    "B/16": {"patch_size": 16, **_B},
    "B/32": {"patch_size": 32, **_B},
    "L/16": {"patch_size": 16, **_L},
    "L/32": {"patch_size": 32, **_L},
    "H/14": {"patch_size": 14, **_H},
    # Table 2's hybrid: stages of 3, 4 and 9 blocks to stride 16, each position of their map a patch.
    "R50+B/16": {"patch_size": 16, **_B, "stem_depths": (3, 4, 9)},
    "tiny": {"patch_size": 16, **_TINY},
    "tiny_hybrid": {"patch_size": 16, **_TINY, "stem_depths": (1, 1, 1)},
}

# Trained on ImageNet-21k, then on ImageNet: Steiner et al. 2021, "How to train your ViT?" (224 pixels), and the paper's
# own (384). Accuracies from timm's results/results-imagenet.csv; images are scaled to −1…1.
_GOOGLE = {
    "licence": "Apache-2.0",
    "interpolation": "bicubic",
    "preprocessing": Preprocessing(value_range=(-1.0, 1.0)),
}
_AT_224 = _GOOGLE | {"resize": 248}
_AT_384 = _GOOGLE | {"resize": 384, "crop": 384}
WEIGHTS = {
    "Ti/16": {"imagenet": imagenet.timm_weights("vit_tiny_patch16_224.augreg_in21k_ft_in1k", 75.452, **_AT_224)},
    "S/16": {"imagenet": imagenet.timm_weights("vit_small_patch16_224.augreg_in21k_ft_in1k", 81.402, **_AT_224)},
    "B/16": {"imagenet": imagenet.timm_weights("vit_base_patch16_224.augreg_in21k_ft_in1k", 84.534, **_AT_224)},
    "B/32": {"imagenet": imagenet.timm_weights("vit_base_patch32_224.augreg_in21k_ft_in1k", 80.732, **_AT_224)},
    "L/16": {"imagenet": imagenet.timm_weights("vit_large_patch16_224.augreg_in21k_ft_in1k", 85.856, **_AT_224)},
    "L/32": {"imagenet": imagenet.timm_weights("vit_large_patch32_384.orig_in21k_ft_in1k", 81.508, **_AT_384)},
    "R50+B/16": {"imagenet": imagenet.timm_weights("vit_base_r50_s16_384.orig_in21k_ft_in1k", 84.988, **_AT_384)},
    "H/14": {  # of SWAG, Singh et al. 2022; not for commercial use
        "imagenet": imagenet.torchvision_weights(
            "vit_h_14_lc_swag-c1eb923e.pth", 85.708, resize=224, interpolation="bicubic", licence="CC-BY-NC-4.0"
        )
    },
}

RENAMES = {
    "timm": [
        (r"^cls_token\.token$", "cls_token"),
        (r"^pos_embed\.embeddings$", "pos_embed"),
    ],
    "torchvision": [
        (r"^cls_token\.token$", "class_token"),
        (r"^pos_embed\.embeddings$", "encoder.pos_embedding"),
        (r"^patch_embed\.proj\.", "conv_proj."),
        (r"^blocks\.(\d+)\.", r"encoder.layers.encoder_layer_\1."),
        (r"\.norm([12])\.", r".ln_\1."),
        (r"\.attn\.qkv\.", ".self_attention.in_proj_"),
        (r"\.attn\.proj\.", ".self_attention.out_proj."),
        (r"\.mlp\.fc1\.", ".mlp.0."),
        (r"\.mlp\.fc2\.", ".mlp.3."),
        (r"^norm\.", "encoder.ln."),
        (r"^head\.", "heads.head."),
    ],
}

PROOF = "torchvision vit_b_16 and timm's ViT and hybrid, fed the same weights"

preprocess_input = imagenet.preprocess_input
decode_predictions = imagenet.decode_predictions


def ViT(
    variant,
    *,
    include_top=True,
    weights=None,
    input_shape=(224, 224, 3),
    classes=1000,
    classifier_activation="softmax",
    features=None,
    depth=None,
    width=None,
    mlp_units=None,
    num_heads=None,
    dropout_rate=None,
    attention_dropout_rate=0.0,
    stochastic_depth_rate=None,
    name=None,
):
    """Build a Vision Transformer.

    Args:
        variant: A row of `VARIANTS`: `"Ti/16"`, `"S/16"`, `"B/16"`, `"B/32"`, `"L/16"`, `"L/32"`, `"H/14"`, or the
            hybrid `"R50+B/16"`.
        include_top: End with the classifier on the class token; otherwise all normalised tokens are returned.
        weights: None, `"imagenet"` (see `WEIGHTS`; images are prepared by the model's own `preprocessing`), or the path
            of a weight file; position embeddings of another image size are interpolated.
        input_shape: (height, width, channels), height and width multiples of the patch.
        classes: Number of classes.
        classifier_activation: Of the last layer; None gives logits.
        features: Must be None: a plain ViT has one stride and no maps C2 to C5.
        depth, width, mlp_units, num_heads: Blocks, channels, hidden channels of the MLPs, heads; None takes the row's.
        dropout_rate: After the position embeddings and every dense layer but `qkv`, in [0, 1); None takes the row's.
        attention_dropout_rate: Of the attention weights, in [0, 1).
        stochastic_depth_rate: Of the last block, in [0, 1]; grows linearly from 0 at the first; None takes the row's.
        name: Of the model.

    Returns:
        A `keras.Model`: images [b, h, w, c], prepared by `preprocess_input`, → [b, classes] float32; without the top
        [b, 1 + patches, width], the class token first.

    Raises:
        ValueError: on an unknown variant, a size the patch does not divide, `features`, or fewer than one class.

    >>> ViT("Ti/16", input_shape=(64, 96, 3), include_top=False).output_shape
    (None, 25, 192)
    """
    row = variant_row(
        "ViT",
        VARIANTS,
        variant,
        depth=depth,
        width=width,
        mlp_units=mlp_units,
        num_heads=num_heads,
        dropout_rate=dropout_rate,
        stochastic_depth_rate=stochastic_depth_rate,
    )
    name = name or "vit_" + variant.lower().replace("/", "_").replace("+", "_")
    if features is not None:
        raise ValueError(
            f"{name}: a plain ViT keeps one stride from its first layer to its last, so it has no maps "
            f"C2 to C5 to give: got features={features!r}. Take a Swin or a ResNet as a backbone."
        )
    images = image_input("ViT", input_shape, stride=row["patch_size"], classes=classes)
    grid = _patch_grid(images.shape[1:3], row["patch_size"])
    initializer = functools.partial(keras.initializers.TruncatedNormal, stddev=0.02)

    x, patch = images, row["patch_size"]
    if row["stem_depths"]:
        x, patch = _residual_stem(x, row["stem_depths"], name="patch_embed.backbone"), 1
    x = Conv2D(row["width"], patch, strides=patch, kernel_initializer=initializer(), name="patch_embed.proj")(x)
    x = keras.layers.Reshape((-1, row["width"]), name="patch_embed.flatten")(x)
    x = ClassToken(name="cls_token")(x)
    x = LearnedPositions(grid, prefix_tokens=1, initializer=initializer(), name="pos_embed")(x)
    x = keras.layers.Dropout(row["dropout_rate"], name="pos_drop")(x)
    for index in range(row["depth"]):
        x = TransformerEncoderBlock(
            row["num_heads"],
            row["mlp_units"],
            dropout_rate=row["dropout_rate"],
            attention_dropout_rate=attention_dropout_rate,
            stochastic_depth_rate=row["stochastic_depth_rate"] * index / max(row["depth"] - 1, 1),
            kernel_initializer=initializer(),
            name=f"blocks.{index}",
        )(x)
    x = LayerNormalization(name="norm")(x)
    if include_top:
        x = FirstToken(name="head.token")(x)
        x = keras.layers.Dense(
            operator.index(classes),
            activation=classifier_activation,
            kernel_initializer=initializer(),
            dtype="float32",
            name="head",
        )(x)
    model = build_network(
        images, x, {}, include_top=include_top, features=None, name=name, preprocessing=preprocess_input
    )
    return finish(model, weights, WEIGHTS.get(variant), renames=RENAMES, top=("head",))


def _patch_grid(size, patch_size):
    """Rows and columns of patches."""
    if any(pixels % patch_size for pixels in size):
        near = tuple(max(1, round(pixels / patch_size)) * patch_size for pixels in size)
        raise ValueError(
            f"ViT: height and width must be multiples of the {patch_size} pixels of a patch, got {tuple(size)}. "
            f"Resize or crop to {near}, for example."
        )
    return tuple(pixels // patch_size for pixels in size)


def _residual_stem(x, depths, name):
    """ResNet-50's stem and first three stages, with group normalisation and standardised kernels."""
    x = _conv_norm(x, 64, 7, 2, f"{name}.stem.conv", f"{name}.stem.norm")
    x = keras.layers.ReLU(name=f"{name}.stem.relu")(x)
    x = keras.layers.MaxPooling2D(3, strides=2, padding="same", name=f"{name}.stem.pool")(x)
    for stage, depth in enumerate(depths):
        for index in range(depth):
            strides = 2 if stage > 0 and index == 0 else 1
            x = _bottleneck(x, 64 * 2**stage, strides, index == 0, f"{name}.stages.{stage}.blocks.{index}")
    return x


def _bottleneck(x, width, strides, project, name):
    shortcut = x
    if project:
        shortcut = _conv_norm(x, 4 * width, 1, strides, f"{name}.downsample.conv", f"{name}.downsample.norm")
    x = keras.layers.ReLU(name=f"{name}.relu1")(_conv_norm(x, width, 1, 1, f"{name}.conv1", f"{name}.norm1"))
    x = keras.layers.ReLU(name=f"{name}.relu2")(_conv_norm(x, width, 3, strides, f"{name}.conv2", f"{name}.norm2"))
    x = _conv_norm(x, 4 * width, 1, 1, f"{name}.conv3", f"{name}.norm3")
    return keras.layers.ReLU(name=f"{name}.relu3")(keras.layers.Add(name=f"{name}.add")([x, shortcut]))


def _conv_norm(x, filters, kernel_size, strides, conv_name, norm_name):
    x = StandardizedConv2D(filters, kernel_size, strides=strides, padding="same", use_bias=False, name=conv_name)(x)
    return GroupNormalization(32, name=norm_name)(x)


@keras.saving.register_keras_serializable("kvision")
class StandardizedConv2D(keras.layers.Conv2D):
    """Convolution whose kernel has zero mean and unit deviation for each output channel.

    Qiao et al. 2019, "Weight Standardization", equation 5; arguments and weights of `keras.layers.Conv2D`.
    """

    def convolution_op(self, inputs, kernel):
        wide = ops.cast(kernel, keras.backend.result_type(kernel.dtype, "float32"))
        mean, variance = ops.moments(wide, axes=(0, 1, 2), keepdims=True)
        standardized = (wide - mean) * ops.rsqrt(variance + 1e-8)
        return super().convolution_op(inputs, ops.cast(standardized, kernel.dtype))


@keras.saving.register_keras_serializable("kvision")
class ClassToken(keras.layers.Layer):
    """Put a learned token before the patches, whose last state the classifier reads (equation 1): one token more."""

    def build(self, input_shape):
        self.token = self.add_weight(shape=(1, 1, input_shape[-1]), initializer="zeros", name="token")

    def call(self, inputs):
        token = ops.broadcast_to(self.token, (ops.shape(inputs)[0], 1, inputs.shape[-1]))
        return ops.concatenate([token, inputs], axis=1)


@keras.saving.register_keras_serializable("kvision")
class FirstToken(keras.layers.Layer):
    """The class token of each sample: [b, t, c] → [b, c]."""

    def call(self, inputs):
        return inputs[:, 0]


ViTTi16 = variant_of(ViT, "Ti/16", "ViTTi16", "ViT-Ti/16: 5,717,416 parameters.")
ViTS16 = variant_of(ViT, "S/16", "ViTS16", "ViT-S/16: 22,050,664 parameters.")
ViTB16 = variant_of(ViT, "B/16", "ViTB16", "ViT-B/16: 86,567,656 parameters.")
ViTB32 = variant_of(ViT, "B/32", "ViTB32", "ViT-B/32: 88,224,232 parameters.")
ViTL16 = variant_of(ViT, "L/16", "ViTL16", "ViT-L/16: 304,326,632 parameters.")
ViTL32 = variant_of(ViT, "L/32", "ViTL32", "ViT-L/32: 306,535,400 parameters.")
ViTH14 = variant_of(ViT, "H/14", "ViTH14", "ViT-H/14: 632,045,800 parameters.")
ViTR50B16 = variant_of(
    ViT, "R50+B/16", "ViTR50B16", "R50+ViT-B/16: 98,659,112 parameters at 224 pixels, 98,950,952 at 384."
)
