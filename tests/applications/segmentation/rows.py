"""One row a semantic network; every general test of `test_rows.py` runs over every row.

To add a network: one file in kvision/applications/segmentation, one row here.
"""

import dataclasses
from collections.abc import Callable

from kvision import applications as A

CLASSES = 3


@dataclasses.dataclass(frozen=True)
class Row:
    """What the general tests need to know of one network, a functional model from images to logits of their size.

    Args:
        name: Of the test cases.
        module: The file in `kvision.applications`.
        tiny: Builds a small one; takes `input_shape`, `classes` and what else its builder does.
        counts: `{label: (builder, published number of trainable parameters)}`.
        proof: Where the numbers come from that prove the outputs, and the test that compares.
        shape: A small input of the tiny network.
        odd_shape: An input of odd sizes; None where the network takes one size only.
        stride: Of its last map: a smaller input is refused. None where there is no such limit.
        rate: Of SGD with momentum 0.9, with which a few steps show that the tiny network trains.
        outputs: Names of the outputs, where there are more than the logits; all are logits of the image's size.
        slow: Whether its training is left to CI, as others cover its parts.
        jit: Whether its compiled and 16-bit steps run (in CI): one network of a block family.
        is_builder: Whether `tiny` is a builder with `weights`, and not made of another network.
    """

    name: str
    module: str
    tiny: Callable
    counts: dict
    proof: str
    shape: tuple = (48, 40, 3)
    odd_shape: tuple | None = (51, 37, 3)
    stride: int | None = 32
    rate: float = 0.01
    outputs: tuple = ()
    slow: bool = False
    jit: bool = True
    is_builder: bool = True


# VGG-16's 14,714,688 of its convolutions, fc6, fc7 and the score of 21 classes; of the fixed ones nothing is added but
# the scores of 512 and 256 channels, of the learned ones kernels of k x k x 21 x 21.
_VGG, _FC6, _FC7 = 14_714_688, 7 * 7 * 512 * 4096 + 4096, 4096 * 4096 + 4096
_SCORES = {"score_fr": 4097 * 21, "score_pool4": 513 * 21, "score_pool3": 257 * 21}
_FIXED32 = _VGG + _FC6 + _FC7 + _SCORES["score_fr"]
_FIXED16 = _FIXED32 + _SCORES["score_pool4"]
_FIXED8 = _FIXED16 + _SCORES["score_pool3"]


def upsampling(*kernel_sizes):
    return sum((size * 21) ** 2 for size in kernel_sizes)


_AUXILIARY = 9 * 1024 * 256 + 2 * 256 + 257 * 21  # a 3x3 convolution to a quarter of C4's channels, norm, scores


def dense_patches(input_shape, classes, **options):
    """Logits of all pixels, by a classifier of windows of 15x14."""
    window = (15, 14, input_shape[-1])
    classifier = A.PatchClassifier("tiny", input_shape=window, classes=classes, classifier_activation=None, **options)
    return A.dense(classifier, input_shape[:2])


ROWS = [
    Row(
        name="fcn",
        module="fcn",
        tiny=lambda **options: A.FCN("tiny", **options),
        counts={
            "FCN32s": (A.FCN32s, 136_152_917),
            "FCN16s": (A.FCN16s, 134_815_994),
            "FCN8s": (A.FCN8s, 134_489_759),
            "FCN8s-at-once": (lambda: A.FCN("8s-at-once"), 134_489_759),
            "FCN32s-sum": (A.FCN32s, _FIXED32 + upsampling(64)),
            "FCN16s-sum": (A.FCN16s, _FIXED16 + upsampling(4, 32)),
            "FCN8s-sum": (A.FCN8s, _FIXED8 + upsampling(4, 4, 16)),
            "FCN32s-fixed": (lambda: A.FCN32s(upsampling="fixed"), 134_346_581),
            "FCN16s-fixed": (lambda: A.FCN16s(upsampling="fixed"), 134_357_354),
            "FCN8s-fixed": (lambda: A.FCN8s(upsampling="fixed"), 134_362_751),
            "FCN8s-border": (lambda: A.FCN8s(padding=100), 134_489_759),
        },
        proof="the authors' nets in torch.nn.functional: test_fcn_parity.py; VGG at 224 pixels: test_fcn.py",
    ),
    Row(
        name="fcn_resnet",
        module="fcn_resnet",
        tiny=lambda **options: A.FCNResNet("tiny", **options),
        counts={
            "FCNResNet50": (A.FCNResNet50, 35_322_218 - _AUXILIARY),
            "FCNResNet50-auxiliary": (lambda: A.FCNResNet50(auxiliary=True), 35_322_218),
            "FCNResNet101-auxiliary": (lambda: A.FCNResNet101(auxiliary=True), 54_314_346),
        },
        proof="torchvision fcn_resnet50, fcn_resnet101: test_fcn_resnet_parity.py",
        slow=True,
        jit=False,
    ),
    Row(
        name="fcn_resnet with its auxiliary head",
        module="fcn_resnet",
        tiny=lambda **options: A.FCNResNet("tiny", auxiliary=True, norm="group", **options),
        counts={},
        proof="torchvision fcn_resnet50 with aux_loss: test_fcn_resnet_parity.py",
        outputs=("logits", "auxiliary_logits"),
        slow=True,
        jit=False,
    ),
    Row(
        name="patch_classifier",
        module="patch_classifier",
        tiny=dense_patches,
        # Table 1: 48 maps of 4x4, 5x5, 4x4 and 4x4, 3x3 cells of them to 200 units, two classes.
        counts={
            "PatchClassifier": (
                lambda: A.PatchClassifier(input_shape=(95, 95, 1)),
                48 * (17 + 25 * 48 + 1 + 2 * (16 * 48 + 1)) + 200 * (9 * 48 + 1) + 2 * 201,
            )
        },
        proof="windows cut by NumPy and by torch: test_patch_classifier.py",
        shape=(24, 20, 3),
        odd_shape=(23, 17, 3),
        stride=None,
        is_builder=False,
    ),
    Row(
        name="multiscale_net",
        module="multiscale_net",
        tiny=lambda **options: A.MultiscaleNet("tiny", **options),
        # Section 3.1: 7x7 to 16, 64 and 256 maps; section 5: 1024 hidden units on the maps of three scales.
        counts={
            "MultiscaleNet": (A.MultiscaleNet, 1_651_336),
            "MultiscaleNet-linear": (lambda: A.MultiscaleNet(hidden_units=0), 861_832),
            "MultiscaleNet-one-scale": (lambda: A.MultiscaleNet(hidden_units=0, scales=1), 857_736),
        },
        proof="a NumPy twin from the paper's description: test_multiscale_net.py",
        shape=(24, 32, 3),
        stride=16,
        rate=0.1,
    ),
    Row(
        name="multiscale_net on grey images, linear",
        module="multiscale_net",
        tiny=lambda input_shape, **options: A.MultiscaleNet("tiny", hidden_units=0, input_shape=input_shape, **options),
        counts={},
        proof="as with a hidden layer",
        shape=(24, 32, 1),
        odd_shape=(43, 37, 1),
        stride=16,
        rate=0.1,
        slow=True,
        jit=False,
    ),
    Row(
        name="recurrent_cnn",
        module="recurrent_cnn",
        tiny=lambda **options: A.RecurrentCNN("tiny", **options),
        counts={
            "RecurrentCNN": (A.RecurrentCNN, 98_083),
            "RecurrentCNN-once": (lambda: A.RecurrentCNN(passes=1), 98_083),
        },
        proof="a NumPy twin of a pass: test_recurrent_cnn.py",
        shape=(24, 32, 3),
        stride=None,
        rate=0.1,
    ),
    Row(
        name="recurrent_cnn with strides, all passes",
        module="recurrent_cnn",
        tiny=lambda **options: A.RecurrentCNN("tiny", passes=2, dense=False, all_passes=True, **options),
        counts={},
        proof="strided passes against spaced ones: test_recurrent_cnn.py",
        shape=(24, 32, 3),
        stride=16,
        rate=0.1,
        outputs=("pass1", "pass2"),
        slow=True,
        jit=False,
    ),
]
