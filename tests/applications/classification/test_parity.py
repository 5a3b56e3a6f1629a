"""Every network against the implementation it equals: their random weights, one input, the same logits.

To add a network: one row. Small inputs, and one full-size check a family.
"""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import pytest

from kvision import applications as A
from kvision import weights
from tests.support import PARITY, assert_close

pytestmark = pytest.mark.parity


@dataclasses.dataclass(frozen=True)
class Pair:
    """Our network and theirs.

    Args:
        label: Of the test.
        ours: Builder; takes `input_shape` and `classifier_activation`.
        theirs: Of the torch module; called with torchvision, timm or transformers imported inside.
        size: Height and width of the input.
        source: Whose names the weights carry.
        training: Whether the forward pass in training mode is deterministic, and compared as well.
    """

    label: str
    ours: Callable
    theirs: Callable
    size: tuple = (64, 64)
    source: str = "torchvision"
    training: bool = True


def torchvision(name, **options):
    def build():
        import torchvision.models as models

        return getattr(models, name)(weights=None, **options)

    return build


def timm(name, **options):
    def build():
        import timm

        return timm.create_model(name, pretrained=False, **options)

    return build


def small_torchvision_vit():
    from torchvision.models.vision_transformer import VisionTransformer

    return VisionTransformer(image_size=64, patch_size=16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64)


def small_torchvision_swin():
    from torchvision.models.swin_transformer import SwinTransformer

    return SwinTransformer([4, 4], embed_dim=32, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8], window_size=[7, 7])


PAIRS = [
    Pair("resnet18", A.ResNet18, torchvision("resnet18"), size=(75, 64)),
    Pair("resnet50", A.ResNet50, torchvision("resnet50"), size=(224, 224)),
    Pair("vgg11", A.VGG11, torchvision("vgg11"), size=(224, 224), training=False),
    Pair(
        "vgg16_bn",
        lambda **options: A.VGG16(norm="batch", dropout_rate=0.0, **options),
        torchvision("vgg16_bn", dropout=0.0),
        size=(80, 64),
    ),
    Pair("vit_b_16", lambda **options: A.ViTB16(dropout_rate=0.0, **options), torchvision("vit_b_16"), size=(224, 224)),
    Pair("vit_small_config", lambda **options: A.ViT("tiny", **options), small_torchvision_vit, training=False),
    Pair(
        "vit_tiny_patch16_224",
        lambda **options: A.ViTTi16(stochastic_depth_rate=0.0, **options),
        timm("vit_tiny_patch16_224", img_size=(64, 96)),
        size=(64, 96),
        source="timm",
    ),
    Pair(
        "vit_base_r50_s16_224",
        lambda **options: A.ViTR50B16(depth=1, dropout_rate=0.0, **options),
        timm("vit_base_r50_s16_224", img_size=96, depth=1, num_classes=1000),
        size=(96, 96),
        source="timm",
    ),
    Pair("swin_t", A.SwinT, torchvision("swin_t"), size=(224, 224), training=False),
    Pair(  # maps of 19x25, 10x13, 5x7 and 3x4: windows and mergings are filled up, and one axis is not shifted
        "swin_small_config",
        lambda **options: A.Swin("tiny", depths=(2, 2, 2, 2), stochastic_depth_rate=0.0, **options),
        small_torchvision_swin,
        size=(76, 100),
        training=False,
    ),
    Pair(
        "swin_tiny_patch4_window7_224",
        lambda **options: A.SwinT(stochastic_depth_rate=0.0, **options),
        timm("swin_tiny_patch4_window7_224", drop_path_rate=0.0),
        size=(224, 224),
        source="timm",
    ),
    Pair(
        "alexnet",
        lambda **options: A.AlexNet("2014", dropout_rate=0.0, **options),
        torchvision("alexnet", dropout=0.0),
        size=(224, 224),
    ),
    Pair(
        "squeezenet1_0",
        lambda **options: A.SqueezeNet("1.0", dropout_rate=0.0, **options),
        torchvision("squeezenet1_0", dropout=0.0),
        size=(224, 224),
    ),
    Pair(
        "squeezenet1_1",
        lambda **options: A.SqueezeNet("1.1", dropout_rate=0.0, **options),
        torchvision("squeezenet1_1", dropout=0.0),
        size=(66, 51),
    ),
    Pair(
        "googlenet",
        lambda **options: A.GoogLeNet(norm="batch", dropout_rate=0.0, **options),
        torchvision("googlenet", aux_logits=False, init_weights=False, dropout=0.0),
        size=(224, 224),
    ),
    Pair(
        "mobilenet_v2",
        lambda **options: A.MobileNetV2(dropout_rate=0.0, **options),
        torchvision("mobilenet_v2", dropout=0.0),
        size=(224, 224),
    ),
    Pair(
        "mobilenet_v2 width 0.35",
        lambda **options: A.MobileNetV2("0.35", dropout_rate=0.0, **options),
        torchvision("mobilenet_v2", dropout=0.0, width_mult=0.35),
        size=(97, 64),
    ),
    *(
        Pair(
            f"efficientnet_{variant}",
            lambda variant=variant, **options: A.EfficientNet(
                variant, dropout_rate=0.0, stochastic_depth_rate=0.0, **options
            ),
            torchvision(f"efficientnet_{variant}", dropout=0.0, stochastic_depth_prob=0.0),
            size=size,
        )
        for variant, size in (("b0", (224, 224)), ("b2", (75, 64)), ("b5", (96, 96)))
    ),
    Pair(  # the authors' form
        "tf_efficientnet_b0",
        lambda **options: A.EfficientNetB0(
            padding="same", epsilon=1e-3, dropout_rate=0.0, stochastic_depth_rate=0.0, **options
        ),
        timm("tf_efficientnet_b0"),
        size=(75, 64),
        source="timm",
    ),
]


def randomise(module):
    """Statistics, affine weights, heads and tokens of a trained network are not ones and zeros."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=generator)
        elif name.endswith("running_mean") or (name.endswith("bias") and tensor.ndim == 1):
            tensor.normal_(0.0, 0.1, generator=generator)
        elif name.endswith("weight") and tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.is_floating_point() and not tensor.any():  # some heads and class tokens start at zero
            tensor.normal_(0.0, 0.1, generator=generator)
    return module


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.label)
def test_equals_the_reference(pair):
    import torch

    torch.manual_seed(0)
    theirs = randomise(pair.theirs()).eval()
    ours = pair.ours(input_shape=(*pair.size, 3), classifier_activation=None)
    weights.load_torch(ours, theirs.state_dict(), source=pair.source)
    images = np.random.default_rng(0).normal(size=(2, *pair.size, 3)).astype("float32")
    batch = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())

    modes = [False, True] if pair.training else [False]
    for training in modes:
        with torch.no_grad():
            want = theirs.train(training)(batch)
        want = getattr(want, "logits", want).numpy()
        got = keras.ops.convert_to_numpy(ours(images, training=training))
        scale = np.abs(want).max()
        assert_close(got / scale, want / scale, tolerance=PARITY)


# What random weights and one pass hardly show: epsilons, momenta and rates, builders at their defaults.
DEFAULTS = {
    "resnet50": A.ResNet50,
    "vgg16_bn": lambda: A.VGG16(norm="batch"),
    "alexnet": lambda: A.AlexNet("2014", input_shape=(224, 224, 3)),
    "squeezenet1_0": lambda: A.SqueezeNet("1.0"),
    "squeezenet1_1": lambda: A.SqueezeNet("1.1"),
    "googlenet": lambda: A.GoogLeNet(norm="batch", auxiliary=True),
    "mobilenet_v2": A.MobileNetV2,
    **{f"efficientnet_b{index}": lambda index=index: A.EfficientNet(f"b{index}") for index in range(8)},
    "vit_b_16": lambda: A.ViTB16(dropout_rate=0.0),  # the paper's is 0.1
    "swin_t": A.SwinT,
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_constants_are_those_of_the_reference(name):
    import torch

    options = {"init_weights": False} if name == "googlenet" else {}
    with torch.device("meta"):
        theirs = list(torchvision(name, **options)().modules())
    with keras.StatelessScope(initialize_variables=False):
        ours = list(DEFAULTS[name]()._flatten_layers())
    epsilons, momenta = ({getattr(m, name) for m in theirs if hasattr(m, name)} for name in ("eps", "momentum"))
    assert {layer.epsilon for layer in ours if hasattr(layer, "epsilon")} == epsilons
    assert {layer.momentum for layer in ours if hasattr(layer, "momentum")} == {1 - momentum for momentum in momenta}
    rates = {m.p for m in theirs if isinstance(m, torch.nn.Dropout)} - {0.0}
    assert {layer.rate for layer in ours if isinstance(layer, keras.layers.Dropout)} - {0.0} == rates
