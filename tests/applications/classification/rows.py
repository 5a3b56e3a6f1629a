"""One row an architecture; every general test runs over every row.

To add an architecture: one file in kvision/applications, one row here.
"""

import dataclasses
from collections.abc import Callable

from kvision import applications as A


@dataclasses.dataclass(frozen=True)
class Row:
    """What the general tests need to know of one architecture.

    Args:
        module: The file in `kvision.applications`.
        tiny: A small network of the family for tests; takes the builder's keyword arguments.
        counts: `{label: (builder, published number of trainable parameters)}`.
        proof: Where the numbers come from that prove the outputs, and the test that compares.
        levels: `{label: (builder, {level: (stride, shape of the map without the batch, name of its layer)})}` at the
            builder's own input size.
        short: Arguments that shorten the tiny network where each block is compiled.
        shape: A small input of the tiny network.
        odd_shape: An input of odd sizes; None where the paper's network takes one size only.
        stride: Of the last map: a smaller input is refused. None where only one size is taken.
        norms: The norms that the builder takes.
        convolutional: Whether the builder takes `activation`, `initializer` and `norm` by name.
        head: Arguments that make the tiny network a classifier of 3 classes.
        dropouts: `{label: (builder, {layer before a dropout: its published rate})}`.
    """

    module: str
    tiny: Callable
    counts: dict
    proof: str
    levels: dict
    short: dict = dataclasses.field(default_factory=dict)
    shape: tuple = (32, 32, 3)
    odd_shape: tuple | None = (43, 37, 3)
    stride: int | None = 32
    norms: tuple = ("batch", "group", "frozen_batch", "sync_batch", None)
    convolutional: bool = True
    head: dict = dataclasses.field(default_factory=lambda: {"classes": 3})
    dropouts: dict = dataclasses.field(default_factory=dict)


ROWS = [
    Row(
        module="lenet5",
        tiny=lambda **options: A.LeNet5("modern", **options),
        counts={
            "LeNet5-modern": (lambda: A.LeNet5("modern"), 61_706),
            "LeNet5-1998": (lambda: A.LeNet5("1998"), 60_000),
        },
        proof="NumPy twin: test_lenet5.py",
        levels={
            "LeNet5": (
                lambda **options: A.LeNet5("1998", **options),
                {
                    "C0": (1, (28, 28, 6), "C1.squash"),
                    "C1": (2, (10, 10, 16), "C3.squash"),
                    "C2": (4, (5, 5, 16), "S4.squash"),
                },
            )
        },
        shape=(32, 32, 1),
        odd_shape=None,
        stride=None,
        norms=("batch", "group", None),
    ),
    Row(
        module="vgg",
        tiny=lambda **options: A.VGG("tiny", **options),
        counts={
            "VGG11": (A.VGG11, 132_863_336),
            "VGG13": (A.VGG13, 133_047_848),
            "VGG16": (A.VGG16, 138_357_544),
            "VGG19": (A.VGG19, 143_667_240),
            "VGG16-batch": (lambda: A.VGG16(norm="batch"), 138_365_992),
        },
        proof="torchvision vgg*, vgg*_bn: test_parity.py",
        levels={
            "VGG16": (
                A.VGG16,
                {
                    "C0": (1, (224, 224, 64), "features.3"),
                    "C1": (2, (112, 112, 128), "features.8"),
                    "C2": (4, (56, 56, 256), "features.15"),
                    "C3": (8, (28, 28, 512), "features.22"),
                    "C4": (16, (14, 14, 512), "features.29"),
                    "C5": (32, (7, 7, 512), "features.30"),
                },
            )
        },
        dropouts={"VGG16": (A.VGG16, {"classifier.1": 0.5, "classifier.4": 0.5})},
    ),
    Row(
        module="resnet",
        tiny=lambda **options: A.ResNet("tiny", **options),
        short={"depths": (1, 1)},
        counts={
            "ResNet18": (A.ResNet18, 11_689_512),
            "ResNet34": (A.ResNet34, 21_797_672),
            "ResNet50": (A.ResNet50, 25_557_032),
            "ResNet101": (A.ResNet101, 44_549_160),
            "ResNet152": (A.ResNet152, 60_192_808),
            "ResNet20": (A.ResNet20, 269_722),
            "ResNet56": (A.ResNet56, 853_018),  # table 6: 0.85M
            "PlainNet56": (A.PlainNet56, 853_018),  # option A has no parameters
        },
        proof="torchvision resnet*: test_parity.py",
        levels={
            "ResNet50": (
                A.ResNet50,
                {
                    "C1": (2, (112, 112, 64), "relu"),
                    "C2": (4, (56, 56, 256), "layer1.2.relu3"),
                    "C3": (8, (28, 28, 512), "layer2.3.relu3"),
                    "C4": (16, (14, 14, 1024), "layer3.5.relu3"),
                    "C5": (32, (7, 7, 2048), "layer4.2.relu3"),
                },
            ),
            "ResNet20": (
                A.ResNet20,
                {
                    "C0": (1, (32, 32, 16), "layer1.2.relu2"),
                    "C1": (2, (16, 16, 32), "layer2.2.relu2"),
                    "C2": (4, (8, 8, 64), "layer3.2.relu2"),
                },
            ),
        },
    ),
    Row(
        module="convnet",
        tiny=lambda **options: A.ConvNet(1, 2, 1, filters=4, units=8, **options),
        # CS231n's ten filters of 5x5x3 have 760 parameters; the classifier of a 32x32 map adds 10240·10 + 10.
        counts={"ten filters": (lambda: A.ConvNet(1, 1, 0, filters=10, kernel_size=5, pool=False), 760 + 102_410)},
        proof="NumPy twin: test_convnet.py",
        levels={
            "ConvNet": (
                lambda **options: A.ConvNet(2, 3, 1, **options),
                {
                    "C0": (1, (32, 32, 32), "act1_2"),
                    "C1": (2, (16, 16, 64), "act2_2"),
                    "C2": (4, (8, 8, 128), "act3_2"),
                    "C3": (8, (4, 4, 128), "pool3"),
                },
            )
        },
        shape=(16, 16, 3),
        odd_shape=(19, 13, 3),
        stride=4,
    ),
    Row(
        module="vit",
        tiny=lambda **options: A.ViT("tiny", **options),
        counts={
            "ViTTi16": (A.ViTTi16, 5_717_416),
            "ViTS16": (A.ViTS16, 22_050_664),
            "ViTB16": (A.ViTB16, 86_567_656),
            "ViTB32": (A.ViTB32, 88_224_232),
            "ViTL16": (A.ViTL16, 304_326_632),
            "ViTL32": (A.ViTL32, 306_535_400),
            "ViTH14": (A.ViTH14, 632_045_800),
            "ViTR50B16": (A.ViTR50B16, 98_659_112),
            "ViTR50B16-headless": (lambda: A.ViTR50B16(include_top=False), 97_890_112),
            "ViTR50B16-384": (lambda: A.ViTR50B16(input_shape=(384, 384, 3)), 98_950_952),
        },
        proof="torchvision vit_*, timm vit_*_patch*, vit_base_r50_s16_*: test_parity.py",
        levels={},
        odd_shape=None,
        stride=16,
        norms=(),
        convolutional=False,
    ),
    Row(
        module="swin",
        tiny=lambda **options: A.Swin("tiny", **options),
        short={"depths": (2, 1)},
        counts={
            "SwinT": (A.SwinT, 28_288_354),
            "SwinS": (A.SwinS, 49_606_258),
            "SwinB": (A.SwinB, 87_768_224),
            "SwinL": (A.SwinL, 196_532_476),
        },
        proof="torchvision swin_*, timm swin_*_patch4_window7_224: test_parity.py",
        levels={
            "SwinT": (
                A.SwinT,
                {
                    "C2": (4, (56, 56, 96), "norm0"),
                    "C3": (8, (28, 28, 192), "norm1"),
                    "C4": (16, (14, 14, 384), "norm2"),
                    "C5": (32, (7, 7, 768), "norm3"),
                },
            )
        },
        norms=(),
        convolutional=False,
    ),
    Row(
        module="alexnet",
        tiny=lambda **options: A.AlexNet("tiny", **options),
        counts={
            "AlexNet": (A.AlexNet, 60_965_224),
            "AlexNet-ungrouped": (lambda: A.AlexNet("ungrouped"), 62_378_344),
            "AlexNet-2014": (lambda: A.AlexNet("2014", input_shape=(224, 224, 3)), 61_100_840),
        },
        proof="NumPy twin and table: test_alexnet.py; torchvision alexnet (2014): test_parity.py",
        levels={
            "AlexNet": (
                A.AlexNet,
                {
                    "C2": (4, (55, 55, 96), "relu1"),
                    "C3": (8, (27, 27, 256), "relu2"),
                    "C4": (16, (13, 13, 256), "relu5"),
                    "C5": (32, (6, 6, 256), "pool5"),
                },
            )
        },
        shape=(67, 67, 3),
        odd_shape=(75, 68, 3),
        dropouts={"AlexNet": (A.AlexNet, {"relu6": 0.5, "relu7": 0.5})},
    ),
    Row(
        module="zfnet",
        tiny=lambda **options: A.ZFNet("tiny", **options),
        counts={"ZFNet": (A.ZFNet, 62_357_608)},
        proof="NumPy twin and layer table: test_zfnet.py",
        levels={
            "ZFNet": (
                A.ZFNet,
                {
                    "C1": (2, (110, 110, 96), "relu1"),
                    "C2": (4, (55, 55, 96), "pool1"),
                    "C3": (8, (26, 26, 256), "relu2"),
                    "C4": (16, (13, 13, 256), "relu5"),
                    "C5": (32, (6, 6, 256), "pool5"),
                },
            )
        },
        shape=(47, 47, 3),
        odd_shape=(55, 60, 3),
        dropouts={"ZFNet": (A.ZFNet, {"relu6": 0.5, "relu7": 0.5})},
    ),
    Row(
        module="network_in_network",
        tiny=lambda **options: A.NetworkInNetwork("tiny", **options),
        counts={
            "NetworkInNetwork": (A.NetworkInNetwork, 7_595_176),
            "NetworkInNetwork-cifar10": (lambda: A.NetworkInNetwork("cifar10"), 966_986),
        },
        proof="NumPy twin and layer table: test_network_in_network.py",
        levels={
            "NetworkInNetwork": (
                A.NetworkInNetwork,
                {
                    "C2": (4, (54, 54, 96), "cccp2.relu"),
                    "C3": (8, (27, 27, 256), "cccp4.relu"),
                    "C4": (16, (13, 13, 384), "cccp6.relu"),
                    "C5": (32, (6, 6, 1024), "cccp7.relu"),
                },
            ),
            "NetworkInNetwork-cifar10": (
                lambda **options: A.NetworkInNetwork("cifar10", **options),
                {
                    "C0": (1, (32, 32, 96), "cccp2.relu"),
                    "C1": (2, (16, 16, 192), "cccp4.relu"),
                    "C2": (4, (8, 8, 192), "cccp5.relu"),
                },
            ),
        },
        shape=(16, 16, 3),
        odd_shape=(19, 13, 3),
        stride=4,
        dropouts={
            "NetworkInNetwork": (A.NetworkInNetwork, {"pool3": 0.5}),
            "NetworkInNetwork-cifar10": (lambda: A.NetworkInNetwork("cifar10"), {"pool1": 0.5, "pool2": 0.5}),
        },
    ),
    Row(
        module="squeezenet",
        tiny=lambda **options: A.SqueezeNet("tiny", **options),
        counts={
            "SqueezeNet-1.0": (lambda: A.SqueezeNet("1.0"), 1_248_424),
            "SqueezeNet-1.1": (lambda: A.SqueezeNet("1.1"), 1_235_496),
        },
        proof="torchvision squeezenet1_*: test_parity.py",
        levels={
            "SqueezeNet-1.0": (
                lambda **options: A.SqueezeNet("1.0", **options),
                {
                    "C1": (2, (109, 109, 96), "features.1"),
                    "C2": (4, (54, 54, 256), "features.5.concatenate"),
                    "C3": (8, (27, 27, 512), "features.10.concatenate"),
                    "C4": (16, (13, 13, 512), "features.12.concatenate"),
                },
            ),
            "SqueezeNet-1.1": (
                lambda **options: A.SqueezeNet("1.1", **options),
                {
                    "C1": (2, (111, 111, 64), "features.1"),
                    "C2": (4, (55, 55, 128), "features.4.concatenate"),
                    "C3": (8, (27, 27, 256), "features.7.concatenate"),
                    "C4": (16, (13, 13, 512), "features.12.concatenate"),
                },
            ),
        },
        stride=16,
        dropouts={
            "SqueezeNet-1.0": (lambda: A.SqueezeNet("1.0"), {"features.12.concatenate": 0.5}),
            "SqueezeNet-1.1": (lambda: A.SqueezeNet("1.1"), {"features.12.concatenate": 0.5}),
        },
    ),
    Row(
        module="googlenet",
        tiny=lambda **options: A.GoogLeNet("tiny", **options),
        counts={
            "GoogLeNet": (A.GoogLeNet, 6_998_552),
            "GoogLeNet-auxiliary": (lambda: A.GoogLeNet(auxiliary=True), 13_378_280),
            "GoogLeNet-batch": (lambda: A.GoogLeNet(norm="batch"), 6_624_904),
            "GoogLeNet-batch-auxiliary": (lambda: A.GoogLeNet(norm="batch", auxiliary=True), 13_004_888),
        },
        proof="torchvision googlenet: test_parity.py; NumPy twin and table: test_googlenet.py",
        levels={
            "GoogLeNet": (
                A.GoogLeNet,
                {
                    "C1": (2, (112, 112, 64), "conv1.relu"),
                    "C2": (4, (56, 56, 192), "conv3.relu"),
                    "C3": (8, (28, 28, 480), "inception3b"),
                    "C4": (16, (14, 14, 832), "inception4e"),
                    "C5": (32, (7, 7, 1024), "inception5b"),
                },
            )
        },
        dropouts={
            "GoogLeNet": (lambda: A.GoogLeNet(auxiliary=True), {"avgpool": 0.4, "aux1.relu": 0.7, "aux2.relu": 0.7}),
            "GoogLeNet-batch": (
                lambda: A.GoogLeNet(norm="batch", auxiliary=True),
                {"avgpool": 0.2, "aux1.relu": 0.7, "aux2.relu": 0.7},
            ),
        },
    ),
    Row(
        module="mobilenet_v2",
        tiny=lambda **options: A.MobileNetV2("tiny", **options),
        counts={"MobileNetV2": (A.MobileNetV2, 3_504_872)},
        proof="torchvision mobilenet_v2: test_parity.py",
        levels={
            "MobileNetV2": (
                A.MobileNetV2,
                {
                    "C1": (2, (112, 112, 16), "features.1.conv.2"),
                    "C2": (4, (56, 56, 24), "features.3.add"),
                    "C3": (8, (28, 28, 32), "features.6.add"),
                    "C4": (16, (14, 14, 96), "features.13.add"),
                    "C5": (32, (7, 7, 320), "features.17.conv.3"),
                },
            )
        },
        dropouts={"MobileNetV2": (A.MobileNetV2, {"avgpool": 0.2})},
    ),
    Row(
        module="efficientnet",
        tiny=lambda **options: A.EfficientNet("tiny", **options),
        counts={
            "EfficientNetB0": (A.EfficientNetB0, 5_288_548),
            "EfficientNetB1": (A.EfficientNetB1, 7_794_184),
            "EfficientNetB2": (A.EfficientNetB2, 9_109_994),
            "EfficientNetB3": (A.EfficientNetB3, 12_233_232),
            "EfficientNetB4": (A.EfficientNetB4, 19_341_616),
            "EfficientNetB5": (A.EfficientNetB5, 30_389_784),
            "EfficientNetB6": (A.EfficientNetB6, 43_040_704),
            "EfficientNetB7": (A.EfficientNetB7, 66_347_960),
        },
        proof="torchvision efficientnet_b*: test_parity.py",
        levels={
            "EfficientNetB0": (
                A.EfficientNetB0,
                {
                    "C1": (2, (112, 112, 16), "features.1.0.block.2.1"),
                    "C2": (4, (56, 56, 24), "features.2.1.add"),
                    "C3": (8, (28, 28, 40), "features.3.1.add"),
                    "C4": (16, (14, 14, 112), "features.5.2.add"),
                    "C5": (32, (7, 7, 320), "features.7.0.block.3.1"),
                },
            )
        },
        dropouts={
            f"EfficientNetB{index}": (
                lambda index=index: A.EfficientNet(f"b{index}", width=0.25, depth=0.5),  # smaller, at the row's rate
                {"avgpool": rate},
            )
            for index, rate in enumerate((0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5, 0.5))
        },
    ),
    Row(
        module="extraction",
        tiny=lambda **options: A.Extraction("tiny", **options),
        counts={
            "Extraction": (A.Extraction, 23_428_136),
            # Table of test_yolo.py, with a scale for each of 9,088 filters more.
            "Extraction-batch": (lambda: A.Extraction(norm="batch"), 23_428_136 + 9_088),
        },
        proof="the layer table of the paper: test_yolo.py",
        levels={
            "Extraction": (
                A.Extraction,
                {
                    "C1": (2, (112, 112, 64), "act1"),
                    "C2": (4, (56, 56, 192), "act2"),
                    "C3": (8, (28, 28, 512), "act6"),
                    "C4": (16, (14, 14, 1024), "act16"),
                    "C5": (32, (7, 7, 1024), "act20"),
                },
            ),
            "Extraction-fast": (
                lambda **options: A.Extraction("fast", **options),
                {
                    "C0": (1, (224, 224, 16), "act1"),
                    "C1": (2, (112, 112, 32), "act2"),
                    "C2": (4, (56, 56, 64), "act3"),
                    "C3": (8, (28, 28, 128), "act4"),
                    "C4": (16, (14, 14, 256), "act5"),
                    "C5": (32, (7, 7, 512), "act6"),
                },
            ),
        },
    ),
]
