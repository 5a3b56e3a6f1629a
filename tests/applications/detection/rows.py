"""One row a detector; every general test of `test_detectors.py` runs over every row."""

import dataclasses
from collections.abc import Callable

import numpy as np

from kvision import applications as A
from kvision.applications.classification import imagenet

SHAPE = (64, 64, 3)
CLASSES = 3
FROZEN = {"backbone_norm": "frozen_batch"}  # the form whose parameters were counted and published


@dataclasses.dataclass(frozen=True)
class Row:
    """What the general tests need to know of one detector.

    Args:
        name: Of the test cases.
        module: The file in `kvision.applications`.
        tiny: Builds a small one for `SHAPE` and `CLASSES`.
        counts: `{label: (builder, published number of trainable parameters)}`.
        box_losses: Those of its losses that an image without boxes must leave at exactly 0.
        proof: Where the numbers come from that prove the outputs.
        masks: Whether it predicts masks, and trains on them.
        proposals: Whether it takes `{"images", "proposals"}`.
        rate: Of a few steps of SGD that show.
        max_boxes: Of an image, at most; None: any number.
        unreachable: Paths of kernels that get no gradient in the first step.
        slow: Whether its compiled steps are left to CI, as others cover its parts.
    """

    name: str
    module: str
    tiny: Callable
    counts: dict
    box_losses: tuple
    proof: str
    masks: bool = False
    proposals: bool = False
    rate: float = 0.1
    max_boxes: int | None = None
    unreachable: tuple = ()
    slow: bool = False


def with_preprocessing(backbone):
    """A backbone that says how its images are prepared."""
    backbone.preprocessing = imagenet.preprocess_input
    return backbone


def tiny_backbone(*levels, norm="group"):
    backbone = A.ResNet("tiny", include_top=False, input_shape=SHAPE, features=levels, norm=norm)
    if norm == "frozen_batch":  # as if it had been trained: fresh ones are refused
        rng = np.random.default_rng(0)
        for layer in backbone.layers:
            if hasattr(layer, "moving_variance"):
                layer.moving_variance.assign(rng.uniform(0.5, 1.0, layer.moving_variance.shape))
    return with_preprocessing(backbone)


def tiny_vgg(*levels, norm=None):
    """A trunk that compiles quickly."""
    return with_preprocessing(A.VGG("tiny", include_top=False, input_shape=SHAPE, features=levels, norm=norm))


def tiny_two_stage(builder, norm=None, **options):
    """A small pyramid with few proposals and samples."""
    few = {"num_candidates": (60, 40), "num_proposals": (40, 20), "num_anchor_samples": 1024, "num_samples": 24}
    return builder(
        input_shape=SHAPE,
        classes=CLASSES,
        backbone=tiny_vgg("C2", "C3", "C4", "C5", norm=norm),
        **{"norm": norm, "channels": 16, "num_detections": 8} | few | options,
    )


def tiny_cascade(stages):
    """A small multi-task network cascade with few proposals and samples."""
    return A.MNC(
        input_shape=SHAPE,
        classes=CLASSES,
        backbone=tiny_vgg("C4"),
        stages=stages,
        mask_units=8,
        units=16,
        anchor_sizes=((16, 32),),
        num_candidates=(60, 40),
        num_proposals=(40, 20),
        num_anchor_samples=1024,
        num_samples=24,
        num_detections=8,
    )


R_CNN_BOX_LOSSES = ("rpn_box_loss", "box_loss")
CASCADE_BOX_LOSSES = ("rpn_box_loss", "box_loss_1", "box_loss_2", "box_loss_3")

MNC_PARAMETERS = (
    14_714_688  # VGG-16's convolutions
    + (9 * 512 + 1) * 512  # those of the proposals, for 9 anchors
    + 513 * 9 * 5
    + (14 * 14 * 512 + 1) * 256  # the mask
    + 257 * 28**2
    + 2 * ((7 * 7 * 512 + 1) * 4096 + 4097 * 4096 + 8193 * 21)  # two paths, and two times 21 classes
)

ROWS = [
    Row(
        name="retinanet",
        module="retinanet",
        tiny=lambda: A.RetinaNet(
            input_shape=SHAPE,
            classes=CLASSES,
            backbone=tiny_backbone("C3", "C4", "C5", norm="frozen_batch"),
            channels=16,
        ),
        counts={"RetinaNet": (lambda: A.RetinaNet(classes=91, **FROZEN), 34_014_999)},
        box_losses=("box_loss",),
        proof="torchvision: test_retinanet.py",
    ),
    Row(
        name="efficientdet",
        module="efficientdet",
        tiny=lambda: A.EfficientDet(
            "tiny",
            input_shape=SHAPE,
            classes=CLASSES,
            backbone=tiny_vgg("C3", "C4", "C5"),
            norm="batch",  # the form of the paper, and traced in half the time
            num_detections=8,
        ),
        counts={
            "EfficientDetD0": (lambda: A.EfficientDetD0(classes=90, backbone_norm="batch", norm="batch"), 3_880_067)
        },
        box_losses=("box_loss",),
        proof="effdet: test_efficientdet.py",
    ),
    Row(
        name="fast_rcnn",
        module="fast_rcnn",
        tiny=lambda: A.FastRCNN(
            input_shape=SHAPE,
            classes=CLASSES,
            backbone=tiny_vgg("C4"),
            units=16,
            dropout_rate=0.0,
            num_samples=16,
            num_detections=8,
        ),
        counts={"FastRCNN": (A.FastRCNN, 134_690_729)},
        box_losses=("box_loss",),
        proof="torchvision's RoI heads, with RoIPool: test_detector_parity.py",
        proposals=True,
        slow=True,
    ),
    Row(
        name="faster_rcnn",
        module="faster_rcnn",
        tiny=lambda: tiny_two_stage(A.FasterRCNN),
        counts={
            "FasterRCNN": (lambda: A.FasterRCNN(classes=90, **FROZEN), 41_755_286),
            # ResNet-50's convolutions, a 3x3 of 1024, 15 anchors, and 81 classes with a box each on 2048 features.
            "FasterRCNN-C4": (
                lambda: A.FasterRCNN(neck="c4", **FROZEN),
                23_454_912 + 9_438_208 + 1025 * 75 + 2049 * 405,
            ),
        },
        box_losses=R_CNN_BOX_LOSSES,
        proof="torchvision fasterrcnn_resnet50_fpn: test_detector_parity.py",
        slow=True,
    ),
    Row(
        name="mask_rcnn",
        module="mask_rcnn",
        tiny=lambda: tiny_two_stage(A.MaskRCNN, num_mask_samples=4, mask_channels=16),
        counts={"MaskRCNN": (lambda: A.MaskRCNN(classes=90, **FROZEN), 44_401_393)},
        box_losses=(*R_CNN_BOX_LOSSES, "mask_loss"),
        proof="torchvision maskrcnn_resnet50_fpn: test_detector_parity.py",
        masks=True,
    ),
    Row(
        name="cascade_rcnn",
        module="cascade_rcnn",
        tiny=lambda: tiny_two_stage(A.CascadeRCNN),
        counts={"CascadeRCNN": (lambda: A.CascadeRCNN(**FROZEN), 69_341_646)},
        box_losses=CASCADE_BOX_LOSSES,
        proof="the parts of `faster_rcnn`, and a NumPy twin: test_cascade_rcnn.py",
        slow=True,
    ),
    Row(
        name="cascade_rcnn with masks",
        module="cascade_rcnn",
        tiny=lambda: tiny_two_stage(A.CascadeRCNN, norm="group", masks=True, num_mask_samples=4, mask_channels=16),
        counts={"CascadeRCNN-masks": (lambda: A.CascadeRCNN(masks=True, **FROZEN), 77_271_486)},
        box_losses=(*CASCADE_BOX_LOSSES, "mask_loss_1", "mask_loss_2", "mask_loss_3"),
        proof="the parts of `mask_rcnn`, and a NumPy twin: test_cascade_rcnn.py",
        masks=True,
        slow=True,
    ),
    Row(
        name="mnc",
        module="mnc",
        tiny=lambda: tiny_cascade(stages=3),
        counts={
            # The authors' VGG-16, with one number for the objectness of an anchor; of five stages also boxes.
            "MNC": (lambda: A.MNC(backbone_norm=None), MNC_PARAMETERS),
            "MNC-5": (lambda: A.MNC(backbone_norm=None, stages=5), MNC_PARAMETERS + 8193 * 4 * 21),
        },
        box_losses=("rpn_box_loss", "mask_loss"),
        proof="NumPy and torch twins: test_network_cascade.py, test_roi_warp.py",
        masks=True,
        slow=True,
    ),
    Row(
        name="mnc of five stages",
        module="mnc",
        tiny=lambda: tiny_cascade(stages=5),
        counts={"MNC-21": (lambda: A.MNC(backbone_norm=None, mask_size=21), MNC_PARAMETERS - 257 * (28**2 - 21**2))},
        box_losses=("rpn_box_loss", "mask_loss_1", "box_loss_1", "mask_loss_2", "box_loss_2"),
        proof="NumPy and torch twins: test_network_cascade.py, test_roi_warp.py",
        masks=True,
        slow=True,
    ),
    Row(
        name="yolo",
        module="yolo",
        tiny=lambda: A.YOLO(
            "tiny", input_shape=SHAPE, classes=CLASSES, grid_size=4, dropout_rate=0.0, num_detections=8
        ),
        counts={  # the layers: test_yolo.py
            "YOLO": (lambda: A.YOLO(backbone_norm=None, norm=None), 271_703_550),
            "YOLO-batch": (lambda: A.YOLO(backbone_norm="batch", norm="batch"), 271_716_734),
            "YOLO-fast": (lambda: A.YOLO("fast", backbone_norm=None, norm=None), 45_089_374),
            "YOLO-darknet": (lambda: A.YOLO("darknet", backbone_norm="batch", norm="batch"), 197_301_875),
        },
        box_losses=("box_loss", "object_loss", "classification_loss"),
        rate=1e-3,  # its losses are sums over all cells
        proof="NumPy twins of loss and decoding, and the layer table: test_yolo.py, test_grid_head.py",
    ),
    Row(
        name="detr",
        module="detr",
        tiny=lambda: A.DETR(
            "tiny",
            input_shape=SHAPE,
            classes=CLASSES,
            backbone=tiny_vgg("C4"),
            level="C4",
            num_queries=10,
            dropout_rate=0.0,
        ),
        counts={
            "DETRResNet50": (lambda: A.DETRResNet50(classes=91, **FROZEN), 41_524_768),
            "DETRResNet50DC5": (lambda: A.DETRResNet50DC5(classes=91, **FROZEN), 41_524_768),
            # The difference of the two ResNets, less the batch norms of 17 more bottlenecks.
            "DETRResNet101": (
                lambda: A.DETRResNet101(classes=91, **FROZEN),
                41_524_768 + 44_549_160 - 25_557_032 - 17 * 2 * (256 + 256 + 1024),
            ),
        },
        box_losses=("box_loss", "giou_loss"),
        proof="the authors' code: test_detr_parity.py",
        max_boxes=10,
        # Queries begin at zero: the values of their first attention are the bias, which begins at zero as well.
        unreachable=tuple(f"transformer.decoder.layers.0/attn/{kernel}/kernel" for kernel in ("qkv", "proj")),
        slow=True,
    ),
]
